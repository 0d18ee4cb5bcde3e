import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from pruning_bench.datasets.idx import read_idx
from pruning_bench.errors import DataError

SHAPE = (3, 2, 5)
ARRAY = np.arange(30, dtype=np.uint8).reshape(SHAPE)


def idx_bytes(array: np.ndarray, kind: int = 8) -> bytes:
    """The format as its authors describe it, written independently of the reader."""
    head = struct.pack(">BBBB", 0, 0, kind, array.ndim) + b"".join(struct.pack(">I", size) for size in array.shape)
    return head + array.tobytes()


WHOLE = idx_bytes(ARRAY)
BAD = {
    "empty": (b"", "0 bytes"),
    "half_header": (WHOLE[:9], "9 bytes"),
    "other_magic": (b"\x01" + WHOLE[1:], "magic 01000803"),
    "other_type": (idx_bytes(ARRAY, kind=9), "magic 00000903"),
    "other_dimensions": (idx_bytes(ARRAY.reshape(3, 10)) + b"\0\0\0\0", "magic 00000802"),
    "other_count": (idx_bytes(ARRAY[:2]), "shape (2, 2, 5)"),
    "truncated": (WHOLE[:-1], "29 bytes of data"),
    "too_long": (WHOLE + b"\0", "31 bytes of data"),
}


def check_reads(read, folder: Path) -> None:
    for name, content in (("plain", WHOLE), ("zipped.gz", gzip.compress(WHOLE))):
        (folder / name).write_bytes(content)
        found = read(folder / name, SHAPE)
        assert found.shape == SHAPE, f"{name}: shape {found.shape}, should be {SHAPE}"
        assert np.array_equal(found, ARRAY), f"{name}: {found.ravel()[:6]}, should be {ARRAY.ravel()[:6]}"
        assert found.flags.writeable, f"{name}: read-only, torch warns about such arrays"


def check_refuses(read, folder: Path, case: str) -> None:
    content, said = BAD[case]
    for name, stored in (("f", content), ("f.gz", gzip.compress(content))):
        (folder / name).write_bytes(stored)
        try:
            found = read(folder / name, SHAPE)
        except DataError as error:
            text = str(error)
        else:
            raise AssertionError(f"{case}: {name} was read as {found.shape}, should be refused")
        assert said in text, f"{case}: {text!r}, should say {said!r}"
        assert str(folder / name) in text, f"{case}: {text!r}, should name the file"


def mutant_reads_whatever_follows(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    data = np.frombuffer(raw.ljust(46, b"\0"), np.uint8)[16:46]
    return data.reshape(shape).copy()


def mutant_little_endian(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return read_idx(path, shape)[..., ::-1].copy()


def test_reads_plain_and_zipped(tmp_path):
    check_reads(read_idx, tmp_path)


def test_check_reads_rejects_mutant_little_endian(tmp_path):
    with pytest.raises(AssertionError, match="should be"):
        check_reads(mutant_little_endian, tmp_path)


@pytest.mark.parametrize("case", BAD)
def test_refuses(tmp_path, case):
    check_refuses(read_idx, tmp_path, case)


@pytest.mark.parametrize("case", BAD)
def test_check_refuses_rejects_mutant_reads_whatever_follows(tmp_path, case):
    with pytest.raises(AssertionError, match="should be refused"):
        check_refuses(mutant_reads_whatever_follows, tmp_path, case)


@pytest.mark.parametrize("broken", ["missing", "truncated_gzip", "no_gzip", "flipped_bits", "folder"])
def test_unreadable_files_are_one_line(tmp_path, broken):
    path = tmp_path / "f.gz"
    zipped = gzip.compress(WHOLE)
    if broken == "truncated_gzip":
        path.write_bytes(zipped[:-12])
    elif broken == "no_gzip":
        path.write_bytes(WHOLE)
    elif broken == "flipped_bits":
        path.write_bytes(zipped[:12] + bytes(255 - byte for byte in zipped[12:]))
    elif broken == "folder":
        path.mkdir()
    with pytest.raises(DataError) as caught:
        read_idx(path, SHAPE)
    text = str(caught.value)
    assert "\n" not in text, f"{text!r}, should be one line"
    assert str(path) in text, f"{text!r}, should name {path}"
