"""What a runtime is: it builds a session from a compressed model and lists the kernels that really ran."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from pruning_bench.errors import ModelError, UnavailableError
from pruning_bench.registry import RUNTIMES

if TYPE_CHECKING:
    from pruning_bench.engine import Compressed

C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class Kernel:
    """One node of the graph that the runtime executes: operator type and the element type it computes in."""

    layer: str
    operator: str
    dtype: str


@dataclass(frozen=True)
class Session:
    """A model ready to run.

    Args:
        run: positional inputs (torch tensors, batch first) -> output tensor; for quality, any batch size.
        bind: inputs -> a function of no arguments that runs the model on them, all copying done before; for timing.
        kernels: what the runtime executes, layer by layer; empty if it cannot say.
        clock: seconds, monotonic; read before and after a block of calls, so that a clock which first waits for the
            device times asynchronous work. Sessions are only timed side by side when they share their clock.
        concurrent: `run` may be called from several threads at once.
        timed: False when the session only simulates (a quantized model in eager) and must never be reported as a speed.
    """

    run: Callable[..., Tensor]
    bind: Callable[..., Callable[[], object]]
    kernels: tuple[Kernel, ...] = ()
    timed: bool = True
    concurrent: bool = False
    clock: Callable[[], float] = time.perf_counter


@runtime_checkable
class Runtime(Protocol):
    """Implemented by a class without state; see `runtime`.

    A runtime that only simulates quantized models says so by `simulates_quantized = True`: they are not timed on it.
    One that deviates from the bare plan lists how in `rules` (`quantization.lower.Rule`).
    One that few have, or that takes long to build, says so by `optional = True`: the profile smoke leaves it out.
    One whose outputs of a model depend on this machine says on what of it by `depends(compressed) -> str`, "" where
    they do not: such outputs are shown and not judged.
    One that is slower on this machine than elsewhere, or predicts otherwise, says why, and what to do, by
    `remarks() -> tuple[str, ...]`.
    """

    name: ClassVar[str]

    def available(self, device: str = "cpu") -> str | None:
        """None when it can run on `device`, else the reason with the install command, in one line."""

    def version(self) -> str:
        """Name and version of the engine, for the environment record."""

    def build(
        self, compressed: Compressed, example_inputs: tuple[Tensor, ...], *, threads: int = 1, device: str = "cpu"
    ) -> Session:
        """A session of the model; raises `UnavailableError` where it cannot run, `ModelError` if it cannot be built."""


def reason_without_device(device: str) -> str | None:
    """None when torch can run on `device`, else the reason with the install command, in one line."""
    if device == "cpu" or (device == "cuda" and torch.cuda.is_available()):
        return None
    if device == "cuda":
        return "torch sees no CUDA device; install a driver and a CUDA build of torch: python -m pip install torch"
    return f"device {device} is unknown; choose cpu or cuda"


def clock_of(device: str) -> Callable[[], float]:
    """The clock that times what torch runs on `device`; the same one for every runtime of torch's."""
    return time.perf_counter if device == "cpu" else _synchronized


def _synchronized() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads for torch's operators meanwhile, and as many as before afterwards, whatever was set inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_tensors(arguments: Iterable[object], who: str, where: str) -> None:
    """Raises `ModelError` unless all arguments of a model are tensors with values."""
    for number, value in enumerate(arguments):
        if not isinstance(value, Tensor):
            expected = "a torch.Tensor; a module around the model may give its forward all else"
            raise ModelError(who, f"an argument of type {type(value).__name__}", expected, f"{where}, number {number}")
        if value.is_meta:
            raise ModelError(who, "an argument on the device meta", "a tensor with values", f"{where}, number {number}")


def refuse_dynamic(who: str, compressed: Compressed) -> None:
    """Raises `UnavailableError` for a plan that quantizes inputs at run time, where a runtime has no lowering of it."""
    if compressed.quant_plan is not None and compressed.quant_plan.dynamic:
        raise UnavailableError(who, "no lowering of inputs quantized at run time", "static, or the runtime onnxruntime")


def refuse_float8(who: str, compressed: Compressed) -> None:
    """Raises `UnavailableError` for a plan that computes in 8-bit floats, where a runtime has no kernels for them."""
    if compressed.quant_plan is not None and compressed.quant_plan.computes_in_float8:
        expected = "w8 for weights alone, integers (static), or the runtime eager, which simulates them"
        raise UnavailableError(who, "no kernels for 8-bit floats", expected)


def runtime(cls: C) -> C:
    """Registers a runtime (an instance of the class) under its `name`."""
    RUNTIMES.add(cls.name, cls())  # type: ignore[attr-defined]
    return cls
