"""What `pruning-bench sensitivity` measures: the last step of a recipe, run on one layer at a time.

Everything is measured on the selection split, so that its numbers may be used to choose; the test split is not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning_bench import recipe as grammar
from pruning_bench.datasets.contract import Dataset, Examples, ReferenceDataset
from pruning_bench.engine import Compressed, Progress, apply_plan
from pruning_bench.errors import DataError, ModelError, PruningBenchError
from pruning_bench.graphs import export
from pruning_bench.judging.sensitivity import Alone, Sensitivity
from pruning_bench.metrics import accuracy
from pruning_bench.models.contract import first_tensor, fresh, place_of
from pruning_bench.pruning.contract import ChannelPlan, MaskPlan
from pruning_bench.pruning.couplings import find_couplings
from pruning_bench.pruning.masks import current_masks
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.contract import Coding, Float8, QuantPlan
from pruning_bench.quantization.fold import fold_batch_norms
from pruning_bench.quantization.points import Points, find_points
from pruning_bench.quantization.simulation import simulate
from pruning_bench.workbench import QUALITY_BATCH, stages_with

WHO = "sensitivity"
Parts = Iterator[tuple[str, int, str, Callable[[], nn.Module]]]


def measure_sensitivity(
    dense: nn.Module,
    recipe: str,
    dataset: Dataset,
    definition: ReferenceDataset,
    *,
    model: str = "",
    limit: int | None = None,
    seed: int = 0,
    progress: Progress = lambda message, done, total: None,
) -> Sensitivity:
    """Runs the last step of `recipe` whole and then on each part alone.

    Args:
        definition: says how outputs are scored.
        model: its name, for the report.
        limit: how many examples of the selection split, the first ones; None: all.
    Raises:
        PruningBenchError: a recipe whose last step trains, casts or does nothing; a limit below 1; a score that needs
            targets where the selection split has none.
    """
    steps = list(grammar.parse(recipe).steps())
    if limit is not None and limit < 1:
        raise PruningBenchError(WHO, f"--limit {limit}", "at least 1")
    if not steps or not callable(getattr(steps[-1].method(), "plan", None)):
        given = f"{steps[-1]}, a step that trains" if steps else "dense"
        raise PruningBenchError(WHO, given, "a method that prunes or quantizes as the last step", recipe)
    _refuse_untargeted(definition, dataset)
    earlier, made = stages_with(2, dense, recipe, dataset, seed=seed, progress=progress)
    base, plan = earlier.float_model, made.plans[-1]
    parts = list(_parts(plan, base, made.example_inputs, current_masks(earlier.plans)))
    if not parts:
        raise PruningBenchError(WHO, f"a plan of {steps[-1]} without layers", "integers, tables, masks or channels")
    examples = dataset.selection
    count = min(len(examples), limit or len(examples))
    before = _outputs(base, examples, count)
    name, scored = _scoring(definition, examples, count, before)
    start, sign = scored(before), -1.0 if definition.score and definition.score.better == "lower" else 1.0

    def alone(part: str, weights: int, change: str, changed: nn.Module) -> Alone:
        outputs = _outputs(changed, examples, count)
        value = scored(outputs)
        return Alone(part, weights, change, value, sign * (start - value), sqnr(before, outputs))

    progress("all", 0, len(parts) + 1)
    whole = alone("all", sum(part[1] for part in parts), str(steps[-1].level or ""), _whole(made))
    found: list[Alone] = []
    for done, (part, weights, change, build) in enumerate(parts, 1):
        progress(part, done, len(parts) + 1)
        found.append(alone(part, weights, change, build()))
    return Sensitivity(model, dataset.name, recipe, str(steps[-1]), count, name, start, whole, tuple(found))


def _refuse_untargeted(definition: ReferenceDataset, dataset: Dataset) -> None:
    score = definition.score
    if score is None or score.against == "dense" or dataset.selection.targets is not None:
        return
    role = "calibration inputs, on which layers are compared" if definition.own else "inputs of the selection split"
    found = f"no targets for score {score.name}"
    raise DataError(WHO, found, f"targets beside the {role}", place_of(definition.load))


def sqnr(signal: Tensor, outputs: Tensor) -> float:
    """10 log10(sum signal^2 / sum (outputs - signal)^2) in dB; infinite where they are equal.

    Example:
        >>> sqnr(torch.tensor([10.0, 0.0]), torch.tensor([10.0, 1.0]))
        20.0
    """
    noise = float((outputs.double() - signal.double()).square().sum())
    power = float(signal.double().square().sum())
    if noise == 0 or power == 0:
        return math.inf if noise == 0 else -math.inf
    return 10 * math.log10(power / noise)


def _whole(made: Compressed) -> nn.Module:
    plan = made.quant_plan
    return made.model if plan is None else _simulated(plan, made.float_model, made.example_inputs)


def _simulated(plan: QuantPlan, model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The bare plan, which may hold one layer alone."""
    return simulate(plan, model, inputs, frozenset())


def _parts(plan: object, model: nn.Module, inputs: tuple[Tensor, ...], earlier: Mapping[str, Tensor]) -> Parts:
    """Name, size, what is done to it, and the model with that part alone changed."""
    if isinstance(plan, QuantPlan):
        yield from _layers(plan, model, inputs)
    elif isinstance(plan, MaskPlan):
        yield from _masks(plan, model, earlier)
    elif isinstance(plan, ChannelPlan):
        yield from _couplings(plan, model, inputs)


def _layers(plan: QuantPlan, model: nn.Module, inputs: tuple[Tensor, ...]) -> Parts:
    """A layer with what it reads and, where it has a point of its own, what it gives.

    Of a method that scales channels across layers all of that scaling stays, and one layer is rounded.
    """
    folded = fold_batch_norms(model, inputs)
    program = export(folded, inputs)
    points = find_points(program)
    parameters = dict(folded.named_parameters(remove_duplicate=False))
    reads = {node.name: node.args[0].name for node in program.graph.nodes if node.name in points.layers}
    rescaled = _rescales(plan)
    for name in dict.fromkeys(points.layers.values()):
        if name not in plan.weights and name not in plan.codebooks:
            continue
        around = _points_around(name, reads, points)
        activations = {point: coding for point, coding in plan.activations.items() if point in around}
        own = {weight for weight in plan.writes if weight.rpartition(".")[0] == name.rpartition(".")[0]}
        alone = replace(
            plan,
            weights={name: plan.weights[name]} if name in plan.weights else {},
            codebooks={name: plan.codebooks[name]} if name in plan.codebooks else {},
            activations=activations,
            writes=plan.writes if rescaled else {weight: plan.writes[weight] for weight in own},
        )
        bits = [_bits(coding) for coding in activations.values()]
        of_inputs = f"a{min(bits)}" if bits else "a8" if plan.dynamic else ""
        width = f"{len(plan.codebooks[name])} values" if name in plan.codebooks else f"w{_bits(plan.weights[name])}"
        coding = plan.weights.get(name)
        of_floats = f" {coding.format}" if isinstance(coding, Float8) else ""
        build = partial(_simulated, alone, model, inputs)
        yield name.removesuffix(".weight"), parameters[name].numel(), width + of_inputs + of_floats, build


def _rescales(plan: QuantPlan) -> bool:
    """Do the values that the plan writes spell the same function anew, rather than the rounded weights of each layer?

    Weights scaled across a seam lie off their grid, and half of a seam alone would be another function.
    """
    off = total = 0
    for name in plan.writes.keys() & plan.weights.keys():
        value = plan.writes[name]
        off += int((fake_quantize(value, plan.weights[name]) != value).sum())
        total += value.numel()
    return 2 * off > total


def _bits(coding: Coding) -> int:
    return 8 if isinstance(coding, Float8) else (coding.high - coding.low).bit_length()


def _points_around(weight: str, reads: Mapping[str, str], points: Points) -> set[str]:
    """The points that the layers of a weight read and make."""
    behind = {layer: relu for relu, layer in points.producers.items()}
    nodes = [node for node, name in points.layers.items() if name == weight]
    around = {points.name_at(place) for node in nodes for place in (reads[node], behind.get(node, node))}
    return {name for name in around if name is not None}


def _masks(plan: MaskPlan, model: nn.Module, earlier: Mapping[str, Tensor]) -> Parts:
    """A weight that loses some, of those that earlier steps left."""
    for name, mask in plan.masks.items():
        left = earlier.get(name, torch.ones_like(mask))
        gone = int((left & ~mask).sum())
        if not gone and name not in plan.writes:
            continue
        alone = MaskPlan({name: mask}, {name: plan.writes[name]} if name in plan.writes else {})
        change = f"{gone} of {int(left.sum())} pruned"
        yield name.removesuffix(".weight"), mask.numel(), change, partial(apply_plan, model, alone, WHO)


def _couplings(plan: ChannelPlan, model: nn.Module, inputs: tuple[Tensor, ...]) -> Parts:
    """A coupling with all the layers that its channels go through; what a plan writes is left out."""
    couplings = find_couplings(model, inputs)
    for name, (gone, size) in plan.removed.items():
        if not gone:
            continue
        tensor, dim = couplings.producers[name][0]
        units = couplings.units[tensor, dim]
        kept = units[plan.kept[tensor][dim].numpy()] if dim in plan.kept.get(tensor, {}) else units
        keep = torch.from_numpy(np.isin(couplings.groups[name], kept))
        if int((~keep).sum()) != gone:
            raise ModelError(WHO, f"{int((~keep).sum())} channels of {name}", f"{gone}, as the plan says", name)
        yield name, size, f"{gone} of {size} channels", partial(apply_plan, model, couplings.plan({name: keep}), WHO)


@torch.inference_mode()
def _outputs(model: nn.Module, examples: Examples, count: int) -> Tensor:
    """float32 [count, ...]."""
    model.eval()
    outputs = []
    for start in range(0, count, QUALITY_BATCH):
        inputs = examples.arguments(slice(start, min(start + QUALITY_BATCH, count)))
        found: Any = model(*fresh(inputs))
        first = first_tensor(found)
        if first is None:
            raise ModelError(WHO, f"it returns {type(found).__name__}", "a tensor, or one inside what it returns")
        outputs.append(first.float())
    return torch.cat(outputs)


def _scoring(
    definition: ReferenceDataset, examples: Examples, count: int, before: Tensor
) -> tuple[str, Callable[[Tensor], float]]:
    """The name of what outputs are scored by, and the score."""
    targets = None if examples.targets is None else examples.targets[:count]
    score = definition.score
    if score is not None:
        return score.name, lambda outputs: float(score.of(outputs, targets, before).mean())
    if targets is None:
        return "agreement", lambda outputs: accuracy.agreement(outputs, before)
    return "top1", lambda outputs: accuracy.top1(outputs, targets)
