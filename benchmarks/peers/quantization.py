"""The same 8-bit models made by this package and by each runtime's own quantizer, in one run: times and accuracies.

    python -m pip install "pruning_bench[peers]"
    python benchmarks/peers/quantization.py speed [MODEL ...]       # torchvision's models at 224 x 224, random weights
    python benchmarks/peers/quantization.py accuracy [MODEL ...]    # the shipped checkpoints, on the selection images

The peers are onnxruntime's quantize_static, NNCF for OpenVINO, and torchao's X86InductorQuantizer for torch.compile,
each with min-max ranges of the same calibration images and one weight scale per output channel. Every model and number
of threads has a process of its own, in which all candidates take turns. Ratios are of the 10th percentiles, with 98 %
intervals; below 1 is faster.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import page
import torch
from torch import Tensor, fx, nn

from pruning_bench import compress
from pruning_bench.conformance.torchvision_table import build
from pruning_bench.discover import discover
from pruning_bench.errors import PruningBenchError, one_line
from pruning_bench.judging.statistics import estimate_log_ratio
from pruning_bench.metrics.latency import sample
from pruning_bench.registry import RUNTIMES
from pruning_bench.runtimes.contract import Session

SPEED = ("resnet18", "mobilenet_v2")
CHECKPOINTS = ("lenet5", "image_classifier", "resnet20", "mobilenet_v2", "vit_tiny")
OURS = ("dense", "static:w8a8", "static:w7a8")
THEIRS = {"onnxruntime": "quantize_static", "openvino": "NNCF", "compiled": "torchao"}
THREADS = (1, 2)
ROUNDS = 60
CALIBRATION, BATCH = 256, 64  # images of a checkpoint
EVALUATION = 100  # images at a time
CONFIDENCE = 0.98

Batches = list[tuple[Tensor, ...]]
Maker = Callable[[], Session]


def candidates(
    model: nn.Module, batches: Batches, inputs: tuple[Tensor, ...], threads: int
) -> Iterator[tuple[str, str, Maker]]:
    """(runtime, who made it, how to make it) of everything that is measured, in the order of the table."""
    for runtime, peer in THEIRS.items():
        for recipe in OURS:
            yield (
                runtime,
                recipe,
                lambda runtime=runtime, recipe=recipe: ours(model, recipe, runtime, batches, inputs, threads),
            )
        if runtime == "onnxruntime":
            for reduced in (False, True):
                name = f"{peer}, {'7' if reduced else '8'}-bit weights"
                yield runtime, name, lambda reduced=reduced: by_onnxruntime(model, batches, inputs, threads, reduced)
        elif runtime == "openvino":
            yield runtime, peer, lambda: by_nncf(model, batches, inputs, threads)
        else:
            yield runtime, peer, lambda: by_torchao(model, batches, inputs, threads)
    yield "compiled", "cast:bf16", lambda: ours(model, "cast:bf16", "compiled", batches, inputs, threads)
    yield "openvino", "cast:bf16", lambda: ours(model, "cast:bf16", "openvino", batches, inputs, threads)


def ours(
    model: nn.Module, recipe: str, runtime: str, batches: Batches, inputs: tuple[Tensor, ...], threads: int
) -> Session:
    """What this package makes of the recipe."""
    compressed = compress(model, recipe, example_inputs=inputs, calibration=batches)
    session: Session = RUNTIMES[runtime].build(compressed, inputs, threads=threads)
    return session


def by_onnxruntime(
    model: nn.Module, batches: Batches, inputs: tuple[Tensor, ...], threads: int, reduced: bool
) -> Session:
    """onnxruntime's static quantizer on the float model's ONNX file, after its own preprocessing."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from pruning_bench.runtimes.onnx_export import exported
    from pruning_bench.runtimes.onnxruntime import session_from

    class Reader(CalibrationDataReader):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {"input": batch[0].numpy()}

    with tempfile.TemporaryDirectory() as folder:
        plain, ready, made = (Path(folder) / f"{name}.onnx" for name in ("plain", "ready", "made"))
        plain.write_bytes(exported(compress(model, "dense", example_inputs=inputs), inputs))
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            made,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduced,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return session_from(made.read_bytes(), threads)


def by_nncf(model: nn.Module, batches: Batches, inputs: tuple[Tensor, ...], threads: int) -> Session:
    """NNCF's post-training quantization of the OpenVINO model."""
    import nncf
    import openvino

    from pruning_bench.runtimes.onnx_export import exported
    from pruning_bench.runtimes.openvino import Models, _binder, _runner, core

    nncf.set_log_level(logging.ERROR)
    content = exported(compress(model, "dense", example_inputs=inputs), inputs)
    data = nncf.Dataset([batch[0].numpy() for batch in batches])
    quantized = nncf.quantize(core().read_model(content), data, subset_size=len(batches))

    class Quantized(Models):
        def compiled(self, inputs: tuple[Tensor, ...]) -> Any:
            shapes = tuple(value.shape for value in inputs)
            if shapes not in self._made:
                fresh = quantized.clone()
                fresh.reshape({port: list(shape) for port, shape in zip(fresh.inputs, shapes, strict=True)})
                self._made[shapes] = core().compile_model(fresh, "CPU", self._options)
            return self._made[shapes]

    del openvino
    models = Quantized(content, threads, "f32")
    return Session(_runner(models), _binder(models), ())


def by_torchao(model: nn.Module, batches: Batches, inputs: tuple[Tensor, ...], threads: int) -> Session:
    """torchao's PT2E flow with its quantizer for inductor on x86, compiled as the runtime `compiled` compiles."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    from pruning_bench.runtimes import inductor

    program = torch.export.export(copy.deepcopy(model).eval(), inputs)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(with_a_place_each(program.module(check_guards=False)), quantizer)
    with torch.no_grad():
        for batch in batches:
            for image in batch[0].split(len(inputs[0])):
                prepared(image)
    torch.set_num_threads(threads)
    call, kernels = inductor.compile_graph(convert_pt2e(prepared), inputs)
    run = torch.inference_mode()(call)
    return Session(
        lambda *given: torch.cat([run(part) for part in given[0].split(len(inputs[0]))]),
        lambda *given: lambda: run(*given),
        kernels,
    )


def with_a_place_each(module: fx.GraphModule) -> fx.GraphModule:
    """The module, in which every operator comes from a place of its own.

    The quantizer takes operators of one place for one part, and refuses parts of two outputs: a ReLU that is called
    twice. With `strict=True` torch tells them apart itself, but forgets everything that was compiled before: what is
    measured would be compiled anew, without inductor's settings.
    """
    seen = set()
    for node in module.graph.nodes:
        if node.op == "call_function" and node.meta.get("nn_module_stack"):
            *outer, (key, (path, kind)) = node.meta["nn_module_stack"].items()
            if path in seen:
                node.meta["nn_module_stack"] = dict([*outer, (key, (f"{path}.{node.name}", kind))])
            seen.add(path)
    return module


def build_all(
    model: nn.Module, batches: Batches, inputs: tuple[Tensor, ...], threads: int
) -> tuple[dict[tuple[str, str], Session], dict[str, str]]:
    """The sessions that could be made, and why the others could not."""
    made, missing = {}, {}
    for runtime, who, make in candidates(model, batches, inputs, threads):
        try:
            made[runtime, who] = make()
        except (PruningBenchError, ImportError, RuntimeError, ValueError) as problem:
            missing[f"{runtime} {who}"] = one_line(problem)
    return made, missing


def speed(name: str, threads: int) -> dict[str, Any]:
    """Seconds, and log ratios to the anchor (onnxruntime's dense model) and to every other candidate of its runtime."""
    torch.set_num_threads(threads)
    model, given = build(name)
    inputs = (given[0][:1],)
    images = torch.randn(4, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(0))
    made, missing = build_all(model, [(image[None],) for image in images], inputs, threads)
    calls = {f"{runtime}|{who}": session.bind(*inputs) for (runtime, who), session in made.items()}
    anchor = calls["onnxruntime|dense"]
    others = {key: call for key, call in calls.items() if key != "onnxruntime|dense"}
    first = next(iter(others))
    taken = sample(anchor, others.pop(first), others=others, seed=0, min_pairs=ROUNDS, max_pairs=ROUNDS, twin_every=0)
    times = {
        "onnxruntime|dense": list(taken.anchor),
        first: list(taken.case),
        **{k: list(v) for k, v in taken.others.items()},
    }
    return {"times": times, "missing": missing}


def accuracy(name: str, threads: int) -> dict[str, Any]:
    """Top-1 on the selection images of every candidate."""
    from pruning_bench.datasets.contract import load_dataset
    from pruning_bench.metrics.accuracy import top1
    from pruning_bench.models.checkpoints import load_checkpoint, shipped_path

    torch.set_num_threads(threads)
    data = load_dataset("fashion_mnist")
    model = load_checkpoint(shipped_path(name, "fashion_mnist")).eval()
    batches = [data.train.arguments(slice(start, start + BATCH)) for start in range(0, CALIBRATION, BATCH)]
    inputs, labels = data.selection.arguments(slice(0, len(data.selection))), data.selection.labels
    made, missing = build_all(model, batches, tuple(value[:EVALUATION] for value in inputs), threads)
    found = {}
    for (runtime, who), session in made.items():
        outputs = torch.cat([session.run(part) for part in inputs[0].split(EVALUATION)])
        found[f"{runtime}|{who}"] = top1(outputs, labels)
    return {"top1": found, "missing": missing}


WORK: dict[str, Callable[[str, int], dict[str, Any]]] = {"speed": speed, "accuracy": accuracy}


def child(work: str, name: str, threads: int, seconds: float) -> dict[str, Any]:
    """What a fresh process of this script finds."""
    return page.child(__file__, [work, name, "--child", str(threads)], seconds)


def ratio(case: list[float], anchor: list[float]) -> str:
    """`0.52 (0.50 to 0.54)`."""
    estimate = estimate_log_ratio(case, anchor, seed=0)
    low, high = (math.exp(bound) for bound in estimate.interval(CONFIDENCE))
    return f"{math.exp(estimate.value):.2f} ({low:.2f} to {high:.2f})"


def speed_rows(name: str, threads: int, found: dict[str, Any]) -> list[list[str]]:
    """A row for each candidate: its time, and ratios to its runtime's peer and to the strongest fp32 model."""
    times: dict[str, list[float]] = found["times"]
    lowest = {key: sorted(taken)[len(taken) // 10] for key, taken in times.items()}
    strongest = min((key for key in times if key.endswith("|dense")), key=lowest.__getitem__)
    rows = []
    for key, taken in times.items():
        runtime, who = key.split("|")
        peers = [k for k in times if k.startswith(f"{runtime}|{THEIRS[runtime]}")]
        is_ours = who.startswith("static")
        against = ratio(taken, times[min(peers, key=lowest.__getitem__)]) if is_ours and peers else "-"
        rows.append(
            [name, str(threads), runtime, who, f"{lowest[key] * 1e3:.2f}", against, ratio(taken, times[strongest])]
        )
    return rows


def accuracy_rows(name: str, threads: int, found: dict[str, Any]) -> list[list[str]]:
    """A row for each candidate."""
    return [[name, *key.split("|"), f"{value:.2%}"] for key, value in found["top1"].items()]


ROWS = {
    "speed": (
        speed_rows,
        ["model", "threads", "runtime", "made by", "ms", "time / its own quantizer's", "time / strongest fp32's"],
    ),
    "accuracy": (accuracy_rows, ["model", "runtime", "made by", "top-1"]),
}


def main() -> None:
    """Prints one table."""
    parser = page.options(__doc__, list(WORK), 900.0, {"type": int, "metavar": "THREADS"})
    args = parser.parse_args()
    if args.child:
        warnings.simplefilter("ignore")
        discover()
        try:
            print("\n" + json.dumps(WORK[args.work](args.models[0], args.child)))
        except Exception as problem:
            sys.exit(f"{type(problem).__name__}: {one_line(problem)}")
        return
    page.check_page(args, "quantization")
    peers = page.versions(parser, ("torch", "onnxruntime", "openvino", "nncf", "torchao"))
    row, header = ROWS[args.work]
    rows, notes = [], []
    for name in args.models or (SPEED if args.work == "speed" else CHECKPOINTS):
        for threads in THREADS if args.work == "speed" else THREADS[-1:]:
            found = child(args.work, name, threads, args.seconds)
            rows += row(name, threads, found) if "problem" not in found else []
            reasons = found.get("missing", {"": found.get("problem", "")})
            notes += [f"{name}, {threads} threads: {who} {why}" for who, why in reasons.items()]
    page.report(args, "quantization", header, rows, [peers, *notes])


if __name__ == "__main__":
    main()
