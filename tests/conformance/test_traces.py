"""Whatever a method or step changes besides its result is seen, of all three kinds by the one check."""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pruning_bench.conformance.runner import checks_for
from pruning_bench.conformance.traces import differences, held, held_process, leaves_no_trace
from pruning_bench.contracts import Context
from pruning_bench.pruning.contract import PruningTags
from pruning_bench.pruning.methods.magnitude import Magnitude
from pruning_bench.quantization.contract import QuantizationTags, QuantPlan
from pruning_bench.training.contract import StepTags

Spoil = Callable[[nn.Module, Context], Any]
ELEMENT, CODES, TRAINS = PruningTags(structure="element"), QuantizationTags(), StepTags()


def first(model: nn.Module, kind: type[nn.Module] = nn.Linear) -> Any:
    return next(module for module in model.modules() if isinstance(module, kind))


def another_eps(model: nn.Module, context: Context) -> None:
    first(model, nn.BatchNorm2d).eps = 1e-3


def another_momentum(model: nn.Module, context: Context) -> None:
    first(model, nn.BatchNorm2d).momentum = None


def statistics_of_the_batch(model: nn.Module, context: Context) -> None:
    first(model, nn.BatchNorm2d).track_running_stats = False


def a_forward_hook(model: nn.Module, context: Context) -> None:
    first(model).register_forward_hook(lambda *_: None)


def a_backward_hook(model: nn.Module, context: Context) -> None:
    first(model).register_full_backward_hook(lambda *_: None)


def a_hook_of_the_state(model: nn.Module, context: Context) -> None:
    model.register_state_dict_post_hook(lambda *_: None)


def a_tensor_hook(model: nn.Module, context: Context) -> None:
    first(model).weight.register_hook(lambda gradient: gradient)


def a_hook_after_gradients(model: nn.Module, context: Context) -> None:
    first(model).weight.register_post_accumulate_grad_hook(lambda parameter: None)


def frozen_parameters(model: nn.Module, context: Context) -> None:
    model.requires_grad_(False)


def gradients_of_zero(model: nn.Module, context: Context) -> None:
    first(model).weight.grad = torch.zeros_like(first(model).weight)


def half_of_the_modes(model: nn.Module, context: Context) -> None:
    first(model).training = not first(model).training


def an_attribute(model: nn.Module, context: Context) -> None:
    first(model).scores = [1.0]


def scores_on_a_weight(model: nn.Module, context: Context) -> None:
    first(model).weight.scores = [1.0]


def a_child(model: nn.Module, context: Context) -> None:
    model.add_module("observer", nn.Identity())


def columns_first(model: nn.Module, context: Context) -> None:
    weight = first(model).weight
    weight.data = weight.data.t().contiguous().t()


def other_inputs(model: nn.Module, context: Context) -> None:
    context.example_inputs[0].add_(1)


def other_calibration(model: nn.Module, context: Context) -> None:
    assert context.calibration is not None
    context.calibration[-1][0].add_(1)


def fewer_batches(model: nn.Module, context: Context) -> None:
    assert isinstance(context.calibration, list)
    context.calibration.pop()


def numpys_generator(model: nn.Module, context: Context) -> None:
    np.random.random()


def numpys_seed(model: nn.Module, context: Context) -> None:
    np.random.seed(0)


def pythons_generator(model: nn.Module, context: Context) -> None:
    random.random()


def torchs_generator(model: nn.Module, context: Context) -> None:
    torch.rand(())


def torchs_seed(model: nn.Module, context: Context) -> None:
    torch.manual_seed(context.seed)


def no_gradients(model: nn.Module, context: Context) -> None:
    torch.set_grad_enabled(False)


def more_threads(model: nn.Module, context: Context) -> None:
    torch.set_num_threads(2)


def no_denormals(model: nn.Module, context: Context) -> None:
    torch.set_flush_denormal(True)


def doubles(model: nn.Module, context: Context) -> None:
    torch.set_default_dtype(torch.float64)


def replaced_parameters(model: nn.Module, context: Context) -> None:
    first(model).weight = nn.Parameter(first(model).weight.detach().clone())


def other_weights(model: nn.Module, context: Context) -> None:
    first(model).weight.data.mul_(1.01)


def other_statistics(model: nn.Module, context: Context) -> None:
    first(model, nn.BatchNorm2d).running_mean.add_(0.01)


def another_teacher(model: nn.Module, context: Context) -> None:
    assert context.dense is not None
    first(context.dense).weight.data.zero_()


def a_teacher_that_trains(model: nn.Module, context: Context) -> None:
    assert context.dense is not None
    context.dense.train()


def other_images(model: nn.Module, context: Context) -> None:
    context.train.images.add_(1)  # type: ignore[union-attr]


def other_labels(model: nn.Module, context: Context) -> None:
    context.train.targets.neg_()  # type: ignore[union-attr]


def other_masks(model: nn.Module, context: Context) -> None:
    context.earlier["1.0.weight"].fill_(True)


NORMS: list[tuple[Spoil, str]] = [
    (another_eps, "eps from 1e-05 to 0.001"),
    (another_momentum, "momentum from 0.1 to None"),
    (statistics_of_the_batch, "track_running_stats from True to False"),
]
ANY: list[tuple[Spoil, str]] = [
    (a_forward_hook, "_forward_hooks"),
    (a_backward_hook, "_backward_hooks"),
    (a_hook_of_the_state, "_state_dict_hooks"),
    (a_tensor_hook, "weight hooks"),
    (a_hook_after_gradients, "weight hooks"),
    (frozen_parameters, "weight requires_grad from True to False"),
    (gradients_of_zero, "weight grad from None to tensor"),
    (half_of_the_modes, " training from"),
    (an_attribute, "scores from 'absent'"),
    (scores_on_a_weight, "weight attributes scores from 'absent'"),
    (a_child, "_modules observer from 'absent'"),
    (columns_first, "weight kind"),
    (other_inputs, "context example_inputs 0 value"),
    (other_calibration, "context calibration . 0 value"),
    (fewer_batches, "context calibration . from .* to 'absent'"),
    (numpys_generator, "numpy's generator"),
    (numpys_seed, "numpy's generator"),
    (pythons_generator, "Python's generator"),
    (torchs_generator, "torch's generator"),
    (torchs_seed, "torch's generator"),
    (no_gradients, "gradient mode 0 from True to False"),
    (more_threads, "number of threads from 1 to 2"),
    (no_denormals, "flushing of denormals from False to True"),
    (doubles, "default type from torch.float32 to torch.float64"),
]
OF_METHODS: list[tuple[Spoil, str]] = [
    (replaced_parameters, "weight itself"),
    (other_weights, "weight value"),
    (other_statistics, "running_mean value"),
]
OF_STEPS: list[tuple[Spoil, str]] = [
    (another_teacher, "context dense 4.weight value"),
    (a_teacher_that_trains, "context dense training from False to True"),
    (other_images, "context train images value"),
    (other_labels, "context train labels value"),
    (other_masks, "context earlier 1.0.weight value"),
]


@dataclass(frozen=True)
class Mutant:
    """Does something else, and then what it should."""

    spoil: Spoil
    tags: Any
    name: str = "mutant"

    def plan(self, model: nn.Module, level: Any, context: Context) -> Any:
        self.spoil(model, context)
        return QuantPlan({}) if isinstance(self.tags, QuantizationTags) else Magnitude().plan(model, level, context)

    def run(self, model: nn.Module, level: Any, plans: Any, context: Context) -> Any:
        self.spoil(model, context)
        return [QuantPlan({})] if self.tags.quantizes else None


def nothing(model: nn.Module, context: Context) -> None:
    pass


@pytest.fixture(autouse=True)
def settings_stay() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_grad_enabled(True)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    torch.set_default_dtype(torch.float32)


def check(spoil: Spoil, tags: Any) -> None:
    mutant = Mutant(spoil, tags)
    dict(checks_for(mutant))["leaves_no_trace"](mutant)


CASES = [
    *[(ELEMENT, *case) for case in NORMS + ANY + OF_METHODS],
    *[(CODES, *case) for case in NORMS + ANY[:1] + OF_METHODS],
    *[(TRAINS, *case) for case in NORMS + ANY + OF_STEPS],
    *[(replace(TRAINS, quantizes=True), *case) for case in OF_METHODS],
]


@pytest.mark.parametrize(
    ("tags", "spoil", "said"), CASES, ids=[f"{type(tags).__name__}-{spoil.__name__}" for tags, spoil, _ in CASES]
)
def test_a_trace_is_seen(tags: Any, spoil: Spoil, said: str) -> None:
    with pytest.raises(AssertionError, match=rf"changes .*{said}.*should leave it as it was"):
        check(spoil, tags)


@pytest.mark.parametrize("tags", [ELEMENT, CODES, TRAINS], ids=lambda tags: type(tags).__name__)
def test_none_is_seen_where_none_is(tags: Any) -> None:
    check(nothing, tags)


def test_of_what_trains_values_may_change() -> None:
    for spoil in (other_weights, other_statistics, replaced_parameters):
        check(spoil, TRAINS)


def test_generators_are_as_before_whatever_was_drawn() -> None:
    before = held_process()
    for spoil in (nothing, torchs_seed, numpys_seed, pythons_generator):
        with suppress(AssertionError), leaves_no_trace("mutant", dict):
            spoil(nn.Identity(), Context((), torch.Generator()))
        assert not differences(before, held_process()), f"{spoil.__name__} moved a global generator"


def test_cycles_outside_the_tree_of_modules_do_not_matter() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    model[0].parents = [model]  # type: ignore[assignment]
    assert not differences(held(model), held(model)), "a model differs from itself"
