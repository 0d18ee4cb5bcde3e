"""What a data set is: labelled examples in three roles, and how raw examples become model inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from pruning_bench.registry import DATASETS


@dataclass(frozen=True)
class Split:
    """Labelled examples of one role.

    Args:
        images: uint8 [N, C, H, W], already padded to the model's size.
        labels: int64 [N].
        mean, std: per channel, of the training images in [0, 1]; float32 [C].
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Normalised float32 model inputs [n, C, H, W] of the examples at `index`."""
        shape = (1, -1, 1, 1)
        return (self.images[index].float() / 255 - self.mean.view(shape)) / self.std.view(shape)

    def batches(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels) in order, `size` examples at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.inputs(part), self.labels[part]

    def sample(self, count: int, generator: torch.Generator) -> Split:
        """`count` examples drawn without replacement (all, in random order, when there are fewer)."""
        chosen = torch.randperm(len(self), generator=generator)[:count]
        return Split(self.images[chosen], self.labels[chosen], self.mean, self.std)


@dataclass(frozen=True)
class Dataset:
    """A data set in its three roles: `train` (and calibration), `selection` (every choice), `test` (looked at once).

    Args:
        name: the registered name.
        classes: class names, in the order of the labels.
        digest: sha256 over the bytes of all three splits; changes when any example changes.
        source: where the examples came from, e.g. "shipped" or "folder"; for cards and reports.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    selection: Split
    test: Split
    digest: str
    source: str


@dataclass(frozen=True)
class ReferenceDataset:
    """A data set by name; `load(folder, full=...)` reads it."""

    name: str
    load: Callable[..., Dataset]


F = TypeVar("F", bound=Callable[..., Dataset])


def reference_dataset(load: F) -> F:
    """Registers a loader `load(folder: Path | None = None, *, full: bool = False) -> Dataset` under its own name."""
    DATASETS.add(load.__name__, ReferenceDataset(load.__name__, load))
    return load


def load_dataset(name: str, folder: Path | None = None, *, full: bool = False) -> Dataset:
    """The data set `name`.

    Args:
        folder: where the full data lies; None looks at the environment variable and the usual places.
        full: use the full training split; the shipped part otherwise (identical on every machine).
    Raises:
        UnknownNameError, DataError.
    """
    dataset: Dataset = DATASETS[name].load(folder, full=full)
    return dataset
