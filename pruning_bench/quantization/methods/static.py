"""Static quantization after training: per-channel weights, activation ranges from calibration batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from pruning_bench.contracts import Context
from pruning_bench.errors import LevelError, ModelError
from pruning_bench.graphs import export
from pruning_bench.quantization.affine import choose_affine
from pruning_bench.quantization.contract import Affine, QuantizationTags, QuantPlan, quantization_method
from pruning_bench.quantization.fold import fold_batch_norms
from pruning_bench.quantization.observers import MinMax, value_range
from pruning_bench.quantization.points import Points, find_points, runnable
from pruning_bench.recipe import bits_of

LARGEST_BIAS_CODE = 2.0**30  # leaves the other half of int32 to the sum of products


@quantization_method
@dataclass(frozen=True)
class Static:
    """`static:w8a8`: symmetric weights, asymmetric unsigned activations, ranges frozen at calibration.

    Weights have codes in -127..127 (w8). On x86 without VNNI instructions the fastest 8-bit kernels add two products
    of unsigned and signed codes in 16 bits: `static:w7a8` fits there, `static:w8a8` takes slower kernels.

    Args:
        granularity: of the weights: one scale per output channel, or one per tensor.
        observer: how activation ranges are found; "minmax" is the range over all calibration batches.
    """

    name: ClassVar[str] = "static"
    examples: ClassVar[tuple[str, ...]] = ("static:w8a8", "static:w8a8,granularity=per_tensor")
    tags: ClassVar[QuantizationTags] = QuantizationTags(
        reference="Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only "
        "Inference, CVPR 2018, arXiv 1712.05877"
    )

    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    observer: Literal["minmax"] = "minmax"

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """The plan for `model` with its batch norm folded.

        Args:
            level: `w8a8`, 2 to 8 bits each.
        Raises:
            LevelError: no such bits.
            ModelError: nothing to quantize, or calibration data that is missing, empty or not finite.
        """
        bits = bits_of(self.name, level)
        if bits.activations is None:
            raise LevelError(self.name, f"level {bits} without activations", "bits of both, such as w8a8")
        calibration = context.need_calibration(self.name)
        folded = fold_batch_norms(model, context.example_inputs)
        program = export(folded, context.example_inputs)
        points = find_points(program)
        if not points.layers:
            raise ModelError(self.name, "no convolution or linear layer", "at least one to quantize")
        seen = observe(program, points, calibration, self.name)
        activations = {name: r.affine(bits.activations, symmetric=False, who=self.name) for name, r in seen.items()}
        axis = 0 if self.granularity == "per_channel" else None
        parameters = dict(folded.named_parameters(remove_duplicate=False))
        weights = {
            name: choose_affine(*value_range(parameters[name].detach(), axis), bits.weights, symmetric=True, axis=axis)
            for name in dict.fromkeys(points.layers.values())
        }
        return QuantPlan(fit_biases(weights, activations, program, points, parameters), activations)


def observe(
    program: ExportedProgram, points: Points, calibration: Sequence[tuple[Tensor, ...]], who: str
) -> dict[str, MinMax]:
    """The range of the value at every point over the calibration batches, run in float.

    Raises:
        ModelError: a batch is empty, not finite, makes a value that is not, or does not fit the model.
    """
    observer = _Observer(program, points, who)
    with torch.no_grad():
        for number, batch in enumerate(calibration):
            try:
                observer.run(*batch)
            except (RuntimeError, TypeError, IndexError) as error:
                found = f"a batch that does not run ({str(error).splitlines()[0]})"
                raise ModelError(who, found, "inputs of the model", f"calibration batch {number}") from error
    return {name: observer.seen[name] for name in points.values}


class _Observer(fx.Interpreter):
    """Runs the graph and watches the values at the points."""

    def __init__(self, program: ExportedProgram, points: Points, who: str) -> None:
        module, nodes = runnable(program)
        super().__init__(module)
        self.extra_traceback = False  # else every error's message grows by the node that ran
        self.who, self.at = who, {nodes[node]: name for name, node in points.values.items()}
        self.seen = {name: MinMax() for name in points.values}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if name := self.at.get(n):
            self.seen[name] = self.seen[name].update(value, self.who, name)
        return value


def fit_biases(
    weights: Mapping[str, Affine],
    activations: Mapping[str, Affine],
    program: ExportedProgram,
    points: Points,
    parameters: Mapping[str, Tensor],
) -> dict[str, Affine]:
    """Widens the weight scale of a channel whose bias has no int32 code: |bias| <= 2^30 * s_x * s_w.

    Such channels have weights that are tiny beside their bias (a batch norm switched them off): little is lost.
    """
    fitted = dict(weights)
    for node in program.graph.nodes:
        weight = points.layers.get(node.name)
        x = points.name_at(node.args[0].name) if weight else None
        bias = parameters.get(weight.removesuffix("weight") + "bias") if weight else None
        if weight is None or x is None or bias is None:
            continue
        affine = fitted[weight]
        least = bias.detach().abs() / (activations[x].scale * LARGEST_BIAS_CODE)
        least = least.amax() if affine.axis is None else least
        fitted[weight] = replace(affine, scale=torch.maximum(affine.scale, least))
    return fitted
