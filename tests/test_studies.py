"""The scripts in benchmarks/studies: what they keep, compare and print, on a tiny model and made-up numbers."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pruning_bench.conformance.training_checks import split_of, tiny_model
from pruning_bench.datasets.contract import Dataset
from pruning_bench.discover import discover
from pruning_bench.errors import PruningBenchError, RecordError
from pruning_bench.judging.statistics import Estimate, paired_mean
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.plans import choose_weight
from pruning_bench.reporting.insertion import with_section
from pruning_bench.sensitivity import sqnr
from pruning_bench.workbench import compress_with

ROOT = Path(__file__).parents[1]
with pytest.MonkeyPatch.context() as patch:  # as python does for a script
    patch.syspath_prepend(ROOT / "benchmarks" / "studies")
    names = ("lab", "study", "timing", "pruning", "quantization")
    lab, study, timing, pruning, quantization = map(importlib.import_module, names)
SCRIPTS = {"pruning": pruning, "quantization": quantization}
ALL = [f"{script} {name}" for script, module in SCRIPTS.items() for name in module.STUDIES]
RECIPES = (quantization.COMBINED, quantization.CHANNELS, pruning.MASKS)
KEY = {"recipe": "dense", "seed": 0}


class Unseen:
    """A test split that must not be looked at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test split was asked for {name}")


def made_up(train: int = 64) -> Dataset:
    discover()
    return Dataset("bright", ("above", "below"), split_of(train), split_of(48), Unseen(), "0", "made up")  # type: ignore[arg-type]


def tiny_lab(path: Path | None = None, **options: Any) -> Any:
    return lab.Lab(**{"data": made_up(), "keep": lab.Keep(path), "dense": lambda name: tiny_model(), **options})


def scored(right: list[bool], **options: Any) -> Any:
    return lab.Scored(**{"right": np.array(right), "macs": 4, "nonzeros": 2, "size": 24, "also": {}, **options})


# What is kept


def test_a_value_is_made_once_and_read_back(tmp_path: Path) -> None:
    path, asked = tmp_path / "new" / "kept.jsonl", []
    for _ in range(2):
        keep = lab.Keep(path)
        for _ in range(2):
            found = keep.once(KEY, lambda: asked.append(1) or {"top1": 0.5})
            assert found == {"top1": 0.5}, f"{found}"
    assert len(asked) == 1, f"made {len(asked)} times"
    assert json.loads(path.read_text()) == {"key": KEY, "value": {"top1": 0.5}}, path.read_text()


def test_the_order_of_a_key_is_no_part_of_it_and_its_values_are(tmp_path: Path) -> None:
    keep = lab.Keep(tmp_path / "kept.jsonl")
    keep.once({"recipe": "dense", "seed": 0}, lambda: {"top1": 0.5})
    assert keep.once({"seed": 0, "recipe": "dense"}, lambda: {"top1": 0.0}) == {"top1": 0.5}
    assert keep.once({"seed": 1, "recipe": "dense"}, lambda: {"top1": 0.0}) == {"top1": 0.0}


@pytest.mark.parametrize("part", ['{"key": {"seed": 1}, "va', '{"k'])
def test_a_line_that_was_not_finished_is_dropped(part: str, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    lab.Keep(path).once(KEY, lambda: {"top1": 0.5})
    path.write_text(path.read_text() + part)
    keep = lab.Keep(path)
    keep.once({"seed": 1}, lambda: {"top1": 0.25})
    assert [json.loads(line)["value"]["top1"] for line in path.read_text().splitlines()] == [0.5, 0.25]


@pytest.mark.parametrize("line", ["no JSON", '{"value": {}}', "[1]", "3", ""])
def test_a_file_of_something_else_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    lab.Keep(path).once(KEY, lambda: {"top1": 0.5})
    whole = path.read_text()
    for end in ("\n", "") if line else ("\n",):
        path.write_text(whole + line + end)
        with pytest.raises(RecordError, match=r"kept\.jsonl:2\]"):
            lab.Keep(path)
        assert path.read_text() == whole + line + end, "the file was changed"


def test_an_interrupted_study_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked, stop = tmp_path / "kept.jsonl", [], ["random:0.5"]

    def compress(dense: nn.Module, recipe: str, *rest: Any, **options: Any) -> Any:
        if recipe in stop:
            raise KeyboardInterrupt
        asked.append(recipe)
        return compress_with(dense, recipe, *rest, **options)

    monkeypatch.setattr(lab, "compress_with", compress)
    recipes = ("dense", "magnitude:0.5", "random:0.5")
    with pytest.raises(KeyboardInterrupt):
        [tiny_lab(path).score("tiny", recipe) for recipe in recipes]
    stop.clear()
    found = [tiny_lab(path).score("tiny", recipe) for recipe in recipes]
    assert asked == list(recipes), f"{asked} were made"
    assert [one.nonzeros for one in found] == sorted((one.nonzeros for one in found), reverse=True), f"{found}"


@pytest.mark.parametrize(
    "other",
    [
        {"code": "changed"},
        {"limit": 20},
        {"data": replace(made_up(), digest="1")},
        {"dense": lambda name: nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_changed_is_measured_anew(other: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    for options in ({}, {}, other):
        tiny_lab(path, **options).score("tiny", "dense")
    lines = path.read_text().splitlines()
    assert len(lines) == 2, f"{len(lines)} measurements with {other}"


def test_seeds_and_what_else_is_measured_are_told_apart(tmp_path: Path) -> None:
    here, first = tiny_lab(tmp_path / "kept.jsonl", data=made_up(600)), lambda made, inputs: {"images": len(inputs[0])}
    here.score("tiny", "random:0.5", 0)
    assert here.score("tiny", "random:0.5", 1).also == {}
    assert here.score("tiny", "random:0.5", 1, first).also == {"images": 88}
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 3


# What is measured


def test_top1_is_that_of_the_selection_images() -> None:
    here = tiny_lab(limit=30)
    found, (inputs,) = here.score("tiny", "magnitude:0.9"), here.data.selection.arguments(slice(0, 30))
    made = compress_with(tiny_model(), "magnitude:0.9", here.data).model
    expected = (made(inputs).argmax(1) == here.data.selection.labels[:30]).numpy()
    assert found.right.tolist() == expected.tolist(), f"{found.right}"
    assert found.top1 == expected.mean(), f"{found.top1}"


def test_images_that_did_not_calibrate(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def watch(count: int, dense: nn.Module, recipe: str, **options: Any) -> list[None]:
        seen.extend(batch for (batch,) in options["calibration"])
        return [None]

    monkeypatch.setattr("pruning_bench.workbench.last_stages", watch)
    here = tiny_lab(data=made_up(600))
    compress_with(tiny_model(), "gptq:w4", here.data, seed=3)
    used = {tuple(image.flatten().tolist()) for image in torch.cat(seen)}
    for seed, least in ((3, 0), (4, 1)):  # another seed draws others: the test can fail
        (unseen,) = here.unseen(seed)
        both = used & {tuple(image.flatten().tolist()) for image in unseen}
        assert (len(both) > 0) == least, f"{len(both)} of {len(unseen)} images calibrated"
    with pytest.raises(PruningBenchError, match="64 images, should be more than 512"):
        tiny_lab().unseen(0)


def test_sqnr_of_a_layer_is_that_of_its_output_behind_the_relu() -> None:
    """By hand: the model without batch norm, the second layer of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    (inputs,) = made_up().selection.arguments()
    found = quantization.layer_sqnr(compress_with(model, "rtn:w3", made_up()), (inputs,))
    assert list(found) == [f"{layer}, {kind} inputs" for layer in "135" for kind in ("float", "own")], f"{found}"
    layer, given = model[3], model[:3](inputs)
    weight = fake_quantize(layer.weight.detach(), choose_weight(layer.weight.detach(), 3, "per_channel"))
    exact, rounded = layer(given).detach(), nn.functional.linear(given, weight, layer.bias).detach()
    expected, before = sqnr(exact.relu(), rounded.relu()), sqnr(exact, rounded)
    alone = found["3, float inputs"]
    assert alone == pytest.approx(expected, abs=0.01), f"{alone} dB, should be {expected}"
    assert abs(before - expected) > 0.1, f"{before} dB without the ReLU too: the test shows nothing"


def test_written_values_are_what_a_layer_is_compared_with() -> None:
    data = made_up(600)
    nearest, learned = (
        quantization.layer_sqnr(compress_with(tiny_model(), recipe, data), tiny_lab(data=data).unseen(0))
        for recipe in ("rtn:w3", "gptq:w3")
    )
    names = {f"{layer}, {kind} inputs" for layer in ("0.0", "1.0", "4") for kind in ("float", "own")}
    assert nearest.keys() == learned.keys() == names, f"{nearest} {learned}"
    for kind in ("float", "own"):
        ours, theirs = (found[f"4, {kind} inputs"] for found in (learned, nearest))
        assert ours > theirs + 1, f"{learned} dB by GPTQ, {nearest} by rounding to nearest"


def test_inside_the_model_a_layer_is_given_what_rounded_ones_give() -> None:
    """By hand; the first layer's inputs are the model's, the second's are not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    (inputs,) = made_up().selection.arguments()
    found = quantization.layer_sqnr(compress_with(model, "rtn:w3", made_up()), (inputs,))
    assert found["1, own inputs"] == found["1, float inputs"], f"{found}"
    value = inputs.flatten(1)
    for layer in (model[1], model[3]):
        weight = fake_quantize(layer.weight.detach(), choose_weight(layer.weight.detach(), 3, "per_channel"))
        value = nn.functional.linear(value, weight, layer.bias.detach())
        value = value.relu() if layer is model[1] else value
    expected = sqnr(model(inputs).detach(), value)
    assert found["3, own inputs"] == pytest.approx(expected, abs=0.01), f"{found}, should be {expected}"
    assert abs(found["3, own inputs"] - found["3, float inputs"]) > 0.1, f"{found}: the test shows nothing"


def test_layers_are_counted_by_their_mean_over_the_seeds() -> None:
    def of(a: float, b: float, c: float, own: float) -> lab.Scored:
        found = {f"{name}, float inputs": value for name, value in (("a", a), ("b", b), ("c", c))}
        return scored([True], also={**found, "a, own inputs": own})

    ours, theirs = [of(9.0, 1.0, 5.0, 1.0), of(1.0, 2.0, 5.0, 1.0)], [of(4.0, 2.0, 5.0, 1.0)] * 2
    assert quantization.quieter(ours, theirs, quantization.FLOAT) == (1, 3), "a is quieter, b louder, c the same"
    assert quantization.quieter(ours, theirs, quantization.OWN) == (0, 1), "a is the same"


# How it is compared


def test_seeds_are_the_unit_of_what_trains() -> None:
    ours, theirs = [scored([True, True]), scored([True, False])], [scored([True, False]), scored([False, False])]
    assert lab.over_seeds(ours, theirs) == Estimate(0.5, 0.0, 1)
    assert lab.over_seeds(ours, theirs[::-1]) == paired_mean([1.0, 0.0]), "pairs are those of one seed"


def test_one_seed_shows_nothing() -> None:
    found = lab.over_seeds([scored([True])], [scored([False])])
    assert found.value == 1.0, f"{found}"
    assert lab.shown(found) == "not shown", f"{found}"
    assert study.points(found) == "+100.00 [-inf, +inf]", study.points(found)


def test_images_are_the_unit_of_what_does_not() -> None:
    a, b = [True, True, False, True], [False, True, False, False]
    assert lab.over_images([scored(a)], [scored(b)]) == paired_mean([1.0, 0.0, 0.0, 1.0])
    both = lab.over_images([scored(a), scored(b)], [scored(b), scored(b)])
    assert both == paired_mean([0.5, 0.0, 0.0, 0.5]), "the mean over the seeds counts for each image"


@pytest.mark.parametrize(
    ("value", "bar", "verdict"),
    [(0.03, 0.0, "yes"), (0.019, 0.0, "not shown"), (-0.03, 0.0, "no"), (0.03, 0.02, "not shown"), (0.03, 0.06, "no")],
)
def test_an_interval_is_above_a_bar_as_a_whole_or_not(value: float, bar: float, verdict: str) -> None:
    found = lab.shown(Estimate(value, 0.01), bar)  # -+ 0.0196
    assert found == verdict, f"{value} -+ 0.0196 above {bar}: {found}"


def test_changes_are_the_mean_and_the_worst() -> None:
    found = lab.changes([scored([True, False]), scored([False, False])], scored([True, True]))
    assert found == (-0.75, -1.0), f"{found}"


# The page


@pytest.mark.parametrize("name", ALL)
def test_the_page_has_a_section_for_every_study(name: str) -> None:
    with_section((ROOT / "docs" / "methods.md").read_text(encoding="utf-8"), "", name)


# The command


def fake(rows: Callable[[Any, str], Iterator[list[str]]]) -> dict[str, Any]:
    made = study.Study("More than 1 % of what?", ("model", "top-1"), rows, ("lenet5", "resnet20"), epochs=4, seeds=3)
    return {"half": made}


def one_row(here: Any, model: str) -> Iterator[list[str]]:
    yield [model, f"{here.epochs} {here.seeds} {here.finetune()} {here.limit}"]


def test_a_table_is_printed_and_put_into_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("head\n<!-- pruning-bench: begin a half -->\nold\n<!-- pruning-bench: end a half -->\ntail\n")
    words = ["half", "--epochs", "2", "--seeds", "2", "--tune", "lr=0.1", "--limit", "9", "--into", str(page)]
    assert study.run("a", "What.", fake(one_row), words) == 0
    printed = capsys.readouterr().out.strip()
    assert (
        page.read_text()
        == f"head\n<!-- pruning-bench: begin a half -->\n\n{printed}\n\n<!-- pruning-bench: end a half -->\ntail\n"
    )
    rows = [" ".join(line.split()) for line in printed.splitlines() if line.startswith("| ")]
    assert rows[1] == "| lenet5 | 2 (0, 1) finetune:2,lr=0.1 9 |", f"{rows}"
    assert len(rows) == 3, f"{rows}"
    again = "`python benchmarks/studies/a.py half --epochs 2 --seeds 2 --tune lr=0.1 --limit 9`: torch "
    assert again in printed, printed
    assert "seeds 0, 1; images: 9 of 5,000 for top-1, 5,000 to train and calibrate." in printed, printed


def test_models_that_are_named_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert study.run("a", "What.", fake(one_row), ["half", "resnet20", "--threads", "1"]) == 0
    assert "a.py half resnet20 --epochs 4 --seeds 3 --threads 1`" in capsys.readouterr().out


def never(here: Any, model: str) -> Iterator[list[str]]:
    raise AssertionError("measured before the mistake was found")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lenet5", "lenet6"], "no checkpoint lenet6-fashion_mnist"),
        (["--into", "nowhere.md"], "No such file or directory [nowhere.md]"),
        (["--into", "page.md"], "no such section"),
        (["--keep", "page.md"], "a line without key and value, should be JSON [page.md:1]"),
        (["--data", "."], "should be in the folder"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("page.md").write_text("# Title\n")
    assert study.run("a", "What.", fake(never), ["half", *words]) == study.BAD_INPUT
    line = capsys.readouterr().err
    assert said in line, line
    assert line.count("\n") == 1, line


@pytest.mark.parametrize("words", [["half", "--epochs", "0"], ["half", "--seeds", "x"], ["quarter"], []])
def test_arguments_are_checked(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        study.run("a", "What.", fake(never), words)
    assert "error: " in capsys.readouterr().err


def test_an_interruption_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    def stops(here: Any, model: str) -> Iterator[list[str]]:
        raise KeyboardInterrupt

    assert study.run("a", "What.", fake(stops), ["half", "--keep", "kept.jsonl"]) == study.INTERRUPTED
    assert capsys.readouterr().err == "a: interrupted; kept.jsonl is kept\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_study(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        study.run(script, SCRIPTS[script].__doc__, SCRIPTS[script].STUDIES, ["--help"])
    printed = capsys.readouterr().out
    for name in SCRIPTS[script].STUDIES:
        assert f"benchmarks/studies/{script}.py {name} " in printed, printed


# The studies


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("pruning half", 1),
        ("pruning masks", 3),
        ("pruning schedules", 3),
        ("pruning nm", 3),
        ("quantization w8a8", 1),
        ("quantization bits", 3),
        ("quantization qat", 1),
        ("quantization combined", 1),
    ],
)
def test_a_study_on_a_tiny_model(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "BITS", (4,))
    script, _, part = name.partition(" ")
    one = SCRIPTS[script].STUDIES[part]
    here = tiny_lab(data=made_up(600), epochs=3, seeds=(0,)) if part == "bits" else tiny_lab(epochs=3, seeds=(0, 1))
    rows = list(one.rows(here, "tiny"))
    assert len(rows) == count, f"{len(rows)} rows, should be {count}"
    assert {len(row) for row in rows} == {len(one.header)}, f"{rows} under {one.header}"
    assert rows[-1][-1] in ("yes", "no", "not shown"), f"{rows[-1]}"


def test_schedules_end_at_one_sparsity_after_as_many_epochs() -> None:
    found = pruning.schedules_of(0.95, tiny_lab(epochs=10, tune="lr=0.1"))
    assert found == (
        "magnitude:0.95+finetune:10,lr=0.1",
        "repeat(5,magnitude:0.4507+finetune:1,lr=0.1)+finetune:5,lr=0.1",
        "agp:0.95,epochs=10,lr=0.1",
    )
    assert abs((1 - 0.4507) ** 5 - 0.05) < 1e-4
    with pytest.raises(PruningBenchError, match="--epochs 2, should be at least 3"):
        pruning.schedules_of(0.95, tiny_lab(epochs=2))


@pytest.mark.parametrize(
    ("mean", "size", "verdict"), [(0.0, 2, "yes"), (0.25, 2, "no"), (0.0, 3, "no")], ids=["both", "top-1", "size"]
)
def test_combined_holds_where_top1_and_size_do(mean: float, size: int, verdict: str) -> None:
    right = [True, True, True, mean == 0]

    class Stub:
        finetune = staticmethod(lambda: "finetune:1")
        score = staticmethod(lambda model, recipe: scored([True] * 4))
        scores = staticmethod(lambda model, recipe: [scored(right, size=2), scored(right, size=size)])

    (row,) = quantization.combined(Stub, "tiny")
    assert row[-1] == verdict, f"{row}"


@pytest.mark.parametrize(
    ("alone", "inside", "cells"),
    [
        (3.0, 3.0, ["2 of 2", "2 of 2", "yes"]),
        (3.0, 1.0, ["2 of 2", "1 of 2", "no"]),
        (1.0, 3.0, ["1 of 2", "2 of 2", "no"]),
        (2.0, 2.0, ["1 of 2", "1 of 2", "no"]),
    ],
)
def test_bits_hold_where_every_layer_is_quieter_alone_and_inside(
    alone: float, inside: float, cells: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(model: str, recipe: str, also: Any = None) -> list[Any]:
        first, second = (2.0, 2.0) if recipe.startswith("rtn") else (alone, inside)
        other = 2.0 if recipe.startswith("rtn") else 9.0
        layers = {"a, float inputs": first, "a, own inputs": second}
        return [scored([True, False], also={**layers, "b, float inputs": other, "b, own inputs": other})]

    class Stub:
        score = staticmethod(lambda model, recipe: scored([True, False]))
        scores = staticmethod(made)

    monkeypatch.setattr(quantization, "BITS", (4,))
    for row in list(quantization.bits(Stub, "tiny"))[1:]:
        assert row[-3:] == cells, f"{row}"


def test_no_layer_at_all_is_no_proof() -> None:
    with pytest.raises(AssertionError, match="no layer with own inputs"):
        quantization.quieter([scored([True])], [scored([True])], quantization.OWN)


def test_what_else_is_measured_is_kept_by_the_source_that_measures_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tiny_lab(tmp_path / "kept.jsonl", data=made_up(600))
    for digest, count in (("one", 1), ("one", 1), ("two", 2)):
        monkeypatch.setattr(lab, "_digest", lambda function, digest=digest: digest)
        here.score("tiny", "rtn:w4", also=quantization.layer_sqnr)
        lines = (tmp_path / "kept.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == count, f"{len(lines)} values kept, should be {count}"


def timed_as(seconds: dict[str, float]) -> Any:
    return timing.Times({name: [time] * 60 for name, time in seconds.items()}, dict.fromkeys(seconds, 0.25))


def test_speed_is_the_time_of_dense_over_that_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    found = timed_as({"dense": 3.0, pruning.CHANNELS: 1.0, pruning.MASKS: 3.0, pruning.TWIN: 3.0})
    monkeypatch.setattr(pruning, "times", lambda *_: found)
    rows = list(pruning.speed(tiny_lab(), "tiny"))
    assert [row[3:] for row in rows] == [
        ["3.00 [3.00, 3.00]", "yes"],
        ["1.00 [1.00, 1.00]", "no"],
        ["1.00 [1.00, 1.00]", "-"],
    ]


def test_an_interval_without_an_end_is_written_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.Times, "ratio", lambda *_: Estimate(math.log(2), math.inf))
    assert timed_as({}).speed_up("a") == "2.00 [0.00, inf]"


def test_a_speed_for_each_runtime_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"onnxruntime": 1.0, "compiled": 2.0}
    monkeypatch.setattr(quantization, "runtimes", lambda: list(seconds))

    def times(_: Any, model: str, runtime: str, recipes: tuple[str, ...]) -> Any:
        return timed_as({"dense": 4.0, timing.TWIN: 4.0, **dict.fromkeys(recipes, seconds[runtime])})

    monkeypatch.setattr(quantization, "times", times)
    rows = [row[1:4] for row in quantization.speed(tiny_lab(), "tiny")]
    assert rows == [["onnxruntime", *["4.00 [4.00, 4.00]"] * 2], ["compiled", *["2.00 [2.00, 2.00]"] * 2]]


def test_what_only_simulates_integers_has_no_speed() -> None:
    discover()
    assert "onnxruntime" in quantization.runtimes()
    assert "eager" not in quantization.runtimes()


@pytest.mark.slow
def test_every_recipe_is_timed_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAIRS", 2)
    found = timing.times(tiny_lab(dense=timing.with_weights), "lenet5", "onnxruntime", RECIPES)
    counts = {name: len(taken) for name, taken in found.seconds.items()}
    assert counts == dict.fromkeys(("dense", *RECIPES, timing.TWIN), 2), f"{counts}"
    macs = found.macs
    assert macs[quantization.COMBINED] == macs[quantization.CHANNELS] < 0.5 < macs[pruning.MASKS] == 1, f"{macs}"
