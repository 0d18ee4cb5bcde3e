"""Quantization-aware training: a quantized copy of the folded model is trained, and its codes become the plan."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from torch import Tensor, nn

from pruning_bench.levels import Bits, both_bits_of
from pruning_bench.options import Count, Positive, Range
from pruning_bench.quantization.contract import Affine, QuantPlan
from pruning_bench.quantization.learned import WEIGHTS, Trainable, point_means, trainable, weight_means
from pruning_bench.quantization.places import POINTS
from pruning_bench.quantization.plans import Prepared, choose_activations, choose_weight, fit_biases, prepare
from pruning_bench.training.contract import StepTags, training_step
from pruning_bench.training.tuning import TuneOptions, Tuning

if TYPE_CHECKING:
    from pruning_bench.contracts import Context


@training_step
@dataclass(frozen=True)
class Qat(TuneOptions):
    """`qat:w8a8`: trains with every weight and activation rounded, then quantizes to what was trained.

    Batch norm is folded first; gradients pass straight through the rounding, and the step sizes are learned (LSQ). The
    model itself stays as it is: the trained values are the plan's `writes`. What was pruned stays zero.

    Args:
        lr: the highest learning rate. Lower than in other steps: no batch norm is left to hold the values.
        epochs: of the training, at least 1.
        learn_scales: scales train too, see `quantization.learned`; false keeps those of the calibrated ranges.
        ends: bits of the first and the last layer's weights and of what these read, at least the level's; 2 to 8.
        granularity: of the weights: one scale per output channel, or one per tensor.
    Other options: see `TuneOptions`.
    """

    lr: Positive = 0.002
    epochs: Count = 2
    learn_scales: bool = True
    ends: Annotated[int, Range("[2, 8]")] = 8
    granularity: Literal["per_channel", "per_tensor"] = "per_channel"

    name: ClassVar[str] = "qat"
    examples: ClassVar[tuple[str, ...]] = ("qat:w8a8,epochs=1",)
    tags: ClassVar[StepTags] = StepTags(
        level=both_bits_of,
        quantizes=True,
        reference="Esser et al., Learned Step Size Quantization, ICLR 2020, arXiv 1902.08153",
    )

    def run(self, model: nn.Module, level: Any, plans: Sequence[Any], context: Context) -> Sequence[QuantPlan]:
        """Trains a quantized copy of `model` and returns its plan.

        Args:
            level: `w8a8`, 2 to 8 bits each.
        Raises:
            LevelError: a level out of range.
            ModelError: nothing to quantize, calibration or training data that are missing, a loss that is not finite.
        """
        bits, train = both_bits_of(self.name, level), context.need_train(self.name)
        config = self.config(self.epochs, context.generator)
        calibration = context.need_calibration(self.name)
        prepared = prepare(model, context, self.name)
        weights, activations = self._spanning(prepared, bits, calibration)
        means: dict[str, Tensor] = {}
        if self.learn_scales:
            means = weight_means(prepared.weights, weights) | point_means(prepared, list(activations), calibration)
        quantized = trainable(prepared, weights, activations, means)
        tuning = Tuning(quantized, train, config, plans, context)
        quantizers = [*quantized.quantizers(WEIGHTS).values(), *quantized.quantizers(POINTS).values()]

        def hold(*_: Any) -> None:
            for quantizer in quantizers:
                quantizer.hold()

        tuning.optimizer.register_step_post_hook(hold)
        tuning.run()
        return [plan_of(quantized, prepared)]

    def _spanning(
        self, prepared: Prepared, bits: Bits, calibration: Sequence[tuple[Tensor, ...]]
    ) -> tuple[dict[str, Affine], dict[str, Affine]]:
        """The affines of weights and of points that reach all their values."""
        ends, read = _ends(prepared)
        assert bits.activations is not None
        wide = {n: max(bits.weights, self.ends) if n in ends else bits.weights for n in prepared.weights}
        weights = {n: choose_weight(w, wide[n], self.granularity) for n, w in prepared.weights.items()}
        activations = choose_activations(prepared, bits.activations, calibration, self.name)
        if self.ends > bits.activations:
            finer = choose_activations(prepared, self.ends, calibration, self.name)
            activations |= {name: finer[name] for name in read}
        return fit_biases(weights, activations, prepared), activations


def plan_of(quantized: Trainable, prepared: Prepared) -> QuantPlan:
    """The plan whose codes are those of the trained model."""
    known = prepared.parameters
    values = {name: value for name, value in quantized.values().items() if name in known}
    folded = copy.deepcopy(prepared.folded)
    folded.load_state_dict(values, strict=False)
    activations = quantized.affines(POINTS)
    weights = fit_biases(quantized.affines(WEIGHTS), activations, replace(prepared, folded=folded))
    return QuantPlan(weights, activations, values)


def _ends(prepared: Prepared) -> tuple[set[str], set[str]]:
    """The weights of the first and the last layer of the graph, and the points that these layers read."""
    layers, points = prepared.points.layers, prepared.points
    nodes = [node for node in prepared.program.graph.nodes if node.name in layers]
    ends = (nodes[0], nodes[-1])
    read = {name for node in ends if (name := points.name_at(node.args[0].name))}
    return {layers[node.name] for node in ends}, read
