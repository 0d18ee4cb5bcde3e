"""PyTorch itself, operator by operator.

A model quantized to integers is only simulated here, and its time is nobody's speed; one that is cast to another
floating-point type runs in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pruning_bench.errors import ModelError, UnavailableError, describe
from pruning_bench.runtimes.contract import (
    Kernel,
    Session,
    bound_call,
    check_output,
    check_request,
    checked,
    clock_of,
    reason_without_device,
    runtime,
    torch_threads,
    versioned,
)
from pruning_bench.runtimes.semi_structured import sparsify

if TYPE_CHECKING:
    from pruning_bench.engine import Compressed


@runtime
class Eager:
    """The runtime `eager`: the module as it is, in inference mode, default memory format.

    On CUDA linear layers in half precision whose weights are 2:4 run by torch's kernels for that.
    """

    name: ClassVar[str] = "eager"
    simulates_quantized: ClassVar[bool] = True

    def available(self, device: str = "cpu") -> str | None:
        """None, or the reason with the install command."""
        return reason_without_device(device)

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
            LevelError: no such number of threads.
            ModelError: a model that does not run on the example inputs, or returns no tensor with the examples first.
        """
        if reason := self.available(device):
            raise UnavailableError(self.name, reason, "available")
        check_request(example_inputs, threads, self.name)
        model = compressed.model.eval()
        sparse: tuple[Kernel, ...] = ()
        if device != "cpu":
            model = copy.deepcopy(model).to(device)
            sparse = sparsify(model)

        seen = _forward(model, tuple(value.to(device) for value in example_inputs))

        def run(*inputs: Tensor) -> Tensor:
            with torch_threads(threads), torch.inference_mode():
                output: Tensor = model(*(value.to(device, copy=seen.in_place) for value in inputs))
                return output.cpu()

        def bind(*inputs: Tensor) -> Callable[[], object]:
            torch.set_num_threads(threads)
            return bound_call(model, inputs, device, in_place=seen.in_place)

        session = Session(
            run,
            bind,
            seen.kernels + sparse,
            timed=compressed.quant_plan is None or compressed.quant_plan.dtype is not None,
            clock=clock_of(device),
            concurrent=device == "cpu" and seen.stateless,
        )
        return checked(session, example_inputs, self.name)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that run, each with the module whose forward calls it.

    Hooks on the modules themselves would switch the fast paths of torch's own transformer layers off.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: list[Kernel] = []
        self.paths = {module: path for path, module in model.named_modules()}
        self.inside = [""]

    @contextmanager
    def following(self) -> Iterator[None]:
        """Keeps track of the module whose forward runs."""
        hooks = (
            register_module_forward_pre_hook(lambda module, _: self.inside.append(self.paths.get(module, "?"))),
            register_module_forward_hook(lambda *_: (self.inside.pop(), None)[1]),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        first = next((value for value in tree_leaves(output) if isinstance(value, Tensor)), None)
        if first is not None:
            name = f"{func.namespace}.{func.overloadpacket.__name__}"
            self.kernels.append(Kernel(self.inside[-1], name, str(first.dtype).removeprefix("torch.")))
        return output


@dataclass(frozen=True)
class _Forward:
    """What one forward shows.

    Args:
        kernels: the ATen operators that run, with the type that they give.
        stateless: it leaves the model as it was.
        in_place: it changes its inputs.
    """

    kernels: tuple[Kernel, ...]
    stateless: bool
    in_place: bool


def _forward(model: nn.Module, inputs: tuple[Tensor, ...]) -> _Forward:
    recorder, before = _Recorder(model), _state_of(model)
    copies, versions = versioned(inputs)
    try:
        with torch.inference_mode(), recorder.following(), recorder:
            output = model(*copies)
    except Exception as error:
        found = describe(error)
        raise ModelError("eager", found, "a model that runs on its example inputs", recorder.inside[-1]) from error
    check_output(output, inputs, "eager")
    in_place = [value._version for value in copies] != versions
    return _Forward(tuple(recorder.kernels), _state_of(model) == before, in_place)


def _state_of(model: nn.Module) -> list[tuple[object, ...]]:
    """What a forward may change: attributes of the modules by identity, buffers by their version."""
    attributes = [(path, name, id(value)) for path, m in model.named_modules() for name, value in vars(m).items()]
    return [*attributes, *((name, id(value), value._version) for name, value in model.named_buffers())]
