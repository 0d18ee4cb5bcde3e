"""torch.compile with inductor and frozen weights: float, casts, and int8 by patterns for x86 that torchao registers.

A model is exported first, so that no two sessions share code that torch.compile would compile again, or give up on; and
compiled for the shapes of its example inputs. Other batches run through that code part by part: predictions come from
the very code that is timed, and nothing is compiled twice.

On x86 before VNNI sums of two large products are clipped (`onednn`). There the scales of input and weight are
multiplied first too, which moves one code of a million across a tie.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, fx

from pruning_bench.errors import ModelError, UnavailableError, describe
from pruning_bench.graphs import export
from pruning_bench.quantization.cast import cast
from pruning_bench.quantization.lower import Rule, lower
from pruning_bench.quantization.points import runnable
from pruning_bench.runtimes import inductor, onednn
from pruning_bench.runtimes.contract import (
    Kernel,
    Session,
    bound_call,
    check_exported,
    check_request,
    checked,
    clock_of,
    reason_without_device,
    refuse_dynamic,
    refuse_float8,
    runtime,
    torch_threads,
    works_in_place,
)

if TYPE_CHECKING:
    from pruning_bench.engine import Compressed

_GRAPHS: weakref.WeakKeyDictionary[Compressed, dict[object, fx.GraphModule]] = weakref.WeakKeyDictionary()


@runtime
class Compiled:
    """The runtime `compiled`: torch.compile, inductor, freezing."""

    name: ClassVar[str] = "compiled"
    optional: ClassVar[bool] = True
    rules: ClassVar[frozenset[Rule]] = frozenset({Rule.INTEGER_SUMS, Rule.RELU_IS_CLAMP, Rule.SHIFTED})

    def available(self, device: str = "cpu") -> str | None:
        """None, or the reason with the install command."""
        return reason_without_device(device) or inductor.reason_without_compiler(device)

    def version(self) -> str:
        """Such as "torch 2.14.1, g++ 12.2.0, torchao 0.18.0"."""
        return (
            f"torch {torch.__version__}, {inductor.compiler_version()}, torchao {inductor.torchao_version() or 'none'}"
        )

    def remarks(self) -> tuple[str, ...]:
        """What is missing or slower here for quantized models."""
        return inductor.remarks()

    def depends(self, compressed: Compressed) -> str:
        """On what of this CPU the outputs of a model depend."""
        return onednn.depends(compressed)

    def build(
        self, compressed: Compressed, example_inputs: tuple[Tensor, ...], *, threads: int = 1, device: str = "cpu"
    ) -> Session:
        """Compiles the model for the shapes of the example inputs.

        Raises:
            UnavailableError: no such device, no compiler, inputs quantized at run time, 8-bit floats; for int8: no
                torchao, or not on the CPU.
            LevelError: no such number of threads.
            ModelError, PlanError: the model cannot be exported or compiled, or returns no tensor with the examples
                first.
        """
        if reason := self.available(device):
            raise UnavailableError(self.name, reason, "available")
        check_request(example_inputs, threads, self.name)
        refuse_dynamic(self.name, compressed)
        refuse_float8(self.name, compressed)
        graph = _graph(compressed, example_inputs, device)
        inputs = tuple(value.to(device, copy=True) for value in example_inputs)
        in_place = works_in_place(graph, inputs)
        call, kernels = self._compiled(graph, inputs, compressed, threads)
        count = len(inputs[0])

        def run(*inputs: Tensor) -> Tensor:
            with torch_threads(threads), torch.inference_mode():
                outputs = [call(*(x.to(device, copy=in_place) for x in part)) for part in _parts(inputs, count)]
                return torch.cat([output.cpu() for output in outputs])[: len(inputs[0])]

        def bind(*inputs: Tensor) -> Callable[[], object]:
            copies = tuple(value.to(device, copy=True) for value in inputs)
            timed = call
            if any(value.shape != example.shape for value, example in zip(inputs, example_inputs, strict=True)):
                timed, _ = self._compiled(_graph(compressed, example_inputs, device), copies, compressed, threads)
            torch.set_num_threads(threads)
            inductor.check_compiled(timed, copies, self.name)
            return bound_call(timed, inputs, device, in_place=in_place)

        session = Session(run, bind, kernels, clock=clock_of(device), concurrent=device == "cpu")
        return checked(session, example_inputs, self.name)

    def _compiled(
        self, graph: fx.GraphModule, inputs: tuple[Tensor, ...], compressed: Compressed, threads: int
    ) -> tuple[Callable[..., Tensor], tuple[Kernel, ...]]:
        try:
            with torch_threads(threads):
                return inductor.compile_graph(graph, inputs)
        except Exception as error:
            found = describe(error)
            raise ModelError(self.name, found, "a model that torch.compile compiles", str(compressed.recipe)) from error


def _graph(compressed: Compressed, example_inputs: tuple[Tensor, ...], device: str) -> fx.GraphModule:
    """What torch.compile is given: the exported model, with q/dq operators or in the type that its plan asks for.

    It is exported once for all threads; every call gives a module that shares its graph and weights, to be left as they
    are, and has code of its own, which torch has not compiled yet. It does not check its inputs, as an exported module
    does in Python at each call: the session does, where no time is taken.
    """
    graphs = _GRAPHS.setdefault(compressed, {})
    kind = (device, *((value.shape, value.dtype) for value in example_inputs))
    if kind not in graphs:
        graphs[kind] = _exported(compressed, example_inputs, device)
    return fx.GraphModule(graphs[kind], graphs[kind].graph)


def _exported(compressed: Compressed, example_inputs: tuple[Tensor, ...], device: str) -> fx.GraphModule:
    plan, model = compressed.quant_plan, compressed.float_model
    if plan is not None and plan.dtype is not None:
        model = cast(model, plan.dtype)
    elif plan is not None:
        if not plan.weights_only and (reason := inductor.reason_without_int8(device)):
            raise UnavailableError(Compiled.name, reason, "available")
        from pruning_bench.quantization.decomposed import Decomposed

        model = lower(plan, model, example_inputs, Decomposed())
    program = export(model, example_inputs)
    check_exported(program, Compiled.name)
    module = runnable(program)[0]
    return module if device == "cpu" else copy.deepcopy(module).to(device)  # it shares the model's own tensors


def _parts(inputs: tuple[Tensor, ...], count: int) -> list[tuple[Tensor, ...]]:
    """The inputs in batches of `count`, the last one filled up with its last example."""
    missing = -len(inputs[0]) % count
    whole = [torch.cat([value, *[value[-1:]] * missing]) if missing else value for value in inputs]
    return [tuple(value[start : start + count] for value in whole) for start in range(0, len(whole[0]), count)]
