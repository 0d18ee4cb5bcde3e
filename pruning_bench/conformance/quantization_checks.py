"""What every quantization must hold: laws of the affine core, and laws of a method's plans.

A check takes what it tests as an argument, raises `AssertionError` with the values when it does not hold, and returns
nothing. `checks_for_quantization` lists the checks that a method's tags ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from pruning_bench.conformance import float8_checks
from pruning_bench.conformance.traces import differences, plan_without_trace
from pruning_bench.contracts import Context
from pruning_bench.graphs import export
from pruning_bench.levels import Bits, DType
from pruning_bench.quantization.affine import fake_quantize, quantize, spread
from pruning_bench.quantization.contract import Affine, Coding, Float8, QuantizationMethod
from pruning_bench.quantization.fold import fold_batch_norms
from pruning_bench.quantization.points import find_points
from pruning_bench.quantization.simulation import simulate

C = TypeVar("C", bound=Coding)
Quantize: TypeAlias = Callable[[Tensor, Affine], Tensor]
Choose: TypeAlias = Callable[..., Affine]
Check: TypeAlias = Callable[[QuantizationMethod], None]

ROUNDING_STEPS = 2.0**-13  # float32 noise of x * (1 / scale), in steps: 255 codes at 2^-23 each, with room
CLOSE_DB = 20.0  # signal over noise of an 8-bit simulation; one bit is worth 6 dB


def check_codes_in_range(quantize: Quantize, x: Tensor, affine: Affine) -> None:
    """Codes are whole numbers of an integer dtype in [low, high], for values outside the range too."""
    codes = quantize(x, affine)
    assert not codes.is_floating_point(), f"codes have dtype {codes.dtype}, should be an integer type"
    assert codes.shape == x.shape, f"codes have shape {list(codes.shape)}, should be {list(x.shape)}"
    if codes.numel():
        least, most = int(codes.min()), int(codes.max())
        assert affine.low <= least, f"lowest code {least}, should be at least {affine.low}"
        assert most <= affine.high, f"highest code {most}, should be at most {affine.high}"


def check_round_trip(fake_quantize: Quantize, x: Tensor, affine: Affine) -> None:
    """|x - x'| <= scale / 2 where x is in range, and x' is the nearest end where it is not; float32 noise allowed."""
    scale, zero = _spread(affine, x)
    least, most = (affine.low - zero) * scale, (affine.high - zero) * scale
    inside = torch.minimum(torch.maximum(x.double(), least), most)
    steps = (fake_quantize(x, affine).double() - inside).abs() / scale
    worst = float(steps.max()) if steps.numel() else 0.0
    place = f"x = {x.flatten()[int(steps.argmax())]:.9g}" if steps.numel() else ""
    assert worst <= 0.5 + ROUNDING_STEPS, f"round trip off by {worst:.6f} steps at {place}, should be at most 0.5"


def check_zero_exact(fake_quantize: Callable[[Tensor, C], Tensor], coding: C) -> None:
    """Zero has a code of its own, so that padding and ReLU are exact."""
    group = coding.group if isinstance(coding, Affine) else None
    if group is not None:
        shape = [coding.scale.shape[0], coding.scale.shape[1] * group]
    else:
        shape = [] if coding.axis is None else [*[1] * coding.axis, coding.scale.numel()]
    value = fake_quantize(torch.zeros(shape), coding)
    assert bool((value == 0).all()), f"zero becomes {value.flatten().tolist()}, should stay zero"


def check_idempotent(fake_quantize: Callable[[Tensor, C], Tensor], x: Tensor, coding: C) -> None:
    """A value on the grid stays what it is, bit for bit."""
    once = fake_quantize(x, coding)
    twice = fake_quantize(once, coding)
    moved = once != twice
    first = int(moved.flatten().float().argmax()) if moved.any() else 0
    assert not moved.any(), f"{once.flatten()[first]:.9g} becomes {twice.flatten()[first]:.9g} the second time"


def check_scales_finite(choose: Choose, lowest: Tensor, highest: Tensor, bits: int, symmetric: bool) -> None:
    """Scales are positive and finite and zero points in range, for constant, zero, tiny and huge tensors too."""
    affine = choose(lowest, highest, bits, symmetric=symmetric)
    about = f"range {float(lowest.min()):.6g}..{float(highest.max()):.6g} at {bits} bits"
    scale = affine.scale
    good = torch.isfinite(scale) & (scale > 0) & torch.isfinite(1 / scale)
    assert bool(good.all()), f"{about}: scale {scale.tolist()}, should be positive and finite, its reciprocal too"
    assert affine.low <= int(affine.zero_point.min()), f"{about}: zero point {affine.zero_point.tolist()} too low"
    assert int(affine.zero_point.max()) <= affine.high, f"{about}: zero point {affine.zero_point.tolist()} too high"
    ends = torch.stack([(torch.tensor(float(end)) - affine.zero_point) * scale for end in (affine.low, affine.high)])
    assert bool(torch.isfinite(ends).all()), f"{about}: the grid ends at {ends.tolist()}, should be finite"


def check_covers_range(choose: Choose, lowest: Tensor, highest: Tensor, bits: int, symmetric: bool) -> None:
    """The grid reaches what was observed, to half a step."""
    affine = choose(lowest, highest, bits, symmetric=symmetric)
    scale, zero = affine.scale.double(), affine.zero_point.double()
    below = (affine.low - zero) * scale - lowest.double()
    above = highest.double() - (affine.high - zero) * scale
    short = float(torch.maximum(below / scale, above / scale).max())
    assert short <= 0.5 + ROUNDING_STEPS, f"the range ends {short:.4f} steps beyond the grid, should be at most 0.5"


def check_odd_symmetry(quantize: Quantize, x: Tensor, affine: Affine) -> None:
    """Of a symmetric affine: the code of -x is minus the code of x."""
    plus, minus = quantize(x, affine), quantize(-x, affine)
    wrong = plus != -minus
    first = int(wrong.flatten().float().argmax()) if wrong.any() else 0
    pair = f"{int(plus.flatten()[first])} and {int(minus.flatten()[first])}" if x.numel() else ""
    assert not wrong.any(), f"x = {x.flatten()[first]:.9g} and -x have the codes {pair}, should be opposite"


def check_equals_torch(fake_quantize: Quantize, x: Tensor, affine: Affine) -> None:
    """Equal to `torch.fake_quantize_per_tensor_affine` or `_per_channel_affine`, bit for bit."""
    if affine.axis is None:
        expected = torch.fake_quantize_per_tensor_affine(x, affine.scale, affine.zero_point, affine.low, affine.high)
    else:
        expected = torch.fake_quantize_per_channel_affine(
            x, affine.scale, affine.zero_point, affine.axis, affine.low, affine.high
        )
    found = fake_quantize(x, affine)
    wrong = found != expected
    first = int(wrong.flatten().float().argmax()) if wrong.any() else 0
    pair = f"{found.flatten()[first]:.9g}, should be {expected.flatten()[first]:.9g}" if x.numel() else ""
    assert not wrong.any(), f"x = {x.flatten()[first]:.9g} becomes {pair} as in torch"


class ExampleNet(nn.Module):
    """Every site that a plan has: convolutions with batch norm, a residual addition, pools, flatten, linear layers.

    One channel has no weights but a bias, as a mask leaves it, and one layer has equal weights throughout.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 12, 1, groups=4)
        self.relu, self.halve, self.mean = nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.hidden, self.classifier = nn.Linear(12, 16), nn.Linear(16, 5)
        randomise(self, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.conv1.weight[3] = 0
            self.conv3.weight.fill_(0.25)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 5]."""
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)) + x)
        x = self.mean(self.relu(self.conv3(self.halve(x)))).flatten(1)
        logits: Tensor = self.classifier(self.relu(self.hidden(x)))
        return logits


def example_images(count: int, generator: torch.Generator) -> Tensor:
    """float32 [count, 3, 8, 8]: noise around a colour, so that the mean over an image tells images apart."""
    colours = torch.randn(count, 3, 1, 1, generator=generator)
    return 2 * colours + torch.randn(count, 3, 8, 8, generator=generator)


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Fills every parameter and buffer: weights of a standard deviation that keeps the signal, variances around one."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            else:
                tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5 if tensor.dim() > 1 else noise * 0.2)


def example(method: QuantizationMethod) -> tuple[nn.Module, Bits | DType, Context]:
    """A small model, 8 bits of what the method quantizes (bf16 for a cast) and calibration data; always the same."""
    generator = torch.Generator().manual_seed(7)
    batches = [(example_images(8, generator),) for _ in range(2)]
    bits = Bits(8, 8 if method.tags.activations else None)
    level = DType("bf16") if method.tags.casts else bits
    return ExampleNet().eval(), level, Context((batches[0][0][:1],), torch.Generator().manual_seed(0), batches)


def check_plan_deterministic(method: QuantizationMethod) -> None:
    """The same model, level, data and seed give the same plan, whatever the global random state."""
    plans = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            plans.append(method.plan(*example(method)))
    different = differences(plans[0], plans[1])
    assert not different, f"{method.name}: two plans differ in {', '.join(different)}"


def check_leaves_no_trace(method: QuantizationMethod) -> None:
    """`plan` leaves its inputs, the global generators and torch's settings as they were; see `plan_without_trace`."""
    model, level, context = example(method)
    plan_without_trace(method, model.train(), level, context)


def check_layers_covered(method: QuantizationMethod) -> None:
    """Every convolution and linear layer has a quantized weight and, by the tags, every point its activation."""
    model, level, context = example(method)
    plan = method.plan(model, level, context)
    points = find_points(export(fold_batch_norms(model, context.example_inputs), context.example_inputs))
    if method.tags.weights:
        missing = sorted(set(points.layers.values()) - {*plan.weights, *plan.codebooks})
        assert not missing, f"{method.name}: no weight affine for {', '.join(missing)}"
    if method.tags.activations:
        absent = sorted(set(points.values) - set(plan.activations))
        assert not absent, f"{method.name}: no activation affine at {', '.join(absent)}"


def check_dynamic_layers_covered(method: QuantizationMethod) -> None:
    """Every linear layer has a quantized weight, nothing else is quantized, and inputs are at run time."""
    model, level, context = example(method)
    plan = method.plan(model, level, context)
    assert plan.dynamic, f"{method.name}: the plan is not dynamic, as its tags say"
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    missing = sorted(linear - set(plan.weights))
    assert not missing, f"{method.name}: no weight affine for {', '.join(missing)}"
    besides = sorted({*plan.weights, *plan.codebooks, *plan.activations} - linear)
    assert not besides, f"{method.name}: quantizes {', '.join(besides)} too, should be linear layers alone"


def check_plan_affines(method: QuantizationMethod) -> None:
    """Codings of a plan are sound: finite positive scales, zero exact; weights in range, to half a step, idempotent."""
    model, level, context = example(method)
    plan = method.plan(model, level, context)
    parameters = dict(fold_batch_norms(model, context.example_inputs).named_parameters())
    for name, coding in [*plan.weights.items(), *plan.activations.items()]:
        good = torch.isfinite(coding.scale) & (coding.scale > 0)
        assert bool(good.all()), f"{method.name}: {name} has scale {coding.scale.tolist()}, should be finite and > 0"
        check_zero_exact(fake_quantize, coding)
    for name, coding in plan.weights.items():
        values = plan.writes.get(name, parameters[name]).detach()
        check_idempotent(fake_quantize, values, coding)
        if isinstance(coding, Float8):
            float8_checks.check_codes(quantize, values, coding)
            for law in float8_checks.LAWS:
                law(fake_quantize, values, coding)
        else:
            check_codes_in_range(quantize, values, coding)
            check_round_trip(fake_quantize, values, coding)


def check_plan_codebooks(method: QuantizationMethod) -> None:
    """Weights that share a table take only its values, at most 2^bits, the nearest ones; zeros stay zero."""
    model, level, context = example(method)
    plan = method.plan(model, level, context)
    parameters = dict(fold_batch_norms(model, context.example_inputs).named_parameters())
    for name, table in plan.codebooks.items():
        before, after = parameters[name].detach(), plan.writes[name]
        assert isinstance(level, Bits)
        assert len(table) <= 2**level.weights, f"{method.name}: {name} has a table of {len(table)} for {level}"
        foreign = int((~torch.isin(after, table)).sum())
        assert not foreign, f"{method.name}: {foreign} weights of {name} outside its table"
        alive = int(after[before == 0].count_nonzero())
        assert not alive, f"{method.name}: {alive} zeros of {name} became something else"
        best = (before.reshape(-1, 1) - table).abs().amin(1).reshape(before.shape)
        worse = float(((before - after).abs() - best).max())
        assert worse <= 1e-6 * float(before.abs().max()), f"{method.name}: {name} is {worse} off its nearest entry"


def check_simulation_close(method: QuantizationMethod) -> None:
    """At 8 bits the simulation follows the float model: variance over inputs at least 20 dB above the error's."""
    model, level, context = example(method)
    plan = method.plan(model, level, context)
    x = example_images(64, torch.Generator().manual_seed(11))
    with torch.no_grad():
        expected = model(x)
        noise = simulate(plan, model, context.example_inputs)(x) - expected
    ratio = 10 * float(torch.log10(expected.var(0).mean() / noise.square().mean().clamp(min=1e-30)))
    assert ratio >= CLOSE_DB, f"{method.name}: signal over noise {ratio:.1f} dB, should be at least {CLOSE_DB:.0f} dB"


def check_plan_casts(method: QuantizationMethod) -> None:
    """The plan of a method that casts holds the type that was asked for, and no integers beside it."""
    plan = method.plan(*example(method))
    assert plan.dtype == "bf16", f"{method.name}: the plan casts to {plan.dtype}, should cast to bf16"
    besides = [*plan.weights, *plan.activations, *plan.writes]
    assert not besides, f"{method.name}: a cast that also quantizes {', '.join(besides)}"


def checks_for_quantization(method: QuantizationMethod) -> list[tuple[str, Check]]:
    """(name, check) of every law that the method's tags ask for; each check is called with the method."""
    covered = check_dynamic_layers_covered if method.tags.dynamic else check_layers_covered
    checks: list[Check] = [
        check_plan_deterministic,
        check_leaves_no_trace,
        *([check_plan_casts] if method.tags.casts else [covered, check_plan_affines, check_plan_codebooks]),
        check_simulation_close,
    ]
    return [(check.__name__.removeprefix("check_"), check) for check in checks]


def _spread(affine: Affine, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point in float64, shaped to broadcast against `x`."""
    scale, zero = spread(affine, x.shape)
    return scale.double(), zero.double()
