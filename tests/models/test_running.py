"""A model runs on a batch: what it returns, and the one line where the two do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.errors import DataError, ModelError, PruningBenchError
from pruning_bench.models.running import differentiating, logits_of, placed, run


class Giving(nn.Module):
    """Returns, or raises, what it is given."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *inputs: Tensor) -> Any:
        if isinstance(self.output, Exception):
            raise self.output
        return self.output


X = torch.ones(3, 4)


@pytest.mark.parametrize("problem", [RuntimeError("two\nlines"), ValueError(), AssertionError("size"), KeyError("k")])
def test_a_model_that_fails_is_one_line_with_the_shapes(problem: Exception) -> None:
    with pytest.raises(
        ModelError, match=rf"^who: inputs \[3, 4\], \[2\] that do not run \({type(problem).__name__}"
    ) as e:
        run(Giving(problem), (X, torch.ones(2)), "who")
    assert "\n" not in str(e.value), str(e.value)
    assert e.value.__cause__ is problem, "where it failed is not told"


def test_the_suites_own_errors_pass_through() -> None:
    problem = DataError("data", "missing", "there")
    with pytest.raises(PruningBenchError) as caught:
        run(Giving(problem), (X,), "who")
    assert caught.value is problem


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "no tensor"),
        ({"loss": 1.0}, "no tensor"),
        (torch.ones(3), r"outputs \[3\] for targets \[3\]"),
        (torch.ones(2, 5), r"outputs \[2, 5\] for targets \[3\]"),
    ],
)
def test_what_are_no_logits_is_said(output: Any, message: str) -> None:
    with pytest.raises(ModelError, match=f"^who: {message}, should be logits"):
        logits_of(Giving(output), (X,), torch.zeros(3), "who")


def test_logits_are_float32_and_may_have_places() -> None:
    logits = logits_of(Giving((torch.ones(3, 5, 2, dtype=torch.float64),)), (X,), torch.zeros(3, 2), "who")
    assert (logits.dtype, logits.shape) == (torch.float32, (3, 5, 2)), f"{logits.dtype} {logits.shape}"


def test_arguments_take_the_type_of_their_example_where_both_are_fractions() -> None:
    given, like = (X, X, X.long(), X), (X.double(), X.long(), X.double())
    found = [value.dtype for value in placed(given, like, torch.device("cpu"))]
    assert found == [torch.float64, torch.float32, torch.int64, torch.float32], f"{found}"


def test_gradients_pass_arguments_made_in_inference_mode() -> None:
    with torch.inference_mode():
        x = torch.ones(3, 4)
    nn.Linear(4, 2)(*placed((x,), (), torch.device("cpu"))).sum().backward()


def test_a_value_without_a_gradient_is_said() -> None:
    model = nn.Linear(4, 2)
    with differentiating(loss := model(X).sum(), model, "who"):
        loss.backward()
    assert model.weight.grad is not None
    for silent in (loss.detach(), X.sum()):
        with (
            pytest.raises(ModelError, match="who: outputs that have no gradient"),
            differentiating(silent, model, "who"),
        ):
            pytest.fail("went on")


def test_errors_of_our_own_pass_as_they_are() -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(DataError, match=r"^other: "), differentiating(model(X).sum(), model, "who"):
        raise DataError("other", "this", "that")


def test_gradients_that_fail_are_one_line() -> None:
    model = nn.Linear(4, 2)
    loss = model(X).exp().mul_(2).sum()  # exp needs its own output to go back
    expected = r"^who: gradients that fail \(RuntimeError: .*inplace operation.* go back through \[Linear\]$"
    with pytest.raises(ModelError, match=expected), differentiating(loss, model, "who"):
        loss.backward()


def test_a_lack_of_memory_is_no_fault_of_the_model() -> None:
    lack = torch.OutOfMemoryError("out of memory.\nTried to allocate 2 GiB")
    expected = r"^who: .* \(OutOfMemoryError: out of memory. Tried to .*\), should be as much memory as it takes \["
    with pytest.raises(ModelError, match=expected):
        run(Giving(lack), (X,), "who")
    model = nn.Linear(4, 2)
    with pytest.raises(ModelError, match=expected), differentiating(model(X).sum(), model, "who"):
        raise lack


def test_an_error_without_text_is_its_type() -> None:
    with pytest.raises(ModelError, match=r"that do not run \(NotImplementedError\), should"):
        run(Giving(NotImplementedError()), (X,), "who")
