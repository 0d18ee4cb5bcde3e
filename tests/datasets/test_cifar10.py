from pathlib import Path

import numpy as np
import pytest
import torch

from pruning_bench.datasets import cifar10 as module
from pruning_bench.datasets.cifar10 import CLASSES, NAMES_FILE, TEST_FILE, TRAIN_FILES, Sizes
from pruning_bench.datasets.contract import Found
from pruning_bench.datasets.folders import VARIABLE
from pruning_bench.errors import DataError
from pruning_bench.registry import DATASETS

SMALL = Sizes(records=20, selection_per_class=2, part_per_class=1)


def image(number: int) -> np.ndarray:
    """An invented image [3, 32, 32] that tells its number, its channel, its row and its column apart."""
    channel, row, column = np.indices((3, 32, 32))
    return ((number * 89 + channel * 71 + row * 5 + column * 3) % 251).astype(np.uint8)


def write_small(folder: Path) -> Path:
    """Five training files and a test file of 20 records in the authors' format, two of each class in each."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate((*TRAIN_FILES, TEST_FILE)):
        records = [bytes([number % 10]) + image(number + 20 * index).tobytes() for number in range(20)]
        (folder / name).write_bytes(b"".join(records))
    (folder / NAMES_FILE).write_text("\n".join(CLASSES) + "\n\n")
    return folder


@pytest.fixture
def small(tmp_path):
    return write_small(tmp_path / "c")


def check_layout(read, small) -> None:
    images, labels = read([small / name for name in TRAIN_FILES], 20)
    assert images.shape == (100, 3, 32, 32), f"shape {images.shape}, should be (100, 3, 32, 32)"
    for number in (0, 21, 99):
        assert labels[number] == number % 10, f"label {labels[number]} of example {number}, should be {number % 10}"
        found, expected = images[number], image(number)
        assert np.array_equal(found, expected), f"example {number}: {found[:, 0, 1]}, should be {expected[:, 0, 1]}"


def mutant_channels_last(paths, count):
    images, labels = module.read_records(paths, count)
    return images.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2), labels


def mutant_columns_first(paths, count):
    images, labels = module.read_records(paths, count)
    return images.swapaxes(2, 3), labels


def mutant_files_reversed(paths, count):
    return module.read_records(list(paths)[::-1], count)


def test_layout(small):
    check_layout(module.read_records, small)


@pytest.mark.parametrize("mutant", [mutant_channels_last, mutant_columns_first, mutant_files_reversed])
def test_check_layout_rejects(small, mutant):
    with pytest.raises(AssertionError, match="should"):
        check_layout(mutant, small)


def numbers(split) -> list[int]:
    """Which invented images a split holds."""
    known = {image(number).tobytes(): number for number in range(120)}
    return [known[picture.numpy().tobytes()] for picture in split.images]


def check_roles(load, small) -> None:
    for full, size in ((True, 80), (False, 10)):
        data = load(small, "folder", full=full, sizes=SMALL)
        roles = {"train": numbers(data.train), "selection": numbers(data.selection), "test": numbers(data.test)}
        sizes = {role: len(held) for role, held in roles.items()}
        assert sizes == {"train": size, "selection": 20, "test": 20}, (
            f"{sizes} with full={full}, should be {size}, 20, 20"
        )
        assert roles["test"] == list(range(100, 120)), f"test {roles['test']}, should be the test file in order"
        both = set(roles["train"]) & set(roles["selection"])
        assert not both, f"images {both} to train and to select by, should be none"
        counts = data.selection.labels.bincount(minlength=10).tolist()
        assert counts == [2] * 10, f"{counts} of each class for selection, should be 2"
    parts = (load(small, "folder", full=full, sizes=SMALL) for full in (False, True))
    chosen, other = (numbers(part.selection) for part in parts)
    assert chosen == other, f"{other} with all data, should select {chosen} as ever"


def mutant_selects_from_training(place, source, *, full, sizes):
    data = module.read_folder(place, source, full=full, sizes=sizes)
    keep = torch.arange(20) % len(data.train)
    return type(data)(
        data.name,
        data.classes,
        data.train,
        type(data.train)(data.train.images[keep], data.train.labels[keep], data.train.mean, data.train.std),
        data.test,
        data.digest,
        data.source,
    )


def mutant_tests_on_selection(place, source, *, full, sizes):
    data = module.read_folder(place, source, full=full, sizes=sizes)
    return type(data)(data.name, data.classes, data.train, data.selection, data.selection, data.digest, data.source)


def test_roles(small):
    check_roles(module.read_folder, small)


@pytest.mark.parametrize("mutant", [mutant_selects_from_training, mutant_tests_on_selection])
def test_check_roles_rejects(small, mutant):
    with pytest.raises(AssertionError, match="should"):
        check_roles(mutant, small)


def test_splits_are_pinned(small):
    found = numbers(module.read_folder(small, "folder", full=False, sizes=SMALL).train)
    assert found == PINNED, f"{found}, should be {PINNED} for ever"


PINNED = [13, 18, 19, 21, 22, 54, 57, 60, 75, 76]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: (c / TEST_FILE).write_bytes((c / TEST_FILE).read_bytes()[:-1]), "61459 bytes, should be 61460"),
        (lambda c: (c / TRAIN_FILES[2]).write_bytes(b""), "0 bytes"),
        (lambda c: (c / TRAIN_FILES[4]).unlink(), "No such file"),
        (lambda c: (c / TRAIN_FILES[0]).write_bytes(b"\x0a" + (c / TRAIN_FILES[0]).read_bytes()[1:]), "label 10"),
        (lambda c: (c / NAMES_FILE).write_text("cat\ndog\n"), "classes cat, dog"),
        (lambda c: (c / NAMES_FILE).unlink(), "names of the classes"),
    ],
    ids=["truncated", "empty", "missing", "label", "names", "no_names"],
)
def test_damaged_files_are_one_clear_line(small, damage, said):
    damage(small)
    with pytest.raises(DataError, match=said) as caught:
        module.read_folder(small, "folder", full=True, sizes=SMALL)
    assert "\n" not in str(caught.value), f"{caught.value}, should be one line"


def test_small_files_are_refused_by_the_public_loader(small):
    with pytest.raises(DataError, match="should be 30730000"):
        module.cifar10(small)


def test_folder_and_download(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "read_folder", lambda place, source, full: (place, source, full))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_download", lambda folder: write_small(folder / "cifar-10-batches-bin"))
    found = module.cifar10(full=True)
    expected = (tmp_path / "cache/pruning_bench/cifar10/cifar-10-batches-bin", "download", True)
    assert found == expected, f"{found}, should be {expected}"
    look = DATASETS["cifar10"].look
    assert look() == Found(shipped=False, full=expected[0]), f"{look()}, should be the download"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert look() == Found(shipped=False, full=None), f"{look()}, should be nothing, and no download"
    write_small(tmp_path / "v" / "cifar10")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "v"))
    found = module.cifar10()
    assert found == (tmp_path / "v/cifar10", VARIABLE, False), f"{found}, should be the folder of the variable"


def test_download_is_checked(tmp_path, monkeypatch):
    utils = pytest.importorskip("torchvision.datasets.utils")
    asked = []
    monkeypatch.setattr(utils, "download_and_extract_archive", lambda url, root, md5, **_: asked.append((url, md5)))
    module._download(tmp_path)
    assert asked == [(module.URL, module.MD5)], f"{asked}, should be the binary archive with its checksum"


def test_python_version_with_pickles_is_not_read(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"\x80\x04N.")
    with pytest.raises(DataError, match=r"no test_batch\.bin"):
        module.cifar10(tmp_path)
