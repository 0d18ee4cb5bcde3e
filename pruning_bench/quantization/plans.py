"""What the methods that quantize weights and activations share: the folded model, ranges of weights and of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from pruning_bench.contracts import Context
from pruning_bench.errors import LevelError, ModelError
from pruning_bench.graphs import export, tensor_names
from pruning_bench.levels import Bits
from pruning_bench.models.contract import fresh
from pruning_bench.quantization.affine import choose_affine
from pruning_bench.quantization.clipping import clip_weight
from pruning_bench.quantization.contract import Affine, QuantPlan
from pruning_bench.quantization.fold import fold_batch_norms
from pruning_bench.quantization.lower import write_values
from pruning_bench.quantization.observers import OBSERVERS, Observer, ObserverName, weight_range
from pruning_bench.quantization.points import Points, check_writes, find_points, runnable

WeightObserverName = Literal["minmax", "mse"]
LARGEST_BIAS_CODE = 2.0**30  # leaves the other half of int32 to the sum of products


@dataclass(frozen=True)
class Prepared:
    """A model as plans see it.

    Args:
        folded: a copy whose batch norm is folded; parameter names of plans are its names.
        program: its exported graph.
        points: where the canonical plan quantizes.
    """

    folded: nn.Module
    program: ExportedProgram
    points: Points

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Name -> parameter, shared ones under each of their names."""
        return {name: p.detach() for name, p in self.folded.named_parameters(remove_duplicate=False)}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights of convolutions and linear layers, in the order of the graph."""
        parameters = self.parameters
        return {name: parameters[name] for name in dict.fromkeys(self.points.layers.values())}


def prepare(model: nn.Module, context: Context, who: str) -> Prepared:
    """Folds and exports `model`, which is not changed.

    Raises:
        ModelError: nothing to quantize, or a model that cannot be exported.
    """
    folded = fold_batch_norms(model, context.example_inputs)
    program = export(folded, context.example_inputs)
    points = find_points(program)
    if not points.layers:
        raise ModelError(who, "no convolution or linear layer", "at least one to quantize")
    return Prepared(folded, program, points)


def choose_weight(
    weight: Tensor,
    bits: int,
    granularity: str,
    group: int | None = None,
    observer: WeightObserverName = "minmax",
    symmetric: bool = True,
) -> Affine:
    """The affine of a weight, one scale per tensor, channel (dimension 0) or group of columns.

    Args:
        observer: "minmax" spans the weight; "mse" takes the scale of least squared error, see `clip_weight`.
        symmetric: zero points are 0, which every lowering takes; others are for weights alone.
    """
    ends = weight_range(weight, granularity, group)
    axis, group = None if granularity == "per_tensor" else 0, group if granularity == "per_group" else None
    affine = choose_affine(*ends, bits, symmetric=symmetric, axis=axis, group=group)
    return clip_weight(weight, affine) if observer == "mse" else affine


def choose_activations(
    prepared: Prepared,
    bits: int,
    calibration: Sequence[tuple[Tensor, ...]],
    who: str,
    observer: ObserverName = "minmax",
) -> dict[str, Affine]:
    """The unsigned asymmetric affine of every point, by what its value is over the calibration batches.

    Raises:
        ModelError: as `observe`, and as `check_writes`.
    """
    check_writes(prepared.program)
    seen = observe(prepared.program, prepared.points, calibration, who, observer)
    return {name: range_.affine(bits, symmetric=False, who=who) for name, range_ in seen.items()}


def observe(
    program: ExportedProgram,
    points: Points,
    calibration: Sequence[tuple[Tensor, ...]],
    who: str,
    observer: ObserverName = "minmax",
) -> dict[str, Observer]:
    """What an observer has seen of the value at every point over the calibration batches, run in float.

    Raises:
        ModelError: a batch is empty, not finite, makes a value that is not, or does not fit the model.
    """
    watching = _Watching(program, points, who, OBSERVERS[observer])
    with torch.no_grad():
        for number, batch in enumerate(calibration):
            try:
                watching.run(*fresh(batch))
            except (RuntimeError, TypeError, IndexError) as error:
                found = f"a batch that does not run ({str(error).splitlines()[0]})"
                raise ModelError(who, found, "inputs of the model", f"calibration batch {number}") from error
    return {name: watching.seen[name] for name in points.values}


class _Watching(fx.Interpreter):
    """Runs the graph and watches the values at the points."""

    def __init__(self, program: ExportedProgram, points: Points, who: str, observer: Observer) -> None:
        module, nodes = runnable(program)
        super().__init__(module)
        self.extra_traceback = False  # else every error's message grows by the node that ran
        self.who, self.at = who, {nodes[node]: name for name, node in points.values.items()}
        self.seen = dict.fromkeys(points.values, observer)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if name := self.at.get(n):
            self.seen[name] = self.seen[name].update(value, self.who, name)
        return value


def fit_biases(
    weights: Mapping[str, Affine],
    activations: Mapping[str, Affine],
    prepared: Prepared,
) -> dict[str, Affine]:
    """Widens the weight scale of a channel whose bias has no int32 code: |bias| <= 2^30 * s_x * s_w.

    Such channels have weights that are tiny beside their bias (a batch norm switched them off): little is lost.
    """
    fitted, points, names = dict(weights), prepared.points, tensor_names(prepared.program)
    held = {**prepared.parameters, **dict(prepared.folded.named_buffers(remove_duplicate=False))}
    for node in prepared.program.graph.nodes:
        weight = points.layers.get(node.name)
        x = points.name_at(node.args[0].name) if weight else None
        read = node.args[2] if weight and len(node.args) > 2 else None
        bias = held.get(names.get(read.name, "")) if isinstance(read, fx.Node) else None
        if weight is None or x is None or bias is None:
            continue
        affine = fitted[weight]
        least = bias.detach().abs() / (activations[x].scale * LARGEST_BIAS_CODE)
        least = least.amax() if affine.axis is None else least
        fitted[weight] = replace(affine, scale=torch.maximum(affine.scale, least))
    return fitted


def choose_group(who: str, group: int, bits: Bits) -> int | None:
    """The option `group` of a method as `choose_weight` takes it: None for one scale per channel.

    Raises:
        LevelError: groups beside quantized activations.
    """
    if group and bits.activations is not None:
        raise LevelError(who, f"group {group} with {bits}", f"weights alone, such as w{bits.weights}")
    return group or None


def write(prepared: Prepared, writes: Mapping[str, Tensor]) -> None:
    """Puts other values of the same shape in the place of parameters of `prepared`, which its graph reads too."""
    write_values(prepared.folded, writes)


def complete(
    prepared: Prepared,
    weights: Mapping[str, Affine],
    writes: Mapping[str, Tensor],
    bits: Bits,
    calibration: Sequence[tuple[Tensor, ...]],
    who: str,
) -> QuantPlan:
    """The plan of a method that chose new values, with static activations if the bits ask for them.

    Args:
        prepared: the model, in which the new values are written.
        weights: the grids of all layers.
        writes: parameter name -> new values; ranges of activations are those of the model with them. Where these make a
            bias too large for its code (`fit_biases`), that channel's scale widens and its values are rounded anew.
    """
    writes = {name: values.contiguous() for name, values in writes.items()}
    if bits.activations is None:
        return QuantPlan(dict(weights), writes=writes)
    write(prepared, writes)
    activations = choose_activations(prepared, bits.activations, calibration, who)
    return QuantPlan(fit_biases(weights, activations, prepared), activations, writes)
