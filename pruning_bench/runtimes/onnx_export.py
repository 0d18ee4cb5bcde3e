"""A compressed model as ONNX: the same graph in float and in int8, the latter with q/dq nodes from the one plan."""

from __future__ import annotations

import ast
import warnings
import weakref
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from pruning_bench.graphs import export
from pruning_bench.quantization.contract import QuantPlan
from pruning_bench.quantization.places import layer_at
from pruning_bench.quantization.qdq import NIBBLES, OPSET, to_qdq
from pruning_bench.runtimes.contract import check_exported

if TYPE_CHECKING:
    from pruning_bench.engine import Compressed

WHO = "onnx"
EXPORTERS = ("torch", "onnx", "onnxscript", "onnx_ir", "ml_dtypes")
SEPARATOR = "|"  # between layer, operator and number in a node's name; runtimes keep names when they fuse nodes
UNREADABLE = frozenset({SEPARATOR, ","})  # in the names of layers, which then have none; openvino lists with commas

Serve: TypeAlias = Callable[[str, Callable[[], bytes]], bytes]

_EXPORTS: weakref.WeakKeyDictionary[Compressed, dict[object, bytes]] = weakref.WeakKeyDictionary()
_SERVERS: weakref.WeakKeyDictionary[Compressed, Serve] = weakref.WeakKeyDictionary()


def serve_exports(compressed: Compressed, serve: Serve) -> None:
    """Exports of this model are asked for as `serve(kind, make)`, which may know them from an earlier run.

    Args:
        serve: must not hold `compressed`; `kind` is all that the bytes depend on besides the model.
    """
    _SERVERS[compressed] = serve


def exported(compressed: Compressed, example_inputs: tuple[Tensor, ...], *, saturating: bool = False) -> bytes:
    """What `export_onnx` gives, made once for all runtimes and threads; nobody changes a compressed model."""
    exports = _EXPORTS.setdefault(compressed, {})
    kind = (saturating, *((value.shape, value.dtype) for value in example_inputs))
    if kind not in exports:
        serve: Serve = _SERVERS.get(compressed, lambda _, make: make())
        about = f"{kind} {[(name, metadata.version(name)) for name in EXPORTERS]}"
        exports[kind] = serve(about, lambda: export_onnx(compressed, example_inputs, saturating=saturating))
    return exports[kind]


def export_onnx(compressed: Compressed, example_inputs: tuple[Tensor, ...], *, saturating: bool = False) -> bytes:
    """The model as ONNX bytes, batch free, weights inside; batch norm folded.

    A cast changes nothing here: the runtime makes it.

    The inputs are named input, input_1 ..., and each node `layer|operator|number`, so that a runtime's own listing can
    be read back. The bytes depend on the model, the plan and the versions of torch and onnx alone.

    Args:
        saturating: see `qdq.Layer`.
    Raises:
        ModelError: the model cannot be exported, or returns no tensor with the examples first.
        PlanError: the plan does not fit the model, or has activations that are not integers of 8 bits.
    """
    plan = compressed.quant_plan if compressed.quant_plan and compressed.quant_plan.dtype is None else QuantPlan({})
    lowered = to_qdq(plan, compressed.float_model, example_inputs, saturating=saturating)
    program = export(lowered, example_inputs)
    check_exported(program, WHO)
    names = input_names(len(example_inputs))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own code
        made = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, verbose=False, input_names=names, output_names=["output"]
        )
    assert made is not None
    for value in made.model.graph.initializers.values():
        if str(value.name).rpartition(".")[2] == NIBBLES:
            _narrow(value)
    for index, node in enumerate(made.model.graph):
        layer = _layer(node)
        readable = "" if UNREADABLE.intersection(layer) else layer
        node.name = SEPARATOR.join((readable, node.op_type, str(index)))
        for output in node.outputs:
            if not output.is_graph_output():
                output.name = f"{node.name}{SEPARATOR}{output.index()}"  # some fusions name a node after what it gives
    content: bytes = made.model_proto.SerializeToString()
    return content


def input_names(count: int) -> list[str]:
    """Of so many arguments of the model.

    Example:
        >>> input_names(3)
        ['input', 'input_1', 'input_2']
    """
    return [f"input_{index}" if index else "input" for index in range(count)]


def _narrow(value: Any) -> None:
    """Makes a constant of int8 one of INT4, which torch does not know."""
    import onnx_ir
    from ml_dtypes import int4

    value.dtype = onnx_ir.DataType.INT4
    value.const_value = onnx_ir.Tensor(value.const_value.numpy().astype(int4), name=value.name)


def _layer(node: Any) -> str:
    """Module path of what an ONNX node came from; "" for the model itself. A ReLU goes by what it is fused into."""
    if node.op_type == "Relu" and node.inputs[0].producer() is not None:
        return _layer(node.inputs[0].producer())
    scopes: list[str] = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['', '']"))
    if len(scopes) > 1 and (layer := layer_at(scopes[1])) is not None:
        return layer
    return scopes[-2] if len(scopes) > 1 else ""
