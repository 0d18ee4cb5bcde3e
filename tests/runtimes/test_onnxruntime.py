"""The runtime `onnxruntime`: parity with float and with the simulation, integer kernels, what a broken plan shows."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.conformance.quantization_checks import ExampleNet, example, randomise
from pruning_bench.conformance.runtime_checks import codes_off
from pruning_bench.contracts import Context
from pruning_bench.errors import ModelError, PlanError, UnavailableError
from pruning_bench.models.contract import build_model
from pruning_bench.models.image_classifier import image_classifier
from pruning_bench.models.resnet20 import resnet20
from pruning_bench.quantization import integer
from pruning_bench.quantization.contract import QuantPlan
from pruning_bench.quantization.lower import Rule
from pruning_bench.quantization.methods.static import Static
from pruning_bench.quantization.simulation import simulate
from pruning_bench.runtimes import onnx_export, onnxruntime
from pruning_bench.runtimes.contract import Session
from pruning_bench.runtimes.kernels import float_fallbacks
from pruning_bench.runtimes.onnx_export import export_onnx
from pruning_bench.runtimes.onnxruntime import OnnxRuntime, session_from, sums_saturate

REFERENCE = [image_classifier.__name__, resnet20.__name__]
SAME = 1e-6  # of the largest output: float32 noise; one step of a code moves outputs by 1e-3 and more


@dataclass(frozen=True, eq=False)
class Made:
    """What a runtime reads of a compressed model."""

    float_model: nn.Module
    quant_plan: QuantPlan | None = None


@dataclass(frozen=True)
class Built:
    """One model in float and quantized, with sessions of both."""

    model: nn.Module
    plan: QuantPlan
    inputs: tuple[Tensor, ...]
    x: Tensor
    float_session: Session
    session: Session

    def simulated(self, rules: frozenset[Rule] = OnnxRuntime.rules) -> Tensor:
        with torch.inference_mode():
            output: Tensor = simulate(self.plan, self.model, self.inputs, rules)(self.x)
            return output


class Depthwise(nn.Module):
    """Grouped convolutions, strides, dilation, a mean in float, a ReLU6, and a ReLU behind the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.depth = nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=12)
        self.point = nn.Conv2d(12, 8, 1, bias=False)
        self.gate = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.depth(torch.relu(self.norm(self.expand(x)))))
        x = self.point(x)
        return torch.relu(self.gate(x.flatten(2).mean(2)))


def build(model: nn.Module, *shape: int) -> Built:
    generator = torch.Generator().manual_seed(13)
    x = torch.randn(64, *shape, generator=generator)
    randomise(model, generator)
    model.train()
    with torch.no_grad():
        model(x)  # statistics of the data, so that the signal lives
    model.eval()
    inputs, context = (x[:1],), Context((x[:1],), generator, [(x[:32],)])
    plan = Static().plan(model, "w8a8", context)
    runtime = OnnxRuntime()
    return Built(model, plan, inputs, x, runtime.build(Made(model), inputs), runtime.build(Made(model, plan), inputs))


class Models(dict[str, Built]):
    """Each built when a test first asks for it."""

    def __missing__(self, name: str) -> Built:
        if name in REFERENCE:
            self[name] = build(build_model(name), 1, 32, 32)
        elif name == "residual":
            self[name] = build(ExampleNet(), 3, 8, 8)
        else:
            self[name] = build(Depthwise(), 3, 9, 9)
        return self[name]


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


NAMES = [*REFERENCE, "residual", "depthwise"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "resnet20")) for n in NAMES])
def test_float_equals_eager(name: str, models: Models) -> None:
    built = models[name]
    with torch.inference_mode():
        expected = built.model(built.x)
    error = float((built.float_session.run(built.x) - expected).abs().max() / expected.abs().max())
    assert error < 1e-5, f"{name}: float output off by {error:.2e}"


def check_equals_simulation(session: Session, x: Tensor, simulated: Tensor) -> None:
    """The runtime and the simulation give the same codes: outputs equal up to float32 noise in the last layer."""
    error = float((session.run(x) - simulated).abs().max() / simulated.abs().max())
    assert error < SAME, f"int8 output off by {error:.2e} of the largest, should be below {SAME}"


def check_all_integer(session: Session, layers: Sequence[str]) -> None:
    """Every convolution and linear layer runs on 8-bit codes, each under its name."""
    fallbacks = float_fallbacks(session.kernels)
    assert not fallbacks, f"in float: {', '.join(fallbacks)}"
    ran = {kernel.layer for kernel in session.kernels if kernel.operator in ("QLinearConv", "QGemm")}
    assert set(layers) <= ran, f"no integer kernel for {sorted(set(layers) - ran)}"


@pytest.mark.parametrize("name", NAMES)
def test_int8_equals_its_simulation(name: str, models: Models) -> None:
    built = models[name]
    check_equals_simulation(built.session, built.x, built.simulated())


def test_every_code_of_a_layer_is_the_simulations() -> None:
    assert codes_off(OnnxRuntime()) == 0
    mutant = OnnxRuntime.rules - {Rule.INTEGER_BIASES}
    assert codes_off(OnnxRuntime(), mutant) > 0, f"{mutant} would not be noticed"


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_runs_in_int8(name: str, models: Models) -> None:
    built = models[name]
    check_all_integer(built.session, [weight.removesuffix(".weight") for weight in built.plan.weights])


@pytest.mark.parametrize(("factor", "clips"), [(1.0, 0), (1.7, 1)])
def test_a_relu6_costs_no_integer_kernel(factor: float, clips: int, models: Models) -> None:
    """It is the clamp of the quantizer; where its grid is wider than that, a node between codes."""
    built = models["depthwise"]
    grid = built.plan.activations["depth.conv2d"]
    wide = {**built.plan.activations, "depth.conv2d": replace(grid, scale=grid.scale * factor)}
    plan = replace(built.plan, activations=wide)
    assert float(grid.scale) * 255 == pytest.approx(6.0), f"nothing is clamped: {grid}"
    session = OnnxRuntime().build(Made(built.model, plan), built.inputs)
    check_all_integer(session, [weight.removesuffix(".weight") for weight in plan.weights])
    found = [kernel.operator for kernel in session.kernels].count("Clip")
    assert found == clips, f"{found} Clip nodes, should be {clips}: {session.kernels}"
    with torch.inference_mode():
        check_equals_simulation(session, built.x, simulate(plan, built.model, built.inputs, OnnxRuntime.rules)(built.x))


class LeastZero(nn.Module):
    """A ReLU in other words."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.clamp(self.first(x), min=0)).mean((2, 3))
        return y


def test_a_clamp_without_an_upper_end_costs_none_either() -> None:
    built = build(LeastZero(), 3, 9, 9)
    check_all_integer(built.session, ["first", "second"])
    check_equals_simulation(built.session, built.x, built.simulated())


@pytest.mark.parametrize("name", ["residual", "resnet20"])
def test_additions_and_pools_run_in_int8_too(name: str, models: Models) -> None:
    kernels = {kernel.operator for kernel in models[name].session.kernels}
    assert {"QLinearAdd", "QLinearGlobalAveragePool"} <= kernels, f"{sorted(kernels)}"


@pytest.mark.parametrize("name", REFERENCE)
def test_mutant_simulations_are_rejected(name: str, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    built = models[name]
    with pytest.raises(AssertionError, match="int8 output off"):  # the bare plan: no integer sums
        check_equals_simulation(built.session, built.x, built.simulated(frozenset()))
    with pytest.raises(AssertionError, match="int8 output off"):  # the float model
        check_equals_simulation(built.session, built.x, built.float_session.run(built.x))
    monkeypatch.setattr(integer, "bias_codes", lambda bias, affine: torch.zeros_like(bias, dtype=torch.int32))
    with pytest.raises(AssertionError, match="int8 output off"):  # no biases
        check_equals_simulation(built.session, built.x, built.simulated())


@pytest.mark.parametrize(
    ("point", "layers"),
    [("conv1.conv2d", {"conv1", "conv2"}), ("hidden.linear", {"hidden", "classifier"}), ("input", {"conv1"})],
)
def test_mutant_plan_without_a_point_shows_float_layers(point: str, layers: set[str], models: Models) -> None:
    built = models["residual"]
    kept = {name: affine for name, affine in built.plan.activations.items() if name != point}
    broken = replace(built.plan, activations=kept)
    session = OnnxRuntime().build(Made(built.model, broken), built.inputs)
    with pytest.raises(AssertionError, match="in float"):
        check_all_integer(session, [])
    found = {text.split(" ")[0] for text in float_fallbacks(session.kernels)}
    assert found == layers, f"without {point} these run in float: {found}, should be {layers}"
    mended = simulate(broken, built.model, built.inputs)(built.x).detach()
    error = float((session.run(built.x) - mended).abs().max() / mended.abs().max())
    assert error < 0.02, f"the broken plan's simulation is off by {error:.4f} of the largest output"


def test_mutant_plan_without_a_weight_shows_its_layer(models: Models) -> None:
    built = models["residual"]
    kept = {name: affine for name, affine in built.plan.weights.items() if name != "conv2.weight"}
    session = OnnxRuntime().build(Made(built.model, replace(built.plan, weights=kept)), built.inputs)
    found = float_fallbacks(session.kernels)
    assert found == ("conv2 (Conv float32)",), f"{found}, should be conv2 alone"


def test_float_layers_keep_their_names(models: Models) -> None:
    built = models["resnet20"]
    named = {text.split(" ")[0] for text in float_fallbacks(built.float_session.kernels)}
    layers = {weight.removesuffix(".weight") for weight in built.plan.weights}
    assert named == layers, f"{sorted(named ^ layers)} of the float model"


def test_fewer_weight_bits_run_on_the_same_kernels() -> None:
    model, _, context = example(Static())
    plan = Static().plan(model, "w7a8", context)
    session = OnnxRuntime().build(Made(model, plan), context.example_inputs)
    check_all_integer(session, ["conv1", "conv2", "conv3", "hidden", "classifier"])
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    check_equals_simulation(session, x, simulate(plan, model, context.example_inputs)(x).detach())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("saturating", [False, True])
def test_either_storage_of_weights_equals_the_simulation(saturating: bool, name: str, models: Models) -> None:
    if sums_saturate() and not saturating:
        pytest.skip("this CPU clips sums of uint8 times int8: see the mutant below")
    built = models[name]
    session = built.session  # stored as this CPU needs it
    if saturating != sums_saturate():
        session = session_from(export_onnx(Made(built.model, built.plan), built.inputs, saturating=saturating))
    check_equals_simulation(session, built.x, built.simulated())
    assert not float_fallbacks(session.kernels), "uint8 weights should have integer kernels too"


@pytest.mark.skipif(not sums_saturate(), reason="this CPU sums uint8 times int8 exactly")
def test_mutant_storage_that_saturates_is_rejected(models: Models) -> None:
    built = models[resnet20.__name__]
    session = session_from(export_onnx(Made(built.model, built.plan), built.inputs, saturating=False))
    with pytest.raises(AssertionError, match="int8 output off by"):
        check_equals_simulation(session, built.x, built.simulated())


def test_fewer_activation_bits_are_refused() -> None:
    model, _, context = example(Static())
    plan = Static().plan(model, "w8a4", context)
    with pytest.raises(PlanError, match=r"activations in 0\.\.15, should be 8 bits") as caught:
        OnnxRuntime().build(Made(model, plan), context.example_inputs)
    assert "\n" not in str(caught.value), f"{caught.value} should be one line"


@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_batch_size(count: int, models: Models) -> None:
    built = models["residual"]
    whole, part = built.session.run(built.x), built.session.run(built.x[:count])
    assert torch.equal(whole[:count], part), f"a batch of {count} gives other values"


def test_bind_runs_without_copies(models: Models) -> None:
    built = models["residual"]
    for session in (built.float_session, built.session):
        bound = session.bind(built.x[:1])
        bound()
        bound()
    assert built.session.timed, "int8 kernels are timed"


def test_a_file_is_the_same_every_time_and_needs_no_model_code(tmp_path: Path, models: Models) -> None:
    built = models["residual"]
    path = tmp_path / "model.onnx"
    made, saturating = Made(built.model, built.plan), sums_saturate()
    first, second = (export_onnx(made, built.inputs, saturating=saturating) for _ in range(2))
    assert first == second, "two exports of one model differ"
    path.write_bytes(first)
    session = session_from(path, threads=2, listing=False)
    assert session.kernels == (), "no listing was asked for"
    assert torch.equal(session.run(built.x), built.session.run(built.x)), "the file computes something else"


def test_it_exports_once_for_all_threads_and_again_for_other_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, context = example(Static())
    made, exports = Made(model.eval()), []
    whole = onnx_export.export_onnx
    monkeypatch.setattr(onnx_export, "export_onnx", lambda *a, **k: exports.append(a) or whole(*a, **k))
    for threads in (1, 2):
        OnnxRuntime().build(made, context.example_inputs, threads=threads)
    assert len(exports) == 1, f"{len(exports)} exports for two sessions of one model"
    OnnxRuntime().build(made, (torch.zeros(1, 3, 9, 9),))
    OnnxRuntime().build(Made(ExampleNet().eval()), context.example_inputs)
    assert len(exports) == 3, "another shape or another model was served an old export"


def test_it_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    model = ExampleNet().eval()
    OnnxRuntime().build(Made(model), (torch.zeros(1, 3, 8, 8),))
    captured = capfd.readouterr()
    assert captured == ("", ""), f"printed {captured}"


def test_other_devices_and_missing_packages_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = OnnxRuntime()
    assert runtime.available() is None, f"{runtime.available()}"
    assert "cuda" in str(runtime.available("cuda")), f"{runtime.available('cuda')}, should name the device"
    with pytest.raises(UnavailableError, match="cuda"):
        runtime.build(Made(ExampleNet()), (torch.zeros(1, 3, 8, 8),), device="cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install onnxruntime" in str(runtime.available()), f"{runtime.available()}, should hold the command"


@pytest.mark.parametrize("saturates", [True, False])
def test_it_says_what_a_cpu_that_clips_means(saturates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "sums_saturate", lambda: saturates)
    remarks = OnnxRuntime().remarks()
    assert bool(remarks) == saturates, f"{remarks}, should be one only where sums are clipped"
    assert all("w7a8" in remark and "\n" not in remark for remark in remarks), f"{remarks} should name the way out"


def test_a_file_that_it_does_not_load_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"^onnxruntime: .*, should be a model that it has kernels for") as caught:
        session_from(b"no model")
    assert "\n" not in str(caught.value), str(caught.value)
