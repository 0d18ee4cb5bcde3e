"""Noise in the shape of ImageNet's images: for shapes, sizes and times of models whose data is not here."""

from __future__ import annotations

from pathlib import Path

import torch

from pruning_bench.datasets.contract import Dataset, Found, Split, reference_dataset
from pruning_bench.datasets.splits import digest

SIZE, CLASSES = 224, 1000
COUNTS = (64, 8, 8)  # train, selection, test: enough to calibrate on, nobody learns or is tested
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as ImageNet's are normalised


def _look() -> Found:
    return Found(True, None)


@reference_dataset(look=_look)
def random(folder: Path | None = None, *, full: bool = False) -> Dataset:
    """Noise, 224 x 224 in colour, with labels of 1000 classes that mean nothing; for shapes and times.

    Args:
        folder, full: there is nothing to be read.
    """
    generator = torch.Generator().manual_seed(0)
    train, selection, test = (_noise(count, generator) for count in COUNTS)
    classes = tuple(map(str, range(CLASSES)))
    return Dataset("random", classes, train, selection, test, digest((train, selection, test)), "made")


def _noise(count: int, generator: torch.Generator) -> Split:
    images = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return Split(images, labels, torch.tensor(MEAN), torch.tensor(STD))
