"""The method `fp8`: its plan, what eager simulates, its file, and what other runtimes say."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench import compress, load, save
from pruning_bench.artifacts import file_sizes, tensors_of
from pruning_bench.cases import Case
from pruning_bench.conformance.quantization_checks import ExampleNet, example, example_images
from pruning_bench.conformance.quantization_sweeps import sqnr_db
from pruning_bench.conformance.runner import parametrize_with_checks
from pruning_bench.conformance.traces import differences
from pruning_bench.discover import discover
from pruning_bench.engine import Compressed
from pruning_bench.errors import CheckpointError, LevelError, ModelError, PlanError, UnavailableError
from pruning_bench.measuring import kernel_detail, simulates
from pruning_bench.quantization.affine import choose_affine, fake_quantize
from pruning_bench.quantization.contract import FLOATS8, Float8, QuantPlan
from pruning_bench.quantization.decomposed import Decomposed
from pruning_bench.quantization.lower import INTEGER, Rule, lower
from pruning_bench.quantization.methods.fp8 import Fp8
from pruning_bench.quantization.methods.static import Static
from pruning_bench.quantization.qdq import to_qdq
from pruning_bench.quantization.simulation import simulate
from pruning_bench.registry import RUNTIMES
from pruning_bench.runtimes import onnxruntime
from pruning_bench.runtimes.contract import refuse_float8

X = example_images(8, torch.Generator().manual_seed(2))
OTHERS = ["compiled", "onnxruntime", "openvino"]


def made(recipe: str, model: nn.Module | None = None) -> Compressed:
    discover()
    return compress(model or ExampleNet().eval(), recipe, example_inputs=(X[:1],), calibration=[(X,)])


@parametrize_with_checks([Fp8()])
def test_the_method_holds_every_law(method: Fp8, check: Callable[[Fp8], None]) -> None:
    check(method)


@pytest.mark.parametrize("format", FLOATS8)
def test_scales_put_the_largest_magnitude_on_the_largest_number(format: str) -> None:
    model, level, context = example(Fp8())
    plan = Fp8(format=format).plan(model, level, context)  # type: ignore[arg-type]
    weight, coding = model.classifier.weight.detach(), plan.weights["classifier.weight"]
    assert isinstance(coding, Float8)
    assert (coding.format, coding.axis) == (format, 0), f"{coding}"
    assert torch.allclose(coding.scale, weight.abs().amax(1) / torch.finfo(FLOATS8[format]).max), f"{coding.scale}"
    most = max(float(batch[0].abs().max()) for batch in context.calibration)
    found = float(plan.activations["input"].scale) * torch.finfo(FLOATS8[format]).max
    assert found == pytest.approx(most, rel=1e-6), f"the input ends at {found}, should end at {most}"
    assert plan.computes_in_float8 != plan.weights_only, f"{plan}"


def test_finer_fractions_and_exact_activations_are_quieter() -> None:
    e4m3, e5m2 = (sqnr_db(Fp8(format=format), "w8a8") for format in FLOATS8)
    assert e4m3 > e5m2 + 3 > 12, f"{e4m3} dB with 3 bits of fraction, {e5m2} dB with 2"
    alone = sqnr_db(Fp8(), "w8")
    assert alone > e4m3, f"{alone} dB of weights alone, {e4m3} dB with activations"


def test_an_outlier_costs_small_values_little() -> None:
    """Where integers of 8 bits lose all but the outlier."""
    x = torch.cat([torch.linspace(-1, 1, 64), torch.tensor([300.0])])
    float8 = Fp8().plan(*_of_a_row(x)).weights["0.weight"]
    int8 = Static().plan(*_of_a_row(x)).weights["0.weight"]
    errors = [float((fake_quantize(x[None], coding)[0, :64] - x[:64]).abs().max()) for coding in (float8, int8)]
    assert errors[0] < 1 / 16 < 0.9 < errors[1], f"largest errors {errors}"


def _of_a_row(x: Tensor) -> tuple[nn.Module, str, Any]:
    model = nn.Sequential(nn.Linear(len(x), 1))
    with torch.no_grad():
        model[0].weight.copy_(x[None])
    inputs = torch.ones(2, len(x))
    return model, "w8a8", replace(example(Fp8())[2], example_inputs=(inputs[:1],), calibration=[(inputs,)])


def check_simulated(plan: QuantPlan, model: nn.Module, run: Callable[[Tensor], Tensor]) -> None:
    """What runs gives, bit by bit, what each value rounded by hand around the operators in float does."""
    x = X.flatten(1)

    def rounded(value: Tensor, coding: Any) -> Tensor:
        if not isinstance(coding, Float8):
            return fake_quantize(value, coding)
        scale = coding.scale if coding.axis is None else coding.scale[:, None]
        return (value / scale).clamp(-coding.largest, coding.largest).to(coding.dtype).float() * scale

    weights = [rounded(model[index].weight, plan.weights[f"{index}.weight"]) for index in (0, 2)]
    hidden = nn.functional.linear(rounded(x, plan.activations["input"]), weights[0], model[0].bias).relu()
    hidden = rounded(hidden, plan.activations["0.linear"])
    expected = nn.functional.linear(hidden, weights[1], model[2].bias)
    found = run(x)
    error = float((found - expected).detach().abs().max())
    assert error == 0, f"off by {error}, should be equal"


def _linear() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    x = X.flatten(1)
    model = nn.Sequential(nn.Linear(x.shape[1], 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    return model, replace(example(Fp8())[2], example_inputs=(x[:1],), calibration=[(x,)])


@pytest.mark.parametrize("rules", [frozenset(), INTEGER, frozenset(Rule)], ids=["bare", "integer", "all"])
def test_eager_simulates_it_exactly_whatever_the_rules_for_integers(rules: frozenset[Rule]) -> None:
    model, context = _linear()
    plan = Fp8().plan(model, "w8a8", context)
    check_simulated(plan, model, simulate(plan, model, context.example_inputs, rules))


def test_the_comparison_bites_and_floats_stand_beside_integers() -> None:
    model, context = _linear()
    plan = Fp8().plan(model, "w8a8", context)
    first = plan.activations["input"]
    assert isinstance(first, Float8)
    wrong = replace(plan, activations={**plan.activations, "input": replace(first, format="e5m2")})
    with pytest.raises(AssertionError, match="should be equal"):
        check_simulated(plan, model, simulate(wrong, model, context.example_inputs))
    integers = choose_affine(torch.tensor(0.0), torch.tensor(4.0), 8, symmetric=False)
    mixed = replace(plan, activations={**plan.activations, "0.linear": integers})
    check_simulated(mixed, model, simulate(mixed, model, context.example_inputs, INTEGER - {Rule.DIVIDE}))


@pytest.mark.parametrize(
    "recipe",
    ["fp8:w8a8", "fp8:w8", "fp8:w8a8,format=e5m2", "l1_filter:0.5+fp8:w8a8", "magnitude:0.8+fp8:w8a8"],
)
def test_its_file_holds_a_byte_a_weight_and_reads_back(recipe: str, tmp_path: Path) -> None:
    compressed, file = made(recipe), tmp_path / "model.safetensors"
    save(compressed, file)
    loaded = load(file, model=ExampleNet().eval())
    with torch.no_grad():
        assert torch.equal(loaded.model(X), compressed.model(X)), "the file computes something else"
    assert compressed.quant_plan is not None
    assert loaded.quant_plan is not None
    assert not differences(loaded.quant_plan, compressed.quant_plan), "another plan"
    stored = tensors_of(compressed)
    kinds = {name: stored[name].dtype for name in compressed.quant_plan.weights}
    expected = FLOATS8["e5m2" if "e5m2" in recipe else "e4m3"]
    assert set(kinds.values()) == {expected}, f"weights are stored in {kinds}, should be in {expected}"
    again = tmp_path / "again.safetensors"
    save(loaded, again)
    assert again.read_bytes() == file.read_bytes(), "saved again it is another file"


def test_a_large_layer_is_a_quarter_as_large_and_zeros_take_a_bit() -> None:
    model = nn.Sequential(nn.Linear(192, 256, bias=False), nn.ReLU(), nn.Linear(256, 1))
    sizes = {
        recipe: file_sizes(compress(model, recipe, example_inputs=(X.flatten(1)[:1],)))[0]
        for recipe in ("dense", "fp8:w8", "magnitude:0.9+fp8:w8")
    }
    assert sizes["dense"] / sizes["fp8:w8"] > 3.8, f"{sizes}, should be nearly 4 times fewer"
    assert sizes["fp8:w8"] / sizes["magnitude:0.9+fp8:w8"] > 3.5, f"{sizes}: a tenth of the bytes, and a bit each"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda entry: ["e3m4", *entry[1:]], "format 'e3m4'"),
        (lambda entry: ["e5m2", *entry[1:]], "not in e5m2"),
        (lambda entry: [*entry, 3], "damaged card"),
        (lambda entry: entry[:1], "damaged card"),
    ],
    ids=["unknown format", "another format", "too long", "too short"],
)
def test_a_damaged_card_is_refused(change: Callable[[list[Any]], list[Any]], said: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save(made("fp8:w8a8"), file)
    card = json.loads(file.with_suffix(".json").read_text())
    card["ranges"]["conv1.weight"] = change(card["ranges"]["conv1.weight"])
    file.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=said) as caught:
        load(file, model=ExampleNet().eval())
    assert "\n" not in str(caught.value), f"{caught.value}"


def test_pruned_channels_and_weights_stay_away() -> None:
    compressed = made("l1_filter:0.5+magnitude:0.5+fp8:w8a8")
    plan = compressed.quant_plan
    assert plan is not None
    assert compressed.float_model.get_parameter("conv1.weight").shape[0] == 4, "half of the channels should go"
    stored = tensors_of(compressed)
    for name in plan.weights:
        zero = compressed.float_model.get_parameter(name) == 0
        alive = int(stored[name].float()[zero].count_nonzero())
        assert not alive, f"{alive} of {int(zero.sum())} pruned weights of {name} alive"
        assert not stored[name].view(torch.uint8)[zero].any(), f"{name}: zeros are stored as something else"


def check_refused(runtime: str) -> None:
    with pytest.raises(UnavailableError, match=f"{runtime}: no kernels for 8-bit floats, should be .*eager") as caught:
        RUNTIMES[runtime].build(made("fp8:w8a8"), (X[:1],))
    assert "\n" not in str(caught.value), f"{caught.value}"


@pytest.mark.parametrize("runtime", OTHERS)
def test_runtimes_without_kernels_say_what_to_do(runtime: str) -> None:
    discover()
    if reason := RUNTIMES[runtime].available():
        pytest.skip(reason)
    check_refused(runtime)


def test_a_runtime_that_does_not_refuse_is_stopped_by_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    discover()
    monkeypatch.setattr(onnxruntime, "refuse_float8", lambda *_: None)
    with pytest.raises(PlanError, match=r"onnx: 8-bit floats \(e4m3\), should be integers"):
        check_refused("onnxruntime")


def test_no_form_of_integers_takes_8_bit_floats() -> None:
    model, context = _linear()
    plan, inputs = Fp8().plan(model, "w8a8", context), context.example_inputs
    integers = Static().plan(model, "w8a8", context)
    halves = [replace(plan, activations=integers.activations), replace(plan, weights=integers.weights)]
    for each in (plan, *halves):
        for build in (to_qdq, lambda *args: lower(*args, Decomposed())):
            with pytest.raises(PlanError, match=r"8-bit floats \(e4m3\), should be integers"):
                build(each, model, inputs)
    with pytest.raises(PlanError, match="8-bit floats"):
        simulate(QuantPlan(plan.weights, dynamic=True), model, inputs)


@pytest.mark.parametrize("runtime", OTHERS)
def test_weights_alone_run_everywhere_as_floats(runtime: str) -> None:
    discover()
    if reason := RUNTIMES[runtime].available():
        pytest.skip(reason)
    compressed = made("fp8:w8")
    refuse_float8(runtime, compressed)
    session = RUNTIMES[runtime].build(compressed, (X[:1],))
    with torch.no_grad():
        expected, dense = compressed.model(X), compressed.float_model(X)
    size = float(dense.abs().max())
    error, change = (float((a - b).abs().max()) / size for a, b in ((session.run(X), expected), (expected, dense)))
    assert error < 1e-4 < change, f"{runtime} is off its simulation by {error}, which is off the model by {change}"
    detail = kernel_detail(session.kernels, compressed.quant_plan)
    assert not {kernel.dtype for kernel in session.kernels} & {"int8", "int4"}, f"{detail}: kernels that read codes?"


def test_eager_only_simulates_it() -> None:
    discover()
    assert simulates(Case("resnet20", "fashion_mnist", "fp8:w8a8", "eager")), "its time is nobody's speed"
    session = RUNTIMES["eager"].build(made("fp8:w8a8"), (X[:1],))
    assert not session.timed, "its time is nobody's speed"
    assert torch.equal(session.run(X), made("fp8:w8a8").model(X)), "eager runs something else than the simulation"


@pytest.mark.parametrize("level", ["w4a8", "w8a4", "w7", "fp8", 0.5, None])
def test_other_levels_are_refused(level: Any) -> None:
    with pytest.raises(LevelError, match="fp8: "):
        Fp8().plan(ExampleNet(), level, example(Fp8())[2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    model = ExampleNet()
    with torch.no_grad():
        model.classifier.weight[0, 0] = bad
    with pytest.raises(ModelError, match=r"fp8: (lowest|highest) value (nan|inf), should be finite values"):
        Fp8().plan(model, "w8", example(Fp8())[2])


def test_weights_alone_need_no_data_and_activations_do() -> None:
    context = replace(example(Fp8())[2], calibration=None)
    assert Fp8().plan(ExampleNet(), "w8", context).weights_only
    with pytest.raises(ModelError, match="fp8: no calibration data"):
        Fp8().plan(ExampleNet(), "w8a8", context)
