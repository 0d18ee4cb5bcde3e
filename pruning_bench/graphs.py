"""The exported graph of a model: what pruning couples along and quantization places its points on.

`torch.export` at its default level: convolutions are `aten.conv2d.default`, linear layers `aten.linear.default`,
batch norms `aten.batch_norm.default`; parameters and buffers are placeholders.
"""

from __future__ import annotations

import copy
import io
import linecache
import logging
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import InputKind
from torch.fx import Node

from pruning_bench.errors import ModelError, describe

WHO = "export"
VIEWS = frozenset({"aten.view", "aten.reshape", "aten.flatten", "aten._unsafe_view"})
_TORCH = Path(torch.__file__).parent


def export(model: nn.Module, example_inputs: tuple[Tensor, ...], *, training: bool = False) -> ExportedProgram:
    """The graph of `model` in eval mode with a dynamic batch; the model is not changed.

    Args:
        model: any module; its training flags are as before afterwards.
        example_inputs: positional arguments, batch first; a batch of one is repeated to two.
        training: in training mode instead; buffers stay as they are.
    Raises:
        ModelError: it cannot be exported, or its batch is not free; names the operator and the place.
    Example:
        >>> program = export(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), (torch.ones(1, 3),))
        >>> [operator(node) for node in program.graph.nodes if node.op == "call_function"]
        ['aten.linear', 'aten.relu']
    """
    inputs = at_least_two(example_inputs)
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for value in inputs:
        if isinstance(value, Tensor) and value.dim():
            shapes[value] = {0: Dim.DYNAMIC}
    try:
        with evaluating(model, training), _quiet():
            return torch.export.export(model, inputs, dynamic_shapes=shapes)
    except Exception as error:
        if problem := _problem_of(model, inputs, training):
            given = ", ".join(f"{list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for x in inputs)
            found = f"a model that fails on inputs {given}, two examples each ({problem})"
            raise ModelError(WHO, found, "arguments of its forward, batch first", _place(error, model)) from error
        raise ModelError(WHO, _reason(error), "a model that torch.export traces", _place(error, model)) from error


def _problem_of(model: nn.Module, inputs: tuple[Tensor, ...], training: bool) -> str:
    """What the model itself says of the inputs when it just runs; "" if it does."""
    try:
        tried = copy.deepcopy(model)
    except Exception:  # nothing is known then
        return ""
    try:
        with evaluating(tried, training), torch.no_grad():
            tried(*inputs)
    except Exception as problem:
        return describe(problem)
    return ""


@dataclass(frozen=True)
class Examples:
    """Where the examples of a batch lie in a tensor: dimension `dim` counts [outer, examples, inner] in one."""

    dim: int
    outer: int = 1
    inner: int = 1


def example_places(program: ExportedProgram) -> dict[str, Examples]:
    """Node -> where the examples lie in its first argument; only nodes where that is certain.

    Either exactly one dimension counts them, or one that a view has made of that and of fixed sizes beside it. None at
    all where the inputs differ in their first sizes, so that one of them counts something else.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Flatten(0, 1), nn.Linear(2, 2))
        >>> example_places(export(model, (torch.ones(1, 5, 3),)))["linear_1"]
        Examples(dim=0, outer=1, inner=5)
    """
    counts = {_expression(value.shape[0]) for node in input_nodes(program) if (value := _value(node)) is not None}
    if len(counts) != 1 or isinstance(count := counts.pop(), int):
        return {}
    found: dict[str, Examples] = {}
    for node in program.graph.nodes:
        source = node.args[0] if node.op == "call_function" and node.args else None
        if isinstance(source, Node) and (place := _examples_of(source, count)):
            found[node.name] = place
    return found


def _examples_of(node: Node, count: Any) -> Examples | None:
    sizes = _sizes(node)
    dims = [d for d, size in enumerate(sizes) if size == count]
    if len(dims) == 1:
        return Examples(dims[0])
    if dims or operator(node) not in VIEWS:
        return None
    source = _sizes(node.all_input_nodes[0])
    places = [d for d, size in enumerate(source) if size == count]
    if len(places) != 1 or any(size != count and not isinstance(size, int) for size in source):
        return None
    for first, last in combinations_with_replacement(range(len(source)), 2):  # the dimensions that were made one
        if not first <= places[0] <= last:
            continue
        for dim, size in enumerate(sizes):
            if size == prod(source[first : last + 1]) and prod(sizes[:dim]) == prod(source[:first]):
                return Examples(dim, int(prod(source[first : places[0]])), int(prod(source[places[0] + 1 : last + 1])))
    return None


def _value(node: Node) -> Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) and value.dim() else None


def _sizes(node: Node) -> list[Any]:
    value = _value(node)
    return [] if value is None else [_expression(size) for size in value.shape]


def _expression(size: Any) -> Any:
    """A size as a number or, where it depends on the batch, sympy's expression: both compare and multiply."""
    return size.node.expr if isinstance(size, torch.SymInt) else int(size)


def at_least_two(example_inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs with a batch of one repeated to two: exporting a dynamic batch takes one as a constant."""
    return tuple(
        torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() and value.shape[0] == 1 else value
        for value in example_inputs
    )


@contextmanager
def evaluating(model: nn.Module, training: bool = False) -> Iterator[nn.Module]:
    """The model in eval (or training) mode for a `with` block; every module's own training flag comes back."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield model
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    """No gradients, none of torch's own warnings and dumps, attention spelled out instead of its fused eval path."""
    fused, muted = torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.WARNING)
    try:
        with torch.no_grad(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(muted)
        torch.backends.mha.set_fastpath_enabled(fused)


def tensor_names(program: ExportedProgram) -> dict[str, str]:
    """Placeholder name -> parameter or buffer name in the model.

    Example:
        >>> tensor_names(export(nn.Linear(3, 2), (torch.ones(2, 3),)))
        {'p_weight': 'weight', 'p_bias': 'bias'}
    """
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)
    specs = program.graph_signature.input_specs
    return {spec.arg.name: spec.target for spec in specs if spec.kind in kinds and spec.target is not None}


def input_nodes(program: ExportedProgram) -> list[Node]:
    """The placeholders of the model's own inputs, in order."""
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def output_nodes(program: ExportedProgram) -> list[Node]:
    """The nodes that the model returns."""
    return list(program.graph.output_node().all_input_nodes)


def operator(node: Node) -> str:
    """The operator without its overload: `aten.conv2d`, `aten.add`, `aten.relu_`; else the kind of node."""
    if isinstance(node.target, torch._ops.OpOverload):
        return f"{node.target.namespace}.{node.target.overloadpacket.__name__}"
    return str(getattr(node.target, "__name__", node.op)) if node.op == "call_function" else str(node.op)


def module_path(node: Node) -> str:
    """Dotted path of the innermost module whose forward ran the node; "" for the model itself or an input.

    Example:
        >>> program = export(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), (torch.ones(2, 3),))
        >>> [module_path(node) for node in program.graph.nodes if node.op == "call_function"]
        ['0', '1']
    """
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    if path.startswith("_empty_nn_module_stack"):  # torch's mark for nodes that it made itself
        return ""
    return re.sub(r"@\d+\Z", "", path)  # a second call of one module is path@1


def readable_names(program: ExportedProgram) -> dict[Node, str]:
    """A stable name for every node: the module's path and the operator, numbered from the second on.

    The names depend on the model's own code alone, not on how torch numbers its nodes.

    Example:
        >>> program = export(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), (torch.ones(2, 3),))
        >>> list(readable_names(program).values())
        ['0.weight', '0.bias', 'input', '0.linear', '1.relu', 'output']
    """
    tensors, seen = tensor_names(program), Counter[str]()
    names: dict[Node, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = tensors.get(node.name, "input")
        else:
            name = ".".join(filter(None, (module_path(node), operator(node).split(".")[-1].rstrip("_"))))
        names[node] = name if not seen[name] else f"{name}_{seen[name]}"
        seen[name] += 1
    return names


def place(node: Node) -> str:
    """Where a node stands, for messages: `layer1.0: aten.add.Tensor`."""
    return f"{module_path(node) or 'model'}: {node.target}"


def _reason(error: Exception) -> str:
    """The first line of what torch says, with the operator when it names one."""
    text = str(error).strip()
    if "Constraints violated" in text:  # torch's way to say that the batch became a constant
        return "a batch size that its code fixes"
    named = re.search(r"\baten[.:]+\w+(?:\.\w+)*", text)
    operator = named.group() if named else _running(error)
    if type(error).__name__ == "GuardOnDataDependentSymNode":
        return f"a decision that depends on its data, at {operator or 'an unknown operator'}"
    first = text.splitlines()[0].strip()[:200] if text else ""
    also = f" at {operator}" if operator and operator not in first else ""
    return f"{type(error).__name__}{': ' if first else ''}{first}{also}"


def _running(error: BaseException) -> str:
    """The operator that torch was running: `aten.view.default`, `Tensor.__bool__`; "" where no frame tells."""
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in ("__torch_function__", "__torch_dispatch__"):
            called = frame.f_locals.get("func")
            if isinstance(called, torch._ops.OpOverload):
                found = str(called)
            elif name := getattr(called, "__name__", ""):
                found = f"Tensor.{name}" if hasattr(Tensor, name) else name
    return found


def _place(error: BaseException, model: nn.Module) -> str:
    """The innermost module of the model that was running, and the innermost line of code that is not torch's own."""
    paths = {id(module): path for path, module in model.named_modules()}
    found, called = type(model).__name__, ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if id(owner) in paths and code.co_name not in ("_call_impl", "_wrapped_call_impl"):
            source, file = linecache.getline(code.co_filename, line).strip(), Path(code.co_filename)
            found = f"{paths[id(owner)] or 'model'} ({type(owner).__name__})"
            if _TORCH not in file.parents or not called:
                called = f": {source}, {file.name}:{line}"
    return found + called
