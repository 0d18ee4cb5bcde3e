"""The runtime `eager`."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.conformance.quantization_checks import ExampleNet, example
from pruning_bench.errors import ModelError, UnavailableError
from pruning_bench.models.contract import FirstOutput
from pruning_bench.quantization.contract import QuantPlan
from pruning_bench.quantization.methods.static import Static
from pruning_bench.quantization.simulation import simulate
from pruning_bench.runtimes.eager import Eager

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Made:
    """What a runtime reads of a compressed model."""

    model: nn.Module
    float_model: nn.Module
    quant_plan: QuantPlan | None = None


def test_it_runs_the_module() -> None:
    model = ExampleNet().eval()
    session = Eager().build(Made(model, model), (X[:1],), threads=torch.get_num_threads())
    with torch.no_grad():
        assert torch.equal(session.run(X), model(X)), "run computes something else than the module"
    assert session.timed, "a float model is timed"
    bound = session.bind(X)
    output = bound()
    assert isinstance(output, Tensor), f"bind's function gives {type(output)}"
    assert not output.requires_grad, "bind's function should run in inference mode"
    assert torch.equal(output, session.run(X)), "bind computes something else than run"


def test_binding_copies_its_inputs() -> None:
    model, x = ExampleNet().eval(), X.clone()
    session = Eager().build(Made(model, model), (X[:1],))
    bound, expected = session.bind(x), session.run(x)
    x.zero_()
    assert torch.equal(torch.as_tensor(bound()), expected), "the bound inputs changed with the caller's tensor"


def test_a_quantized_model_is_simulated_and_never_timed() -> None:
    model, level, context = example(Static())
    plan = Static().plan(model, level, context)
    simulated = simulate(plan, model, context.example_inputs)
    session = Eager().build(Made(simulated, model, plan), context.example_inputs)
    assert not session.timed, "a simulation must not be timed"
    assert torch.equal(session.run(X), simulated(X)), "run computes something else than the simulation"


def test_kernels_name_operators_and_layers() -> None:
    model = ExampleNet().eval()
    kernels = Eager().build(Made(model, model), (X[:1],)).kernels
    found = [(kernel.layer, kernel.operator, kernel.dtype) for kernel in kernels]
    for expected in [
        ("conv1", "aten.conv2d", "float32"),
        ("classifier", "aten.linear", "float32"),
        ("", "aten.add", "float32"),
    ]:
        assert expected in found, f"{expected} is not among {found}"


def test_a_model_that_does_not_run_is_named_with_its_layer_and_left_clean() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(7, 2)).eval()
    with pytest.raises(ModelError, match=r"eager: RuntimeError: .* should be a model that runs .*\[1\]") as caught:
        Eager().build(Made(model, model), (X[:1],))
    assert "\n" not in str(caught.value), f"{caught.value} should be one line"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()), "hooks are left"


class Remembers(nn.Module):
    """Keeps something from one forward to the next, by an attribute or in a buffer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.last = how, torch.zeros(())
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "attribute":
            self.last = x
        elif self.how == "buffer":
            self.seen += 1
        return x + self.last.mean()


@pytest.mark.parametrize(("how", "concurrent"), [("nothing", True), ("attribute", False), ("buffer", False)])
def test_only_models_that_keep_nothing_may_run_several_batches_at_once(how: str, concurrent: bool) -> None:
    model = nn.Sequential(Remembers(how)).eval()
    session = Eager().build(Made(model, model), (X[:1],))
    assert session.concurrent == concurrent, f"{how} kept, concurrent {session.concurrent}"


def test_listing_leaves_fast_paths_on_and_sees_operators_with_several_outputs() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    kernels = Eager().build(Made(layer, layer), (torch.zeros(1, 3, 8),)).kernels
    assert [kernel.operator for kernel in kernels] == ["aten._transformer_encoder_layer_fwd"], f"{kernels}"
    several = FirstOutput(nn.MaxPool2d(2, return_indices=True)).eval()
    kernels = Eager().build(Made(several, several), (X[:1],)).kernels
    assert ("inner", "float32") in [(kernel.layer, kernel.dtype) for kernel in kernels], f"{kernels}"


def test_run_puts_the_threads_back() -> None:
    model, before = ExampleNet().eval(), torch.get_num_threads()
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    session = Eager().build(Made(model, model), (X[:1],), threads=before + 1)
    seen.clear()
    session.run(X)
    after = torch.get_num_threads()
    assert (seen, after) == ([before + 1], before), f"ran with {seen} threads and left {after}, before {before}"


def test_bind_sets_the_threads() -> None:
    model, before = ExampleNet().eval(), torch.get_num_threads()
    try:
        Eager().build(Made(model, model), (X[:1],), threads=before + 1).bind(X)
        now = torch.get_num_threads()
        assert now == before + 1, f"{now} threads after bind, should be {before + 1}"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_devices_that_are_not_here_say_why(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = Eager().available(device)
    assert reason, f"{device} should be unavailable"
    assert "\n" not in reason, f"{reason!r} should be one line"
    with pytest.raises(UnavailableError, match="eager"):
        Eager().build(Made(ExampleNet(), ExampleNet()), (X[:1],), device=device)
