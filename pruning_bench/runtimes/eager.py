"""PyTorch itself, operator by operator. A quantized model is only simulated here, and its time is nobody's speed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from pruning_bench.errors import UnavailableError
from pruning_bench.graphs import export, module_path, operator
from pruning_bench.runtimes.contract import Kernel, Session, runtime

if TYPE_CHECKING:
    from pruning_bench.engine import Compressed


@runtime
class Eager:
    """The runtime `eager`: the module as it is, in inference mode, default memory format."""

    name: ClassVar[str] = "eager"
    simulates_quantized: ClassVar[bool] = True

    def available(self, device: str = "cpu") -> str | None:
        """None, or the reason with the install command."""
        if device == "cpu" or (device == "cuda" and torch.cuda.is_available()):
            return None
        if device == "cuda":
            return "torch sees no CUDA device; install a driver and a CUDA build of torch: python -m pip install torch"
        return f"device {device} is unknown; choose cpu or cuda"

    def version(self) -> str:
        """Such as "torch 2.11.0"."""
        return f"torch {torch.__version__}"

    def build(
        self, compressed: Compressed, example_inputs: tuple[Tensor, ...], *, threads: int = 1, device: str = "cpu"
    ) -> Session:
        """The model's own module; of a quantized model the simulation, with `timed` False.

        The number of threads is the whole process's. `run` sets it for its own length; `bind` sets it and leaves it so,
        because putting it back after every call would be timed. So in one process bind sessions of one thread count.

        Raises:
            UnavailableError: no such device.
        """
        if reason := self.available(device):
            raise UnavailableError(self.name, reason, "available")
        model = compressed.model.eval()
        if device != "cpu":
            model = copy.deepcopy(model).to(device)

        def run(*inputs: Tensor) -> Tensor:
            with _threads(threads), torch.inference_mode():
                output: Tensor = model(*(value.to(device) for value in inputs))
                return output.cpu()

        def bind(*inputs: Tensor) -> Callable[[], object]:
            torch.set_num_threads(threads)
            bound = tuple(value.to(device, copy=True) for value in inputs)
            return torch.inference_mode()(lambda: model(*bound))

        return Session(
            run,
            bind,
            _kernels(compressed.model, example_inputs),
            timed=compressed.quant_plan is None,
            clock=time.perf_counter if device == "cpu" else _synchronized,
            concurrent=device == "cpu",
        )


def _synchronized() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _kernels(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> tuple[Kernel, ...]:
    """The ATen operators that the module calls, with the type that they give."""
    nodes = [node for node in export(model, example_inputs).graph.nodes if node.op == "call_function"]
    kernels = []
    for node in nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            kernels.append(Kernel(module_path(node), operator(node), str(value.dtype).removeprefix("torch.")))
    return tuple(kernels)
