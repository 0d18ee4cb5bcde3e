"""ONNX Runtime on the CPU: float, and int8 by q/dq nodes that it fuses into integer kernels.

What it does beyond the bare plan is `lower.INTEGER`: it sums codes in int32, takes a ReLU as the clamp, and divides.
Where the CPU would clip sums of uint8 times int8, weights of 8 bits are stored as uint8: no value changes, but the
kernels are slower. Weights of 7 bits need no such care. Linear layers whose weights alone are quantized become
MatMulNBits, which rounds its input too, block by block: `lower.Rule.BLOCKED_INPUTS`.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pruning_bench.errors import ModelError, UnavailableError
from pruning_bench.quantization.blocked import BLOCK
from pruning_bench.quantization.lower import INTEGER, Rule
from pruning_bench.quantization.qdq import OPSET
from pruning_bench.runtimes.contract import (
    Kernel,
    Session,
    check_request,
    checked,
    refuse_float8,
    refuse_other_floats,
    runtime,
)
from pruning_bench.runtimes.kernels import list_kernels

if TYPE_CHECKING:
    from pruning_bench.engine import Compressed

UNWANTED = ["WeightBiasQuantization"]  # it quantizes layers that the plan left in float
NEEDED = ("onnxruntime", "onnx", "onnxscript")


@runtime
class OnnxRuntime:
    """The runtime `onnxruntime`: its CPU provider, all graph optimizations."""

    name: ClassVar[str] = "onnxruntime"
    rules: ClassVar[frozenset[Rule]] = INTEGER | {Rule.BLOCKED_INPUTS}

    def available(self, device: str = "cpu") -> str | None:
        """None, or the reason with the install command."""
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed; python -m pip install {' '.join(missing)}"
        return None if device == "cpu" else f"runs on cpu only, not on {device}; choose device cpu or the runtime eager"

    def version(self) -> str:
        """Such as "onnxruntime 1.20.0"."""
        return f"onnxruntime {metadata.version('onnxruntime')}"

    def remarks(self) -> tuple[str, ...]:
        """What a CPU that clips sums of integer products means for quantized models."""
        if not sums_saturate():
            return ()
        return ("this CPU clips sums of uint8 times int8: w8a8 takes exact, slower kernels, w7a8 fast ones; try both",)

    def build(
        self, compressed: Compressed, example_inputs: tuple[Tensor, ...], *, threads: int = 1, device: str = "cpu"
    ) -> Session:
        """Exports and loads the model.

        Raises:
            UnavailableError: not installed, another device than the CPU, or floating-point types other than float32.
            LevelError: no such number of threads.
            ModelError, PlanError: see `onnx_export.export_onnx` and `session_from`.
        """
        if reason := self.available(device):
            raise UnavailableError(self.name, reason, "available")
        check_request(example_inputs, threads, self.name)
        if compressed.quant_plan is not None and compressed.quant_plan.dtype is not None:
            reason = f"its CPU provider computes in float32 alone, not in {compressed.quant_plan.dtype}"
            raise UnavailableError(self.name, reason, "a cast on the runtimes eager, compiled or openvino")
        refuse_float8(self.name, compressed)
        refuse_other_floats(self.name, compressed)
        from pruning_bench.runtimes.onnx_export import exported

        session = session_from(exported(compressed, example_inputs, saturating=sums_saturate()), threads)
        return checked(session, example_inputs, self.name)


@functools.cache
def sums_saturate() -> bool:
    """Does this CPU add products of uint8 and int8 codes in 16 bits, and so clip large ones?

    x86 before VNNI does, and then predicts otherwise. Found by multiplying the largest codes: 255 * 127 * 64 should be
    2,072,640.
    """
    import onnxruntime as ort  # type: ignore[import-untyped,unused-ignore]
    from onnx import TensorProto, helper

    left = helper.make_tensor_value_info("left", TensorProto.UINT8, [16, 64])
    right = helper.make_tensor("right", TensorProto.INT8, [64, 16], np.full((64, 16), 127, np.int8).tobytes(), raw=True)
    product = helper.make_tensor_value_info("product", TensorProto.INT32, [16, 16])
    node = helper.make_node("MatMulInteger", ["left", "right"], ["product"])
    model = helper.make_model(
        helper.make_graph([node], "probe", [left], [product], [right]),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    inner = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = inner.run(None, {"left": np.full((16, 64), 255, np.uint8)})[0]
    return bool((found != 255 * 127 * 64).any())


def session_from(model: bytes | Path, threads: int = 1, *, listing: bool = True) -> Session:
    """A session from ONNX bytes or a file of them; needs neither the model's code nor torch's exporter.

    Args:
        threads: of the one pool that runs each operator; they sleep when idle, so as not to disturb what runs next.
        listing: say which kernels run (costs the time to write and read the optimized graph).
    Raises:
        ModelError: onnxruntime does not load it.
    """
    import onnxruntime as ort  # type: ignore[import-untyped,unused-ignore]

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")  # on 8-bit codes: see the rules
    options.add_session_config_entry("session.qdq_matmulnbits_block_size", str(BLOCK))
    options.log_severity_level = 3  # errors; it warns when an optimized graph is written
    source = model if isinstance(model, bytes) else str(model)
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        if listing:
            options.optimized_model_filepath = str(optimized)
        try:
            inner = ort.InferenceSession(
                source, options, providers=["CPUExecutionProvider"], disabled_optimizers=UNWANTED
            )
        except Exception as error:
            found = " ".join(str(error).split())
            raise ModelError(OnnxRuntime.name, found, "a model that it has kernels for") from error
        kernels: tuple[Kernel, ...] = list_kernels(optimized.read_bytes()) if listing else ()
    return Session(run=_runner(inner), bind=_binder(inner), kernels=kernels, concurrent=True)


def _runner(inner: Any) -> Callable[..., Tensor]:
    names = [value.name for value in inner.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        arrays = map(_array, inputs)
        return torch.from_numpy(inner.run(None, dict(zip(names, arrays, strict=True)))[0])

    return run


def _binder(inner: Any) -> Callable[..., Callable[[], object]]:
    run = _runner(inner)
    names = [value.name for value in inner.get_inputs()]

    def bind(*inputs: Tensor) -> Callable[[], object]:
        import onnxruntime as ort

        binding = inner.io_binding()
        for name, value in zip(names, inputs, strict=True):
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(_array(value).copy()))
        room = np.empty_like(run(*inputs).numpy())
        binding.bind_ortvalue_output(inner.get_outputs()[0].name, ort.OrtValue.ortvalue_from_numpy(room))
        return lambda: inner.run_with_iobinding(binding)

    return bind


def _array(value: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = value.detach().cpu().contiguous().numpy()
    return array
