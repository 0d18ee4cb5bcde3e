"""Fake quantization that trains: straight-through gradients, and step sizes that are learned.

    x' = clamp(round(x / s), -Q_n, Q_p) * s                 the values of `affine.fake_quantize`, bit for bit
    dx'/dx = 1 where -Q_n <= round(x / s) <= Q_p, else 0    (straight-through)
    dx'/ds = round(x / s) - x / s there, -Q_n below, Q_p above, times g = 1 / sqrt(n * Q)

n is the number of values that share s, without the batch, and Q = max(Q_n, Q_p). A zero point z stays what it is: Q_n =
z - low, Q_p = high - z, so that zero is exact whatever s becomes. s begins at 2 * mean|x| / sqrt(Q), as in the paper,
or where it just spans the largest value, if that is less (as with 8 bits); g, which balances the steps of s against
those of x, is then less by the same ratio.

Esser et al., Learned Step Size Quantization, ICLR 2020, arXiv 1902.08153.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from pruning_bench.models.contract import fresh
from pruning_bench.quantization.affine import SMALLEST_SCALE, spread
from pruning_bench.quantization.contract import Affine
from pruning_bench.quantization.places import POINTS, name_at, path_of
from pruning_bench.quantization.plans import Prepared
from pruning_bench.quantization.points import runnable

WEIGHTS = "_weights"  # where the quantizers of weights go in the trainable graph
LEASH = 1 / 16  # of the scale that training began with; a scale near zero would clip all its values to nothing


class StraightThrough(torch.autograd.Function):
    """The rounding and its gradients, see the module's text; `apply(x, scale, least, most, factor)`.

    Args:
        x: float32.
        scale: positive, of a shape that broadcasts against x.
        least, most: -Q_n and Q_p, whole numbers.
        factor: of the gradient of `scale`, of its shape.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, least: int, most: int, factor: Tensor) -> Tensor:
        """Same shape as x."""
        steps = x * (1 / scale)
        codes = steps.round().clamp_(least, most)
        ctx.save_for_backward(steps, codes, scale, factor)
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Gradients of x and of the scale."""
        (gradient,), (steps, codes, scale, factor) = gradients, ctx.saved_tensors
        rest = codes - steps
        inside = rest.abs() <= 0.5
        of_x = gradient * inside if ctx.needs_input_grad[0] else None
        of_scale = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, rest, codes)
            of_scale = (gradient * slope).sum_to_size(scale.shape) * factor
        return of_x, of_scale, None, None, None


class Quantizer(nn.Module):
    """x -> the nearest value of a grid whose scale may be learned.

    Args:
        affine: what spans all values; zero points all equal.
        mean: mean |x|, of the scale's shape, from which learning begins; None: the scale stays as it is.
        batched: the first dimension of x is the batch.
    """

    scale: Tensor
    zero_point: Tensor
    gain: Tensor
    floor: Tensor

    def __init__(self, affine: Affine, mean: Tensor | None = None, *, batched: bool) -> None:
        super().__init__()
        zero = int(affine.zero_point.reshape(-1)[0])
        self.low, self.high, self.axis, self.group = affine.low, affine.high, affine.axis, affine.group
        self.least, self.most, self.batched = affine.low - zero, affine.high - zero, batched
        spanning = affine.scale.detach().clone()
        wanted = spanning if mean is None else 2 * mean / max(-self.least, self.most) ** 0.5
        wanted = torch.where(wanted > 0, wanted, spanning)
        scale = torch.minimum(wanted, spanning).clamp(min=SMALLEST_SCALE)
        self.scale = nn.Parameter(scale, requires_grad=mean is not None)
        self.register_buffer("zero_point", affine.zero_point.clone())
        self.register_buffer("gain", scale / wanted)
        self.register_buffer("floor", scale * LEASH)

    @property
    def affine(self) -> Affine:
        """What it quantizes by now."""
        return self._affine(self.scale.detach().clone())

    def _affine(self, scale: Tensor) -> Affine:
        return Affine(scale, self.zero_point, self.low, self.high, self.axis, self.group)

    @torch.no_grad()
    def hold(self) -> None:
        """Lifts a scale that a step of the optimizer took below `LEASH` of where it began, or below zero."""
        self.scale.copy_(torch.maximum(self.scale, self.floor))

    def factor(self, x: Tensor) -> Tensor:
        """What the gradient of the scale is multiplied with, of the scale's shape."""
        count = x[:1].numel() if self.batched else x.numel() / self.scale.numel()
        return self.gain * float((max(count, 1) * max(-self.least, self.most)) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """float32, same shape."""
        scale, factor = (spread(self._affine(part), x.shape)[0] for part in (self.scale, self.factor(x)))
        made: Tensor = StraightThrough.apply(x.float(), scale, self.least, self.most, factor)
        return made


class Trainable(fx.GraphModule):
    """The folded model's graph with a quantizer on every weight and at every point of a plan."""

    def quantizers(self, where: str) -> dict[str, Quantizer]:
        """Name of the weight or point -> its quantizer; `where` is `WEIGHTS` or `POINTS`."""
        found = {path: module for path, module in self.named_modules() if isinstance(module, Quantizer)}
        return {name: module for path, module in found.items() if (name := name_at(path, where)) is not None}

    def affines(self, where: str) -> dict[str, Affine]:
        """Name of the weight or point -> its affine now."""
        return {name: quantizer.affine for name, quantizer in self.quantizers(where).items()}

    def values(self) -> dict[str, Tensor]:
        """Name -> parameter of the folded model, as trained."""
        own = (f"{WEIGHTS}.", f"{POINTS}.")
        parameters = self.named_parameters(remove_duplicate=False)
        return {name: p.detach().clone() for name, p in parameters if not name.startswith(own)}


def trainable(
    prepared: Prepared, weights: Mapping[str, Affine], activations: Mapping[str, Affine], means: Mapping[str, Tensor]
) -> Trainable:
    """A model that computes what the bare plan computes, whose parameters can be trained; the frozen ones stay so.

    Args:
        weights, activations: as in a `QuantPlan` of the prepared model; nothing else is quantized.
        means: weight or point -> mean |x|, of those whose scales are learned.
    """
    module, nodes = runnable(prepared.program)
    graph = module.graph
    for node, name in prepared.points.layers.items():
        if name in weights:
            layer = nodes[node]
            path = path_of(WEIGHTS, name)
            module.add_submodule(path, Quantizer(weights[name], means.get(name), batched=False))
            with graph.inserting_before(layer):
                layer.update_arg(1, graph.call_module(path, (layer.args[1],)))
    for name, place in prepared.points.values.items():
        if name in activations:
            value = nodes[place]
            path = path_of(POINTS, name)
            module.add_submodule(path, Quantizer(activations[name], means.get(name), batched=True))
            with graph.inserting_before(value.next):
                quantized = graph.call_module(path, (value,))
            value.replace_all_uses_with(quantized, delete_user_cb=lambda user, own=quantized: user is not own)  # type: ignore[misc]
    graph.lint()
    return Trainable(module, graph)


def weight_means(weights: Mapping[str, Tensor], affines: Mapping[str, Affine]) -> dict[str, Tensor]:
    """Weight -> mean |w| of what shares a scale, of those that are not zero: pruned ones need no step."""
    means = {}
    for name, affine in affines.items():
        sizes = weights[name].abs().flatten(1) if affine.axis is not None else weights[name].abs().flatten()
        means[name] = sizes.sum(-1) / (sizes > 0).sum(-1).clamp(min=1)
    return means


def point_means(
    prepared: Prepared, points: Sequence[str], calibration: Sequence[tuple[Tensor, ...]]
) -> dict[str, Tensor]:
    """Point -> mean |x| over the calibration batches, run in float; shape []."""
    module, nodes = runnable(prepared.program)
    watcher = _Watcher(module, {nodes[prepared.points.values[name]]: name for name in points})
    with torch.no_grad():
        for batch in calibration:
            watcher.run(*fresh(batch))
    return {name: (total / count).float() for name, (total, count) in watcher.seen.items()}


class _Watcher(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, at: Mapping[fx.Node, str]) -> None:
        super().__init__(module)
        self.at, self.seen = at, {name: (torch.zeros((), dtype=torch.float64), 0) for name in at.values()}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if name := self.at.get(n):
            total, count = self.seen[name]
            self.seen[name] = (total + value.abs().sum(dtype=torch.float64), count + value.numel())
        return value
