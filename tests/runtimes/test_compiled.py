"""The runtime `compiled`: parity with eager and with the simulation, kernels that really ran, what is missing."""

import gc
import importlib.util
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pruning_bench.conformance.quantization_checks import ExampleNet, example, example_images
from pruning_bench.conformance.runtime_checks import codes_off
from pruning_bench.engine import compress
from pruning_bench.errors import ModelError, UnavailableError
from pruning_bench.graphs import export
from pruning_bench.quantization.contract import QuantPlan
from pruning_bench.quantization.lower import Rule
from pruning_bench.quantization.methods.static import Static
from pruning_bench.quantization.places import QUANTIZED, path_of
from pruning_bench.quantization.simulation import simulate
from pruning_bench.runtimes import compiled, inductor, onednn
from pruning_bench.runtimes.compiled import Compiled
from pruning_bench.runtimes.contract import Kernel, Session
from pruning_bench.runtimes.kernels import float_fallbacks
from pruning_bench.runtimes.openvino import OpenVino

SAME = 1e-5  # of the largest output: float32 noise of the last layer
CONVOLUTIONS = {"conv1", "conv2", "conv3"}
LAYERS = (*CONVOLUTIONS, "hidden", "classifier")
needs_compiler = pytest.mark.skipif(Compiled().available() is not None, reason=str(Compiled().available()))
needs_torchao = pytest.mark.skipif(inductor.torchao_version() is None, reason=inductor.TORCHAO)


@dataclass(frozen=True, eq=False)
class Made:
    """What the runtime reads of a compressed model."""

    float_model: nn.Module
    quant_plan: QuantPlan | None = None
    recipe: str = "dense"


@dataclass(frozen=True)
class Case:
    model: nn.Module
    plan: QuantPlan
    inputs: tuple[Tensor, ...]
    x: Tensor


@pytest.fixture(scope="module")
def case() -> Case:
    """w7a8: exact on every CPU."""
    model, _, context = example(Static())
    plan = Static().plan(model, "w7a8", context)
    return Case(model, plan, context.example_inputs, example_images(9, torch.Generator().manual_seed(3)))


@pytest.fixture(scope="module")
def dense(case: Case) -> Session:
    return Compiled().build(Made(case.model), case.inputs)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def quantized(case: Case) -> Session:
    return Compiled().build(Made(case.model, case.plan), case.inputs)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Nothing of torch's settings stays changed."""
    from torch._inductor import config

    before = config.save_config_portable(), torch.get_num_threads(), torch.is_grad_enabled()
    yield
    after = config.save_config_portable(), torch.get_num_threads(), torch.is_grad_enabled()
    assert after == before, "building left inductor's settings, threads or gradient mode changed"


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@needs_compiler
def test_float_equals_eager_for_any_batch(case: Case, dense: Session) -> None:
    with torch.inference_mode():
        expected = case.model(case.x)
    for count in (1, 9):
        found = dense.run(case.x[:count])
        assert found.shape == expected[:count].shape, f"{count} examples give {list(found.shape)}"
        assert off(found, expected[:count]) < SAME, f"off by {off(found, expected[:count]):.1e}"


@needs_compiler
def test_float_layers_are_listed_under_their_names(dense: Session) -> None:
    named = {text.split(" ")[0] for text in float_fallbacks(dense.kernels)}
    assert named == CONVOLUTIONS, f"{sorted(named)}, should be {sorted(CONVOLUTIONS)}; the rest is spelt out"


@needs_compiler
def test_sessions_share_one_export_and_no_code(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    exports: list[nn.Module] = []

    def counted(model: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram:
        exports.append(model)
        return export(model, inputs)

    monkeypatch.setattr(compiled, "export", counted)
    made = Made(case.model)
    graphs = [compiled._graph(made, case.inputs, "cpu") for _ in range(2)]  # type: ignore[arg-type]
    assert len(exports) == 1, f"exported {len(exports)} times for one model"
    assert graphs[0].forward.__func__.__code__ is not graphs[1].forward.__func__.__code__, "torch would compile one"
    compiled._graph(made, tuple(torch.cat([x, x]) for x in case.inputs), "cpu")  # type: ignore[arg-type]
    compiled._graph(Made(case.model), case.inputs, "cpu")  # type: ignore[arg-type]
    assert len(exports) == 3, "other shapes and another compressed model are exports of their own"
    moved = compiled._graph(made, case.inputs, "meta")  # type: ignore[arg-type]
    again = compiled._graph(made, case.inputs, "cpu")  # type: ignore[arg-type]
    places = [{str(tensor.device) for tensor in part.parameters()} for part in (moved, again, case.model)]
    assert places == [{"meta"}, {"cpu"}, {"cpu"}], f"another device's graph moves the model's own tensors: {places}"
    assert len(exports) == 4, f"exported {len(exports)} times for four kinds"


@needs_compiler
def test_a_call_checks_nothing_in_python(case: Case) -> None:
    graph = compiled._graph(Made(case.model), case.inputs, "cpu")  # type: ignore[arg-type]
    assert not graph._forward_pre_hooks, "hooks that run at each call would be timed"


def test_a_graph_lives_no_longer_than_its_model(case: Case) -> None:
    made = Made(case.model)
    compiled._graph(made, case.inputs, "cpu")  # type: ignore[arg-type]
    left = weakref.ref(made)
    del made
    gc.collect()
    assert left() is None, "what was exported keeps the model"


@needs_compiler
def test_inputs_unlike_the_examples_are_refused_before_torch_compiles_for_them(case: Case, dense: Session) -> None:
    (x,) = case.inputs
    for wrong in (x[..., :-1], x.double()):
        for call in (dense.run, dense.bind):
            with pytest.raises(ModelError, match=r"compiled: inputs .* behind the batch, should be torch.float32"):
                call(wrong)


@needs_compiler
def test_bind_runs_on_copies(case: Case, dense: Session) -> None:
    x = case.x[:1].clone()
    threads = torch.get_num_threads()
    try:
        bound, expected = dense.bind(x), dense.run(x)
        x.zero_()
        found = torch.as_tensor(bound())
        assert off(found, expected) < SAME, "the bound inputs changed with the caller's tensor"
        assert torch.get_num_threads() == 1, "bind leaves its threads set, as in eager"
    finally:
        torch.set_num_threads(threads)


GONE = """
import torch
from pruning_bench import compress
from pruning_bench.runtimes.compiled import Compiled
x = torch.randn(2, 4)
made = compress(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()), "dense", example_inputs=(x,))
session = Compiled().build(made, (x,))
session.bind(x)()
torch._dynamo.reset()
try:
    session.bind(x)
except Exception as problem:
    print(problem)
Compiled().build(made, (x,)).bind(x)()
print("done")
"""


@pytest.mark.slow
@needs_compiler
def test_code_that_is_gone_is_not_timed() -> None:
    """torch would compile it again at the first call, otherwise than it was. In a process of its own: all code goes."""
    ran = subprocess.run([sys.executable, "-c", GONE], capture_output=True, text=True, timeout=300, check=False)
    said = ran.stdout.splitlines()
    assert said[1:] == ["done"], f"{said}, {ran.stderr}"
    assert said[0].startswith("compiled: what was compiled is gone, perhaps by torch._dynamo.reset()"), said[0]


def check_equals_simulation(case: Case, found: Tensor, rules: frozenset[Rule] = Compiled.rules) -> None:
    with torch.inference_mode():
        expected = simulate(case.plan, case.model, case.inputs, rules)(case.x)
    assert off(found, expected) < SAME, f"int8 output off by {off(found, expected):.1e}"


@needs_compiler
@needs_torchao
def test_int8_equals_its_simulation(case: Case, quantized: Session) -> None:
    found = quantized.run(case.x)
    check_equals_simulation(case, found)
    for mutant in (Compiled.rules | {Rule.INTEGER_BIASES}, frozenset(Rule)):
        with pytest.raises(AssertionError, match="int8 output off"):
            check_equals_simulation(case, found, mutant)


@needs_compiler
@needs_torchao
def test_every_code_of_a_layer_is_the_simulations() -> None:
    """A few wrong ones would not show in the outputs of a small model, but do behind many layers.

    Kernels for x86 before VNNI, and those for AMX, multiply the two scales first, which the simulation does not: one
    code of this draw.
    """
    most = 1 if onednn.sums_saturate() or torch.cpu._is_amx_tile_supported() else 0
    assert codes_off(Compiled()) <= most
    for mutant in (Compiled.rules - {Rule.SHIFTED}, Compiled.rules | {Rule.INTEGER_BIASES}):
        assert codes_off(Compiled(), mutant) > most, f"{mutant} would not be noticed"


@needs_compiler
@needs_torchao
def test_integer_layers_and_those_that_fell_back_are_named(quantized: Session) -> None:
    """Inductor spells a product of one row with at most 16 x 16 weights out in float."""
    integer = {kernel.layer for kernel in quantized.kernels if kernel.operator.startswith("onednn.q")}
    assert integer == CONVOLUTIONS, f"{sorted(integer)} run on codes, should be {sorted(CONVOLUTIONS)}"
    found = [text.split(" ")[0] for text in float_fallbacks(quantized.kernels)]
    assert sorted(found) == ["classifier", "hidden"], f"{found} are said to run in float"


@needs_compiler
@needs_torchao
def test_mutant_without_patterns_is_found_in_float(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.fx_passes import freezing_patterns

    inductor.register_patterns()
    for registered in freezing_patterns.pass_patterns:
        kept = {key: value for key, value in registered.patterns.items() if not _of_torchao(value)}
        monkeypatch.setattr(registered, "patterns", type(registered.patterns)(list, kept))
    session = Compiled().build(Made(case.model, case.plan), case.inputs)  # type: ignore[arg-type]
    found = sorted(text.split(" ")[0] for text in float_fallbacks(session.kernels))
    assert found == sorted(LAYERS), f"without patterns these are said to run in float: {found}"


def _of_torchao(entries: list[object]) -> bool:
    return any("torchao" in str(getattr(getattr(entry, "handler", None), "__module__", "")) for entry in entries)


@needs_compiler
@needs_torchao
def test_a_torchao_without_patterns_is_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "register_patterns", lambda: False)
    with pytest.raises(UnavailableError, match="registers no int8 patterns"):
        Compiled().build(Made(case.model, case.plan), case.inputs)  # type: ignore[arg-type]


@needs_compiler
def test_without_torchao_int8_says_what_to_install_and_float_runs(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torchao" else whole(name, *a))
    with pytest.raises(UnavailableError, match="pip install torchao") as caught:
        Compiled().build(Made(case.model, case.plan), case.inputs)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value), f"{caught.value}"
    assert Compiled().available() is None, "float models need no torchao"
    assert "torchao none" in Compiled().version(), Compiled().version()
    assert any("torchao" in remark for remark in Compiled().remarks()), f"{Compiled().remarks()}"


@pytest.mark.parametrize("saturates", [True, False])
def test_it_says_what_a_cpu_that_clips_means(saturates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "torchao_version", lambda: "0.18.0")
    monkeypatch.setattr(onednn, "sums_saturate", lambda: saturates)
    for runtime in (Compiled(), OpenVino()):
        assert any("w7a8" in remark for remark in runtime.remarks()) == saturates, f"{runtime.remarks()}"


@pytest.mark.parametrize("saturates", [True, False])
@pytest.mark.parametrize(
    ("recipe", "clips"),
    [("dense", False), ("static:w8a8", True), ("static:w7a8", False), ("rtn:w8", False), ("cast:bf16", False)],
)
def test_outputs_that_are_clipped_depend_on_the_cpu(
    recipe: str, clips: bool, saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "sums_saturate", lambda: saturates)
    model, _, context = example(Static())
    made = compress(model, recipe, example_inputs=context.example_inputs, calibration=[context.example_inputs])
    for runtime in (Compiled(), OpenVino()):
        found = runtime.depends(made)
        assert bool(found) == (clips and saturates), f"{runtime.name}: {found}"


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CXX", "no-such-compiler")
    reason = Compiled().available()
    assert reason, "no compiler, and still available"
    assert "no-such-compiler" in reason, reason
    assert "g++" in reason, reason
    with pytest.raises(UnavailableError, match="no-such-compiler"):
        Compiled().build(Made(ExampleNet().eval()), (torch.zeros(1, 3, 8, 8),))  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_devices_that_are_not_here_say_why(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = Compiled().available(device)
    assert reason, f"{device} should be unavailable"
    assert "\n" not in reason, f"{reason!r} should be one line"


@needs_compiler
def test_a_cast_runs_in_its_type(case: Case) -> None:
    session = Compiled().build(Made(case.model, QuantPlan({}, dtype="bf16")), case.inputs)  # type: ignore[arg-type]
    with torch.inference_mode():
        error = off(session.run(case.x), case.model(case.x))
    assert 0 < error < 0.05, f"bf16 is off by {error:.1e} of the largest output"
    types = {text.rpartition(" ")[2] for text in float_fallbacks(session.kernels)}
    assert types == {"bfloat16)"}, f"layers ran in {types}"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_cuda_it_equals_eager(case: Case) -> None:
    session = Compiled().build(Made(case.model), case.inputs, device="cuda")  # type: ignore[arg-type]
    with torch.inference_mode():
        assert off(session.run(case.x), case.model(case.x)) < 1e-2, "tf32 at most"


def test_what_only_moves_values_is_not_listed() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.zeros(2, 3)
    viewed = graph.call_function(torch.ops.aten.reshape.default, (x, [6]))
    viewed.meta["val"] = torch.zeros(6)
    done = graph.call_function(torch.ops.aten.relu.default, (viewed,))
    done.meta["nn_module_stack"] = {"a": (path_of(QUANTIZED, "head.relu"), "ReLU")}
    assert inductor.list_kernels(graph, {}) == [Kernel("head", "aten.relu", "float32")]


@needs_compiler
def test_calls_side_by_side_do_not_disturb_each_other(
    case: Case, dense: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that leave their call and enter the next reset the counter by which torch checks `fullgraph`."""
    counted = getattr(torch._dynamo.eval_frame, "set_fullgraph_compiled_frame_count", None)
    if counted is None:
        pytest.skip("this torch has no such counter")

    def disturbed(count: int) -> int:
        if count == -1:
            counted(-1)
            counted(0)
        return counted(count)

    monkeypatch.setattr(torch._dynamo.eval_frame, "set_fullgraph_compiled_frame_count", disturbed)
    assert off(dense.run(case.x), case.model(case.x).detach()) < SAME
    mutant = torch.compile(torch.nn.Identity(), fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError, match="found no compiled frames"):
        mutant(case.x)


@needs_compiler
def test_a_model_compiled_in_parts_is_refused() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.relu()
            torch._dynamo.graph_break()
            return y.sin()

    broken = torch.fx.GraphModule(Broken(), torch.fx.Graph())
    broken.forward = Broken().forward  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="compiled as 2 graphs, should be one"):
        inductor.compile_graph(broken, (torch.ones(2, 3),))
