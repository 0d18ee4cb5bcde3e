"""The IDX format of the MNIST family: big-endian magic, dimensions, then bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pruning_bench.errors import DataError

_UINT8 = 0x08


def read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes, gzipped or not.

    The file is: two zero bytes, the type 0x08, the number of dimensions, each dimension as a big-endian uint32, data.

    Args:
        path: the file; one that ends in `.gz` is decompressed.
        shape: the shape it must have.
    Returns:
        uint8 array of `shape`.
    Raises:
        DataError: missing, not IDX, truncated, longer than it says, or of another shape.
    """
    content = _content(path)
    head = struct.calcsize(f">HBB{len(shape)}I")
    if len(content) < head:
        raise DataError("idx", f"{len(content)} bytes", f"a header of {head} bytes", str(path))
    zero, kind, dimensions = struct.unpack_from(">HBB", content)
    if (zero, kind, dimensions) != (0, _UINT8, len(shape)):
        raise DataError("idx", f"magic {content[:4].hex()}", f"{bytes([0, 0, _UINT8, len(shape)]).hex()}", str(path))
    found = struct.unpack_from(f">{dimensions}I", content, 4)
    if found != shape:
        raise DataError("idx", f"shape {found}", f"{shape}", str(path))
    if len(content) != head + math.prod(shape):
        raise DataError("idx", f"{len(content) - head} bytes of data", f"{math.prod(shape)}", str(path))
    array: NDArray[np.uint8] = np.frombuffer(content, np.uint8, offset=head).reshape(shape).copy()
    return array


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except FileNotFoundError:
        raise DataError("idx", "no such file", "an IDX file", str(path)) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError("idx", f"unreadable ({error})", "a whole gzip or plain file", str(path)) from None
