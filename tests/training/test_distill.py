"""Distillation: the loss is the paper's, the teacher stays as it is, and at no share it is finetuning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from torch import Tensor, nn

from pruning_bench import compress
from pruning_bench.conformance.training_checks import context, masked_model, split_of, state, tiny_model
from pruning_bench.errors import ModelError
from pruning_bench.recipe import parse
from pruning_bench.training.steps.distill import Distill, soft_loss
from pruning_bench.training.steps.finetune import Finetune

SoftLoss = Callable[[Tensor, Tensor, float], Tensor]


def without_the_factor(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    return soft_loss(teacher, student, temperature) / temperature**2


def sides_swapped(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    return soft_loss(student, teacher, temperature)


def over_elements(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    return soft_loss(teacher, student, temperature) / teacher.shape[1]


def check_soft_loss(loss: SoftLoss, seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(4, 3, generator=generator) * 3 for _ in range(2))
    p, q = (log_softmax(x.double().numpy() / temperature, axis=1) for x in (teacher, student))
    expected = temperature**2 * float((np.exp(p) * (p - q)).sum(1).mean())
    found = float(loss(teacher, student, temperature))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5), f"{found}, should be {expected}"


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 20.0))
def test_the_soft_loss_is_the_divergence_times_the_temperature_squared(seed: int, temperature: float) -> None:
    check_soft_loss(soft_loss, seed, temperature)


@pytest.mark.parametrize("mutant", [without_the_factor, sides_swapped, over_elements])
def test_mutants_of_the_soft_loss_are_seen(mutant: SoftLoss) -> None:
    with pytest.raises(AssertionError, match="should be"):
        check_soft_loss(mutant, 0, 4.0)


def test_with_no_share_it_is_finetuning() -> None:
    models = []
    for run in (Distill(share=0.0).run, Finetune().run):
        model, plan = masked_model()
        run(model, 2, (plan,), context())
        models.append(state(model))
    assert torch.equal(*models), f"the largest difference is {(models[0] - models[1]).abs().max()}"


def plain() -> nn.Module:
    """Without batch norm and dropout, which compute otherwise in training."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()


def run_on_plain(share: float) -> float:
    """By how much the weights of a model move whose teacher is the model itself."""
    model = plain()
    given = replace(context(), dense=plain())
    Distill(share=share, weight_decay=0.0).run(model, 1, (), given)
    return float((state(model) - state(plain())).abs().max())


def test_a_model_that_is_its_own_teacher_learns_nothing() -> None:
    assert run_on_plain(1.0) < 1e-6, f"weights moved by {run_on_plain(1.0)}"
    assert run_on_plain(0.5) > 1e-3, "the labels' share trains nothing"


def test_the_teacher_is_the_model_that_came_in_and_stays_as_it_is() -> None:
    dense, untrained = tiny_model(), split_of()
    before = copy.deepcopy(dense.state_dict())
    made = compress(
        dense, "magnitude:0.5+distill:1", example_inputs=(torch.zeros(1, 1, 8, 8),), train=untrained, seed=1
    )
    assert made.dense is not None
    for name, value in made.dense.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the teacher changed"
    assert not made.dense.training, "the teacher is in training mode"
    other = compress(
        dense, "magnitude:0.5+finetune:1", example_inputs=(torch.zeros(1, 1, 8, 8),), train=untrained, seed=1
    )
    assert not torch.equal(state(made.model), state(other.model)), "the teacher teaches nothing"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda given: Distill().run(tiny_model(), 1, (), replace(given, dense=None)), ModelError, "no dense model"),
        (lambda given: Distill().run(tiny_model(), 1, (), replace(given, train=None)), ModelError, "no training data"),
    ],
)
def test_bad_input_is_one_line(call: Callable[[Any], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        call(context())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["distill:2", "distill:1,share=0.5,temperature=2"])
def test_recipes_print_as_they_are_read(text: str) -> None:
    assert str(parse(text)) == text
