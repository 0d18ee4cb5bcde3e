"""What the runtime `compiled` needs of inductor: a compiler, its int8 patterns, and the graph that it really runs."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from pruning_bench.errors import ModelError, one_line
from pruning_bench.graphs import operator
from pruning_bench.quantization.places import layer_at
from pruning_bench.runtimes import onednn
from pruning_bench.runtimes.contract import Kernel
from pruning_bench.runtimes.kernels import multiplies

# Registers the patterns when it is imported; its quantizer is the public name for them.
PATTERNS = "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer"
TORCHAO = "python -m pip install torchao"
WEIGHT = "quantized_decomposed.dequantize_per_channel"
_MOVES = ("getitem", "sym_size", "reshape", "view", "permute", "force_stride_order", "clone")
_COMPILING = threading.Lock()  # inductor's settings are the whole process's


def reason_without_compiler(device: str) -> str | None:
    """None where inductor can build kernels for `device`, else the reason with the install command, in one line."""
    if shutil.which(compiler()) is None:
        return f"no C++ compiler {compiler()} (set CXX for another); apt-get install g++"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "no Python.h, which compiled kernels include; apt-get install python3-dev"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton not installed; python -m pip install triton"
    return None


def compiler() -> str:
    """The C++ compiler that inductor calls."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


@functools.cache
def compiler_version() -> str:
    """Such as "g++ 12.2.0"."""
    found = subprocess.run(
        [compiler(), "-dumpfullversion", "-dumpversion"], capture_output=True, text=True, check=False
    )
    return f"{Path(compiler()).name} {found.stdout.strip() or '?'}"


def torchao_version() -> str | None:
    """None where it is not installed."""
    return None if importlib.util.find_spec("torchao") is None else metadata.version("torchao")


def reason_without_int8(device: str) -> str | None:
    """None where inductor runs models on integers, else the reason with what to do."""
    if device != "cpu":
        return f"inductor's int8 patterns are for the CPU, not for {device}; choose device cpu"
    if importlib.util.find_spec("torchao") is None:
        return f"torchao, which brings inductor's int8 patterns, not installed; {TORCHAO}"
    if not register_patterns():
        return f"torchao {torchao_version()} registers no int8 patterns for torch {torch.__version__}; {TORCHAO} -U"
    return None


def remarks() -> tuple[str, ...]:
    """What is missing or slower here for quantized models."""
    if torchao_version() is None:
        return (f"without torchao no int8: {TORCHAO}",)
    return onednn.remarks()


@functools.cache
def register_patterns() -> bool:
    """Registers the patterns that find int8 layers, leaving inductor's settings alone; whether they are there then."""
    from torch._inductor import config
    from torch._inductor.fx_passes import freezing_patterns

    with _quiet(), config.patch(pre_grad_custom_pass=None):
        importlib.import_module(PATTERNS)
    key = ("call_function", torch.ops.quantized_decomposed.quantize_per_tensor.default)
    return any(key in registered.patterns for registered in freezing_patterns.pass_patterns)


def compile_graph(
    module: fx.GraphModule, inputs: tuple[Tensor, ...]
) -> tuple[Callable[..., Tensor], tuple[Kernel, ...]]:
    """The module compiled for the shapes of `inputs` by as many threads as torch has now, and what it runs.

    Inductor's settings hold while it compiles; torch's gradient mode must be inference whenever it is called.

    That the graph is compiled whole is seen from what inductor was given. Torch's own `fullgraph` looks at every call
    again, by a counter that all threads of the process share, so that calls side by side now and then fail.

    Raises:
        RuntimeError: it is compiled in parts, or not at all.
    """
    from torch._inductor import config

    held = (*module.named_parameters(), *module.named_buffers())
    listing = _listing({tensor.data_ptr(): name for name, tensor in held})
    with _COMPILING, _quiet():  # its first call imports what old torch calls deprecated
        compiled = torch.compile(module, dynamic=False)
    settings = {"freezing": True, "fx_graph_cache": False, "post_grad_custom_pre_pass": listing}
    with _COMPILING, _quiet(), config.patch(settings), torch.inference_mode():
        compiled(*inputs)
    if listing.graphs != 1:
        raise RuntimeError(f"compiled as {listing.graphs} graphs, should be one")
    return compiled, tuple(listing.kernels)


def check_compiled(call: Callable[..., Tensor], inputs: tuple[Tensor, ...], who: str) -> None:
    """Refuses to time code that is not there any more: torch would compile it again, in float and without freezing.

    Raises:
        ModelError: something in this process has thrown away what was compiled, as `torch._dynamo.reset()` does.
    """
    try:
        with torch.compiler.set_stance("fail_on_recompile"), torch.inference_mode():
            call(*inputs)
    except RuntimeError as problem:
        found = f"what was compiled is gone, perhaps by torch._dynamo.reset() ({one_line(problem)})"
        raise ModelError(who, found, "a process that keeps it") from problem


def _listing(names: Mapping[int, str]) -> Any:
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class Listing(CustomGraphPass):  # type: ignore[misc,unused-ignore]
        """Notes the graph after freezing and fusion, just before code is made of it; changes nothing."""

        def __init__(self) -> None:
            self.kernels: list[Kernel] = []
            self.graphs = 0

        def __call__(self, graph: fx.Graph) -> None:
            self.graphs += 1
            self.kernels += list_kernels(graph, names)

        def uuid(self) -> None:
            """None: never from a cache."""

    return Listing()


def list_kernels(graph: fx.Graph, names: Mapping[int, str]) -> list[Kernel]:
    """The operators of a frozen graph that compute, with the type of what they read; 8-bit codes are "int8".

    A layer is named after the scale or bias that the node reads or, where those are gone, the module it came from.

    Args:
        names: address of a tensor -> its name in the model.
    """
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    computing = [node for node in nodes if not _moves(node) and not _feeds_product(node)]
    return [Kernel(_layer(node, names), operator(node), _read_type(node)) for node in computing]


def _moves(node: fx.Node) -> bool:
    return any(word in operator(node) for word in _MOVES)


def _feeds_product(node: fx.Node) -> bool:
    """Is it a weight made float for a product, which is listed itself? Without one, inductor spells small products out
    as multiplications and sums, and this node alone tells that the layer runs in float.
    """
    if operator(node) != WEIGHT:
        return False
    readers = list(node.users)
    while readers:
        reader = readers.pop()
        if multiplies(operator(reader)):
            return True
        readers += list(reader.users) if _moves(reader) else []
    return False


def _read_type(node: fx.Node) -> str:
    values = [argument.meta.get("val") for argument in node.all_input_nodes if argument.op != "get_attr"]
    for value in [*values, node.meta.get("val")]:  # what reads constants alone goes by what it gives
        if isinstance(value, Tensor):
            name = str(value.dtype).removeprefix("torch.")
            return "int8" if name in ("int8", "uint8") else name
    return "?"


def _layer(node: fx.Node, names: Mapping[int, str]) -> str:
    """Module path of what a node came from."""
    for argument in node.all_input_nodes:
        held = attrgetter(str(argument.target))(node.graph.owning_module) if argument.op == "get_attr" else None
        if isinstance(held, Tensor) and held.layout == torch.strided and held.data_ptr() in names:
            return _without_prefix(names[held.data_ptr()].rpartition(".")[0])
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return _without_prefix(str(stack[-1][0])) if stack else ""


def _without_prefix(path: str) -> str:
    layer = layer_at(path)
    return path if layer is None else layer


@contextmanager
def _quiet() -> Iterator[None]:
    """None of torch's own warnings and log lines."""
    muted = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(muted)
