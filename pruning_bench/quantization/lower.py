"""One canonical plan, several forms: an eager simulation, an ONNX graph with q/dq nodes, torch's own operators.

All put modules at the same sites of the same exported graph, so that they cannot disagree about placement. A form
stands beside its modules: `simulation`, `qdq`, `decomposed`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from pruning_bench.errors import PlanError, closest
from pruning_bench.graphs import Examples, example_places, export, operator, readable_names
from pruning_bench.quantization.blocked import block_of
from pruning_bench.quantization.contract import Affine, Coding, Float8, QuantPlan
from pruning_bench.quantization.fold import fold_batch_norms
from pruning_bench.quantization.places import POINTS, QUANTIZED, layer_of_weight, path_of
from pruning_bench.quantization.points import (
    NORM,
    POOLS,
    RELUS,
    Points,
    check_writes,
    find_points,
    is_sum,
    runnable,
    summed,
    sums_of_values,
)
from pruning_bench.quantization.pooling import AVERAGES, Pooling

WHO = "QuantPlan"
NORM_DEFAULTS, NORM_EPSILON = (None, None, 1e-5), 4  # arguments of aten.layer_norm from the third on; where epsilon is


class Rule(enum.Enum):
    """What a runtime does that the bare plan (fake-quantized tensors around float operators) does not say."""

    INTEGER_SUMS = "layers sum codes exactly"
    INTEGER_BIASES = "biases are int32 codes of scale s_x * s_w; else float"
    ONE_FACTOR = "such a bias is in that sum, which is multiplied once, by s_x * s_w / s_y, and rounded"
    SHIFTED = "a layer rounds its output with the zero point added to it"
    ENDS = "values and outputs of layers are rounded after a multiplication and an addition that map a grid's ends"
    INTEGER_ADDS = "additions and global average pools compute on codes"
    SUMS_IN_LAYERS = (
        "an addition runs in the convolution that gives an operand to it alone, which is not quantized then (`summed`)"
    )
    RELU_IS_CLAMP = "a clamp from zero (ReLU, ReLU6) between such a sum and its quantizer is the quantizer's own"
    EPSILON_OF_CODES = "a layer norm of codes, or of a sum with codes, adds epsilon in their units"
    DIVIDE = "a float value is quantized by dividing by the scale, not by multiplying with its reciprocal"
    BLOCKED_INPUTS = (
        "a linear layer whose weight alone is quantized reads its input as 8-bit codes, a scale for each block of a row"
    )


INTEGER = frozenset(Rule) - {
    Rule.SUMS_IN_LAYERS,
    Rule.BLOCKED_INPUTS,
    Rule.SHIFTED,
    Rule.ENDS,
    Rule.EPSILON_OF_CODES,
}


@dataclass(frozen=True)
class Site:
    """One node that the plan touches, and what is known of the values around it.

    Args:
        name: readable name of the node.
        function: its ATen operator.
        arguments: the arguments after the tensors (and after weight and bias of a layer).
        inputs: codings of the tensors that it reads, None where a value is in float.
        output: coding of what it gives, None for float.
        relu: a clamp from zero stands between the node and its quantizer.
        weight, weight_coding, bias: of a layer.
        dynamic: its input is quantized at run time.
        examples: where they lie in its input; None where that cannot be told.
        alone: the plan quantizes weights and nothing else.
        shared: other layers read its weight too.
    """

    name: str
    function: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    inputs: tuple[Coding | None, ...]
    output: Coding | None
    relu: bool = False
    weight: Tensor | None = None
    weight_coding: Coding | None = None
    bias: Tensor | None = None
    dynamic: bool = False
    examples: Examples | None = None
    alone: bool = False
    shared: bool = False

    @property
    def block(self) -> int | None:
        """Columns that kernels for the codes of a weight alone take at once; None where there are no such kernels."""
        if not self.alone or self.shared or self.weight is None or self.weight_coding is None:
            return None  # runtimes make a weight float, once, that several layers read
        return block_of(self.weight, self.weight_coding)


class Form(Protocol):
    """What stands at the sites: a module, and whether it quantizes its output itself; None leaves the operator."""

    @property
    def every_value(self) -> bool:
        """Quantize again behind operators that pass values on?"""

    @property
    def sums_in_layers(self) -> bool:
        """Leave the layers in float that `points.summed` names?"""

    @property
    def epsilon_of_codes(self) -> bool:
        """Scale the epsilon of layer norms by the rule of that name?"""

    def layer(self, site: Site) -> tuple[nn.Module, bool] | None:
        """For a convolution or linear layer."""

    def add(self, site: Site) -> tuple[nn.Module, bool] | None:
        """For the addition of two tensors."""

    def pool(self, site: Site, dims: int) -> tuple[nn.Module, bool] | None:
        """For a global average pool over `dims` dimensions."""

    def average(self, site: Site, pooling: Pooling) -> tuple[nn.Module, bool] | None:
        """For every other average pool."""

    def value(self, coding: Coding, name: str) -> nn.Module:
        """For a value that nothing at its site has quantized."""


def lower(plan: QuantPlan, float_model: nn.Module, example_inputs: tuple[Tensor, ...], form: Form) -> fx.GraphModule:
    """The folded model's graph with the form's modules at the plan's sites; see `simulation.simulate`."""
    folded = fold_batch_norms(float_model, example_inputs)
    write_values(folded, plan.writes)
    program = export(folded, example_inputs)
    points = find_points(program)
    if plan.activations:
        check_writes(program)
    _check(plan, points, dict(folded.named_parameters(remove_duplicate=False)))
    if form.sums_in_layers:
        left = summed(program, points)
        plan = replace(plan, activations={name: a for name, a in plan.activations.items() if name not in left})
    return _Lowering(plan, program, points, form).run()


class _Lowering:
    """Edits one graph; used once. Nodes are known by their name in the program, whatever stands in their place now."""

    def __init__(self, plan: QuantPlan, program: ExportedProgram, points: Points, form: Form) -> None:
        self.plan, self.points, self.form = plan, points, form
        self.readable = {node.name: name for node, name in readable_names(program).items()}
        self.examples = example_places(program)
        self.poolings = {node.name: found for node in program.graph.nodes if (found := _pooling_of(node))}
        self.sums = {node.name for node in program.graph.nodes if is_sum(node)}
        self.sums_of_values = sums_of_values(program)
        self.module, self.now = runnable(program)
        self.graph = self.module.graph
        self.name_of = {node: name for name, node in self.now.items()}
        self.behind = {layer: clamp for clamp, layer in points.producers.items()}
        others = {clamp: top for clamp, top in points.tops.items() if operator(self.now[clamp]) not in RELUS}
        self.implied = {clamp for clamp, top in others.items() if _implies(self._coding(clamp), top)}
        self.stays = set(others) - self.implied  # clamps that codes on their grid still need; all kernels take a ReLU
        self.settled: set[str] = set()  # places whose value a module at the site has quantized itself

    def run(self) -> fx.GraphModule:
        for name in list(self.now):
            self._replace(name)
            if self.form.epsilon_of_codes and operator(self.now[name]) == NORM:
                self._scale_epsilon(self.now[name])
        for clamp in (self.implied | self.settled & set(self.points.producers)) - self.stays:
            before = self.now[self.points.producers[clamp]]  # the clamp has nothing left to do
            self.now[clamp].replace_all_uses_with(before)
            self.graph.erase_node(self.now[clamp])
            self.now[clamp] = before
        wanted = {*self.points.values.values()} - (self.settled - self.stays)
        if self.form.every_value:
            wanted |= {*self.points.carried, *(self.points.producers[clamp] for clamp in self.stays)}
        for place in [name for name in self.now if name in wanted]:
            self._quantize(place)
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return fx.GraphModule(self.module, self.graph).eval()

    def _replace(self, name: str) -> None:
        """Puts the form's module in the place of a layer, an addition or a global average pool."""
        node = self.now[name]
        if name in self.points.layers:
            reads, made = node.args[:1], self._layer(name, node)
        elif name in self.sums and self.behind.get(name, name) in self.points.values.values():
            reads = node.args[:2]
            made = self.form.add(self._site(name, node, reads))
        elif name in self.poolings:
            reads = node.args[:1]
            site, pooling = self._site(name, node, reads), self.poolings[name]
            made = self.form.pool(site, pooling) if isinstance(pooling, int) else self.form.average(site, pooling)
        else:
            return
        if made is None:
            return
        module, settles = made
        new = self._call(path_of(QUANTIZED, self._label(name)), module, reads, before=node)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)
        self.now[name], self.name_of[new] = new, name
        if settles:
            self.settled.add(self.behind.get(name, name))

    def _scale_epsilon(self, norm: fx.Node) -> None:
        """Of a layer norm that is run on codes, or a sum in their units: norm(x / s) is norm(x) but for epsilon."""
        scale = self._unit(norm.args[0])
        if scale is not None:
            given = [*norm.args, *NORM_DEFAULTS[len(norm.args) - 2 :]]
            given[NORM_EPSILON] *= float(scale) ** 2  # type: ignore[operator]
            norm.args = tuple(given)

    def _unit(self, value: Any) -> Tensor | None:
        """The scale of codes without a zero point, or of the operand in whose units a sum in float is computed.

        Of two operands in codes that is the one that several nodes read, else the second. None beside codes to which a
        constant was added.
        """
        name = self.name_of.get(value, "")
        coding = self._coding(name)
        if coding is not None or name not in self.sums_of_values:
            return coding.scale if isinstance(coding, Affine) and not coding.zero_point.any() else None
        operands = [value for value in self.now[name].args[:2] if isinstance(value, fx.Node)]
        if any(self._shifted(node) for node in operands):
            return None
        coded = [(len(node.users) > 1, c) for node in operands if (c := self._coding(self.name_of.get(node, "")))]
        first = len(coded) == 2 and coded[0][0] and not coded[1][0]
        return coded[0 if first else -1][1].scale if coded else None

    def _shifted(self, node: fx.Node) -> bool:
        """Is it a sum of codes and a constant?"""
        name = self.name_of.get(node, "")
        if name not in self.sums - self.sums_of_values or self._coding(name) is not None:
            return False
        return any(self._coding(self.name_of.get(v, "")) is not None for v in node.args[:2] if isinstance(v, fx.Node))

    def _label(self, name: str) -> str:
        """What the site goes by: its readable name; a layer by its weight, since attention runs two, both its own."""
        weight = self.points.layers.get(name)
        return self.readable[name] if weight is None else f"{layer_of_weight(weight)}.{name}"

    def _layer(self, name: str, node: fx.Node) -> tuple[nn.Module, bool] | None:
        weight = self.points.layers[name]
        coding = self.plan.weights.get(weight)
        if coding is None:
            return None
        held, bias = (self._tensor(value) for value in [*node.args[1:3], None][:2])
        site = self._site(name, node, node.args[:1], node.args[3:])
        dynamic = self.plan.dynamic and operator(node) == "aten.linear"
        site = replace(site, weight=held, weight_coding=coding, bias=bias)
        shared = list(self.points.layers.values()).count(weight) > 1
        site = replace(site, alone=self.plan.weights_only, shared=shared)
        return self.form.layer(replace(site, dynamic=dynamic, examples=self.examples.get(name)))

    def _tensor(self, value: Any) -> Tensor | None:
        """The parameter or buffer that an argument reads."""
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        found: Tensor = attrgetter(str(value.target))(self.module)
        return found.detach()

    def _site(self, name: str, node: fx.Node, reads: Sequence[Any], arguments: Sequence[Any] = ()) -> Site:
        place = self.behind.get(name, name)
        inputs = tuple(self._coding(self.name_of.get(value, "")) for value in reads)  # "": a constant of the model
        assert callable(node.target)
        return Site(self.readable[name], node.target, tuple(arguments), inputs, self._coding(place), place != name)

    def _coding(self, node: str) -> Coding | None:
        return self.plan.activations.get(self.points.name_at(self.behind.get(node, node)) or "")

    def _quantize(self, place: str) -> None:
        """Puts a quantizer behind a value, for all its readers; none where the plan has no such point."""
        node, coding = self.now[place], self._coding(place)
        if coding is None:
            return
        module = self.form.value(coding, self.readable[place])
        quantizer = self._call(path_of(POINTS, self.readable[place]), module, (node,), before=node.next)
        node.replace_all_uses_with(quantizer, delete_user_cb=lambda user: user is not quantizer)

    def _call(self, path: str, module: nn.Module, args: Sequence[Any], before: fx.Node) -> fx.Node:
        self.module.add_submodule(path, module)
        with self.graph.inserting_before(before):
            return self.graph.call_module(path, tuple(args))


def _implies(coding: Coding | None, top: float) -> bool:
    """Do codes of this grid end where a clamp from zero to `top` ends, however ties are rounded?"""
    if not isinstance(coding, Affine):
        return False
    zero_point, scale = int(coding.zero_point), float(coding.scale)
    return zero_point == coding.low and top / scale >= coding.high - zero_point - 0.25


def _pooling_of(node: fx.Node) -> Pooling | int | None:
    """How an average pool of [N, C, *sizes] pools; of one that leaves a single place, over how many dimensions."""
    name = operator(node)
    if name not in POOLS | AVERAGES.keys():
        return None
    *_, image = (source.meta["val"].shape for source in node.all_input_nodes)
    dims = AVERAGES[name] if name in AVERAGES else int(name[-2])
    sizes = [size for size in image[2:] if isinstance(size, int)]
    if len(image) != dims + 2 or len(sizes) != dims:
        return None
    given = dict(zip((argument.name for argument in node.target._schema.arguments), node.args, strict=False))  # type: ignore[union-attr]
    given |= node.kwargs
    if name in AVERAGES:
        return Pooling.of(sizes, given)
    size = given["output_size"]
    return dims if all(one == 1 for one in (size if isinstance(size, (list, tuple)) else [size])) else None


def write_values(model: nn.Module, writes: Mapping[str, Tensor]) -> None:
    """Puts other values in the place of parameters; raises `PlanError` for names and shapes that the model has not."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, value in writes.items():
        if name not in parameters:
            raise PlanError(WHO, f"values for {name!r}", closest(name, parameters), "writes")
        if value.shape != parameters[name].shape:
            raise PlanError(WHO, f"shape {list(value.shape)}", f"{list(parameters[name].shape)}", f"writes {name}")
        with torch.no_grad():
            parameters[name].copy_(value)


def _check(plan: QuantPlan, points: Points, parameters: Mapping[str, Tensor]) -> None:
    """Everything that the plan names is there, with the right shapes."""
    if plan.dynamic and plan.activations:
        raise PlanError(WHO, f"dynamic with {len(plan.activations)} fixed activations", "none", "activations")
    for name, coding in plan.weights.items():
        if name not in points.layers.values():
            raise PlanError(WHO, f"weight {name!r}", closest(name, points.layers.values()), "weights")
        group = None if isinstance(coding, Float8) else coding.group
        channels = 1 if coding.axis is None else parameters[name].shape[coding.axis]
        groups = 1 if group is None else ceil(parameters[name][0].numel() / group)
        if coding.scale.numel() != channels * groups:
            raise PlanError(WHO, f"{coding.scale.numel()} scales", f"{channels * groups}", f"weights {name}")
        if group is not None and (coding.axis != 0 or plan.activations or plan.dynamic):
            found = "scales per group beside quantized activations" if coding.axis == 0 else f"axis {coding.axis}"
            raise PlanError(WHO, found, "groups of weights alone, along axis 0", f"weights {name}")
        if isinstance(coding, Affine) and coding.zero_point.any() and not plan.weights_only:
            found = "zero points of a weight beside quantized activations"
            raise PlanError(WHO, found, "a symmetric weight, or weights alone", f"weights {name}")
    for name in plan.activations:
        if name not in points.values:
            known = f"{closest(name, points.values)}; a model of another version is to be compressed again"
            raise PlanError(WHO, f"point {name!r}", known, "activations")
        if plan.activations[name].scale.dim():
            raise PlanError(WHO, f"{plan.activations[name].scale.numel()} scales", "one", f"activations {name}")
