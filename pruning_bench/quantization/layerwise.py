"""Layer by layer through the graph: each layer is decided about with the inputs that the layers decided before it give.

All calibration batches go through the graph together, one operator at a time, so that one pass is enough for all
layers. In memory are the values that operators further on still read, of all batches (twice for a method that asks for
those of the float model too), and what the method keeps of one layer's inputs; patches of convolutions are unfolded
some images at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor, fx

from pruning_bench.contracts import Context
from pruning_bench.errors import ModelError
from pruning_bench.models.contract import fresh
from pruning_bench.pruning.inputs import See, watch_call
from pruning_bench.pruning.inverse_hessians import products
from pruning_bench.quantization.plans import Prepared, observe
from pruning_bench.quantization.points import runnable


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer at the moment it is decided about.

    Args:
        name: of its weight.
        weight: in float, as in the folded model.
        bias: likewise; None without one, or with one that is no parameter.
        bias_name: its parameter name, or None.
        top: a clamp from zero alone reads its output, and ends there (inf for a ReLU); None where none does.
        reads: equal for layers that multiply their weights with the same values.
        watch: shows what the weight is multiplied with, patches [groups, n, columns], in the model with what was
            decided so far.
        watch_float: the same, in the same order, in the float model; what runs there is kept from the first call on.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    bias_name: str | None
    top: float | None
    reads: tuple[object, ...]
    watch: Callable[[Callable[[Tensor], None]], None]
    watch_float: Callable[[Callable[[Tensor], None]], None]


Decide = Callable[[Layer], Mapping[str, Tensor]]


def decide_layers(
    prepared: Prepared, calibration: Sequence[tuple[Tensor, ...]], decide: Decide, context: Context, who: str
) -> dict[str, Tensor]:
    """Calls `decide` for every layer in the order they run, and collects the new values of parameters that it returns.

    A weight that several layers share is decided about at the first of them.

    Args:
        prepared: its model is not changed.
        calibration: batches of the model's inputs.
        decide: parameter name -> new values of the layer's weight, bias or both, of the same shapes.
        context: for its progress: one unit a layer.
    Raises:
        ModelError: calibration that `observe` refuses, or a weight that is used in another way than as a whole.
    """
    observe(prepared.program, prepared.points, calibration, who)  # says what is wrong with a batch
    walk = _Walk(prepared, calibration, who)
    total = len(prepared.weights)
    done: dict[str, None] = {}
    with torch.no_grad():
        for layer in walk.layers():
            if layer.name not in done:
                context.progress(f"{who}: {layer.name}", len(done), total)
                walk.decided.update(decide(layer))
                done[layer.name] = None
    return walk.decided


@dataclass(frozen=True)
class Grams:
    """X X^T of layers' inputs; layers that read the same values share one.

    Example:
        >>> Grams("gptq").last
        {}
    """

    who: str
    last: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    def of(self, layer: Layer) -> Tensor:
        """float64 [groups, columns, columns], of the model with what was decided so far.

        Raises:
            ModelError: inputs too large to be multiplied.
        """
        if layer.reads not in self.last:
            self.last.clear()
            total: list[Tensor] = []

            def see(patches: Tensor) -> None:
                found = products(patches)
                total[:] = [total[0].add_(found) if total else found]

            layer.watch(see)
            if not torch.isfinite(total[0]).all():
                raise ModelError(self.who, "products of inputs that are not finite", "finite inputs", layer.name)
            self.last[layer.reads] = total[0]
        return self.last[layer.reads]


class _Walk:
    """One pass of all batches through the graph, in float and with what was decided; used once."""

    def __init__(self, prepared: Prepared, calibration: Sequence[tuple[Tensor, ...]], who: str) -> None:
        self.points, self.parameters, self.who = prepared.points, prepared.parameters, who
        self.module, nodes = runnable(prepared.program)
        self.named = {node: name for name, node in nodes.items()}
        self.decided: dict[str, Tensor] = {}
        self.calibration = calibration
        self.changed = [self._start(batch) for batch in calibration]
        self.floats: list[fx.Interpreter] = []  # none until a method asks for one

    def _start(self, batch: tuple[Tensor, ...]) -> fx.Interpreter:
        run = fx.Interpreter(self.module)
        run.extra_traceback = False
        run.args_iter = iter(fresh(batch))
        return run

    def layers(self) -> Iterator[Layer]:
        """Every layer, just before its first run with what is decided about it."""
        for node in self.module.graph.nodes:
            weight = self.points.layers.get(self.named.get(node, ""))
            if weight is not None:
                yield self._layer(node, weight)
                for run in self.changed:
                    for source in node.all_input_nodes:
                        if source.op == "get_attr" and str(source.target) in self.decided:
                            run.env[source] = self.decided[str(source.target)]
            if node.op == "output":
                return
            self._run([*self.floats, *self.changed], node)

    def _run(self, runs: Sequence[fx.Interpreter], node: fx.Node) -> None:
        for run in runs:
            run.env[node] = run.run_node(node)
            for dead in run.user_to_last_uses.get(node, []):
                del run.env[dead]

    @torch.no_grad()
    def _floats_at(self, node: fx.Node) -> Sequence[fx.Interpreter]:
        """All batches in the float model, just before a node."""
        if not self.floats:
            self.floats = [self._start(batch) for batch in self.calibration]
            for before in takewhile(lambda other: other is not node, self.module.graph.nodes):
                self._run(self.floats, before)
        return self.floats

    def _layer(self, node: fx.Node, weight: str) -> Layer:
        def watch(see: Callable[[Tensor], None], in_float: bool = False) -> None:
            for run in self._floats_at(node) if in_float else self.changed:
                self._watch(run, node, weight, lambda _, patches: see(patches))

        top = self.points.top_behind(self.named[node])
        name = self.points.biases.get(self.named[node])
        bias = self.parameters.get(name or "")
        reads = (node.args[0], node.target, *map(str, node.args[3:]), self.parameters[weight].shape[1:])
        return Layer(
            weight,
            self.parameters[weight],
            bias,
            None if bias is None else name,
            top,
            reads,
            watch,
            lambda see: watch(see, in_float=True),
        )

    def _watch(self, run: fx.Interpreter, node: fx.Node, name: str, see: See) -> None:
        args, kwargs = run.fetch_args_kwargs_from_env(node)
        watch_call(lambda: node.target(*args, **kwargs), name, args[1], see, self.who)  # type: ignore[operator]
