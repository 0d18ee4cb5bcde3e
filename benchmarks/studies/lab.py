"""What studies measure with: top-1 on the selection images, kept in a file of JSON lines, and comparisons of it.

The key of a line holds all that its value depends on: what changed, the package's code included, is measured anew. The
test split is never looked at.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from pruning_bench import recipe as grammar
from pruning_bench.artifacts import file_size
from pruning_bench.build_entries import digest_tensors
from pruning_bench.datasets.contract import Dataset, Split, labelled_images
from pruning_bench.engine import Compressed
from pruning_bench.errors import PruningBenchError, RecordError
from pruning_bench.judging.statistics import Estimate, paired_mean
from pruning_bench.judging.vectors import Bits, pack, unpack
from pruning_bench.metrics.accuracy import correct
from pruning_bench.metrics.cost import count_cost
from pruning_bench.models.checkpoints import load_checkpoint, shipped_path
from pruning_bench.progress import progress_bar
from pruning_bench.records import write_atomically
from pruning_bench.workbench import CALIBRATION_IMAGES, QUALITY_BATCH, compress_with

DATASET = "fashion_mnist"
CONFIDENCE = 0.95
UNSEEN_IMAGES = 256
START = '{"key": '  # of every line that is kept

Json: TypeAlias = dict[str, Any]
Also: TypeAlias = Callable[[Compressed, tuple[Tensor, ...]], dict[str, float]]


@dataclass
class Keep:
    """Measured values by what they depend on, in memory and, as they come, in a file of JSON lines.

    Args:
        path: the file, made when there is something to keep; None writes none.
    Raises:
        RecordError: a line that is none of these. A last line that was not finished is dropped.
    """

    path: Path | None = None
    _values: dict[str, Json] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.path is None or not self.path.exists():
            return
        *lines, rest = self.path.read_text(encoding="utf-8").split("\n")
        cut = rest[: len(START)] == START[: len(rest)]  # so is nothing at all
        for number, line in enumerate(lines if cut else [*lines, rest], 1):
            try:
                found = json.loads(line)
                self._values[_spelt(found["key"])] = found["value"]
            except (ValueError, KeyError, TypeError):
                raise RecordError("keep", "a line without key and value", "JSON", f"{self.path}:{number}") from None
        if rest:
            write_atomically(self.path, "".join(f"{line}\n" for line in lines))

    def once(self, key: Json, make: Callable[[], Json]) -> Json:
        """The value that is kept under `key`; made, and kept, where there is none."""
        spelt = _spelt(key)
        if spelt not in self._values:
            self._values[spelt] = make()
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps({"key": key, "value": self._values[spelt]}) + "\n")
        return self._values[spelt]


def _digest(function: Also) -> str:
    """Of the file that it stands in."""
    return hashlib.sha256(Path(inspect.getfile(function)).read_bytes()).hexdigest()[:16]


def _spelt(key: Json) -> str:
    return json.dumps(key, sort_keys=True)


@dataclass(frozen=True)
class Scored:
    """One compressed model on the selection images.

    Args:
        right: which of them it predicts right, bool [N].
        macs, nonzeros: of the model before quantization.
        size: bytes of the file that `pruning-bench compress -o` writes.
        also: further numbers by name.
    """

    right: Bits
    macs: int
    nonzeros: int
    size: int
    also: Mapping[str, float] = field(default_factory=dict)

    @property
    def top1(self) -> float:
        """Share of right predictions."""
        return float(self.right.mean())


def shipped(model: str) -> nn.Module:
    """The trained model of that name; raises `CheckpointError` where none is shipped."""
    return load_checkpoint(shipped_path(model, DATASET))


@dataclass(frozen=True)
class Lab:
    """What the rows of a study are measured with.

    Args:
        data: trained and calibrated on its train split, scored on its selection split.
        keep: what is measured already.
        seeds: of everything random, one model each.
        epochs: that a step trains.
        tune: options of the steps that train, as a recipe spells them: "lr=0.05,flip=true".
        limit: how many of the selection images, the first ones; None: all.
        code: digest of what computes.
        dense: name -> trained model.
    """

    data: Dataset
    keep: Keep
    seeds: tuple[int, ...] = (0,)
    epochs: int = 1
    tune: str = ""
    limit: int | None = None
    code: str = ""
    dense: Callable[[str], nn.Module] = shipped

    @property
    def options(self) -> str:
        """To be put behind a step that trains."""
        return f",{self.tune}" if self.tune else ""

    def finetune(self, epochs: int | None = None) -> str:
        """The step of so many epochs, those of the study if left out."""
        return f"finetune:{epochs or self.epochs}{self.options}"

    @property
    def images(self) -> int:
        """How many images are scored."""
        return min(len(self.data.selection), self.limit or len(self.data.selection))

    def once(self, model: str, words: str, what: Json, make: Callable[[nn.Module], Json]) -> Json:
        """What `make` measures of a dense model, or what is kept of it.

        Args:
            words: say what is measured.
            what: all that it depends on besides the model, the code, torch and its threads.
        """
        dense = self.dense(model)
        key = {"model": model, "weights": digest_tensors(dense.state_dict())[:16], **what}
        key |= {"code": self.code[:16], "torch": torch.__version__, "threads": torch.get_num_threads()}

        def made() -> Json:
            started = time.monotonic()
            print(f"{model} {words} ...", file=sys.stderr, flush=True)
            found = make(dense)
            print(f"{model} {words}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            return found

        return self.keep.once(key, made)

    def score(self, model: str, recipe: str, seed: int = 0, also: Also | None = None) -> Scored:
        """The model of a recipe on the selection images.

        Args:
            also: measures more of it, with images of the train split that did not calibrate it.
        """
        what = {"recipe": str(grammar.parse(recipe)), "seed": seed, "images": self.images, "data": self.data.digest[:8]}
        what |= {"also": [also.__name__, _digest(also)]} if also else {}

        def make(dense: nn.Module) -> Json:
            with progress_bar() as progress:
                made = compress_with(dense, recipe, self.data, seed=seed, progress=progress)
            cost = count_cost(made.float_model, made.example_inputs)
            found = {"right": pack(self._right(made.model)), "macs": cost.macs, "nonzeros": cost.nonzeros}
            return {**found, "size": file_size(made), "also": also(made, self.unseen(seed)) if also else {}}

        found = self.once(model, f"{recipe}, seed {seed}", what, make)
        return Scored(**{**found, "right": unpack(found["right"])})

    def scores(self, model: str, recipe: str, also: Also | None = None) -> list[Scored]:
        """One for each seed."""
        return [self.score(model, recipe, seed, also) for seed in self.seeds]

    def unseen(self, seed: int) -> tuple[Tensor, ...]:
        """Images of the train split that `compress_with` does not calibrate with."""
        drawn = self.data.train.sample(CALIBRATION_IMAGES + UNSEEN_IMAGES, torch.Generator().manual_seed(seed))
        if len(drawn) <= CALIBRATION_IMAGES:
            raise PruningBenchError("study", f"{len(drawn)} images", f"more than {CALIBRATION_IMAGES}, which calibrate")
        return drawn.arguments(slice(CALIBRATION_IMAGES, None))

    @torch.inference_mode()
    def _right(self, model: nn.Module) -> Bits:
        part = labelled_images(self.data.selection, "study")
        part = Split(part.images[: self.images], part.labels[: self.images], part.mean, part.std)
        found = [correct(model(inputs), labels) for inputs, labels in part.batches(QUALITY_BATCH)]
        return np.asarray(torch.cat(found).numpy(), np.bool_)


def over_seeds(ours: Sequence[Scored], theirs: Sequence[Scored]) -> Estimate:
    """By how much top-1 is higher: the seed is the unit, as for all that trains; one seed has no interval."""
    found = [a.top1 - b.top1 for a, b in zip(ours, theirs, strict=True)]
    return paired_mean(found) if len(found) > 1 else Estimate(found[0], math.inf)


def over_images(ours: Sequence[Scored], theirs: Sequence[Scored]) -> Estimate:
    """The same where weights are not trained: the image is the unit, its mean over the seeds what is compared."""
    a, b = (np.mean([one.right for one in side], axis=0) for side in (ours, theirs))
    return paired_mean((a - b).tolist())


def shown(estimate: Estimate, bar: float = 0.0, confidence: float = CONFIDENCE) -> str:
    """Does the interval lie above the bar?"""
    low, high = estimate.interval(confidence)
    return "yes" if low > bar else "no" if high < bar else "not shown"


def changes(made: Sequence[Scored], dense: Scored) -> tuple[float, float]:
    """The mean change of top-1 over the seeds, and the worst one."""
    found = [one.top1 - dense.top1 for one in made]
    return math.fsum(found) / len(found), min(found)
