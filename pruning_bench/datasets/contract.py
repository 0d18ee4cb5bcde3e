"""What a data set is: labelled examples in three roles, and how raw examples become model inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar, overload

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


class Found(NamedTuple):
    """What of a data set is on this machine: a part that ships with its definition, and the folder of the full data."""

    shipped: bool
    full: Path | None


@dataclass(frozen=True)
class ReferenceDataset:
    """A data set by name.

    Args:
        load: `load(folder, full=...)` reads it.
        look: tells what of it is here, and neither reads nor downloads it; None where only `load` can tell.
    """

    name: str
    load: Callable[..., Dataset]
    look: Callable[[], Found] | None = None


F = TypeVar("F", bound=Callable[..., Dataset])


@overload
def reference_dataset(load: F) -> F: ...
@overload
def reference_dataset(*, look: Callable[[], Found]) -> Callable[[F], F]: ...
def reference_dataset(load: F | None = None, *, look: Callable[[], Found] | None = None) -> F | Callable[[F], F]:
    """Registers a loader `load(folder: Path | None = None, *, full: bool = False) -> Dataset` under its own name.

    Args:
        look: see `ReferenceDataset`; with it the decorator is written `@reference_dataset(look=...)`.
    """

    def decorate(load: F) -> F:
        DATASETS.add(load.__name__, ReferenceDataset(load.__name__, load, look))
        return load

    return decorate if load is None else decorate(load)


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
