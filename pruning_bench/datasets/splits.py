"""How examples are divided into roles, and the digest of the result."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from pruning_bench.datasets.contract import Split
from pruning_bench.errors import DataError


def choose_balanced(labels: NDArray[np.uint8], per_class: int, seed: int) -> NDArray[np.int64]:
    """Sorted indices of `per_class` random examples of every class.

    Drawn by a Philox bit generator, class after class in the order of the labels: the same indices everywhere.

    Args:
        labels: [N], any integers.
        per_class: at least 0, at most the size of the smallest class.
        seed: of the generator.
    Returns:
        int64 [classes * per_class].
    Raises:
        DataError: a class is too small.
    Example:
        >>> choose_balanced(np.array([0, 1, 0, 1, 0], np.uint8), 1, seed=0).shape
        (2,)
    """
    # argsort of raw 64-bit draws: unlike Generator.permutation, the raw stream is guaranteed never to change.
    source = np.random.Philox(seed)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise DataError("split", f"{len(members)} examples of class {label}", f"at least {per_class}")
        order = np.argsort(source.random_raw(len(members)), kind="stable")
        chosen.append(members[order[:per_class]])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def others(count: int, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices in 0..count-1 that are not in `chosen`, sorted.

    Example:
        >>> others(4, np.array([1, 2])).tolist()
        [0, 3]
    """
    return np.setdiff1d(np.arange(count), chosen).astype(np.int64)


def as_split(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], mean: Iterable[float], std: Iterable[float], pad: int = 0
) -> Split:
    """A `Split` of numpy arrays: images [N, C, H, W] zero-padded by `pad` on every side, labels [N]."""
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    return Split(
        torch.from_numpy(padded),
        torch.from_numpy(labels.astype(np.int64)),
        torch.tensor(tuple(mean), dtype=torch.float32),
        torch.tensor(tuple(std), dtype=torch.float32),
    )


def digest(splits: Iterable[Split]) -> str:
    """sha256 (hex) over shape and bytes of the images and labels of `splits`, in order."""
    sha = hashlib.sha256()
    for split in splits:
        for part in (split.images, split.labels):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(part.contiguous().numpy().data)
    return sha.hexdigest()
