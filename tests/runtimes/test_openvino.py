"""The runtime `openvino`: parity with eager and with the simulation, kernels, what is missing."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.conformance.quantization_checks import ExampleNet, example, example_images
from pruning_bench.conformance.runtime_checks import codes_off
from pruning_bench.errors import ModelError, UnavailableError
from pruning_bench.quantization.contract import QuantPlan
from pruning_bench.quantization.lower import Rule
from pruning_bench.quantization.methods.static import Static
from pruning_bench.quantization.simulation import simulate
from pruning_bench.runtimes import openvino
from pruning_bench.runtimes.contract import Session
from pruning_bench.runtimes.kernels import float_fallbacks, float_weights, multiplies
from pruning_bench.runtimes.openvino import OpenVino, kernels_of

SAME = 1e-5
LAYERS = {"conv1", "conv2", "conv3", "hidden", "classifier"}
here = pytest.mark.skipif(OpenVino().available() is not None, reason=str(OpenVino().available()))


@dataclass(frozen=True, eq=False)
class Made:
    """What the runtime reads of a compressed model."""

    float_model: nn.Module
    quant_plan: QuantPlan | None = None


@dataclass(frozen=True)
class Case:
    model: nn.Module
    plan: QuantPlan
    inputs: tuple[Tensor, ...]
    x: Tensor

    def session(self, plan: QuantPlan | None = None) -> Session:
        return OpenVino().build(Made(self.model, plan), self.inputs)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def case() -> Case:
    model, _, context = example(Static())
    plan = Static().plan(model, "w7a8", context)
    return Case(model, plan, context.example_inputs, example_images(32, torch.Generator().manual_seed(3)))


@pytest.fixture(scope="module")
def quantized(case: Case) -> Session:
    return case.session(case.plan)


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@here
def test_float_equals_eager_for_any_batch_and_names_its_layers(case: Case) -> None:
    session = case.session()
    with torch.inference_mode():
        expected = case.model(case.x)
    for count in (1, 32):
        error = off(session.run(case.x[:count]), expected[:count])
        assert error < SAME, f"float output off by {error:.1e}"
    named = {text.split(" ")[0] for text in float_fallbacks(session.kernels)}
    assert {"conv1", "conv2", "conv3"} <= named, f"{sorted(named)}"
    session.bind(case.x[:1])()


@here
@pytest.mark.parametrize("threads", [1, 3])
def test_batches_side_by_side_are_the_same_as_one_after_another(case: Case, threads: int) -> None:
    session = OpenVino().build(Made(case.model, case.plan), case.inputs, threads=threads)  # type: ignore[arg-type]
    assert session.concurrent, "batches wait for each other"
    batches = [part.contiguous() for part in torch.cat([case.x, case.x.flip(0)]).split(4)]
    expected = [session.run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(session.run, batches))
    wrong = [number for number, pair in enumerate(zip(found, expected, strict=True)) if not torch.equal(*pair)]
    assert not wrong, f"batches {wrong} differ"


def check_equals_simulation(case: Case, found: Tensor, rules: frozenset[Rule]) -> None:
    with torch.inference_mode():
        expected = simulate(case.plan, case.model, case.inputs, rules)(case.x)
    assert off(found, expected) < SAME, f"int8 output off by {off(found, expected):.1e}"


@here
def test_int8_equals_its_simulation(case: Case, quantized: Session) -> None:
    """Its convolution reads the other operand, so that the addition has a kernel of its own."""
    found = quantized.run(case.x)
    assert "Eltwise" in {kernel.operator for kernel in quantized.kernels}, f"{quantized.kernels}"
    check_equals_simulation(case, found, OpenVino.rules)
    with pytest.raises(AssertionError, match="int8 output off"):
        check_equals_simulation(case, found, OpenVino.rules - {Rule.INTEGER_BIASES})


@here
def test_every_code_of_a_layer_is_the_simulations() -> None:
    """A few wrong ones would not show in the outputs of a small model, but do behind many layers."""
    for seed in (0, 4):  # n / (h - l) of the second one's inputs is not the n * (1 / (h - l)) that torch makes of it
        assert codes_off(OpenVino(), seed=seed) == 0, f"seed {seed}"
    for mutant in (OpenVino.rules - {Rule.ENDS}, OpenVino.rules - {Rule.INTEGER_BIASES}):
        assert codes_off(OpenVino(), mutant) > 0, f"{mutant} would not be noticed"


@here
def test_every_layer_runs_in_int8(quantized: Session) -> None:
    assert float_fallbacks(quantized.kernels) == (), f"{float_fallbacks(quantized.kernels)}"
    ran = {kernel.layer for kernel in quantized.kernels if kernel.dtype == "int8"}
    assert ran >= LAYERS, f"no integer kernel for {sorted(LAYERS - ran)}"


@pytest.mark.parametrize(
    ("kind", "names", "precision", "expected"),
    [
        ("Convolution", "conv1|Conv|4/WithoutBiases,Multiply_5,conv1|Conv|4,relu|Relu|6", "u8", {"conv1": "int8"}),
        ("Subgraph", "a|Gemm|34/WithoutBiases,a|Gemm|34,relu|Relu|36,b|Gemm|40", "u8", {"a": "int8", "b": "int8"}),
        ("Subgraph", "a|MatMul|1,b|MatMul|2", "f32", {"a": "float32", "b": "float32"}),
        ("Reorder", "", "f32", {}),
        ("Transpose", "second|MatMul|1", "f32", {}),
        ("Pooling", "halve|MaxPool|17", "u8", {}),
    ],
)
def test_every_product_of_a_fused_node_is_listed(
    kind: str, names: str, precision: str, expected: dict[str, str]
) -> None:
    node = {"layerType": kind, "originalLayersNames": names, "runtimePrecision": precision.upper()}
    found = {k.layer: k.dtype for k in kernels_of(node) if multiplies(k.operator)}
    assert found == expected, f"{found}, should be {expected}"
    fallbacks = [layer for layer, dtype in expected.items() if dtype != "int8"]
    assert [text.split(" ")[0] for text in float_fallbacks(kernels_of(node))] == fallbacks


@pytest.mark.parametrize(
    ("precision", "primitive", "dtype"),
    [
        ("U8", "brgemm_avx512_amx_I8", "int8"),
        ("I8", "brgemm_avx512_f32", "float32 of int8"),
        ("I4", "brgemm_avx2_bf16", "bfloat16 of int4"),
        ("F32", "gemm_mlas_f32", "float32"),
    ],
)
def test_floats_times_codes_are_no_integer_kernel(precision: str, primitive: str, dtype: str) -> None:
    """Openvino calls a product of floats with weights in codes by the type of these."""
    node = {"layerType": "FullyConnected", "originalLayersNames": "a|Gemm|1"}
    found = kernels_of({**node, "runtimePrecision": precision, "primitiveType": primitive})
    assert [kernel.dtype for kernel in found] == [dtype], f"{found}"
    assert bool(float_fallbacks(found)) == (dtype != "int8"), f"{float_fallbacks(found)}"
    assert bool(float_weights(found)) == (dtype == "float32"), f"{float_weights(found)}"


@here
def test_mutant_plan_without_a_weight_shows_its_layer(case: Case) -> None:
    kept = {name: affine for name, affine in case.plan.weights.items() if name != "conv2.weight"}
    found = float_fallbacks(case.session(replace(case.plan, weights=kept)).kernels)
    assert found == ("conv2 (Convolution float32)",), f"{found}, should be conv2 alone"


@here
def test_a_cast_that_the_cpu_has_no_instructions_for_is_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "capabilities", lambda: frozenset({"FP32", "INT8"}))
    with pytest.raises(UnavailableError, match="computes in FP32, INT8, not in bf16") as caught:
        case.session(QuantPlan({}, dtype="bf16"))
    assert "\n" not in str(caught.value), f"{caught.value}"


@here
def test_a_cast_runs_where_it_can(case: Case) -> None:
    if "BF16" not in openvino.capabilities():
        pytest.skip("no bf16 instructions here")
    kernels = case.session(QuantPlan({}, dtype="bf16")).kernels
    assert "bfloat16" in {kernel.dtype for kernel in kernels}, f"{kernels}"


class Second(nn.Module):
    """Reads its second input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, ignored: Tensor, x: Tensor) -> Tensor:
        return self.layer(x)


@here
def test_inputs_that_nothing_reads_are_left_out() -> None:
    """Mutant: the first input goes to the only port."""
    model, x = Second().eval(), torch.randn(3, 4)
    session = OpenVino().build(Made(model), (torch.zeros(1, 7), x[:1]))  # type: ignore[arg-type]
    with torch.inference_mode():
        expected = model(x, x)
    assert off(session.run(torch.zeros(3, 7), x), expected) < SAME, "another output"
    session.bind(torch.zeros(1, 7), x[:1])()


@here
def test_a_model_that_it_does_not_convert_is_one_line() -> None:
    model = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular").eval()
    with pytest.raises(ModelError, match=r"^openvino: .*Unsupported padding mode: \[wrap\]") as caught:
        OpenVino().build(Made(model), (torch.zeros(1, 3, 8, 8),))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value), str(caught.value)


def test_other_devices_and_a_missing_package_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert "cuda" in str(OpenVino().available("cuda")), f"{OpenVino().available('cuda')}"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install openvino" in str(OpenVino().available()), f"{OpenVino().available()}"
    with pytest.raises(UnavailableError, match="pip install openvino"):
        OpenVino().build(Made(ExampleNet()), (torch.zeros(1, 3, 8, 8),))  # type: ignore[arg-type]
