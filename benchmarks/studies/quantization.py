"""What quantization costs in accuracy, measured anew: the tables of docs/methods.md.

    python benchmarks/studies/quantization.py w8a8 [MODEL ...]        # 8 bits of weights and activations
    python benchmarks/studies/quantization.py bits [MODEL ...]        # 3 and 4 bits of weights, three methods
    python benchmarks/studies/quantization.py qat [MODEL ...]         # 4 bits of both, trained
    python benchmarks/studies/quantization.py combined [MODEL ...]    # pruned, fine-tuned, quantized
    python benchmarks/studies/quantization.py speed [MODEL ...]       # what that brings on each runtime

`--data DIR` trains and calibrates on the full data, `--keep FILE` keeps what is measured, so that an interrupted study
goes on, and `--into docs/methods.md` puts the table there. Accuracies are top-1 of the simulation in eager on the
selection images; changes are against the dense model, in percentage points (pp).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from lab import Lab, Scored, changes, over_images, shown
from study import Study, points, pp, run, yes
from timing import TWIN, measured_on, times, with_weights
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.engine import Compressed
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.lower import write_values
from pruning_bench.quantization.plans import prepare
from pruning_bench.registry import RUNTIMES
from pruning_bench.reporting.text import percent
from pruning_bench.sensitivity import sqnr

CONVOLUTIONAL = ("lenet5", "image_classifier", "resnet20", "mobilenet_v2")
SMOOTHED = ("vit_tiny",)
BITS = (3, 4)
FLOAT, OWN = "float inputs", "own inputs"
SMALLER = 12
CHANNELS = "l1_filter:0.5"
COMBINED = f"{CHANNELS}+static:w8a8"  # fine-tuning changes no shape and no kernel


def w8a8(lab: Lab, model: str) -> Iterator[list[str]]:
    """One row for each recipe."""
    dense = lab.score(model, "dense")
    for recipe in ("static:w8a8", *(["smoothquant:w8a8"] if model in SMOOTHED else [])):
        made = lab.scores(model, recipe)
        mean, _ = changes(made, dense)
        change = points(over_images(made, [dense] * len(made)))
        yield [model, f"`{recipe}`", percent(dense.top1, 2), change, yes(mean >= -0.003)]


def bits(lab: Lab, model: str) -> Iterator[list[str]]:
    """Three rows for each number of bits."""
    dense = lab.score(model, "dense")
    for width in BITS:
        nearest = lab.scores(model, f"rtn:w{width}", layer_sqnr)
        yield [model, f"`rtn:w{width}`", pp(changes(nearest, dense)[0]), "-", "-", "-", "-"]
        for name in ("gptq", "adaround"):
            made = lab.scores(model, f"{name}:w{width}", layer_sqnr)
            gain, counts = over_images(made, nearest), [quieter(made, nearest, given) for given in (FLOAT, OWN)]
            verdict = shown(gain) if width < 4 else yes(all(better == layers for better, layers in counts))
            layers = [f"{better} of {layers}" for better, layers in counts]
            yield [model, f"`{name}:w{width}`", pp(changes(made, dense)[0]), points(gain), *layers, verdict]


def layer_sqnr(made: Compressed, inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """dB of the output of every layer whose weight is rounded, against the float model's; "LAYER, float inputs": it
    alone is rounded; "LAYER, own inputs": all of them are, and errors of those before it count too.

    Where a clamp from zero (ReLU, ReLU6) alone reads a layer, its output is what the clamp gives.

    Args:
        inputs: of the model, best not those that it was calibrated with.
    """
    plan = made.quant_plan
    assert plan is not None, f"{made.recipe} does not quantize"
    prepared = prepare(made.float_model, Context(made.example_inputs, torch.Generator()), "layer_sqnr")
    exact, rounded = prepared.folded, copy.deepcopy(prepared.folded)
    values = {**prepared.weights, **plan.writes}
    write_values(rounded, {**plan.writes, **{n: fake_quantize(values[n], grid) for n, grid in plan.weights.items()}})
    tops = {weight: prepared.points.top_behind(node) for node, weight in prepared.points.layers.items()}
    names = [name for name, _ in exact.named_modules() if f"{name}.weight" in plan.weights]
    exact_calls, own_calls = (layer_calls(model, names, inputs) for model in (exact, rounded))
    found: dict[str, float] = {}
    for name, (given, output) in exact_calls.items():
        top = tops[f"{name}.weight"]
        with torch.inference_mode():
            alone = rounded.get_submodule(name)(*given)
        for kind, other in ((FLOAT, alone), (OWN, own_calls[name][1])):
            found[f"{name}, {kind}"] = sqnr(*(x if top is None else x.clamp(0, top) for x in (output, other)))
    return found


def layer_calls(
    model: nn.Module, names: Sequence[str], inputs: tuple[Tensor, ...]
) -> dict[str, tuple[tuple[Tensor, ...], Tensor]]:
    """What each layer is given, and gives, when the model runs: of its last call."""
    found: dict[str, tuple[tuple[Tensor, ...], Tensor]] = {}

    def note(name: str, _: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        found[name] = tuple(value.clone() for value in given), output.clone()  # an addition in place may follow

    hooks = [model.get_submodule(name).register_forward_hook(partial(note, name)) for name in names]
    with torch.inference_mode():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def quieter(ours: Sequence[Scored], theirs: Sequence[Scored], kind: str) -> tuple[int, int]:
    """In how many layers the mean SQNR over the seeds, with inputs of that kind, is higher, and of how many."""
    a, b = ({name: sum(one.also[name] for one in side) for name in side[0].also} for side in (ours, theirs))
    names = [name for name in b if name.endswith(f", {kind}")]
    assert names, f"no layer with {kind} among {list(b)}"
    return sum(a[name] > b[name] for name in names), len(names)


def qat(lab: Lab, model: str) -> Iterator[list[str]]:
    """One row."""
    recipe = f"qat:w4a4,epochs={lab.epochs}{lab.options}"
    dense, made = lab.score(model, "dense"), lab.scores(model, recipe)
    mean, worst = changes(made, dense)
    yield [model, f"`{recipe}`", percent(dense.top1, 2), pp(mean), pp(worst), yes(mean >= -0.015)]


def combined(lab: Lab, model: str) -> Iterator[list[str]]:
    """One row."""
    recipe = f"l1_filter:0.5+{lab.finetune()}+static:w8a8"
    dense, made = lab.score(model, "dense"), lab.scores(model, recipe)
    mean, worst = changes(made, dense)
    smaller = min(dense.size / one.size for one in made)
    left, holds = percent(made[0].macs / dense.macs), mean >= -0.01 and smaller >= SMALLER
    yield [model, f"`{recipe}`", left, percent(dense.top1, 2), pp(mean), pp(worst), f"{smaller:.1f} times", yes(holds)]


def speed(lab: Lab, model: str) -> Iterator[list[str]]:
    """One row for each runtime that is here."""
    for runtime in runtimes():
        found = times(lab, model, runtime, (COMBINED, CHANNELS))
        yield [model, runtime, *(found.speed_up(recipe) for recipe in (COMBINED, CHANNELS, TWIN))]


def runtimes() -> list[str]:
    """Those that are here and run integers."""
    timed = (name for name in RUNTIMES if not getattr(RUNTIMES[name], "simulates_quantized", False))
    return [name for name in timed if RUNTIMES[name].available() is None]


def where() -> str:
    """What times depend on."""
    return measured_on(*runtimes())


STUDIES: Mapping[str, Study] = {
    "w8a8": Study(
        "8 bits of weights and activations, not trained: the change of top-1, with its 95 % interval over the images "
        "(of the mean over the seeds, which draw the calibration images), should be at least -0.3 pp.",
        ("model", "recipe", "fp32 top-1", "change", "at least -0.3 pp"),
        w8a8,
        (*CONVOLUTIONAL, *SMOOTHED),
    ),
    "bits": Study(
        "Weights rounded by GPTQ and AdaRound against round-to-nearest, on the same grids: at 3 bits the gain in "
        "top-1, with its 95 % interval over the images, should be above zero; at 4 bits the output of every layer "
        "should have the higher SQNR than `rtn`'s, behind its ReLU or ReLU6 where it has one: rounded alone, with the "
        "inputs of the float model, and inside the rounded model, with its own inputs; all with images that did not "
        "calibrate.",
        ("model", "recipe", "change", "gain", *(f"layers above, {given}" for given in (FLOAT, OWN)), "holds"),
        bits,
        CONVOLUTIONAL,
    ),
    "qat": Study(
        "4 bits of weights and activations with learned step sizes (LSQ; 8 bits at both ends): the mean change of "
        "top-1 over the seeds should be at least -1.5 pp.",
        ("model", "recipe", "fp32 top-1", "mean change", "worst", "at least -1.5 pp"),
        qat,
        ("resnet20",),
        epochs=5,
        seeds=3,
    ),
    "combined": Study(
        "Half of the channels removed, fine-tuned, then 8 bits: the mean change of top-1 over the seeds should be at "
        "least -1 pp, and the file that `pruning-bench compress -o` writes at least 12 times smaller than dense.",
        ("model", "recipe", "MACs left", "dense top-1", "mean change", "worst", "file smaller", "holds"),
        combined,
        ("image_classifier", "resnet20"),
        epochs=5,
        seeds=3,
    ),
    "speed": Study(
        "How many times as fast as the dense model on the same runtime, with the 98 % interval inside one process: "
        "half of the channels removed, with and without 8 bits; the dense model once more shows what the machine makes "
        "of the same code.",
        ("model", "runtime", f"`{COMBINED}`", f"`{CHANNELS}`", TWIN),
        speed,
        ("image_classifier", "resnet20"),
        seeds=0,
        threads=1,
        dense=with_weights,
        notes=where,
    ),
}


if __name__ == "__main__":
    sys.exit(run("quantization", __doc__, STUDIES))
