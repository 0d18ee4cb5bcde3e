"""Which kernels run: read from the graph that a runtime has optimized for itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pruning_bench.runtimes.contract import Kernel

# Operators that multiply by weights, under the names that onnxruntime's fusions give them.
MULTIPLIES = ("Conv", "Gemm", "MatMul")
_NAMES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 11: "float64", 16: "bfloat16"}


def list_kernels(optimized: bytes) -> tuple[Kernel, ...]:
    """The nodes of an optimized ONNX graph in order, with the element type of what they read; 8-bit codes are "int8".

    A layer is named where the node's name still tells (see `onnx_export`), else "".
    """
    import onnx

    graph = onnx.load_from_string(optimized).graph
    types: dict[str, str] = {}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        types[value.name] = _NAMES.get(value.type.tensor_type.elem_type, "?")
    for constant in graph.initializer:
        types[constant.name] = _NAMES.get(constant.data_type, "?")
    return tuple(_kernel(node, types) for node in graph.node)


def float_fallbacks(kernels: Iterable[Kernel]) -> tuple[str, ...]:
    """Convolutions and linear layers that do not run on 8-bit codes, as `layer (operator dtype)`; empty when all do.

    Example:
        >>> float_fallbacks([Kernel("conv1", "QLinearConv", "int8"), Kernel("conv2", "Conv", "float32")])
        ('conv2 (Conv float32)',)
    """
    return tuple(
        f"{kernel.layer or '?'} ({kernel.operator} {kernel.dtype})"
        for kernel in kernels
        if kernel.dtype != "int8" and any(word in kernel.operator for word in MULTIPLIES)
    )


def _kernel(node: Any, types: dict[str, str]) -> Kernel:
    """The kernel of a node; notes the types of its outputs where the runtime has not written them down."""
    read = types.get(node.input[0], "?") if node.input else "?"
    gives = {"QuantizeLinear": "int8", "DequantizeLinear": "float32"}.get(node.op_type, read)
    for name in node.output:
        types.setdefault(name, gives)
    return Kernel(_layer_of(node.name), node.op_type, "int8" if read in ("int8", "uint8") else read)


def _layer_of(name: str) -> str:
    layer, bar, _ = name.partition("|")
    return layer.removeprefix("fused ") if bar else ""
