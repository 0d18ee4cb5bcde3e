"""The checks of quantization bite: each passes what is right, and rejects a named mutant."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.conformance import quantization_checks as checks
from pruning_bench.conformance import quantization_sweeps as sweeps
from pruning_bench.contracts import Context
from pruning_bench.levels import Bits
from pruning_bench.quantization.affine import choose_affine, code_range, dequantize, fake_quantize, quantize
from pruning_bench.quantization.contract import Affine, QuantizationTags, QuantPlan
from pruning_bench.quantization.methods.cast import Cast
from pruning_bench.quantization.methods.codebook import Codebook
from pruning_bench.quantization.methods.dynamic import Dynamic
from pruning_bench.quantization.methods.rtn import Rtn
from pruning_bench.quantization.methods.static import Static

X = torch.tensor([-9.0, -1.27, -0.55, -0.005, 0.0, 0.015, 0.5, 1.27, 9.0])
SIGNED = Affine(torch.tensor(0.01), torch.tensor(0, dtype=torch.int32), -127, 127)
UNSIGNED = Affine(torch.tensor(0.01), torch.tensor(101, dtype=torch.int32), 0, 255)
ZERO, ONE = torch.tensor(0.0), torch.tensor(1.0)


def without_clamp(x: Tensor, affine: Affine) -> Tensor:
    return (torch.round(x * (1 / affine.scale)) + affine.zero_point).to(torch.int32)


def rounding_down(x: Tensor, affine: Affine) -> Tensor:
    return (torch.floor(x / affine.scale) + affine.zero_point).clamp(affine.low, affine.high).to(torch.int32)


def rounding_half_up(x: Tensor, affine: Affine) -> Tensor:
    steps = torch.floor(x * (1 / affine.scale) + 0.5)
    return (steps + affine.zero_point).clamp(affine.low, affine.high).to(torch.int32)


def float_codes(x: Tensor, affine: Affine) -> Tensor:
    return quantize(x, affine).float()


def through(codes: Callable[[Tensor, Affine], Tensor]) -> Callable[[Tensor, Affine], Tensor]:
    return lambda x, affine: dequantize(codes(x, affine), affine)


def dividing(x: Tensor, affine: Affine) -> Tensor:
    codes = (torch.round(x / affine.scale) + affine.zero_point).clamp(affine.low, affine.high)
    return dequantize(codes.to(torch.int32), affine)


def ignoring_the_zero_point(x: Tensor, affine: Affine) -> Tensor:
    return quantize(x, affine).float() * affine.scale


def stretching(x: Tensor, affine: Affine) -> Tensor:
    return fake_quantize(x, affine) * 1.02


def narrow_by_one_bit(lowest: Tensor, highest: Tensor, bits: int, *, symmetric: bool) -> Affine:
    return replace(choose_affine(lowest, highest, bits, symmetric=symmetric), high=code_range(bits, symmetric)[1] // 2)


def without_limits(lowest: Tensor, highest: Tensor, bits: int, *, symmetric: bool) -> Affine:
    low, high = code_range(bits, symmetric)
    span = torch.maximum(-lowest, highest) if symmetric else highest.clamp(min=0) - lowest.clamp(max=0)
    scale = span / (high if symmetric else high - low)
    return Affine(scale, torch.zeros_like(scale, dtype=torch.int32), low, high)


def tie() -> tuple[Tensor, Affine]:
    """Ties at which dividing by the scale and multiplying by its reciprocal give different codes; found by search."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        scale = torch.rand((), generator=generator) * 0.1 + 1e-3
        affine = Affine(scale, torch.tensor(0, dtype=torch.int32), -127, 127)
        x = (torch.arange(-100, 100) + 0.5) * scale
        if not torch.equal(dividing(x, affine), fake_quantize(x, affine)):
            return x, affine
    raise AssertionError("no tie found")


CORE = [
    ("codes without a clamp", checks.check_codes_in_range, quantize, without_clamp, (X, SIGNED), "lowest code -900"),
    ("codes in float", checks.check_codes_in_range, quantize, float_codes, (X, SIGNED), "dtype torch.float32"),
    ("rounding down", checks.check_round_trip, fake_quantize, through(rounding_down), (X, SIGNED), "round trip off"),
    (
        "zero point ignored",
        checks.check_zero_exact,
        fake_quantize,
        ignoring_the_zero_point,
        (UNSIGNED,),
        "zero becomes",
    ),
    ("another scale back", checks.check_idempotent, fake_quantize, stretching, (X, SIGNED), "the second time"),
    ("no smallest scale", checks.check_scales_finite, choose_affine, without_limits, (ZERO, ZERO, 8, True), "positive"),
    (
        "no largest scale",
        checks.check_scales_finite,
        choose_affine,
        without_limits,  # nor a ceiling: the difference overflows
        (-ONE * 3.4e38, ONE * 3.4e38, 8, False),
        "positive and finite",
    ),
    (
        "half the range",
        checks.check_covers_range,
        choose_affine,
        narrow_by_one_bit,
        (-ONE, ONE, 8, True),
        "beyond the grid",
    ),
    (
        "half up is not odd",
        checks.check_odd_symmetry,
        quantize,
        rounding_half_up,
        (torch.tensor([0.25, 0.75, -1.25]), replace(SIGNED, scale=ONE / 2)),
        "-x",
    ),
    ("half up is not torch", checks.check_equals_torch, fake_quantize, through(rounding_half_up), tie(), "as in torch"),
    ("dividing is not torch", checks.check_equals_torch, fake_quantize, dividing, tie(), "as in torch"),
]


@pytest.mark.parametrize(("name", "check", "right", "mutant", "args", "message"), CORE, ids=[case[0] for case in CORE])
def test_core_checks_reject_their_mutants(
    name: str, check: Callable[..., None], right: Any, mutant: Any, args: tuple[Any, ...], message: str
) -> None:
    check(right, *args)
    with pytest.raises(AssertionError, match=message):
        check(mutant, *args)


def test_per_channel_affines_are_checked_per_channel() -> None:
    affine = Affine(torch.tensor([0.01, 0.1]), torch.tensor([0, 3], dtype=torch.int32), -127, 127, axis=1)
    x = torch.stack([X, X * 10], dim=1)
    checks.check_round_trip(fake_quantize, x, affine)
    checks.check_zero_exact(fake_quantize, affine)
    checks.check_equals_torch(fake_quantize, x, affine)
    swapped = replace(affine, scale=affine.scale.flip(0))
    with pytest.raises(AssertionError, match="round trip off"):
        checks.check_round_trip(lambda x, affine: fake_quantize(x, swapped), x, affine)


@functools.cache
def plan_of_the_example() -> QuantPlan:
    """The right plan: the checks ask for the same one again and again."""
    return Static().plan(*checks.example(Static()))


@dataclass(frozen=True)
class Wrapped:
    """`static` with something done to its plan or before it."""

    name: ClassVar[str] = "mutant"
    tags: ClassVar[QuantizationTags] = Static.tags

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        return self.change(plan_of_the_example())

    def change(self, plan: QuantPlan) -> QuantPlan:
        return plan


class GlobalRandom(Wrapped):
    def change(self, plan: QuantPlan) -> QuantPlan:
        first = next(iter(plan.activations))
        jittered = replace(plan.activations[first], scale=plan.activations[first].scale * (1 + torch.rand(()) / 10))
        return replace(plan, activations={**plan.activations, first: jittered})


class FoldsInPlace(Wrapped):
    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        plan = plan_of_the_example()
        with torch.no_grad():
            model.get_parameter("conv1.weight").mul_(model.get_parameter("norm1.weight").view(-1, 1, 1, 1))
        return plan


class LeavesEvalMode(Wrapped):
    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        model.eval()
        return plan_of_the_example()


class Flips(Wrapped):
    def change(self, plan: QuantPlan) -> QuantPlan:
        return replace(plan, dynamic=torch.initial_seed() == 1)


class SpoilsCalibration(Wrapped):
    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        assert context.calibration is not None
        context.calibration[1][0].clamp_(-1, 1)
        return plan_of_the_example()


class HoldsTheModel(Wrapped):
    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        return replace(plan_of_the_example(), writes={"hidden.bias": model.get_parameter("hidden.bias").detach()})


class ForgetsALayer(Wrapped):
    def change(self, plan: QuantPlan) -> QuantPlan:
        return replace(plan, weights={k: v for k, v in plan.weights.items() if k != "classifier.weight"})


class ForgetsAPoint(Wrapped):
    def change(self, plan: QuantPlan) -> QuantPlan:
        return replace(plan, activations={k: v for k, v in plan.activations.items() if k != "conv2.conv2d"})


class ZeroOutside(Wrapped):
    def change(self, plan: QuantPlan) -> QuantPlan:
        weights = {k: replace(v, zero_point=v.zero_point + 200) for k, v in plan.weights.items()}
        return replace(plan, weights=weights)


class ZeroScale(Wrapped):
    def change(self, plan: QuantPlan) -> QuantPlan:
        return replace(plan, weights={k: replace(v, scale=v.scale * 0) for k, v in plan.weights.items()})


class CoarseScales(Wrapped):
    def change(self, plan: QuantPlan) -> QuantPlan:
        return replace(plan, activations={k: replace(v, scale=v.scale * 16) for k, v in plan.activations.items()})


@dataclass(frozen=True)
class Shared(Codebook):
    """`codebook` with something done to the weights that it shares."""

    change: str = ""

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        plan = super().plan(model, level, context)
        name = "conv1.weight"  # a channel of it is zero
        table, weight = plan.codebooks[name], plan.writes[name]
        if self.change == "longer":
            table = torch.linspace(-1, 1, 257)
        other = {"foreign": weight * 1.01, "revived": weight.masked_fill(weight == 0, table[0]), "far": weight.flip(1)}
        writes = {**plan.writes, name: other.get(self.change, weight)}
        return replace(plan, writes=writes, codebooks={**plan.codebooks, name: table})


@dataclass(frozen=True)
class Partly(Dynamic):
    """`dynamic` that quantizes other layers or points than it should."""

    change: str = ""

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        plan, static = super().plan(model, level, context), plan_of_the_example()
        if self.change == "one less":
            return replace(plan, weights={k: v for k, v in plan.weights.items() if k != "hidden.weight"})
        if self.change == "convolutions":
            return replace(plan, weights=static.weights)
        if self.change == "fixed inputs":
            return replace(plan, activations=static.activations)
        return replace(plan, dynamic=False)


METHODS = [
    ("a longer table", checks.check_plan_codebooks, Shared(change="longer"), "table of 257"),
    ("values outside the table", checks.check_plan_codebooks, Shared(change="foreign"), "outside its table"),
    ("zeros revived", checks.check_plan_codebooks, Shared(change="revived"), "zeros of conv1.weight"),
    ("not the nearest", checks.check_plan_codebooks, Shared(change="far"), "off its nearest entry"),
    ("global random numbers", checks.check_plan_deterministic, GlobalRandom(), "two plans differ in activations input"),
    ("other runs at random", checks.check_plan_deterministic, Flips(), "two plans differ in dynamic"),
    ("folds in place", checks.check_leaves_no_trace, FoldsInPlace(), "changes model conv1.weight value"),
    ("leaves eval mode", checks.check_leaves_no_trace, LeavesEvalMode(), "changes model training from True to False"),
    ("spoils calibration", checks.check_leaves_no_trace, SpoilsCalibration(), "changes context calibration 1 0 value"),
    ("holds the model", checks.check_leaves_no_trace, HoldsTheModel(), r"writes hidden.bias \(model hidden.bias\)"),
    ("forgets a layer", checks.check_layers_covered, ForgetsALayer(), "classifier.weight"),
    ("forgets a point", checks.check_layers_covered, ForgetsAPoint(), "conv2.conv2d"),
    ("forgets a linear layer", checks.check_dynamic_layers_covered, Partly(change="one less"), "for hidden.weight"),
    ("takes convolutions", checks.check_dynamic_layers_covered, Partly(change="convolutions"), "conv1.weight, .* too"),
    ("fixes inputs", checks.check_dynamic_layers_covered, Partly(change="fixed inputs"), "input.* too"),
    ("weights alone", checks.check_dynamic_layers_covered, Partly(change="weights alone"), "is not dynamic"),
    ("zero outside the codes", checks.check_plan_affines, ZeroOutside(), "zero becomes"),
    ("scale of zero", checks.check_plan_affines, ZeroScale(), "should be finite and > 0"),
    ("coarse activations", checks.check_simulation_close, CoarseScales(), "signal over noise"),
]


@pytest.mark.parametrize(("name", "check", "mutant", "message"), METHODS, ids=[case[0] for case in METHODS])
def test_method_checks_reject_their_mutants(name: str, check: checks.Check, mutant: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(mutant)


@pytest.mark.parametrize("method", [Static(), Static(granularity="per_tensor")], ids=["per_channel", "per_tensor"])
def test_static_holds_every_law(method: Static) -> None:
    for _, check in checks.checks_for_quantization(method):
        check(method)


class MoreBitsLess(Wrapped):
    """Takes fewer bits the more it is asked for."""

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        return Static().plan(model, Bits(10 - level.weights, level.activations), context)


@dataclass(frozen=True)
class FinerIsCoarser(Wrapped):
    """Rounds the finer scales up to powers of sixteen."""

    granularity: Literal["per_channel", "per_tensor"] = "per_channel"

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        plan = Static(granularity=self.granularity).plan(model, level, context)
        if self.granularity == "per_tensor":
            return plan
        scale = lambda affine: 16 ** torch.log2(affine.scale).div(4).ceil()  # noqa: E731
        return replace(plan, weights={k: replace(v, scale=scale(v)) for k, v in plan.weights.items()})


class ShiftsWeights(Wrapped):
    """Writes other values, where a mask had left zeros too."""

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        plan = Static().plan(model, level, context)
        weight, name = model.get_parameter("hidden.weight").detach(), "hidden.weight"
        return replace(plan, writes={name: weight + plan.weights[name].scale.max()})


class TakesAnyData(Wrapped):
    """Puts zeros in the place of data that it cannot use."""

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        return plan_of_the_example()


class RoundsInputsToo(Wrapped):
    """Says that it quantizes weights alone."""

    tags: ClassVar[QuantizationTags] = replace(Rtn.tags, sqnr_db={8: 99.0})

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        return replace(Rtn().plan(model, level, context), dynamic=True)


class PromisesMuch(Rtn):
    """As `rtn`, with a bar that it does not reach."""

    tags: ClassVar[QuantizationTags] = replace(Rtn.tags, sqnr_db={8: 99.0})


SWEEPS = [
    ("more bits, less", sweeps.check_monotone_in_bits, MoreBitsLess(), "dB at w4a8, should be at least the"),
    ("finer is coarser", sweeps.check_monotone_in_granularity, FinerIsCoarser(), "with granularity=per_channel"),
    ("shifts weights", sweeps.check_pruned_stay_zero, ShiftsWeights(), "pruned weights of hidden.weight alive"),
    (
        "revives shared weights",
        sweeps.check_pruned_stay_zero,
        Shared(change="revived"),
        "weights of conv1.weight alive",
    ),
    ("takes any data", sweeps.check_bad_calibration, TakesAnyData(), "plans from no calibration data"),
    ("rounds inputs too", sweeps.check_weights_alone, RoundsInputsToo(), "quantizes inputs at run time too"),
    ("promises much", sweeps.check_sqnr_bars, PromisesMuch(), "should be at least 99.0 dB"),
]


@pytest.mark.parametrize(("name", "check", "mutant", "message"), SWEEPS, ids=[case[0] for case in SWEEPS])
def test_sweeps_reject_their_mutants(name: str, check: checks.Check, mutant: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(mutant)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(Static(), id="static"),
        pytest.param(Rtn(), marks=pytest.mark.slow, id="rtn"),
        pytest.param(Rtn(observer="mse"), marks=pytest.mark.slow, id="rtn_mse"),
    ],
)
def test_shipped_methods_hold_over_bits_granularities_and_masks(method: Any) -> None:
    for _, check in sweeps.sweeps_for_quantization(method):
        check(method)


def test_every_sweep_has_a_mutant() -> None:
    listed = {check for method in (Static(), Rtn()) for _, check in sweeps.sweeps_for_quantization(method)}
    every = {value for name, value in vars(sweeps).items() if name.startswith("check_")}
    assert listed == every == {case[1] for case in SWEEPS}, f"{listed} of {every}"


def test_every_check_of_a_method_has_a_mutant() -> None:
    listed = {check for method in (Static(), Dynamic()) for _, check in checks.checks_for_quantization(method)}
    bitten = {case[1] for case in METHODS}
    assert listed == bitten, f"without a mutant: {sorted(check.__name__ for check in listed ^ bitten)}"
    casts = {check for _, check in checks.checks_for_quantization(Cast())} - listed
    assert casts == {checks.check_plan_casts}, f"{casts}: its mutants are in tests/quantization/test_cast.py"
    core = {value for name, value in vars(checks).items() if name.startswith("check_")} - listed - casts
    missing = core - {case[1] for case in CORE}
    assert not missing, f"without a mutant: {sorted(check.__name__ for check in missing)}"
