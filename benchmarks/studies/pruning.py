"""What pruning costs in accuracy and brings in speed, measured anew: the tables of docs/methods.md.

    python benchmarks/studies/pruning.py half [MODEL ...]         # half of the multiply-accumulates removed
    python benchmarks/studies/pruning.py masks [MODEL ...]        # magnitude against random masks
    python benchmarks/studies/pruning.py schedules [MODEL ...]    # one-shot against iterative and gradual pruning
    python benchmarks/studies/pruning.py nm [MODEL ...]           # 2:4 without fine-tuning
    python benchmarks/studies/pruning.py speed [MODEL ...]        # channels and masks on onnxruntime

`--data DIR` trains on the full data, `--keep FILE` keeps what is measured, so that an interrupted study goes on, and
`--into docs/methods.md` puts the table there. Accuracies are top-1 on the selection images; changes are against the
dense model, in percentage points (pp).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

from lab import Lab, Scored, changes, over_images, over_seeds, shown
from study import Study, points, pp, run, yes
from timing import SPEED_CONFIDENCE, TWIN, measured_on, times, with_weights

from pruning_bench.errors import PruningBenchError
from pruning_bench.reporting.text import percent

CHECKPOINTS = ("image_classifier", "resnet20")
MASK_LEVELS = (0.8, 0.9, 0.95)
SCHEDULE_LEVEL = 0.95
LEAST_EPOCHS = 3  # of a schedule: with fewer the iterative one is the one-shot one
RUNTIME, CHANNELS, MASKS = "onnxruntime", "l1_filter:0.5", "magnitude:0.9"
FASTER = 2.0


def half(lab: Lab, model: str) -> Iterator[list[str]]:
    """One row."""
    recipe = f"l1_filter:0.5,budget=macs+{lab.finetune()}"
    dense, made = lab.score(model, "dense"), lab.scores(model, recipe)
    mean, worst = changes(made, dense)
    left = percent(made[0].macs / dense.macs)
    yield [model, f"`{recipe}`", left, percent(dense.top1, 2), pp(mean), pp(worst), yes(mean >= -0.01)]


def masks(lab: Lab, model: str) -> Iterator[list[str]]:
    """One row for each sparsity."""
    dense = lab.score(model, "dense")
    for level in MASK_LEVELS:
        ours, theirs = (lab.scores(model, f"{name}:{level}+{lab.finetune()}") for name in ("magnitude", "random"))
        gain = over_seeds(ours, theirs)
        means = [changes(made, dense)[0] for made in (ours, theirs)]
        yield [model, str(level), *map(pp, means), points(gain), shown(gain)]


def schedules(lab: Lab, model: str) -> Iterator[list[str]]:
    """Three rows."""
    dense = lab.score(model, "dense")
    first: list[Scored] = []
    for recipe in schedules_of(SCHEDULE_LEVEL, lab):
        made = lab.scores(model, recipe)
        first = first or made
        gain = over_seeds(made, first)
        verdict = ["-", "-"] if made is first else [points(gain), shown(gain)]
        yield [model, f"`{recipe}`", f"{made[0].nonzeros:,}", *map(pp, changes(made, dense)), *verdict]


def schedules_of(level: float, lab: Lab) -> tuple[str, str, str]:
    """One-shot, iterative and gradual recipes to one sparsity, of as many epochs.

    The iterative one prunes the same share p of what is left before each of its first epochs, (1 - p)^rounds = 1 -
    level, and trains the other half of the epochs at the end.
    """
    if lab.epochs < LEAST_EPOCHS:
        raise PruningBenchError("schedules", f"--epochs {lab.epochs}", f"at least {LEAST_EPOCHS}")
    rounds = lab.epochs - lab.epochs // 2
    share = round(1 - (1 - level) ** (1 / rounds), 4)
    return (
        f"magnitude:{level}+{lab.finetune()}",
        f"repeat({rounds},magnitude:{share}+{lab.finetune(1)})+{lab.finetune(lab.epochs - rounds)}",
        f"agp:{level},epochs={lab.epochs}{lab.options}",
    )


def nm(lab: Lab, model: str) -> Iterator[list[str]]:
    """One row for each method."""
    dense, magnitude = lab.score(model, "dense"), lab.scores(model, "magnitude:2of4")
    for name in ("magnitude", "wanda", "sparsegpt"):
        made = magnitude if name == "magnitude" else lab.scores(model, f"{name}:2of4")
        gain, (mean, _) = over_images(made, magnitude), changes(made, dense)
        verdict = ["-", "-"] if made is magnitude else [points(gain), shown(gain)]
        yield [model, f"`{name}:2of4`", percent(dense.top1, 2), pp(mean), *verdict]


def speed(lab: Lab, model: str) -> Iterator[list[str]]:
    """One row for each recipe, and one for the dense model against itself."""
    found = times(lab, model, RUNTIME, (CHANNELS, MASKS))
    for recipe in (CHANNELS, MASKS):
        verdict = shown(found.ratio(recipe), math.log(FASTER), SPEED_CONFIDENCE)
        yield [model, f"`{recipe}`", percent(found.macs[recipe]), found.speed_up(recipe), verdict]
    yield [model, TWIN, percent(1.0), found.speed_up(TWIN), "-"]


def where() -> str:
    """What times depend on."""
    return measured_on(RUNTIME)


STUDIES = {
    "half": Study(
        "Half of the multiply-accumulates removed by channels, and fine-tuned: the mean change of top-1 over the seeds "
        "should be at least -1 pp.",
        ("model", "recipe", "MACs left", "dense top-1", "mean change", "worst", "at least -1 pp"),
        half,
        CHECKPOINTS,
        epochs=5,
        seeds=3,
    ),
    "masks": Study(
        "Masks by magnitude against random ones of the same sparsity, fine-tuned alike: the difference, with its 95 % "
        "interval over the seeds, should be above zero.",
        ("model", "sparsity", "magnitude", "random", "difference", "above zero"),
        masks,
        CHECKPOINTS,
        epochs=2,
        seeds=3,
    ),
    "schedules": Study(
        "One-shot magnitude pruning against iterative and gradual (AGP) pruning of as many epochs: the difference to "
        "one-shot, with its 95 % interval over the seeds, should be above zero.",
        ("model", "recipe", "nonzero", "mean change", "worst", "difference", "above zero"),
        schedules,
        CHECKPOINTS,
        epochs=10,
        seeds=3,
    ),
    "nm": Study(
        "2 of 4 weights kept, without fine-tuning: the difference to magnitude, with its 95 % interval over the images "
        "(of the mean over the seeds, which draw the calibration images), should be above zero.",
        ("model", "recipe", "dense top-1", "mean change", "difference", "above zero"),
        nm,
        ("vit_tiny", *CHECKPOINTS),
        seeds=3,
    ),
    "speed": Study(
        "How many times as fast as the dense model, with the 98 % interval inside one process: a quarter of the "
        "multiply-accumulates should be at least 2 times as fast; masks make nothing faster.",
        ("model", "recipe", "MACs left", "speed-up", "at least 2"),
        speed,
        ("image_classifier", "torchvision:resnet18"),
        seeds=0,
        threads=1,
        dense=with_weights,
        notes=where,
    ),
}


if __name__ == "__main__":
    sys.exit(run("pruning", __doc__, STUDIES))
