"""What a runtime is: it builds a session from a compressed model and lists the kernels that really ran."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils._pytree import tree_unflatten

from pruning_bench.errors import LevelError, ModelError, UnavailableError
from pruning_bench.registry import RUNTIMES

if TYPE_CHECKING:
    from pruning_bench.engine import Compressed

C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class Kernel:
    """One node of the graph that the runtime executes: operator type and the element type it computes in.

    Where a product of floats reads its weight as codes, the type tells both: "float32 of int8".
    """

    layer: str
    operator: str
    dtype: str


@dataclass(frozen=True)
class Session:
    """A model ready to run.

    Inputs are tensors like the example inputs that it was built for, but for their first size, the batch; they are
    never changed. The output is one tensor with the examples first: where a model returns a tuple, or has another
    dimension first, a module around it has to make that of it.

    Args:
        run: positional inputs -> output tensor; for quality, any batch size.
        bind: inputs -> a function of no arguments that runs the model on them, all copying done before; for timing. A
            model that works in place on its inputs is given copies at every call, which are timed with it.
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
        """A session of the model; raises `UnavailableError` where it cannot run, `ModelError` if it cannot be built.

        `check_request`, `check_output` and `checked` refuse what no runtime takes.
        """


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


def check_request(example_inputs: tuple[Tensor, ...], threads: int, who: str) -> None:
    """Raises `ModelError` or `LevelError` for what no session can be built for."""
    if not isinstance(threads, int) or threads < 1:
        raise LevelError(who, f"threads {threads!r}", "a whole number, at least 1")
    if not isinstance(example_inputs, tuple) or not example_inputs:
        found = f"example_inputs of type {type(example_inputs).__name__}"
        raise ModelError(who, found, "a non-empty tuple of positional arguments, such as (x,)")
    check_tensors(example_inputs, who, "example_inputs")


def checked(session: Session, example_inputs: tuple[Tensor, ...], who: str) -> Session:
    """A session that refuses inputs unlike the examples in more than their batch, before anything runs or is timed."""

    def run(*inputs: Tensor) -> Tensor:
        _check_inputs(inputs, example_inputs, who)
        return session.run(*inputs)

    def bind(*inputs: Tensor) -> Callable[[], object]:
        _check_inputs(inputs, example_inputs, who)
        return session.bind(*inputs)

    return replace(session, run=run, bind=bind)


def _check_inputs(inputs: tuple[Tensor, ...], examples: tuple[Tensor, ...], who: str) -> None:
    check_tensors(inputs, who, "inputs")
    found, expected = ([(list(x.shape[1:]), x.dim(), x.dtype) for x in side] for side in (inputs, examples))
    if found != expected:
        say = [", ".join(f"{dtype} {shape}" for shape, _, dtype in side) for side in (found, expected)]
        inputs_found = f"inputs {say[0]} behind the batch" if inputs else "no inputs"
        raise ModelError(who, inputs_found, f"{say[1]}, as the examples")


def check_output(output: object, inputs: Iterable[Tensor], who: str) -> None:
    """Raises `ModelError` unless a model gives one tensor with the examples of its inputs first.

    Sizes may be symbols, as in exported graphs; these are compared as they are written, whatever the examples had.
    """
    counts = {str(value.shape[0]) for value in inputs if value.dim()}
    if isinstance(output, Tensor) and output.dim() and str(output.shape[0]) in counts:
        return
    found = f"an output of type {type(output).__name__}"
    if isinstance(output, Tensor):
        shape, count = ", ".join(map(str, output.shape)), " or ".join(sorted(counts))
        found = re.sub(r"\bs\d+", "N", f"an output of shape [{shape}] for a batch of {count}")
    raise ModelError(who, found, "one tensor with the examples first; a module around the model can return that")


def check_exported(program: ExportedProgram, who: str) -> None:
    """`check_output` of an exported model, for every batch."""
    names = set(program.graph_signature.user_inputs)
    placeholders = [node.meta.get("val") for node in program.graph.find_nodes(op="placeholder") if node.name in names]
    returned = [node.meta["val"] if isinstance(node, Node) else node for node in program.graph.output_node().args[0]]
    output = tree_unflatten(returned, program.call_spec.out_spec)
    check_output(output, [value for value in placeholders if isinstance(value, Tensor)], who)


def works_in_place(call: Callable[..., object], inputs: tuple[Tensor, ...]) -> bool:
    """Does a model change its inputs? It runs once, on copies."""
    copies, before = versioned(inputs)
    with torch.inference_mode():
        call(*copies)
    return [value._version for value in copies] != before


def versioned(inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], list[int]]:
    """Copies of tensors, and their versions, which count up with each change."""
    with torch.inference_mode(False):
        copies = tuple(value.clone() for value in inputs)
    return copies, [value._version for value in copies]


def bound_call(
    call: Callable[..., object], inputs: tuple[Tensor, ...], device: str, *, in_place: bool
) -> Callable[[], object]:
    """A model on copies of inputs, as `Session.bind` gives it, in inference mode."""
    bound = tuple(value.to(device, copy=True) for value in inputs)
    if in_place:
        return torch.inference_mode()(lambda: call(*(value.clone() for value in bound)))
    return torch.inference_mode()(lambda: call(*bound))


def refuse_other_floats(who: str, compressed: Compressed) -> None:
    """Raises `UnavailableError` for weights in other types than float32, where a runtime takes no others."""
    for name, parameter in compressed.float_model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            found = f"weights of {str(parameter.dtype).removeprefix('torch.')}"
            raise UnavailableError(who, found, "float32, as model.float() gives, or the runtime eager", name)


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
