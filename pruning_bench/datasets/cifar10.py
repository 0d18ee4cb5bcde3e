"""CIFAR-10: 32 x 32 colour images of ten kinds of things; nothing of it ships with the package.

Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, technical report, University of Toronto.

Only the authors' binary version is read. The Python version, which torchvision downloads, is made of pickles, and a
pickle can run code; so the binary archive is downloaded through torchvision's tools with the authors' checksum.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pruning_bench.datasets.contract import Dataset, Found, Split, reference_dataset
from pruning_bench.datasets.folders import find_folder, look_for
from pruning_bench.datasets.splits import as_split, choose_balanced, digest, others
from pruning_bench.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE, NAMES_FILE = "test_batch.bin", "batches.meta.txt"
INSIDE = ("cifar10", "cifar-10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin")
# Per channel (red, green, blue) of the 50,000 training images.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SELECTION_SEED, PART_SEED = 2009, 1512
_IMAGE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32


class Sizes(NamedTuple):
    """Records in each file; examples of each class in the selection split and in the small part."""

    records: int = 10_000
    selection_per_class: int = 500
    part_per_class: int = 500


SIZES = Sizes()


def _look() -> Found:
    found = look_for("cifar10", markers=(TEST_FILE,), inside=INSIDE)
    return Found(False, found and found[0])


@reference_dataset(look=_look)
def cifar10(folder: Path | None = None, *, full: bool = False) -> Dataset:
    """CIFAR-10 in its three roles: 45,000 (or 5,000 of them) to train, 5,000 for selection, 10,000 to test.

    The splits follow a fixed rule and are the same on every machine.

    Args:
        folder: where `data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin` and `batches.meta.txt` lie; None looks
            at the environment variable PRUNING_BENCH_DATA and then downloads 162 MB into the user's cache.
        full: all 45,000 training images; False takes 5,000 of them.
    Raises:
        DataError: a folder without the files, or a corrupt file.
    """
    place, source = find_folder("cifar10", folder, markers=(TEST_FILE,), inside=INSIDE, download=_download)
    return read_folder(place, source, full=full)


def read_folder(place: Path, source: str, *, full: bool, sizes: Sizes = SIZES) -> Dataset:
    """The data set of a folder whose files have `sizes`; see `cifar10`."""
    _check_names(place / NAMES_FILE)
    images, labels = read_records([place / name for name in TRAIN_FILES], sizes.records)
    test = as_split(*read_records([place / TEST_FILE], sizes.records), MEAN, STD)
    chosen = choose_balanced(labels, sizes.selection_per_class, SELECTION_SEED)
    training = others(len(labels), chosen)
    if not full:
        training = training[choose_balanced(labels[training], sizes.part_per_class, PART_SEED)]
    train, selection = (as_split(images[index], labels[index], MEAN, STD) for index in (training, chosen))
    splits: tuple[Split, ...] = (train, selection, test)
    return Dataset("cifar10", CLASSES, train, selection, test, digest(splits), source)


def read_records(paths: Iterable[Path], count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images uint8 [N, 3, 32, 32] and labels uint8 [N] of files of `count` records each, in order.

    A record is one byte of label, then 1,024 bytes each of red, green and blue, row by row.

    Raises:
        DataError: a file that is missing, of another size, or with a label above 9.
    """
    parts = []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            found = error.strerror or str(error)
            raise DataError("cifar10", found, "a file of the binary version", str(path)) from None
        if len(content) != count * _RECORD:
            expected = f"{count * _RECORD} ({count} records of {_RECORD})"
            raise DataError("cifar10", f"{len(content)} bytes", expected, str(path))
        records = np.frombuffer(content, np.uint8).reshape(count, _RECORD)
        if records[:, 0].max() >= len(CLASSES):
            raise DataError("cifar10", f"label {records[:, 0].max()}", f"0 to {len(CLASSES) - 1}", str(path))
        parts.append(records)
    whole = np.concatenate(parts)
    return whole[:, 1:].reshape(-1, *_IMAGE), whole[:, 0]


def _check_names(path: Path) -> None:
    try:
        found = tuple(path.read_text("ascii").split())
    except (OSError, ValueError) as error:
        raise DataError("cifar10", f"unreadable ({error})", "the names of the classes", str(path)) from None
    if found != CLASSES:
        raise DataError("cifar10", f"classes {', '.join(found)}", ", ".join(CLASSES), str(path))


def _download(folder: Path) -> None:
    """The authors' binary archive, checked and unpacked; torchvision shows the progress."""
    from torchvision.datasets.utils import download_and_extract_archive  # type: ignore[import-untyped]

    download_and_extract_archive(URL, str(folder), md5=MD5, remove_finished=True)
