"""AdaRound: learns for every weight whether to round it up or down, by how well its layer's output is reconstructed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.levels import bits_of
from pruning_bench.options import Checked, Count, Group
from pruning_bench.quantization.affine import dequantize, fake_quantize, spread
from pruning_bench.quantization.contract import Affine, QuantizationTags, QuantPlan, quantization_method
from pruning_bench.quantization.layerwise import Layer, decide_layers
from pruning_bench.quantization.plans import choose_group, choose_weight, complete, prepare

LOWEST, HIGHEST = -0.1, 1.1  # ends of the stretched sigmoid, which is clamped to [0, 1]
WARM = 0.2  # share of the iterations before weights are drawn to a side
SOFT, HARD = 20.0, 2.0  # first and last exponent of that draw
PULL = 3.0  # strength of the draw, beside an error of 1 for rounding to nearest
RATE = 2e-2  # Adam's
REPORT = 50  # iterations between two reports of progress
CACHE = 1 << 24  # numbers of a layer's inputs, and of its outputs, that are kept


@quantization_method
@dataclass(frozen=True)
class AdaRound(Checked):
    """`adaround:w4`, `adaround:w4a8`: rounds every weight up or down so that its layer's output is reconstructed.

    With scale s, w' = s * clamp(floor(w / s) + h(v), low, high), h(v) = clamp(1.2 * sigmoid(v) - 0.1, 0, 1), and v
    minimises ||relu(W' x' + b) - relu(W x + b)||^2 / ||relu(W_nearest x' + b) - relu(W x + b)||^2 + lambda * mean(1 -
    |2 h(v) - 1|^beta) by Adam. Here x are the layer's inputs in the float model and x' those that the rounded layers
    before it give; relu is the ReLU, ReLU6 or other clamp from zero behind the layer, and left out where none follows.
    beta falls along a cosine from 20 to 2; during the first fifth of the iterations lambda is 0. A weight that is zero
    stays zero. Where the outcome reconstructs the sampled outputs worse than rounding to nearest does, the layer is
    rounded to nearest.

    Inputs of a layer, patches of a convolution, are sampled at random from all calibration examples; how many fit into
    `CACHE` numbers is the bound of memory.

    Args:
        iterations: steps of Adam per layer, at least 1.
        batch: sampled inputs a step, at least 1.
        group: columns that share a scale, 0 for one scale per output channel. Weights alone have groups.
    Reference:
        Nagel et al., Up or down? Adaptive rounding for post-training quantization, ICML 2020, arXiv 2004.10568.
    """

    iterations: Count = 1000
    batch: Count = 256
    group: Group = 0
    name: ClassVar[str] = "adaround"
    examples: ClassVar[tuple[str, ...]] = ("adaround:w4", "adaround:w4a8")
    tags: ClassVar[QuantizationTags] = QuantizationTags(
        level=bits_of,
        activations=False,
        reference="Nagel et al., Up or down? Adaptive rounding for post-training quantization, ICML 2020, "
        "arXiv 2004.10568",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """The plan for `model` with its batch norm folded; its writes lie on the grid, but where `complete` widens it.

        Args:
            level: `w4` (weights alone) or `w4a8`, 2 to 8 bits each.
        Raises:
            LevelError: no such bits.
            ModelError: nothing to quantize, or calibration data that is missing, empty or not finite.
        """
        bits = bits_of(self.name, level)
        group = choose_group(self.name, self.group, bits)
        calibration = context.need_calibration(self.name)
        prepared = prepare(model, context, self.name)
        granularity = "per_channel" if group is None else "per_group"
        weights = {name: choose_weight(w, bits.weights, granularity, group) for name, w in prepared.weights.items()}
        at = {name: number for number, name in enumerate(weights)}

        def decide(layer: Layer) -> Mapping[str, Tensor]:
            done, total = at[layer.name] * self.iterations, len(at) * self.iterations

            def report(iteration: int) -> None:
                context.progress(f"{self.name}: {layer.name}", done + iteration, total)

            sample = sample_layer(layer, context.generator)
            values = learn(layer, sample, weights[layer.name], self.iterations, self.batch, context.generator, report)
            return {layer.name: values}

        writes = decide_layers(prepared, calibration, decide, context, self.name)
        return complete(prepared, weights, writes, bits, calibration, self.name)


@dataclass(frozen=True)
class Sample:
    """Inputs of a layer and what it should make of them; see `matrix` for the shape of weights beside these.

    Args:
        inputs: [parts, n, columns], of the model with rounded layers.
        targets: [parts, n, outputs of a part], of the float model, behind its clamp.
    """

    inputs: Tensor
    targets: Tensor


def matrix(values: Tensor, parts: int) -> Tensor:
    """[outputs, ...] -> [parts, ... , outputs of a part]: of a weight its columns, transposed; of a bias one row."""
    return values.reshape(parts, len(values) // parts, -1).transpose(1, 2)


def sample_layer(layer: Layer, generator: torch.Generator, cache: int = CACHE) -> Sample:
    """Some of the inputs of a layer, at random, and its outputs in float.

    Args:
        cache: as many are taken as have at most so many numbers, and as many outputs; at least one.
    """
    counts: list[int] = []
    parts = 1

    def count(patches: Tensor) -> None:
        nonlocal parts
        parts = len(patches)
        counts.append(patches.shape[1])

    layer.watch(count)
    columns, outputs = layer.weight[0].numel(), len(layer.weight)
    most = min(sum(counts), max(1, cache // max(parts * columns, outputs)))
    chosen = torch.randperm(sum(counts), generator=generator)[:most].sort().values
    inputs, floats = (_take(watch, chosen) for watch in (layer.watch, layer.watch_float))
    targets = _outputs(floats, matrix(layer.weight, parts), layer)
    return Sample(inputs, targets)


def _take(watch: Callable[[Callable[[Tensor], None]], None], chosen: Tensor) -> Tensor:
    kept: list[Tensor] = []
    start = 0

    def see(patches: Tensor) -> None:
        nonlocal start
        first, last = (int(torch.searchsorted(chosen, end)) for end in (start, start + patches.shape[1]))
        kept.append(patches[:, chosen[first:last] - start])
        start += patches.shape[1]

    watch(see)
    return torch.cat(kept, 1)


def _outputs(inputs: Tensor, columns: Tensor, layer: Layer) -> Tensor:
    """clamp(W x + b), [parts, n, outputs of a part]; the clamp where the model has one from zero, as a ReLU is."""
    made = inputs @ columns
    if layer.bias is not None:
        made = made + matrix(layer.bias, len(inputs))
    return made if layer.top is None else made.clamp(0, layer.top)


def reconstruction_error(layer: Layer, sample: Sample, values: Tensor) -> float:
    """The mean square by which the outputs of a layer with other values of its weight miss the targets."""
    made = _outputs(sample.inputs, matrix(values, len(sample.inputs)), layer)
    return float((made - sample.targets).square().mean())


def learn(
    layer: Layer,
    sample: Sample,
    affine: Affine,
    iterations: int,
    batch: int,
    generator: torch.Generator,
    report: Callable[[int], None],
) -> Tensor:
    """Values on the grid of `affine` by the rule of `AdaRound`; never worse on the sample than the nearest ones.

    Args:
        iterations, batch: at least 1.
        generator: draws the batches.
        report: called with the number of iterations done.
    Returns:
        float32, shape of the layer's weight.
    """
    weight = layer.weight
    scale, _ = spread(affine, weight.shape)
    nearest = fake_quantize(weight, affine)
    error = reconstruction_error(layer, sample, nearest)
    if error == 0:
        return nearest
    below, fixed = (weight / scale).floor(), weight == 0
    share = ((weight / scale - below) - LOWEST) / (HIGHEST - LOWEST)
    v = share.logit().requires_grad_()
    adam = torch.optim.Adam([v], lr=RATE)
    for iteration in range(iterations):
        if iteration % REPORT == 0:
            report(iteration)
        rows = torch.randint(sample.inputs.shape[1], (batch,), generator=generator)
        with torch.enable_grad():
            up = rectified_sigmoid(v)
            codes = (below + up).clamp(affine.low, affine.high)
            values = matrix(codes * scale, len(sample.inputs))
            made = _outputs(sample.inputs[:, rows], values, layer)
            loss = (made - sample.targets[:, rows]).square().mean() / error
            if (pull := exponent(iteration / iterations)) is not None:
                loss = loss + PULL * (1 - (2 * up - 1).abs().pow(pull)).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    chosen = (below + (rectified_sigmoid(v.detach()) >= 0.5)).clamp(affine.low, affine.high)
    values = dequantize(chosen.to(torch.int32), affine).masked_fill(fixed, 0)
    return values if reconstruction_error(layer, sample, values) <= error else nearest


def rectified_sigmoid(v: Tensor) -> Tensor:
    """clamp(1.2 * sigmoid(v) - 0.1, 0, 1): reaches both ends.

    Example:
        >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return (torch.sigmoid(v) * (HIGHEST - LOWEST) + LOWEST).clamp(0, 1)


def exponent(done: float) -> float | None:
    """beta after a share `done` of the iterations; None before weights are drawn to a side.

    Example:
        >>> exponent(0.1), exponent(0.2), exponent(1.0)
        (None, 20.0, 2.0)
    """
    if done < WARM:
        return None
    annealed = torch.tensor((done - WARM) / (1 - WARM) * torch.pi)
    return HARD + (SOFT - HARD) * 0.5 * (1 + float(torch.cos(annealed)))
