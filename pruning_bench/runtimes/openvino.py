"""OpenVINO on the CPU: float, and int8 by the q/dq nodes of the same ONNX file that onnxruntime reads.

It is compiled once for every shape of input: with a free batch its kernels would be other, slower ones. Additions run
in the convolution before them, whose sum they take unrounded, and layer norms add epsilon in units of codes; both are
rules of the simulation. They are not all. What is computed element by element from a value that openvino quantizes,
such as x * c in x * c + conv(x), makes it choose other kernels. Norms behind slices, rolls, products or differences
of codes, and group norms of codes, differ. So do average pools that are not global, where a mean lies between two
codes, and clamps (ReLU6) that end below their grid's end, which no calibrated plan has: they end one code lower. On
x86 before VNNI sums of two large products of 8-bit codes are clipped (`onednn`).
"""

from __future__ import annotations

import functools
import importlib.util
import io
import threading
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pruning_bench.environment import cores
from pruning_bench.errors import ModelError, UnavailableError
from pruning_bench.quantization.lower import Rule
from pruning_bench.runtimes import onednn
from pruning_bench.runtimes.contract import (
    Kernel,
    Session,
    check_request,
    checked,
    refuse_dynamic,
    refuse_float8,
    refuse_other_floats,
    runtime,
)
from pruning_bench.runtimes.kernels import layer_of, multiplies

if TYPE_CHECKING:
    from pruning_bench.engine import Compressed

NEEDED = ("openvino", "onnx", "onnxscript")
INSTALL = "python -m pip install openvino onnx onnxscript"
HINTS = {None: "f32", "bf16": "bf16", "fp16": "f16"}  # by the plan's dtype
CAPABILITIES = {"bf16": "BF16", "fp16": "FP16"}  # as the CPU device names what it computes in
FUSED = "Subgraph"  # a kernel that is compiled for several operators
_PLACES = (
    "Exception from",
    "Check '",
    "FrontEnd API failed",
    "Model wasn't fully converted",
    "While validating",
    "Summary:",
    "Conversion is failed",
)
_PRECISIONS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i32": "int32"}
_PRECISIONS |= {"i8": "int8", "u8": "int8", "i4": "int4", "u4": "int4"}


@runtime
class OpenVino:
    """The runtime `openvino`: its CPU device, float32 unless the model is cast; timed on one stream."""

    name: ClassVar[str] = "openvino"
    optional: ClassVar[bool] = True
    rules: ClassVar[frozenset[Rule]] = frozenset(
        {
            Rule.INTEGER_SUMS,
            Rule.INTEGER_BIASES,
            Rule.ENDS,
            Rule.SUMS_IN_LAYERS,
            Rule.RELU_IS_CLAMP,
            Rule.EPSILON_OF_CODES,
        }
    )

    def available(self, device: str = "cpu") -> str | None:
        """None, or the reason with the install command."""
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed; {INSTALL}"
        return None if device == "cpu" else f"runs on cpu only, not on {device}; choose device cpu or the runtime eager"

    def version(self) -> str:
        """Such as "openvino 2026.4.1"."""
        return f"openvino {metadata.version('openvino')}"

    def remarks(self) -> tuple[str, ...]:
        """What a CPU that clips sums of integer products means for quantized models."""
        return onednn.remarks()

    def depends(self, compressed: Compressed) -> str:
        """On what of this CPU the outputs of a model depend."""
        return onednn.depends(compressed)

    def build(
        self, compressed: Compressed, example_inputs: tuple[Tensor, ...], *, threads: int = 1, device: str = "cpu"
    ) -> Session:
        """Exports and compiles the model for the shapes of the example inputs; for others when they first come.

        Raises:
            UnavailableError: not installed, another device than the CPU, inputs quantized at run time, 8-bit floats, or
                a cast that this CPU has no kernels for.
            LevelError: no such number of threads.
            ModelError, PlanError: see `onnx_export.export_onnx`; or openvino does not compile it.
        """
        if reason := self.available(device):
            raise UnavailableError(self.name, reason, "available")
        check_request(example_inputs, threads, self.name)
        refuse_dynamic(self.name, compressed)
        refuse_float8(self.name, compressed)
        refuse_other_floats(self.name, compressed)
        dtype = compressed.quant_plan.dtype if compressed.quant_plan else None
        if dtype is not None and CAPABILITIES[dtype] not in capabilities():
            found = f"this CPU computes in {', '.join(sorted(capabilities()))}, not in {dtype}"
            raise UnavailableError(self.name, found, f"a CPU with {dtype} instructions, or the runtime eager")
        from pruning_bench.runtimes.onnx_export import exported

        content = without_zero_points(exported(compressed, example_inputs))
        timed = Models(content, threads, HINTS[dtype])
        many = Models(content, threads, HINTS[dtype], streams=max(1, cores() // threads))
        kernels = list_kernels(timed.compiled(example_inputs))
        return checked(Session(_runner(many), _binder(timed), kernels, concurrent=True), example_inputs, self.name)


def without_zero_points(content: bytes) -> bytes:
    """The ONNX model, where constants are dequantized without the zero points that are zero throughout.

    openvino folds equal constants into one. Where it keeps the zero points of a convolution, as of one with a single
    input channel, all layers that share them read their weights as floats and run in float.
    """
    import onnx

    model = onnx.load_from_string(content)
    held = {constant.name: constant for constant in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[0] in held:
            zero_point = held.get(node.input[2])
            if zero_point is not None and not onnx.numpy_helper.to_array(zero_point).any():
                del node.input[2]
    stripped: bytes = model.SerializeToString()
    return stripped


class Models:
    """One ONNX model, compiled for the shapes that are asked for, each once.

    Args:
        threads: that work on one request.
        precision: what float layers compute in, of `HINTS`.
        streams: how many requests run at once.
    """

    def __init__(self, content: bytes, threads: int, precision: str, streams: int = 1) -> None:
        self._content = content
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads * streams,
            "INFERENCE_PRECISION_HINT": precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # else CPUs with VNNI round inputs of layers whose weights are codes
        }
        self._made: dict[tuple[torch.Size, ...], Any] = {}
        self._lock = threading.Lock()

    def compiled(self, inputs: tuple[Tensor, ...]) -> Any:
        """The `openvino.CompiledModel` for inputs of these shapes; raises `ModelError` where it makes none."""
        shapes = tuple(value.shape for value in inputs)
        with self._lock:
            if shapes not in self._made:
                try:
                    self._made[shapes] = self._compiled(inputs)
                except RuntimeError as error:
                    raise ModelError(OpenVino.name, reason_of(str(error)), "a model that it compiles") from error
            return self._made[shapes]

    def _compiled(self, inputs: tuple[Tensor, ...]) -> Any:
        model = core().read_model(io.BytesIO(self._content))
        model.reshape({port: list(value.shape) for port, value in zip(model.inputs, read(model, inputs), strict=True)})
        return core().compile_model(model, "CPU", self._options)


def read(model: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs in the order of a model's ports, which openvino leaves out where nothing reads an input."""
    if len(model.inputs) == len(inputs):
        return inputs
    from pruning_bench.runtimes.onnx_export import input_names

    named = dict(zip(input_names(len(inputs)), inputs, strict=True))
    return tuple(next(value for name, value in named.items() if name in port.names) for port in model.inputs)


def reason_of(text: str) -> str:
    """What openvino says in one line, without the places in its own code.

    Example:
        >>> reason_of("Exception from core.cpp:105:\\n-- Pad-21 with a message:\\nUnsupported padding mode: [wrap]\\n")
        'Pad-21 with a message: Unsupported padding mode: [wrap]'
    """
    lines = [line.strip().removeprefix("-- ") for line in text.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(_PLACES)) or " ".join(text.split())


@functools.cache
def core() -> Any:
    """The one `openvino.Core` of the process."""
    import openvino as ov  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return ov.Core()


@functools.cache
def capabilities() -> frozenset[str]:
    """What the CPU device computes in: FP32, INT8, BF16 ..."""
    return frozenset(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")) & {"FP32", "FP16", "BF16", "INT8"}


def list_kernels(compiled: Any) -> tuple[Kernel, ...]:
    """The nodes of the graph that a compiled model executes, in order, with the element type they compute in.

    A fused node stands once for each convolution, linear layer or other product in it.
    """
    nodes = [{key: str(value.value) for key, value in node.get_rt_info().items()} for node in _nodes(compiled)]
    nodes.sort(key=lambda node: int(node.get("execOrder", 0)))
    run = (node for node in nodes if node.get("layerType") not in ("Input", "Output", "Const"))
    return tuple(kernel for node in run for kernel in kernels_of(node))


def _nodes(compiled: Any) -> list[Any]:
    return list(compiled.get_runtime_model().get_ordered_ops())


def kernels_of(node: Mapping[str, str]) -> tuple[Kernel, ...]:
    """What one node of the executed graph runs, by what the runtime tells of it.

    Example:
        >>> names = "hidden|Gemm|34/WithoutBiases,hidden|Gemm|34,relu|Relu|36,classifier|Gemm|40"
        >>> [str(k.layer) for k in kernels_of({"layerType": "Subgraph", "originalLayersNames": names})]
        ['hidden', 'classifier']
    """
    kind, dtype = node.get("layerType", "?"), _dtype(node)
    names = [name for name in node.get("originalLayersNames", "").split(",") if name]
    operators = [(layer_of(name), name.split("|")[1]) for name in names if name.count("|") > 1]
    products = {layer: operator for layer, operator in operators if multiplies(operator)}
    if not products or not (kind == FUSED or multiplies(kind)):  # a Transpose goes by the product that it is made for
        return (Kernel(layer_of(names[0]) if names else "", kind, dtype),)
    return tuple(
        Kernel(layer, kind if multiplies(kind) else f"{kind} {operator}", dtype) for layer, operator in products.items()
    )


def _dtype(node: Mapping[str, str]) -> str:
    """What a node computes in; of a product of floats with weights in codes, which openvino calls by these, both."""
    read, primitive = node.get("runtimePrecision", "?").lower(), node.get("primitiveType", "").lower()
    dtype, computes = (_PRECISIONS.get(name, name) for name in (read, primitive.rpartition("_")[2]))
    mixed = multiplies(node.get("layerType", "")) and dtype.startswith("int") and "float" in computes
    return f"{computes} of {dtype}" if mixed else dtype


def _runner(models: Models) -> Callable[..., Tensor]:
    def run(*inputs: Tensor) -> Tensor:
        model = models.compiled(inputs)
        arrays = [_array(value) for value in read(model, inputs)]
        outputs = model.create_infer_request().infer(arrays, share_inputs=True)
        return torch.from_numpy(np.asarray(outputs[0]))

    return run


def _binder(models: Models) -> Callable[..., Callable[[], object]]:
    def bind(*inputs: Tensor) -> Callable[[], object]:
        import openvino as ov  # type: ignore[import-untyped,unused-ignore]

        model = models.compiled(inputs)
        request = model.create_infer_request()
        for index, value in enumerate(read(model, inputs)):
            request.set_input_tensor(index, ov.Tensor(_array(value).copy()))

        def call() -> object:
            request.start_async()
            request.wait()
            return request

        return call

    return bind


def _array(value: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = value.detach().cpu().contiguous().numpy()
    return array
