"""Every check rejects the mutants named after what they do wrong."""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from pruning_bench.conformance import plan_checks, pruning_checks, quantization_checks
from pruning_bench.conformance.runner import (
    CheckCrashedError,
    check_method,
    checks_for,
    label,
    parametrize_with_checks,
)
from pruning_bench.conformance.strategies import GraphSpec, Subject, small_subjects
from pruning_bench.contracts import Context
from pruning_bench.errors import ModelError, PluginError
from pruning_bench.pruning.contract import ChannelPlan, MaskPlan, PruningTags
from pruning_bench.pruning.couplings import find_couplings
from pruning_bench.pruning.masks import keep_largest, keep_pruned, prunable, select_global
from pruning_bench.pruning.methods.bn_scale import BnScale
from pruning_bench.pruning.methods.l1_filter import L1Filter
from pruning_bench.pruning.methods.magnitude import Magnitude
from pruning_bench.pruning.methods.random import Random
from pruning_bench.quantization.methods.static import Static
from pruning_bench.registry import STEPS
from pruning_bench.training.contract import StepTags

pytest_plugins = ["pytester"]
ELEMENT, CHANNEL = PruningTags(structure="element"), PruningTags(structure="channel")
Planner = Callable[[nn.Module, float, Context], Any]


@dataclass(frozen=True)
class Mutant:
    """A method whose `plan` is a function."""

    planner: Planner
    tags: Any = ELEMENT
    name: str = "mutant"

    def plan(self, model: nn.Module, level: float, context: Context) -> Any:
        return self.planner(model, level, context)


def good(model: nn.Module, level: float, context: Context) -> MaskPlan:
    return Magnitude().plan(model, level, context)


def changed(plan: MaskPlan, name: str | None = None) -> MaskPlan:
    """One more weight removed."""
    name = name or next(reversed(plan.masks))
    mask = plan.masks[name].clone()
    if mask.any():
        mask.view(-1)[mask.view(-1).nonzero()[0]] = False
    return MaskPlan({**plan.masks, name: mask})


def prunes_one_more(model: nn.Module, level: float, context: Context) -> MaskPlan:
    return changed(good(model, level, context))


def keeps_ties(model: nn.Module, level: float, context: Context) -> MaskPlan:
    scores = {name: weight.detach().abs() for name, weight in prunable(model, context.example_inputs).items()}
    flat = torch.cat([score.reshape(-1) for score in scores.values()]).sort().values
    threshold = flat[int(level * len(flat))]
    return MaskPlan({name: score >= threshold for name, score in scores.items()})


def miscounts_channels(model: nn.Module, level: float, context: Context) -> ChannelPlan:
    plan = L1Filter().plan(model, level, context)
    return dataclasses.replace(plan, removed={name: (gone + 1, size) for name, (gone, size) in plan.removed.items()})


def removes_more_channels(model: nn.Module, level: float, context: Context) -> ChannelPlan:
    return L1Filter().plan(model, min(level + 0.2, 0.7), context)


def leaves_one_where_none_is_asked_for(model: nn.Module, level: float, context: Context) -> ChannelPlan:
    return L1Filter().plan(model, min(level, 0.7), context)


def draws_anew_for_each_level(model: nn.Module, level: float, context: Context) -> MaskPlan:
    generator = torch.Generator().manual_seed(int(1000 * level))
    scores = {n: torch.rand(w.shape, generator=generator) for n, w in prunable(model, context.example_inputs).items()}
    return MaskPlan(select_global(scores, level))


def prunes_the_output_layer(model: nn.Module, level: float, context: Context) -> MaskPlan:
    weights = prunable(model, context.example_inputs, output_layer=True)
    return MaskPlan(select_global({name: weight.detach().abs() for name, weight in weights.items()}, level))


def prunes_biases(model: nn.Module, level: float, context: Context) -> MaskPlan:
    return MaskPlan({n: keep_largest(p.detach().abs(), level) for n, p in model.named_parameters() if "bias" in n})


def leaves_a_layer_out(model: nn.Module, level: float, context: Context) -> MaskPlan:
    masks = dict(good(model, level, context).masks)
    masks.popitem()
    return MaskPlan(masks)


def cuts_the_output(model: nn.Module, level: float, context: Context) -> ChannelPlan:
    plan = L1Filter().plan(model, level, context)
    index = torch.tensor([0, 1])
    dims = {**plan.kept.get("classifier.weight", {}), 0: index}
    return dataclasses.replace(plan, kept={**plan.kept, "classifier.weight": dims, "classifier.bias": {0: index}})


def uses_the_global_generator(model: nn.Module, level: float, context: Context) -> MaskPlan:
    scores = {name: torch.rand(w.shape) for name, w in prunable(model, context.example_inputs).items()}
    return MaskPlan(select_global(scores, level))


def random_but_ignores_the_seed(model: nn.Module, level: float, context: Context) -> MaskPlan:
    fixed = dataclasses.replace(context, generator=torch.Generator().manual_seed(3))
    return Random().plan(model, level, fixed)


def random_without_saying_so(model: nn.Module, level: float, context: Context) -> MaskPlan:
    return Random().plan(model, level, context)


def masks_in_place(model: nn.Module, level: float, context: Context) -> MaskPlan:
    plan = good(model, level, context)
    with torch.no_grad():
        for name, mask in plan.masks.items():
            model.get_parameter(name).mul_(mask)
    return plan


def leaves_eval_mode(model: nn.Module, level: float, context: Context) -> MaskPlan:
    model.eval()
    return good(model, level, context)


def leaves_a_hook(model: nn.Module, level: float, context: Context) -> MaskPlan:
    model.register_forward_hook(lambda *_: None)
    return good(model, level, context)


def writes_by_numpy(model: nn.Module, level: float, context: Context) -> MaskPlan:
    plan = good(model, level, context)
    noise = {name: float(np.random.default_rng().normal()) for name in plan.masks}
    return MaskPlan(plan.masks, {name: model.get_parameter(name).detach() + noise[name] for name in plan.masks})


def says_it_otherwise_each_time(model: nn.Module, level: float, context: Context) -> ChannelPlan:
    plan = L1Filter().plan(model, level, context)
    return dataclasses.replace(plan, untouched={"layer": f"left at {torch.rand(())}"})


def zeroes_biases(model: nn.Module, level: float, context: Context) -> MaskPlan:
    biases = {name: torch.zeros_like(bias) for name, bias in model.named_parameters() if "bias" in name}
    return MaskPlan(good(model, level, context).masks, biases if level else {})


def writes_where_nothing_is_cut(model: nn.Module, level: float, context: Context) -> ChannelPlan:
    return ChannelPlan({}, writes={"classifier.bias": torch.zeros_like(model.get_parameter("classifier.bias"))})


def writes_no_numbers(model: nn.Module, level: float, context: Context) -> MaskPlan:
    masks = good(model, level, context).masks
    return MaskPlan(masks, {name: torch.full(mask.shape, torch.nan) for name, mask in masks.items()})


def holds_the_models_weights(model: nn.Module, level: float, context: Context) -> MaskPlan:
    masks = good(model, level, context).masks
    return MaskPlan(masks, {name: model.get_parameter(name).detach()[:] for name in masks})


def forgets_earlier_masks(model: nn.Module, level: float, context: Context) -> MaskPlan:
    return good(model, level, dataclasses.replace(context, earlier={}))


def takes_its_share_of_all(model: nn.Module, level: float, context: Context) -> MaskPlan:
    masks = context.earlier or {"none": torch.ones(1)}
    left = sum(float(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    return good(model, min(level / left, 0.99) if level >= 0 else level, context)


def leaves_gradients(model: nn.Module, level: float, context: Context) -> MaskPlan:
    state = copy.deepcopy(model.state_dict())
    model(*context.example_inputs).sum().backward()
    model.load_state_dict(state)
    return good(model, level, context)


def prunes_at_level_zero(model: nn.Module, level: float, context: Context) -> MaskPlan:
    plan = good(model, level, context)
    return changed(plan) if level == 0 else plan


def rewrites_at_level_zero(model: nn.Module, level: float, context: Context) -> MaskPlan:
    plan = good(model, level, context)
    return MaskPlan(plan.masks, {name: model.get_parameter(name).detach() * 1.01 for name in plan.masks})


def takes_any_level(model: nn.Module, level: float, context: Context) -> MaskPlan:
    return good(model, min(max(level, 0.0), 0.9) if level == level else 0.0, context)


def raises_something_else(model: nn.Module, level: float, context: Context) -> MaskPlan:
    if not 0 <= level < 1:
        raise ValueError(level)
    return good(model, level, context)


def takes_nan_for_zero(model: nn.Module, level: float, context: Context) -> MaskPlan:
    sane = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in sane.parameters():
            parameter.nan_to_num_(0, 0, 0)
    return good(sane, level, context)


def does_not_name_the_tensor(model: nn.Module, level: float, context: Context) -> MaskPlan:
    try:
        return good(model, level, context)
    except ModelError:
        raise ModelError("mutant", "bad weights", "good ones") from None


def gives_an_empty_plan(model: nn.Module, level: float, context: Context) -> MaskPlan:
    try:
        return good(model, level, context)
    except ModelError:
        return MaskPlan({})


def pairs_wrong_channels(model: nn.Module, level: float, context: Context) -> ChannelPlan:
    plan = L1Filter().plan(model, level, context)
    index, size = plan.kept["classifier.weight"][1], model.get_parameter("classifier.weight").shape[1]
    shifted = ((index + 1) % size).sort().values
    return dataclasses.replace(plan, kept={**plan.kept, "classifier.weight": {1: shifted}})


RANDOM = PruningTags(structure="element", random=True)
METHOD_MUTANTS: list[tuple[str, Planner, PruningTags]] = [
    ("counts", prunes_one_more, ELEMENT),
    ("counts", keeps_ties, ELEMENT),
    ("counts", miscounts_channels, CHANNEL),
    ("counts", removes_more_channels, CHANNEL),
    ("nested", draws_anew_for_each_level, ELEMENT),
    ("covers_only_prunable", prunes_the_output_layer, ELEMENT),
    ("covers_only_prunable", prunes_biases, ELEMENT),
    ("covers_only_prunable", leaves_a_layer_out, ELEMENT),
    ("covers_only_prunable", cuts_the_output, CHANNEL),
    ("covers_only_prunable", zeroes_biases, ELEMENT),
    ("covers_only_prunable", writes_where_nothing_is_cut, CHANNEL),
    ("covers_only_prunable", writes_no_numbers, ELEMENT),
    ("compounds", forgets_earlier_masks, ELEMENT),
    ("compounds", takes_its_share_of_all, ELEMENT),
    ("deterministic", uses_the_global_generator, RANDOM),
    ("deterministic", writes_by_numpy, ELEMENT),
    ("deterministic", says_it_otherwise_each_time, CHANNEL),
    ("deterministic", random_but_ignores_the_seed, RANDOM),
    ("deterministic", random_without_saying_so, ELEMENT),
    ("leaves_no_trace", masks_in_place, ELEMENT),
    ("leaves_no_trace", leaves_eval_mode, ELEMENT),
    ("leaves_no_trace", leaves_a_hook, ELEMENT),
    ("leaves_no_trace", leaves_gradients, ELEMENT),
    ("leaves_no_trace", holds_the_models_weights, ELEMENT),
    ("level_zero_is_identity", prunes_at_level_zero, ELEMENT),
    ("level_zero_is_identity", rewrites_at_level_zero, ELEMENT),
    ("bad_levels", takes_any_level, ELEMENT),
    ("nan_weights", takes_nan_for_zero, ELEMENT),
    ("nan_weights", does_not_name_the_tensor, ELEMENT),
    ("nothing_prunable", gives_an_empty_plan, ELEMENT),
    ("twin", pairs_wrong_channels, CHANNEL),
    ("emptying_levels", leaves_one_where_none_is_asked_for, CHANNEL),
]


@pytest.mark.parametrize(("said", "done"), [("layer", "global"), ("global", "layer")])
def test_counts_are_those_of_the_scope_that_the_method_says(said: Any, done: Any) -> None:
    @dataclass(frozen=True)
    class Scoped(Mutant):
        scope: str = said

    liar = Scoped(lambda model, level, context: Magnitude(scope=done).plan(model, level, context))
    with pytest.raises(AssertionError, match="should be"):
        dict(checks_for(liar))["counts"](liar)


@pytest.mark.parametrize("done", [1, 2])
def test_counts_of_blocks_reject_torn_ones(done: int) -> None:
    @dataclass(frozen=True)
    class Blocks(Mutant):
        block: int = 3

    liar = Blocks(lambda model, level, context: Magnitude(block=done).plan(model, level, context))
    with pytest.raises(AssertionError, match="are torn"):
        dict(checks_for(liar))["counts"](liar)


@pytest.mark.parametrize(
    ("check", "planner", "tags"), METHOD_MUTANTS, ids=[f"{check}-{plan.__name__}" for check, plan, _ in METHOD_MUTANTS]
)
def test_the_check_rejects(check: str, planner: Planner, tags: PruningTags) -> None:
    mutant = Mutant(planner, tags)
    with pytest.raises(AssertionError) as raised:
        dict(checks_for(mutant))[check](mutant)
    assert str(raised.value), f"{check} fails without a message"


def test_an_error_of_another_type_fails_the_check_of_levels_by_name() -> None:
    mutant = Mutant(raises_something_else)
    with pytest.raises(CheckCrashedError, match=r"^mutant.*: ValueError: 1\.0 in bad_levels, should be a check that"):
        dict(checks_for(mutant))["bad_levels"](mutant)


def pairs_wrong_channels_behind_groups(model: nn.Module, level: float, context: Context) -> ChannelPlan:
    grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in model.modules())
    return (pairs_wrong_channels if grouped else L1Filter().plan)(model, level, context)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets random graphs have no other block than the one named."""

    def narrow(block: str) -> None:
        spec = GraphSpec(((block, 4),), head="average")
        monkeypatch.setattr(pruning_checks, "graph_specs", lambda most_blocks: st.just(spec))

    return narrow


def test_random_graphs_reject_what_small_models_do_not_show(only: Callable[[str], None]) -> None:
    mutant = Mutant(pairs_wrong_channels_behind_groups, CHANNEL)
    dict(checks_for(mutant))["twin"](mutant)
    only("grouped")
    with pytest.raises(AssertionError, match=r"fails random_graphs: mutant:0.* on GraphSpec.*outputs differ"):
        dict(checks_for(mutant, graphs=1))["random_graphs"](mutant)


@pytest.mark.parametrize("block", ["grouped", "attention"])
def test_a_right_method_passes_random_graphs(block: str, only: Callable[[str], None]) -> None:
    only(block)
    for method in (L1Filter(), Magnitude()):
        dict(checks_for(method, graphs=1))["random_graphs"](method)


def test_couplings_that_no_batch_norm_scales_do_not_count() -> None:
    subject = GraphSpec((("conv", 4),), head="hidden").build()
    pruning_checks.check_counts(BnScale(), subject, 0.5)

    def spares_all(model: nn.Module, level: float, context: Context) -> ChannelPlan:
        return ChannelPlan({}, untouched=dict.fromkeys(find_couplings(model, context.example_inputs).groups, "spared"))

    lazy = Mutant(spares_all, PruningTags(structure="channel", needs_batch_norm=True))
    with pytest.raises(AssertionError, match="leaves every coupling untouched"):
        pruning_checks.check_counts(lazy, subject, 0.5)
    with pytest.raises(AssertionError, match="should be"):  # the mutant: one that may not leave any out
        pruning_checks.check_counts(Mutant(BnScale().plan, CHANNEL), subject, 0.5)


def test_random_graphs_reject_masks_that_miscount(only: Callable[[str], None]) -> None:
    only("attention")
    mutant = Mutant(prunes_one_more)
    with pytest.raises(AssertionError, match=r"fails random_graphs: mutant:0.* removes"):
        dict(checks_for(mutant, graphs=1))["random_graphs"](mutant)


def refuses_above(most: int) -> Planner:
    """L1 of networks whose last layer reads at most so many features, a refusal of all others."""

    def plan(model: nn.Module, level: float, context: Context) -> ChannelPlan:
        if model.get_parameter("classifier.weight").shape[1] > most:
            raise ModelError("mutant", "a model", "another one")
        return L1Filter().plan(model, level, context)

    return plan


def test_random_graphs_that_a_method_mostly_refuses_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = st.builds(GraphSpec, st.tuples(st.tuples(st.just("gate"), st.integers(2, 9))))
    monkeypatch.setattr(pruning_checks, "graph_specs", lambda most_blocks: specs)
    mutant = Mutant(refuses_above(0), CHANNEL)
    message = r"mutant refuses more than 2 random graphs: mutant: a model, should be another one \[mutant:0"
    with pytest.raises(AssertionError, match=message):
        dict(checks_for(mutant, graphs=1))["random_graphs"](mutant)
    picky = Mutant(refuses_above(12), CHANNEL)  # of two or three channels: a quarter of the graphs
    with pytest.raises(AssertionError, match="mutant refuses more than 2 random graphs"):
        dict(checks_for(picky, graphs=4))["random_graphs"](picky)


def test_every_check_has_a_mutant() -> None:
    elsewhere = {  # rejected by the tests named
        "random_graphs": test_random_graphs_reject_what_small_models_do_not_show,
        "state_dict_loads": test_the_check_of_loading_rejects,
        "deepcopy": test_the_check_of_copies_rejects,
        **{f"pruned_stay_zero_{name}": test_the_check_of_zeros_in_training_rejects for name in plan_checks.OPTIMIZERS},
    }
    methods = (Magnitude(), L1Filter())
    asked = {name for method in methods for name, _ in checks_for(method, graphs=1)}
    covered = {check for check, _, _ in METHOD_MUTANTS} | set(elsewhere)
    assert asked == covered, f"checks without a mutant, or mutants without a check: {sorted(asked ^ covered)}"


@pytest.mark.parametrize(
    "thing", [3, "magnitude", object(), nn.Linear(1, 1)], ids=["number", "text", "object", "layer"]
)
def test_what_is_no_method_is_refused_in_one_line(thing: Any) -> None:
    with pytest.raises(PluginError, match=r"^check_method: tags of type NoneType, should be a pruning or quant"):
        check_method(thing)


@dataclass(frozen=True)
class Crashing:
    """Its plan does not run; its tags excuse a failure."""

    name: ClassVar[str] = "crashing"
    tags: ClassVar[PruningTags] = PruningTags(structure="element", expected_failures={"counts": "it counts otherwise"})

    def plan(self, model: nn.Module, level: float, context: Context) -> MaskPlan:
        raise TypeError("a slip of the pen")


def test_a_crash_is_no_expected_failure() -> None:
    with pytest.raises(CheckCrashedError, match=r"^crashing: TypeError: a slip of the pen in counts, should be"):
        check_method(Crashing)
    assert not issubclass(CheckCrashedError, AssertionError), "a strict xfail would take it for the failure"


def test_a_class_is_as_good_as_a_method() -> None:
    assert [name for name, _ in checks_for(Magnitude)] == [name for name, _ in checks_for(Magnitude())]


USERS_CONFTEST = """
from dataclasses import dataclass
from typing import ClassVar
from pruning_bench import pruning_method, quantization_method
from pruning_bench.pruning.contract import MaskPlan, PruningTags
from pruning_bench.pruning.masks import keep_largest, prunable
from pruning_bench.quantization.contract import QuantPlan, QuantizationTags

@pruning_method
@dataclass(frozen=True)
class Users:
    spare: bool = False
    name: ClassVar[str] = "users_magnitude"
    tags: ClassVar[PruningTags] = PruningTags(
        structure="element", expected_failures={"nested": "holds all the same", "bad_levels": "takes any level"}
    )

    def plan(self, model, level, context):
        level = min(max(level, 0), 0.999) if level == level else 0.0
        scores = {name: weight.detach().abs() for name, weight in prunable(model, context.example_inputs).items()}
        masks = {name: keep_largest(score, level) for name, score in scores.items()}
        if self.spare:
            masks = {name: mask.fill_(True) for name, mask in masks.items()}
        return MaskPlan(masks)

@quantization_method
@dataclass(frozen=True)
class Nothing:
    name: ClassVar[str] = "users_nothing"
    tags: ClassVar[QuantizationTags] = QuantizationTags(weights=True, activations=False)

    def plan(self, model, level, context):
        return QuantPlan({})
"""
USERS_TEST = """
from conftest import Nothing, Users
from pruning_bench import parametrize_with_checks

@parametrize_with_checks([Users, Users(spare=True), Nothing])
def test_mine(method, check):
    check(method)
"""


def test_users_get_one_test_a_check_with_readable_names(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STEPS, "_items", dict(STEPS._items))
    small_model, level, context = quantization_checks.example(Static())  # what torch imports late it must not forget
    Static().plan(small_model, level, context)
    pytester.makeconftest(USERS_CONFTEST)
    pytester.makepyfile(USERS_TEST)
    wanted = "counts or nested or bad_levels or layers_covered"
    result = pytester.runpytest_inprocess("-k", wanted, "-p", "no:cacheprovider", "-rA")
    for line in (
        "PASSED *test_mine?users_magnitude/counts?",
        "XFAIL *test_mine?users_magnitude/bad_levels? - takes any level",
        "?XPASS(strict)? holds all the same",
        "FAILED *test_mine?users_magnitude/nested?*",
        "*AssertionError: users_magnitude,spare=True fails counts: users_magnitude:0.29 on *",
        "FAILED *test_mine?users_magnitude,spare=True/counts?*",
        "*AssertionError: users_nothing fails layers_covered: users_nothing: no weight affine for *",
        "FAILED *test_mine?users_nothing/layers_covered?*",
    ):
        assert any(fnmatch(found, line) for found in result.outlines), f"no line {line!r} in\n{result.stdout}"


def plain() -> tuple[Subject, MaskPlan]:
    subject = small_subjects()[0]
    return subject, Magnitude().plan(subject.model, 0.5, subject.context())


class Once:
    """Applies the masks now and never again."""

    def __init__(self, model: nn.Module, plans: list[MaskPlan], optimizer: torch.optim.Optimizer) -> None:
        keep_pruned(model, plans, optimizer).remove()

    def __enter__(self) -> "Once":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class GradientHooks(Once):
    """Zeroes the gradients of pruned weights: old momentum revives them all the same."""

    def __init__(self, model: nn.Module, plans: list[MaskPlan], optimizer: torch.optim.Optimizer) -> None:
        super().__init__(model, plans, optimizer)
        for name, mask in plans[0].masks.items():
            model.get_parameter(name).register_hook(lambda gradient, mask=mask: gradient * mask)


class Reparametrized(Once):
    """Holds the masks by torch's own pruning, which renames the parameters."""

    def __init__(self, model: nn.Module, plans: list[MaskPlan], optimizer: torch.optim.Optimizer) -> None:
        super().__init__(model, plans, optimizer)
        self.inner = keep_pruned(model, plans, optimizer)
        model.register_buffer("mask", next(iter(plans[0].masks.values())))


class Frozen(Once):
    """Holds all weights, not only the pruned ones."""

    def __init__(self, model: nn.Module, plans: list[MaskPlan], optimizer: torch.optim.Optimizer) -> None:
        super().__init__(model, plans, optimizer)
        state = copy.deepcopy(model.state_dict())
        optimizer.register_step_post_hook(lambda *_: model.load_state_dict(state) and None)


@pytest.mark.parametrize("keep", [Once, GradientHooks, Reparametrized, Frozen])
@pytest.mark.parametrize("optimizer", plan_checks.OPTIMIZERS)
def test_the_check_of_zeros_in_training_rejects(optimizer: str, keep: type) -> None:
    subject, plan = plain()
    with pytest.raises(AssertionError, match=r"alive|state_dict holds|moved no kept weight"):
        plan_checks.check_pruned_stay_zero(plan, subject, optimizer, keep)


def by_torch(model: nn.Module, plan: MaskPlan) -> nn.Module:
    """torch.nn.utils.prune: renamed parameters, a computed weight in the way of deepcopy."""
    pruned = copy.deepcopy(model)
    for name, mask in plan.masks.items():
        torch_prune.custom_from_mask(pruned.get_submodule(name.rpartition(".")[0]), "weight", mask)
    return pruned


class Forgetful(nn.Module):
    """Its copies compute something else than it does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.scale = model, 1.0

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs) * self.scale

    def __deepcopy__(self, memo: dict[int, Any]) -> "Forgetful":
        twin = Forgetful(copy.deepcopy(self.model, memo))
        twin.scale = 2.0
        return twin


def forgetful(model: nn.Module, plan: Any) -> nn.Module:
    return Forgetful(plan_checks.apply_plan(model, plan))


def with_a_value_outside_its_state(model: nn.Module, plan: Any) -> nn.Module:
    finished = plan_checks.apply_plan(model, plan)
    finished.register_forward_hook(lambda module, inputs, output: output * 1.5)
    return finished


@pytest.mark.parametrize("apply", [by_torch, with_a_value_outside_its_state])
def test_the_check_of_loading_rejects(apply: Any) -> None:
    subject, plan = plain()
    with pytest.raises(AssertionError, match=r"state_dict holds|loaded from its state_dict"):
        plan_checks.check_state_dict_loads(plan, subject, apply)


@pytest.mark.parametrize("apply", [by_torch, forgetful])
def test_the_check_of_copies_rejects(apply: Any) -> None:
    subject, plan = plain()
    with pytest.raises(AssertionError, match=r"cannot be copied|copied before a forward"):
        plan_checks.check_deepcopy(plan, subject, apply)


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outer(self.inner(inputs) * 0)


def test_the_twin_check_rejects_a_model_whose_output_hears_no_input() -> None:
    index = torch.tensor([0, 1])
    plan = ChannelPlan({"inner.weight": {0: index}, "inner.bias": {0: index}, "outer.weight": {1: index}})
    with pytest.raises(AssertionError, match="equality would prove nothing"):
        plan_checks.check_twin(Constant(), plan, (torch.randn(3, 3, generator=torch.Generator().manual_seed(0)),))


def test_the_checks_follow_the_tags() -> None:
    names = {name for name, _ in checks_for(Magnitude())}
    assert {"pruned_stay_zero_adam", "nested"} <= names, f"checks of a mask method: {sorted(names)}"
    assert "twin" not in names, f"checks of a mask method: {sorted(names)}"
    assert "twin" in dict(checks_for(L1Filter())), "a channel method is not checked against its twin"
    loose = Mutant(good, PruningTags(structure="element", nested=False))
    assert "nested" not in dict(checks_for(loose)), "a method that does not claim nesting is checked for it"


def failing(*names: str) -> PruningTags:
    return PruningTags(structure="element", expected_failures=dict.fromkeys(names, "known"))


def test_expected_failures_are_strict() -> None:
    with pytest.raises(AssertionError, match="passes counts, although its tags expect a failure: known"):
        check_method(Mutant(good, failing("counts")))
    with pytest.raises(AssertionError, match="fails counts: mutant:0"):
        check_method(Mutant(prunes_one_more))
    with pytest.raises(PluginError, match=r"expected failures \['cuonts'\]"):
        checks_for(Mutant(good, failing("cuonts")))


def test_what_plans_is_no_training_step() -> None:
    with pytest.raises(PluginError, match="a Mutant, should be a frozen dataclass with a method run"):
        checks_for(Mutant(good, StepTags()))


def test_the_decorator_names_method_and_check_and_marks_expected_failures() -> None:
    mark = parametrize_with_checks([Magnitude(scope="layer"), Mutant(prunes_one_more, failing("counts"))]).mark
    ids = [case.id for case in mark.args[1]]
    assert "magnitude,scope=layer/counts" in ids, f"ids {ids}"
    marked = {case.id: [m.kwargs["strict"] for m in case.marks] for case in mark.args[1] if case.marks}
    assert [*marked.values()] == [[True]], f"strict expected failures {marked}, should be one"


def test_labels_are_spelled_like_recipes() -> None:
    assert label(Magnitude()) == "magnitude", f"{label(Magnitude())}, should be 'magnitude'"
    assert pruning_checks.checks_for_pruning(Magnitude(), small_subjects()[:1]), "no checks on given models"
