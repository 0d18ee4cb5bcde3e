"""What a data set is: examples in three roles, and how raw examples become model inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, overload, runtime_checkable

import torch
from torch import Tensor

from pruning_bench.errors import DataError
from pruning_bench.registry import DATASETS

if TYPE_CHECKING:
    from pruning_bench.metrics.contract import Score


IGNORED = -100  # the target that torch's cross entropy leaves out


@runtime_checkable
class Examples(Protocol):
    """Examples of one role, as the suite sees them; `Split` holds labelled images, `Tensors` anything."""

    @property
    def targets(self) -> Tensor | None:
        """What a score compares outputs with, one a row; None without labels."""

    def __len__(self) -> int:
        """How many examples."""

    def arguments(self, index: Tensor | slice = slice(None)) -> tuple[Tensor, ...]:
        """Positional arguments of the model's forward for the examples at `index`, batch first."""

    def sample(self, count: int, generator: torch.Generator) -> Examples:
        """`count` examples drawn without replacement (all, in random order, when there are fewer)."""


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

    @property
    def targets(self) -> Tensor:
        """The labels."""
        return self.labels

    def arguments(self, index: Tensor | slice = slice(None)) -> tuple[Tensor, ...]:
        """The images at `index` as the one argument of a model's forward."""
        return (self.inputs(index),)

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
class Tensors:
    """Examples that are given as the model's arguments.

    Args:
        values: the positional arguments, tensors of any type and shape, each [N, ...].
        targets: [N, ...], or None.
    """

    values: tuple[Tensor, ...]
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values[0])

    def arguments(self, index: Tensor | slice = slice(None)) -> tuple[Tensor, ...]:
        """The rows at `index` of every argument."""
        return tuple(value[index] for value in self.values)

    def sample(self, count: int, generator: torch.Generator) -> Tensors:
        """`count` examples drawn without replacement (all, in random order, when there are fewer)."""
        chosen = torch.randperm(len(self), generator=generator)[:count]
        return Tensors(self.arguments(chosen), None if self.targets is None else self.targets[chosen])


@dataclass(frozen=True)
class Dataset:
    """A data set in its three roles: `train` (and calibration), `selection` (every choice), `test` (looked at once).

    Args:
        name: the registered name.
        classes: class names, in the order of the labels; () where there are no classes.
        digest: sha256 over the bytes of all three splits; changes when any example changes.
        source: where the examples came from, e.g. "shipped" or "folder"; for cards and reports.
    """

    name: str
    classes: tuple[str, ...]
    train: Examples
    selection: Examples
    test: Examples
    digest: str
    source: str


def check_examples(examples: object, who: str) -> None:
    """Raises `DataError` for training data of another kind."""
    if not isinstance(examples, Examples):
        expected = "examples: Split or Tensors of pruning_bench.datasets.contract"
        raise DataError(who, f"training data of type {type(examples).__name__}", expected)


def check_not_empty(examples: Examples, who: str) -> None:
    """Raises `DataError` for no examples."""
    if not len(examples):
        raise DataError(who, "training data with no examples", "at least one")


def labelled_images(examples: Examples, who: str) -> Split:
    """The examples, where they are labelled images, at least one; raises `DataError` naming `who` needs them."""
    check_not_empty(examples, who)
    if not isinstance(examples, Split):
        raise DataError(who, f"examples of type {type(examples).__name__}", "labelled images (datasets.contract.Split)")
    images, labels = examples.images, examples.labels
    if images.dim() != 4 or labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        found = f"images {list(images.shape)} with labels {labels.dtype} {list(labels.shape)}"
        raise DataError(who, found, "images [N, C, H, W] with labels torch.int64 [N]")
    return examples


def check_classes(targets: Tensor, classes: int, who: str, where: str | None = None) -> None:
    """Raises `DataError` for a target that is none of the classes that a model tells, nor `IGNORED`.

    Args:
        targets: whole numbers [N, ...].
    """
    wrong = (targets >= classes) | ((targets < 0) & (targets != IGNORED))
    if bool(wrong.any()):
        at = int(wrong.flatten().long().argmax())
        found = f"target {int(targets.flatten()[at])} of example {at // targets[0].numel()}"
        raise DataError(who, found, f"in [0, {classes}), as many as the model's outputs", where)


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
        score: how outputs are scored, example by example; None for classification.
        own: it holds the examples of a model that its user brought along; see `evaluation_data`.
        declared: the pyproject.toml that names it, if one does.
    """

    name: str
    load: Callable[..., Dataset]
    look: Callable[[], Found] | None = None
    score: Score | None = None
    own: bool = False
    declared: Path | None = None


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


Given = TypeVar("Given", bound=Callable[[], object])


@overload
def evaluation_data(give: Given) -> Given: ...
@overload
def evaluation_data(*, score: Score | None = None) -> Callable[[Given], Given]: ...
def evaluation_data(give: Given | None = None, *, score: Score | None = None) -> Given | Callable[[Given], Given]:
    """Registers a function without arguments that gives a model's examples, under its own name.

    It returns `{"test": (inputs, targets), "calibration": (inputs, targets)}`: `inputs` is the tuple of the forward's
    positional arguments for all examples, tensors of any type and shape with the examples first; `targets` a tensor
    with as many rows, or None. The test examples are scored, the others calibrate. It is called once a process, with
    the random numbers of torch, numpy and Python seeded.

    Args:
        score: how outputs are scored, see `pruning_bench.score`; left out, targets are classes and outputs logits.
    Example:
        >>> def numbers():
        ...     x, y = torch.rand(40, 3), torch.randint(2, (40,))
        ...     return {"test": ((x[:30],), y[:30]), "calibration": ((x[30:],), None)}
        >>> evaluation_data(numbers) is numbers
        True
        >>> del DATASETS._items["numbers"]
    """

    def decorate(give: Given) -> Given:
        add_evaluation_data(give, score)
        return give

    return decorate if give is None else decorate(give)


def add_evaluation_data(give: Callable[[], object], score: Score | None, declared: Path | None = None) -> str:
    """Registers the examples that a function gives; returns their name."""
    from pruning_bench.datasets.given import dataset_from

    @functools.wraps(give)
    def load(folder: Path | None = None, *, full: bool = False) -> Dataset:
        return dataset_from(give, classify=score is None)

    name = getattr(give, "__name__", "")
    DATASETS.add(name, ReferenceDataset(name, load, score=score, own=True, declared=declared))
    return name


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
