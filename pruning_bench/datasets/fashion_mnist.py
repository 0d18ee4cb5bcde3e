"""Fashion-MNIST: 28 x 28 grey images of ten kinds of clothing, padded to 32 x 32.

Xiao et al., Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms, 2017, arXiv 1708.07747.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pruning_bench.datasets.contract import Dataset, Found, reference_dataset
from pruning_bench.datasets.folders import find_folder, look_for
from pruning_bench.datasets.idx import read_idx
from pruning_bench.datasets.splits import as_split, choose_balanced, digest, others
from pruning_bench.datasets.store import DATA, read_store, write_store
from pruning_bench.errors import DataError

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
STORE = DATA / "fashion_mnist.npz"
USUAL = ("/usr/share/datasets/fashion-mnist",)  # where Debian's dataset-fashion-mnist puts it
MARKERS = ("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte")
INSIDE = ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw")
# Of the 55,000 training images at 28 x 28, before padding: padding is a frame of constants, not data.
MEAN, STD = (0.2861,), (0.3531,)
SELECTION_SEED, SHIPPED_SEED = 2017, 1708
_PARTS = ("train", "selection", "test")
_ARRAYS = tuple(f"{part}_{what}" for part in _PARTS for what in ("images", "labels"))


class Examples(NamedTuple):
    """Images uint8 [N, 28, 28] and labels uint8 [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def at(self, index: NDArray[Any]) -> Examples:
        """The examples at `index`."""
        return Examples(self.images[index], self.labels[index])


def _look() -> Found:
    found = look_for("fashion_mnist", markers=MARKERS, inside=INSIDE, usual=USUAL)
    return Found(STORE.is_file(), found and found[0])


@reference_dataset(look=_look)
def fashion_mnist(folder: Path | None = None, *, full: bool = False) -> Dataset:
    """Fashion-MNIST in its three roles: 55,000 (or the shipped 5,000) to train, 5,000 for selection, 10,000 to test.

    Args:
        folder: with `full`, where the four IDX files lie, gzipped or not; None looks at the environment variable
            PRUNING_BENCH_DATA, then at the folder of Debian's package, and then downloads into the user's cache.
        full: the 55,000 training images; False takes the 5,000 that ship and looks at nothing else.
    Raises:
        DataError: a folder without the files, a corrupt file, or data other than those that ship.
    """
    shipped = read_store(STORE, (*_ARRAYS, "selection_index", "train_index"))
    parts = {part: Examples(shipped[f"{part}_images"], shipped[f"{part}_labels"]) for part in _PARTS}
    source = "shipped"
    if full:
        place, source = find_folder(
            "fashion_mnist", folder, markers=MARKERS, inside=INSIDE, usual=USUAL, download=_download
        )
        whole = read_examples(place, "train", 60_000)
        expected = {
            "train": whole.at(shipped["train_index"]),
            "selection": whole.at(shipped["selection_index"]),
            "test": read_examples(place, "t10k", 10_000),
        }
        for part in _PARTS:
            _check_same(part, expected[part], parts[part], place)
        parts["train"] = whole.at(others(60_000, shipped["selection_index"]))
    train, selection, test = (as_split(p.images[:, None], p.labels, MEAN, STD, pad=2) for p in parts.values())
    return Dataset("fashion_mnist", CLASSES, train, selection, test, digest((train, selection, test)), source)


def read_examples(folder: Path, part: str, count: int) -> Examples:
    """The `count` examples of "train" or "t10k" in a folder of IDX files; raises `DataError`."""
    return Examples(
        read_idx(_gz_or_plain(folder / f"{part}-images-idx3-ubyte"), (count, 28, 28)),
        read_idx(_gz_or_plain(folder / f"{part}-labels-idx1-ubyte"), (count,)),
    )


def write_shipped(folder: Path, path: Path = STORE) -> None:
    """Writes the store that ships, from a folder with the whole data set."""
    whole, test = read_examples(folder, "train", 60_000), read_examples(folder, "t10k", 10_000)
    selection = choose_balanced(whole.labels, 500, SELECTION_SEED)
    training = others(60_000, selection)
    train = training[choose_balanced(whole.labels[training], 500, SHIPPED_SEED)]
    parts = {"train": whole.at(train), "selection": whole.at(selection), "test": test}
    arrays: dict[str, NDArray[Any]] = {
        f"{name}_{what}": value for name, part in parts.items() for what, value in part._asdict().items()
    }
    indices = {"train_index": train.astype(np.uint16), "selection_index": selection.astype(np.uint16)}
    write_store(path, {**arrays, **indices})


def _gz_or_plain(path: Path) -> Path:
    zipped = path.with_name(f"{path.name}.gz")
    return zipped if zipped.is_file() else path


def _check_same(part: str, found: Examples, shipped: Examples, place: Path) -> None:
    for what, one, other in (("images", found.images, shipped.images), ("labels", found.labels, shipped.labels)):
        if not np.array_equal(one, other):
            raise DataError("fashion_mnist", f"other {part} {what}", "those that ship", str(place))


def _download(folder: Path) -> None:
    """The four files from torchvision's mirror, with its checksums and progress."""
    from torchvision.datasets import FashionMNIST  # type: ignore[import-untyped]
    from torchvision.datasets.utils import download_url  # type: ignore[import-untyped]

    for name, md5 in FashionMNIST.resources:
        download_url(FashionMNIST.mirrors[0] + name, str(folder), filename=name, md5=md5)
