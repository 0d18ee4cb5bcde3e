import zipfile

import numpy as np
import pytest

from pruning_bench.datasets.store import read_store, write_store
from pruning_bench.errors import DataError

ARRAYS = {"b": np.arange(6, dtype=np.uint8).reshape(2, 3), "a": np.array([1, 70_000], np.uint32)}


def check_round_trip(write, read, folder) -> None:
    path = folder / "s.npz"
    write(path, ARRAYS)
    found = read(path, ("a", "b"))
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype, f"{name}: {found[name].dtype}, should be {array.dtype}"
        assert np.array_equal(found[name], array), f"{name}: {found[name]}, should be {array}"


def check_same_bytes(write, folder) -> None:
    one, two = folder / "one.npz", folder / "two.npz"
    write(one, ARRAYS)
    write(two, dict(reversed(ARRAYS.items())))
    assert one.read_bytes() == two.read_bytes(), "the order of the arrays changes the bytes, should not"
    dates = {entry.date_time for entry in zipfile.ZipFile(one).infolist()}
    assert dates == {(1980, 1, 1, 0, 0, 0)}, f"dates {dates}, should be fixed"


def mutant_unsorted(path, arrays):
    np.savez_compressed(path, **arrays)


def mutant_narrows(path, arrays):
    write_store(path, {name: array.astype(np.uint8) for name, array in arrays.items()})


def test_round_trip(tmp_path):
    check_round_trip(write_store, read_store, tmp_path)


def test_round_trip_rejects_mutant_narrows(tmp_path):
    with pytest.raises(AssertionError, match="should be uint32"):
        check_round_trip(mutant_narrows, read_store, tmp_path)


def test_same_arrays_same_bytes(tmp_path):
    check_same_bytes(write_store, tmp_path)


def test_same_bytes_rejects_mutant_unsorted(tmp_path):
    with pytest.raises(AssertionError, match="should"):
        check_same_bytes(mutant_unsorted, tmp_path)


@pytest.mark.parametrize("broken", ["missing", "truncated", "no_zip", "other_names", "pickle"])
def test_unreadable_stores(tmp_path, broken):
    path = tmp_path / "s.npz"
    write_store(path, ARRAYS)
    if broken == "missing":
        path.unlink()
    elif broken == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif broken == "no_zip":
        path.write_bytes(b"hello")
    elif broken == "pickle":
        np.savez(path, a=np.array([object()], dtype=object), b=np.zeros(1))
    names = ("a", "other") if broken == "other_names" else ("a", "b")
    with pytest.raises(DataError) as caught:
        read_store(path, names)
    text = str(caught.value)
    assert str(path) in text, f"{text!r}, should name {path}"
    assert "\n" not in text, f"{text!r}, should be one line"
