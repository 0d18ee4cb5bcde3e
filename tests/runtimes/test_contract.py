"""What every runtime does alike."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.discover import discover
from pruning_bench.engine import Compressed, compress
from pruning_bench.errors import LevelError, ModelError, UnavailableError
from pruning_bench.quantization.contract import QuantPlan
from pruning_bench.registry import RUNTIMES
from pruning_bench.runtimes import compiled, inductor
from pruning_bench.runtimes.contract import Session

discover()
NAMES = ("eager", "compiled", "onnxruntime", "openvino")
X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


def available(runtime: str) -> Any:
    if reason := RUNTIMES[runtime].available():
        pytest.skip(reason)
    return RUNTIMES[runtime]


class Shaped(nn.Module):
    """A linear layer whose output is given in some form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.layer, self.form = nn.Linear(4, 2), form

    def forward(self, x: Tensor) -> Any:
        if self.form == "in place":
            x.mul_(2)
        y = self.layer(x)
        if self.form == "in place":
            return y
        forms = {"tuple": (y, y), "mapping": {"logits": y}, "sequences first": y.transpose(0, 1), "scalar": y.mean()}
        forms |= {"one example": y[:1], "examples in one": y.flatten(0, 1)}
        return forms[self.form]


def made(model: nn.Module, x: Tensor = X[:1]) -> Compressed:
    return compress(model.eval(), "dense", example_inputs=(x.clone(),))


@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize(
    ("form", "found"),
    [
        ("tuple", "an output of type tuple"),
        ("mapping", "an output of type dict"),
        ("sequences first", r"an output of shape \[5, \w+, 2\] for a batch of"),
        ("scalar", r"an output of shape \[\] for a batch of"),
        ("one example", r"an output of shape \[1, 5, 2\] for a batch of"),
        ("examples in one", r"an output of shape \[\S+, 2\] for a batch of"),
    ],
)
def test_an_output_that_is_no_tensor_with_the_examples_first_is_refused(runtime: str, form: str, found: str) -> None:
    """Mutant: what torch.cat makes of such outputs, cut to as many rows as there are examples."""
    one = made(Shaped(form), X[:2])
    with pytest.raises(ModelError, match=rf"{found}.*, should be one tensor with the examples first; ") as caught:
        available(runtime).build(one, one.example_inputs)
    assert "\n" not in str(caught.value), str(caught.value)


def test_sizes_of_exported_models_are_not_those_of_the_examples() -> None:
    """Mutant: five examples of five steps each, in which both come first."""
    one = made(Shaped("sequences first"), X.new_zeros(5, 5, 4))
    with pytest.raises(ModelError, match=r"an output of shape \[5, N, 2\] for a batch of N"):
        available("onnxruntime").build(one, one.example_inputs)


@pytest.fixture(scope="module", params=NAMES)
def session(request: pytest.FixtureRequest) -> tuple[str, Session]:
    one = made(nn.Linear(4, 2))
    return request.param, available(request.param).build(one, one.example_inputs)


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        ((X[..., :3],), r"inputs torch.float32 \[5, 3\] behind the batch"),
        ((X.double(),), r"inputs torch.float64 \[5, 4\] behind the batch"),
        ((X.int(),), r"inputs torch.int32 \[5, 4\] behind the batch"),
        ((X[0],), r"inputs torch.float32 \[4\] behind the batch"),
        ((), "no inputs"),
        ((X, X), r"inputs torch.float32 \[5, 4\], torch.float32 \[5, 4\] behind the batch"),
        ((X.numpy(),), "an argument of type ndarray"),
        ((None,), "an argument of type NoneType"),
        ((X.to("meta"),), "an argument on the device meta"),
    ],
)
def test_inputs_unlike_the_examples_are_refused(
    session: tuple[str, Session], inputs: tuple[Any, ...], found: str
) -> None:
    who, built = session
    for call in (built.run, built.bind):
        with pytest.raises(ModelError, match=rf"^{who}: {found}, should be ") as caught:
            call(*inputs)
        assert "\n" not in str(caught.value), str(caught.value)


def test_any_batch_of_such_inputs_runs(session: tuple[str, Session]) -> None:
    _, built = session
    assert list(built.run(X).shape) == [3, 5, 2], f"{list(built.run(X).shape)}"


@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize(
    ("inputs", "threads", "message"),
    [
        ((X[:1],), 0, "threads 0, should be a whole number, at least 1"),
        ((X[:1],), -1, "threads -1, should be a whole number, at least 1"),
        ((X[:1],), 1.5, "threads 1.5, should be a whole number, at least 1"),
        ((), 1, "example_inputs of type tuple, should be a non-empty tuple"),
        (X[:1], 1, "example_inputs of type Tensor, should be a non-empty tuple"),
        ((3,), 1, "an argument of type int, should be a torch.Tensor"),
    ],
)
def test_sessions_that_nobody_can_build_are_refused(runtime: str, inputs: Any, threads: Any, message: str) -> None:
    with pytest.raises((ModelError, LevelError), match=f"^{runtime}: {message}") as caught:
        available(runtime).build(made(nn.Linear(4, 2)), inputs, threads=threads)
    assert "\n" not in str(caught.value), str(caught.value)


@pytest.mark.parametrize("runtime", NAMES)
def test_a_model_that_works_in_place_leaves_the_callers_inputs_and_sees_the_same_ones(runtime: str) -> None:
    model, example = Shaped("in place"), X[:1].clone()
    with torch.no_grad():
        expected = model.layer(2 * X)
    one = made(model)
    before = torch.get_num_threads()
    built = available(runtime).build(one, (example,))
    assert torch.equal(example, X[:1]), "building changes the example inputs"
    x = X.clone()
    first, second = built.run(x), built.run(x)
    assert torch.equal(x, X), "run changes its inputs"
    assert torch.equal(first, second), "run gives something else the second time"
    assert torch.allclose(first, expected, atol=1e-5), "run computes something else"
    if runtime in ("eager", "compiled"):  # the others give back what they bound the output to
        try:
            bound = built.bind(X[:1])
            outputs = [torch.as_tensor(bound()).clone() for _ in range(3)]
        finally:
            torch.set_num_threads(before)
        assert all(torch.allclose(output, expected[:1], atol=1e-5) for output in outputs), "bound calls compound"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_other_types_run_where_there_are_kernels(dtype: torch.dtype) -> None:
    x = X[:1].to(dtype)
    one = made(nn.Linear(4, 2).to(dtype), x)
    assert RUNTIMES["eager"].build(one, (x,)).run(x).dtype == dtype, "eager runs every type"
    for runtime in ("onnxruntime", "openvino"):
        message = f"^{runtime}: weights of {dtype}, should be float32, as model.float.*weight".replace("torch.", "")
        with pytest.raises(UnavailableError, match=message):
            available(runtime).build(one, (x,))


def check_dynamic_is_refused(runtime: str) -> None:
    made = compress(torch.nn.Linear(2, 2), "dense", example_inputs=(torch.zeros(1, 2),))
    dynamic = replace(made, quant_plan=QuantPlan({}, dynamic=True))
    with pytest.raises(UnavailableError, match=f"{runtime}: no lowering of inputs quantized at run time"):
        RUNTIMES[runtime].build(dynamic, made.example_inputs)


@pytest.mark.parametrize("runtime", ["compiled", "openvino"])
def test_dynamic_int8_is_refused_where_it_has_no_lowering(runtime: str) -> None:
    if reason := RUNTIMES[runtime].available():
        pytest.skip(reason)
    check_dynamic_is_refused(runtime)


def test_the_check_rejects_a_runtime_that_runs_it_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := RUNTIMES["compiled"].available() or inductor.reason_without_int8("cpu"):
        pytest.skip(reason)
    monkeypatch.setattr(compiled, "refuse_dynamic", lambda *_: None)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):  # all in float, and nobody is told
        check_dynamic_is_refused("compiled")
