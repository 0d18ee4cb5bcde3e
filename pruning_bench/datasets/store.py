"""The compressed store of the examples that ship with the package: an npz without pickles."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pruning_bench.errors import DataError

DATA = Path(__file__).parent / "data"


def write_store(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes `arrays` as a zip of npy files at the highest compression; the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as member:
                np.lib.format.write_array(member, np.ascontiguousarray(arrays[name]), allow_pickle=False)


def read_store(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """The arrays `names` of a store; raises `DataError` if it is missing, corrupt or lacks one of them."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except FileNotFoundError:
        raise DataError("store", "no such file", "the data that ships with the package", str(path)) from None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError("store", f"unreadable ({error})", "the npz that ships with the package", str(path)) from None
