"""Case ids are the identity of every baseline line: pinned literally."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_bench.cases import EVERY_FAMILY, PROFILES, SEEDED, Case, grid, own_profile, parse_id, profile, recipes_of
from pruning_bench.discover import discover
from pruning_bench.errors import PruningBenchError, UnknownNameError
from pruning_bench.registry import RUNTIMES

PINNED = {
    "resnet20-fashion_mnist/dense/eager": Case("resnet20", "fashion_mnist", "dense", "eager"),
    "resnet20-fashion_mnist/l1_filter:0.5+finetune:2+static:w8a8/onnxruntime": Case(
        "resnet20", "fashion_mnist", "l1_filter:0.5+finetune:2+static:w8a8", "onnxruntime"
    ),
    "image_classifier-fashion_mnist/magnitude:0.9,scope=layer/eager-cuda-t2-b64-s3": Case(
        "image_classifier", "fashion_mnist", "magnitude:0.9,scope=layer", "eager", "cuda", 2, 64, 3
    ),
    "torchvision:resnet50-random/dense/eager-t4": Case("torchvision:resnet50", "random", "dense", "eager", threads=4),
}

CASES = st.builds(
    Case,
    model=st.sampled_from(["resnet20", "image_classifier"]),
    dataset=st.sampled_from(["fashion_mnist", "cifar10"]),
    recipe=st.sampled_from(["dense", "magnitude:0.9", "l1_filter:0.5+static:w8a8", "repeat(2,magnitude:0.5)"]),
    runtime=st.sampled_from(["eager", "onnxruntime"]),
    device=st.sampled_from(["cpu", "cuda"]),
    threads=st.integers(1, 64),
    batch=st.integers(1, 512),
    seed=st.integers(0, 9),
)


@pytest.mark.parametrize("text", PINNED)
def test_ids_are_pinned(text: str) -> None:
    assert str(PINNED[text]) == text, f"the id of {PINNED[text]!r} changed: every baseline of it would be lost"
    assert parse_id(text) == PINNED[text], f"{text} no longer reads as {PINNED[text]!r}"


@given(CASES)
def test_an_id_reads_back(case: Case) -> None:
    assert parse_id(str(case)) == case, str(case)


@given(CASES, CASES)
def test_different_cases_have_different_ids(one: Case, other: Case) -> None:
    assert (str(one) == str(other)) == (one == other), f"{one!r} and {other!r}"


@pytest.mark.parametrize("text", ["", "resnet20", "resnet20-f/dense", "resnet20-f/dense/eager-x9", "a-b/c/d/e"])
def test_a_foreign_id_is_named(text: str) -> None:
    with pytest.raises(PruningBenchError, match="model-dataset/recipe/runtime") as caught:
        parse_id(text)
    assert repr(text) in str(caught.value), str(caught.value)


@pytest.mark.parametrize("end", ["-t1", "-b1", "-t1-b1", "-t1-s3", "-cuda-b1"])
def test_an_id_has_one_spelling(end: str) -> None:
    text = f"resnet20-fashion_mnist/dense/eager{end}"
    canonical = end.replace("-t1", "").replace("-b1", "")
    with pytest.raises(PruningBenchError, match=f"should be 'resnet20-fashion_mnist/dense/eager{canonical}'"):
        parse_id(text)


@pytest.mark.parametrize("end", ["-s0", "-t0", "-b0", "-t02", "-s٣", "-t-1", "-s3-t2"])
def test_no_id_has_such_an_end(end: str) -> None:
    with pytest.raises(PruningBenchError, match="model-dataset/recipe/runtime"):
        parse_id(f"resnet20-fashion_mnist/dense/eager{end}")


def test_an_unknown_profile_names_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="'smoke'"):
        profile("smok")


def test_the_smoke_grid_holds_every_family_on_every_runtime() -> None:
    discover()
    cases = grid(PROFILES["smoke"], [("resnet20", "fashion_mnist")])
    for runtime in ("eager", "onnxruntime"):
        recipes = {case.recipe for case in cases if case.runtime == runtime}
        expected = {"dense", "magnitude:0.9", "l1_filter:0.5", "static:w8a8", "l1_filter:0.5+finetune:2+static:w8a8"}
        assert recipes == expected, f"{runtime} has {sorted(recipes)}"


def test_recipes_that_train_get_more_seeds_only_where_the_profile_says_so() -> None:
    discover()
    pairs = [("resnet20", "fashion_mnist")]
    seeds = {case.seed for case in grid(PROFILES["ci"], pairs) if case.trains}
    assert seeds == set(range(5)), f"ci runs trained recipes with seeds {sorted(seeds)}"
    others = {case.seed for case in grid(PROFILES["ci"], pairs) if not case.trains}
    assert others == {0}, f"ci runs other recipes with seeds {sorted(others)}"
    assert {case.seed for case in grid(PROFILES["smoke"], pairs)} == {0}


@pytest.mark.parametrize("runtimes", [None, ["eager"]], ids=str)
@pytest.mark.parametrize("threads", [None, [2], [1, 4]], ids=str)
def test_one_runtime_has_the_further_seeds_at_every_thread_count(
    threads: list[int] | None, runtimes: list[str] | None
) -> None:
    discover()
    chosen = PROFILES["nightly"]
    groups: dict[Case, set[int]] = {}
    for case in grid(chosen, [("resnet20", "fashion_mnist")], threads=threads, runtimes=runtimes):
        if case.trains:
            groups.setdefault(replace(case, seed=0), set()).add(case.seed)
    assert {case.threads for case in groups} == set(threads or chosen.threads), f"{groups}"
    seeded = "eager" if runtimes else "onnxruntime"
    for case, seeds in groups.items():
        expected = set(range(chosen.seeds)) if case.runtime == seeded else {0}
        assert seeds == expected, f"{case} is run with seeds {sorted(seeds)}"


@pytest.mark.parametrize("name", ["ci", "nightly"])
def test_every_recipe_runtime_and_thread_count_is_run_and_not_all_of_their_product(name: str) -> None:
    discover()
    chosen, pair = PROFILES[name], [("resnet20", "fashion_mnist")]
    cases = [case for case in grid(chosen, pair) if case.seed == 0]
    assert {case.recipe for case in cases} == set(recipes_of(chosen)), "a recipe is missing"
    plain = {(case.recipe, case.runtime) for case in cases if case.threads == 1}
    often = [recipe for recipe in recipes_of(chosen) if recipe not in chosen.once]
    everywhere = {name for name in RUNTIMES if all((recipe, name) in plain for recipe in often)}
    once = {recipe: [case.runtime for case in cases if case.recipe == recipe] for recipe in chosen.once}
    assert all(found == [SEEDED] for found in once.values()), f"{once}"
    assert everywhere == {"eager", "onnxruntime"}, f"every recipe runs on {everywhere}"
    further = set(chosen.further or ())
    assert {"dense", "static:w8a8"} <= further
    for name in RUNTIMES:
        assert {case.recipe for case in cases if case.runtime == name and case.threads == 2} == further, name
    for name in ("compiled", "openvino"):
        assert {recipe for recipe, runtime in plain if runtime == name} == further, name


def test_what_the_user_asks_for_is_not_limited() -> None:
    discover()
    pairs = [("resnet20", "fashion_mnist")]
    found = {(case.runtime, case.threads) for case in grid(PROFILES["ci"], pairs, recipes=["magnitude:0.9"])}
    assert found == {(name, threads) for name in RUNTIMES for threads in (1, 2)}, f"a recipe asked for runs on {found}"
    chosen = {case.recipe for case in grid(PROFILES["ci"], pairs, runtimes=["openvino"]) if case.threads == 1}
    assert chosen == set(EVERY_FAMILY), f"a runtime asked for runs {chosen}"
    chosen = {case.recipe for case in grid(PROFILES["ci"], pairs, threads=[2]) if case.runtime == "eager"}
    assert chosen == set(EVERY_FAMILY), f"a thread count asked for runs {chosen}"
    own = grid(own_profile("ci", ["magnitude:0.7"]), pairs)
    assert {(case.runtime, case.threads) for case in own if case.recipe == "magnitude:0.7"} == found


def test_recipes_are_canonical_and_unique() -> None:
    discover()
    doubled = replace(PROFILES["smoke"], recipes=("magnitude:0.90", "magnitude:0.9,scope=global", "dense"))
    assert recipes_of(doubled) == ("magnitude:0.9", "dense")


def test_examples_kept_to_some_models_make_cases_of_those_alone_unless_asked_for() -> None:
    discover()
    pairs = [("resnet20", "fashion_mnist"), ("lenet5", "fashion_mnist")]  # batch norms, and none
    recipe = "slim:2+bn_scale:0.5,scope=layer"
    models = {case.model for case in grid(PROFILES["nightly"], pairs) if case.recipe == recipe}
    assert models == {"resnet20"}, f"{recipe} makes cases of {models}, should be of resnet20 alone"
    everywhere = {case.recipe for case in grid(PROFILES["nightly"], pairs[1:])}
    assert "l2_filter:0.5" in everywhere, f"{sorted(everywhere)}, should hold the other methods' examples"
    asked = {case.model for case in grid(PROFILES["nightly"], pairs, recipes=[recipe])}
    assert asked == {"resnet20", "lenet5"}, f"asked for, it makes cases of {asked}, should be of both"
