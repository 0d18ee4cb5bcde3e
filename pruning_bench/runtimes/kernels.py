"""Which kernels run: read from the graph that a runtime has optimized for itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pruning_bench.runtimes.contract import Kernel

QUANTIZES_ITSELF = frozenset({"DynamicQuantizeMatMul", "MatMulNBits"})  # read float and multiply codes
# Operators that multiply by weights, under the names that ONNX, the fusions of the runtimes and ATen give them.
_MULTIPLIES = re.compile(
    r"conv(?!ert)|gemm|matmul|(?<!quantize)linear|fullyconnected|dequantize_per_channel|addmm|\bb?mm\b|rnn|gru|lstm",
    re.IGNORECASE,
)
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


def multiplies(operator: str) -> bool:
    """Is it a convolution, a linear layer or another product?

    Example:
        >>> [name for name in ("FusedConv", "onednn.qlinear_pointwise", "LSTM", "QuantizeLinear") if multiplies(name)]
        ['FusedConv', 'onednn.qlinear_pointwise', 'LSTM']
    """
    return _MULTIPLIES.search(operator) is not None


def float_fallbacks(kernels: Iterable[Kernel]) -> tuple[str, ...]:
    """Convolutions and linear layers that do not run on 8-bit codes, as `layer (operator dtype)`; empty when all do.

    Example:
        >>> float_fallbacks([Kernel("conv1", "QLinearConv", "int8"), Kernel("conv2", "Conv", "float32")])
        ('conv2 (Conv float32)',)
    """
    return tuple(
        f"{kernel.layer or '?'} ({kernel.operator} {kernel.dtype})"
        for kernel in kernels
        if kernel.dtype != "int8" and multiplies(kernel.operator)
    )


def float_weights(kernels: Iterable[Kernel]) -> tuple[str, ...]:
    """Convolutions and linear layers that read their weights as floats, as `layer (operator dtype)`.

    Example:
        >>> float_weights([Kernel("fc", "FullyConnected", "float32 of int4"), Kernel("conv2", "Conv", "float32")])
        ('conv2 (Conv float32)',)
    """
    return float_fallbacks(kernel for kernel in kernels if not kernel.dtype.endswith(("int4", "int8")))


def _kernel(node: Any, types: dict[str, str]) -> Kernel:
    """The kernel of a node; notes the types of its outputs where the runtime has not written them down."""
    read = types.get(node.input[0], "?") if node.input else "?"
    gives = {"QuantizeLinear": "int8", "DequantizeLinear": "float32"}.get(node.op_type, read)
    for name in node.output:
        types.setdefault(name, gives)
    on_codes = read in ("int8", "uint8") or node.op_type in QUANTIZES_ITSELF
    return Kernel(layer_of(node.name), node.op_type, "int8" if on_codes else read)


def layer_of(name: str) -> str:
    """The layer that a node's name tells (see `onnx_export`), or ""."""
    layer, bar, _ = name.partition("|")
    return layer.removeprefix("fused ") if bar else ""
