"""Per-example correctness as short text: bits -> zlib -> base 85, with the number of examples in front."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pruning_bench.errors import RecordError

Bits = npt.NDArray[np.bool_]


def pack(right: Sequence[bool] | npt.NDArray[Any]) -> str:
    """`"N:text"` of N bits, 1 = the example was right.

    Args:
        right: shape [N], bool or 0 and 1.
    Raises:
        RecordError: another shape or other values.
    Example:
        >>> pack([True, False, True])[:2], unpack(pack([True, False, True])).tolist()
        ('3:', [True, False, True])
    """
    values = np.asarray(right)
    if values.ndim != 1:
        raise RecordError("vector", f"shape {list(values.shape)}", "one bit per example, shape [N]")
    if values.dtype != np.bool_ and not np.isin(values, (0, 1)).all():
        raise RecordError("vector", f"values of type {values.dtype} besides 0 and 1", "bits")
    packed = zlib.compress(np.packbits(values.astype(np.bool_)).tobytes(), 9)
    return f"{len(values)}:{base64.b85encode(packed).decode('ascii')}"


def unpack(text: str, where: str | None = None) -> Bits:
    """The bits of `pack`, shape [N]; raises `RecordError` with `where` when the text is damaged."""
    count, colon, body = text.partition(":")
    if not colon or not count.isascii() or not count.isdigit():
        raise RecordError("vector", repr(text[:20]), "count, colon, base-85 text", where)
    size = int(count)
    try:
        packed = base64.b85decode(body)
        inflater = zlib.decompressobj()
        raw = inflater.decompress(packed, (size + 7) // 8 + 1)
    except (ValueError, zlib.error) as problem:
        raise RecordError("vector", f"damaged text ({problem})", "what `pack` wrote", where) from None
    bits = np.unpackbits(np.frombuffer(raw, np.uint8))
    if not inflater.eof or inflater.unused_data or len(raw) != (size + 7) // 8 or bits[size:].any():
        raise RecordError("vector", f"{len(bits)} bits or damaged ends", f"{size} examples", where)
    return bits[:size].astype(np.bool_)


def flips(then: Bits, now: Bits) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices of the examples that were right and are not (lost), and that were not and are (gained).

    Example:
        >>> lost, gained = flips(unpack(pack([1, 1, 0])), unpack(pack([0, 1, 1])))
        >>> lost.tolist(), gained.tolist()
        ([0], [2])
    """
    if then.shape != now.shape:
        raise RecordError("vector", f"{now.shape[0]} examples", f"{then.shape[0]}, as in the baseline")
    return np.flatnonzero(then & ~now), np.flatnonzero(now & ~then)
