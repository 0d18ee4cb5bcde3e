"""How many times as fast a compressed model is as the dense one on the same runtime, from blocks in turns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lab import DATASET, Json, Lab, shipped
from torch import nn

from pruning_bench.cases import RANDOM
from pruning_bench.datasets.contract import load_dataset
from pruning_bench.engine import compress
from pruning_bench.environment import current
from pruning_bench.judging.statistics import Estimate, estimate_log_ratio
from pruning_bench.metrics.cost import count_cost
from pruning_bench.metrics.latency import sample
from pruning_bench.registry import MODELS, RUNTIMES

TWIN = "dense, once more"
PAIRS = 120
SPEED_CONFIDENCE = 0.98


@dataclass(frozen=True)
class Times:
    """Of one model on one runtime.

    Args:
        seconds: recipe -> seconds per call, block by block; the blocks of all recipes are paired.
        macs: recipe -> share of the multiply-accumulates that is left.
    """

    seconds: Mapping[str, Sequence[float]]
    macs: Mapping[str, float]

    def ratio(self, recipe: str) -> Estimate:
        """Log of the dense model's time over the recipe's."""
        return estimate_log_ratio(self.seconds["dense"], self.seconds[recipe], seed=0)

    def speed_up(self, recipe: str) -> str:
        """`2.10 [2.05, 2.15]`, the interval being that inside one process."""
        ratio = self.ratio(recipe)
        low, high = (math.exp(bound) for bound in ratio.interval(SPEED_CONFIDENCE))
        return f"{math.exp(ratio.value):.2f} [{low:.2f}, {high:.2f}]"


def with_weights(model: str) -> nn.Module:
    """A shipped model, or one of torchvision with random weights."""
    ready = MODELS[model].ready
    return shipped(model) if ready is None else ready()


def times(lab: Lab, model: str, runtime: str, recipes: tuple[str, ...]) -> Times:
    """One image at a time on one thread: the dense model, itself once more, and the recipes, of which one is needed."""
    what = {"recipe": f"speed of {', '.join(recipes)}", "runtime": RUNTIMES[runtime].version(), "pairs": PAIRS}
    what["machine"] = current().must_match
    return Times(**lab.once(model, f"on {runtime}", what, lambda dense: _times(model, dense, runtime, recipes)))


def _times(model: str, dense: nn.Module, runtime: str, recipes: tuple[str, ...]) -> Json:
    inputs = load_dataset(DATASET if MODELS[model].ready is None else RANDOM).train.arguments(slice(0, 1))
    whole, macs, calls = count_cost(dense, inputs).macs, {}, {}
    for recipe in ("dense", *recipes):
        made = compress(dense, recipe, example_inputs=inputs, calibration=[inputs])  # what it gives is not looked at
        macs[recipe] = count_cost(made.float_model, inputs).macs / whole
        calls[recipe] = RUNTIMES[runtime].build(made, inputs, threads=1).bind(*inputs)
    anchor, first = calls.pop("dense"), calls.pop(recipes[0])
    others = {**calls, TWIN: anchor}
    taken = sample(anchor, first, others=others, seed=0, min_pairs=PAIRS, max_pairs=PAIRS, twin_every=0)
    found = {"dense": taken.anchor, recipes[0]: taken.case, **taken.others}
    return {"seconds": {recipe: list(seconds) for recipe, seconds in found.items()}, "macs": macs}


def measured_on(*runtimes: str) -> str:
    """What times depend on."""
    versions = ", ".join(RUNTIMES[name].version() for name in runtimes)
    return f"{versions}, one thread, {current().must_match['cpu']}"
