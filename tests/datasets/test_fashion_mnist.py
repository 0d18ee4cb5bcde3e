import struct
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from pruning_bench.datasets import fashion_mnist as module
from pruning_bench.datasets.contract import Found, load_dataset
from pruning_bench.datasets.folders import VARIABLE
from pruning_bench.datasets.splits import choose_balanced, others
from pruning_bench.datasets.store import DATA, read_store
from pruning_bench.errors import DataError
from pruning_bench.registry import DATASETS

SHIPPED_DIGEST = "b87fb66b9b5a53b20e99209085f47cfd3ddfcbff24386ddc2033a9b1cea106d0"
FULL_DIGEST = "d1026f3e85dd47aee88312dd6688d38535e9dc0853149ac0062cea294fa17a20"
DEBIAN = Path(module.USUAL[0])


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def stored():
    names = [f"{part}_{what}" for part in ("train", "selection", "test") for what in ("images", "labels", "index")]
    return read_store(module.STORE, tuple(name for name in names if name != "test_index"))


@pytest.fixture(scope="module")
def original(stored):
    """An invented original: what ships stands at its places, everything else is black, of class 0."""
    images, labels = np.zeros((60_000, 28, 28), np.uint8), np.zeros(60_000, np.uint8)
    for part in ("train", "selection"):
        images[stored[f"{part}_index"]] = stored[f"{part}_images"]
        labels[stored[f"{part}_index"]] = stored[f"{part}_labels"]
    return {
        "train-images-idx3": images,
        "train-labels-idx1": labels,
        "t10k-images-idx3": stored["test_images"].copy(),
        "t10k-labels-idx1": stored["test_labels"].copy(),
    }


def write_original(folder: Path, original: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in original.items():
        head = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
        (folder / f"{name}-ubyte").write_bytes(head + array.tobytes())
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, original):
    """The invented original, written once."""
    return write_original(tmp_path_factory.mktemp("original"), original)


def check_roles(load) -> None:
    data = load()
    for role, split, size in (("train", data.train, 5_000), ("selection", data.selection, 5_000)):
        counts = split.labels.bincount(minlength=10).tolist()
        assert counts == [size // 10] * 10, f"{role}: {counts} of each class, should be {size // 10}"
    assert len(data.test) == 10_000, f"{len(data.test)} test images, should be 10,000"
    for role, split in (("train", data.train), ("selection", data.selection), ("test", data.test)):
        assert tuple(split.images.shape[1:]) == (1, 32, 32), f"{role}: {tuple(split.images.shape)}, should be 32 x 32"
        frame = int(split.images.sum()) - int(split.images[:, :, 2:-2, 2:-2].sum())
        assert frame == 0, f"{role}: the frame sums to {frame}, should be 0"
    assert data.digest == SHIPPED_DIGEST, f"digest {data.digest}, should be {SHIPPED_DIGEST} on every machine"


def mutant_unpadded():
    data = module.fashion_mnist()
    cut = torch.nn.functional.pad(data.test.images[:, :, 2:-2, 2:-2], (4, 0, 4, 0))
    test = type(data.test)(cut, data.test.labels, data.test.mean, data.test.std)
    return type(data)(data.name, data.classes, data.train, data.selection, test, data.digest, data.source)


def mutant_half_a_test():
    data = module.fashion_mnist()
    test = data.test.sample(5_000, torch.Generator().manual_seed(0))
    return type(data)(data.name, data.classes, data.train, data.selection, test, data.digest, data.source)


def test_roles():
    check_roles(module.fashion_mnist)


@pytest.mark.parametrize("mutant", [mutant_unpadded, mutant_half_a_test])
def test_check_roles_rejects(mutant):
    with pytest.raises(AssertionError, match="should"):
        check_roles(mutant)


def check_indices(stored) -> None:
    train, selection = set(stored["train_index"].tolist()), set(stored["selection_index"].tolist())
    assert len(train) == len(selection) == 5_000, f"{len(train)} and {len(selection)} places, should be 5,000 each"
    assert not train & selection, f"{len(train & selection)} images to train and to select by, should be none"
    assert max(train | selection) < 60_000, f"place {max(train | selection)}, should be below 60,000"


def test_training_and_selection_are_apart(stored):
    check_indices(stored)


def test_check_indices_rejects_mutant_selection_for_training(stored):
    with pytest.raises(AssertionError, match="should be none"):
        check_indices({**stored, "train_index": stored["selection_index"]})


def test_shipped_part_looks_at_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "find_folder", None)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    source = load_dataset("fashion_mnist", tmp_path / "nowhere").source
    assert source == "shipped", f"source {source!r}, should be 'shipped'"


def test_looking_tells_what_ships_and_where_the_full_data_lies(tmp_path, monkeypatch):
    look = DATASETS["fashion_mnist"].look
    monkeypatch.setattr(module, "USUAL", ())
    assert look() == Found(shipped=True, full=None), f"{look()}, should be the shipped part"
    (tmp_path / "FashionMNIST" / "raw").mkdir(parents=True)
    (tmp_path / "FashionMNIST" / "raw" / module.MARKERS[0]).touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert look() == Found(True, tmp_path / "FashionMNIST" / "raw"), f"{look()}, should be the variable's"


def check_full(load, folder, original, stored) -> None:
    data = load(folder)
    assert len(data.train) == 55_000, f"{len(data.train)} training images, should be 55,000"
    expected = original["train-images-idx3"][others(60_000, stored["selection_index"])]
    assert np.array_equal(data.train.images[:, 0, 2:-2, 2:-2], expected), "should be all but the selection, in order"
    assert torch.equal(data.selection.images, module.fashion_mnist().selection.images), "should select as ever"
    assert data.digest != SHIPPED_DIGEST, f"digest {data.digest}, should differ from that of the shipped part"


def test_full_from_a_folder(folder, original, stored):
    check_full(lambda folder: module.fashion_mnist(folder, full=True), folder, original, stored)


def test_check_full_rejects_mutant_first_55_000(folder, original, stored):
    def mutant_first_55_000(folder):
        whole = module.read_examples(folder, "train", 60_000)
        data = module.fashion_mnist()
        train = module.as_split(whole.images[:55_000, None], whole.labels[:55_000], module.MEAN, module.STD, pad=2)
        return type(data)(data.name, data.classes, train, data.selection, data.test, "", "")

    with pytest.raises(AssertionError, match="should be all but the selection"):
        check_full(mutant_first_55_000, folder, original, stored)


@pytest.mark.parametrize("place", [".", "fashion_mnist", "FashionMNIST/raw"])
def test_full_from_the_variable(tmp_path, folder, monkeypatch, place):
    monkeypatch.setattr(module, "read_examples", lambda found, part, count: (_ for _ in ()).throw(FoundError(found)))
    (tmp_path / "v" / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "v" / place).symlink_to(folder)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "v"))
    with pytest.raises(FoundError) as caught:
        module.fashion_mnist(full=True)
    assert caught.value.args == (tmp_path / "v" / place,), f"{caught.value.args}, should be {place} of the variable"


class FoundError(Exception):
    """Carries the folder that would be read."""


def test_full_from_a_download(folder, monkeypatch):
    def fake_download(cache):
        for path in folder.iterdir():
            (cache / path.name).symlink_to(path)

    monkeypatch.setattr(module, "USUAL", ())
    monkeypatch.setattr(module, "_download", fake_download)
    source = module.fashion_mnist(full=True).source
    assert source == "download", f"source {source!r}, should be 'download'"


def test_download_asks_for_four_files_with_checksums(tmp_path, monkeypatch):
    utils = pytest.importorskip("torchvision.datasets.utils")
    asked = []
    monkeypatch.setattr(utils, "download_url", lambda url, root, filename, md5: asked.append((url, filename, md5)))
    module._download(tmp_path)
    names = sorted(name for _, name, _ in asked)
    expected = sorted(
        f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
    )
    assert names == expected, f"{names}, should be {expected}"
    for url, name, md5 in asked:
        assert url.endswith(name), f"{url}, should end in {name}"
        assert len(md5) == 32, f"checksum {md5!r} of {name}, should be an md5"


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("train-images-idx3", "train_index"),
        ("train-images-idx3", "selection_index"),
        ("train-labels-idx1", "selection_index"),
        ("t10k-images-idx3", None),
        ("t10k-labels-idx1", None),
    ],
)
def test_other_data_than_those_that_ship_are_refused(folder, stored, file, place):
    example = int(stored[place][77]) if place else 77
    position = 16 + 784 * example + 300 if "images" in file else 8 + example
    path = folder / f"{file}-ubyte"
    with changed_byte(path, position), pytest.raises(DataError, match="should be those that ship"):
        module.fashion_mnist(folder, full=True)


@contextmanager
def changed_byte(path: Path, position: int):
    with path.open("r+b") as file:
        file.seek(position)
        before = file.read(1)
        file.seek(position)
        file.write(bytes([before[0] ^ 1]))
    yield
    with path.open("r+b") as file:
        file.seek(position)
        file.write(before)


def test_a_missing_file_is_named(folder):
    path = folder / "t10k-labels-idx1-ubyte"
    content = path.read_bytes()
    path.unlink()
    try:
        check_missing(folder)
    finally:
        path.write_bytes(content)


def check_missing(folder):
    with pytest.raises(DataError, match=r"no such file.*t10k-labels-idx1-ubyte"):
        module.fashion_mnist(folder, full=True)


def test_fewer_images_are_refused(folder):
    # Byte 7 of an IDX file is the lowest of its count: 10,000 becomes 10,001.
    with changed_byte(folder / "t10k-images-idx3-ubyte", 7), pytest.raises(DataError, match=r"shape \(10001, 28, 28\)"):
        module.fashion_mnist(folder, full=True)


def test_the_committed_indices_follow_the_stated_rule(tmp_path, folder, original, monkeypatch):
    labels = original["train-labels-idx1"]
    written = tmp_path / "s.npz"
    monkeypatch.setattr(module, "write_store", lambda path, arrays: np.savez(path, **arrays))  # compression takes long
    module.write_shipped(folder, written)
    again = read_store(written, ("selection_index", "train_index"))
    selection = choose_balanced(labels, 500, module.SELECTION_SEED)
    assert np.array_equal(again["selection_index"], selection), (
        f"{again['selection_index'][:5]}, should be {selection[:5]}..."
    )
    check_indices(again)


def test_licence_ships_beside_the_data():
    text = (DATA / "fashion_mnist.txt").read_text()
    for said in ("MIT License", "Zalando", "1708.07747"):
        assert said in text, f"{said!r} is missing, should be in the provenance"


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_real_data(stored):
    data = module.fashion_mnist(DEBIAN, full=True)
    assert data.digest == FULL_DIGEST, f"digest {data.digest}, should be {FULL_DIGEST}"
    counts = data.train.labels.bincount().tolist()
    assert counts == [5_500] * 10, f"{counts}, should be 5,500 of each class"
    unpadded = data.train.images[:, :, 2:-2, 2:-2]
    levels = torch.bincount(unpadded.flatten().int(), minlength=256).double()
    values = torch.arange(256).double() / 255
    mean = float((levels * values).sum() / levels.sum())
    std = float((levels * (values - mean) ** 2).sum() / levels.sum()) ** 0.5
    assert abs(mean - module.MEAN[0]) < 1e-4, f"mean {mean:.5f}, should be {module.MEAN[0]}"
    chosen = choose_balanced(module.read_examples(DEBIAN, "train", 60_000).labels, 500, module.SELECTION_SEED)
    assert np.array_equal(stored["selection_index"], chosen), "the committed indices should follow the stated rule"
    assert abs(std - module.STD[0]) < 1e-4, f"standard deviation {std:.5f}, should be {module.STD[0]}"
