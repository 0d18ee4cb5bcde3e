"""What is recorded of each example as short text: zlib and base 85, with the number of examples in front.

Correctness is a bit for each example, a score one float32, the predicted class a whole number of 1, 2 or 4 bytes.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pruning_bench.errors import RecordError

Bits = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int64]
_FLOATS = "f32 "
_WIDTHS = (1, 2, 4)  # bytes of a class, signed, the lowest first


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
    return _text(len(values), np.packbits(values.astype(np.bool_)).tobytes())


def pack_scores(scores: Sequence[float] | npt.NDArray[Any]) -> str:
    """`"f32 N:text"` of N scores, rounded to float32; raises `RecordError` for another shape, or what is not finite.

    Example:
        >>> unpack(pack_scores([0.5, -2.0])).tolist()
        [0.5, -2.0]
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1:
        raise RecordError("vector", f"shape {list(values.shape)}", "one score per example, shape [N]")
    with np.errstate(over="ignore"):  # refused below
        floats = values.astype("<f4")
    if not np.isfinite(floats).all():
        raise RecordError("vector", "a score that is not finite in float32", "finite scores")
    return _FLOATS + _text(len(floats), floats.tobytes())


def unpack(text: str, where: str | None = None) -> Bits | Scores:
    """What `pack` or `pack_scores` took, shape [N]; raises `RecordError` with `where` when the text is damaged."""
    if text.startswith(_FLOATS):
        size, raw = _raw(text.removeprefix(_FLOATS), lambda size: 4 * size, where)
        floats = np.frombuffer(raw, "<f4") if len(raw) == 4 * size else np.full(1, np.nan, "<f4")
        if not np.isfinite(floats).all():
            raise RecordError("vector", f"{len(raw)} bytes or damaged scores", f"{size} examples", where)
        return floats.astype(np.float32)
    size, raw = _raw(text, lambda size: (size + 7) // 8, where)
    bits = np.unpackbits(np.frombuffer(raw, np.uint8))
    if len(raw) != (size + 7) // 8 or bits[size:].any():
        raise RecordError("vector", f"{len(bits)} bits or damaged ends", f"{size} examples", where)
    return bits[:size].astype(np.bool_)


def pack_classes(classes: Sequence[int] | npt.NDArray[Any]) -> str:
    """`"N:text"` of N predicted classes, -1 where there was no prediction.

    Args:
        classes: shape [N], whole numbers >= -1.
    Raises:
        RecordError: another shape or other values.
    Example:
        >>> unpack_classes(pack_classes([3, -1, 700])).tolist()
        [3, -1, 700]
    """
    values = np.asarray(classes)
    if values.ndim != 1 or (len(values) and (values.dtype.kind not in "iu" or values.min() < -1)):
        raise RecordError("classes", f"{values.dtype} {list(values.shape)}", "whole numbers >= -1, shape [N]")
    most = int(values.max(initial=0))
    width = next((width for width in _WIDTHS if most < 1 << (8 * width - 1)), 0)
    if not width:
        raise RecordError("classes", f"class {most}", f"below {1 << 31}")
    return _text(len(values), values.astype(f"<i{width}").tobytes())


def unpack_classes(text: str, where: str | None = None) -> Classes:
    """The classes of `pack_classes`, int64 [N]; raises `RecordError` with `where` when the text is damaged."""
    size, raw = _raw(text, lambda size: size * _WIDTHS[-1], where)
    width = len(raw) // size if size else 1
    if width not in _WIDTHS or len(raw) != width * size:
        raise RecordError("classes", f"{len(raw)} bytes", f"{size} classes", where)
    values = np.frombuffer(raw, f"<i{width}").astype(np.int64)
    if size and values.min() < -1:
        raise RecordError("classes", f"class {values.min()}", ">= -1", where)
    return values


def _text(count: int, raw: bytes) -> str:
    return f"{count}:{base64.b85encode(zlib.compress(raw, 9)).decode('ascii')}"


def _raw(text: str, most: Callable[[int], int], where: str | None) -> tuple[int, bytes]:
    """Number of examples and bytes of a text; reads no more than the `most` that so many examples take, and one."""
    count, colon, body = text.partition(":")
    if not colon or not count.isascii() or not count.isdigit():
        raise RecordError("vector", repr(text[:20]), "count, colon, base-85 text", where)
    size = int(count)
    try:
        inflater = zlib.decompressobj()
        raw = inflater.decompress(base64.b85decode(body), most(size) + 1)
    except (ValueError, OverflowError, zlib.error) as problem:
        raise RecordError("vector", f"damaged text ({problem})", "what `pack` wrote", where) from None
    if not inflater.eof or inflater.unused_data:
        raise RecordError("vector", "damaged ends", f"{size} examples", where)
    return size, raw


def check_mean(vector: Bits | Scores, value: float, better: str, who: str, where: str) -> None:
    """Raises `RecordError` unless `value` is the share of right examples (of wrong ones where less is better) or mean.

    Example:
        >>> check_mean(np.array([True, False]), 0.5, "higher", "run", "top1 of a case")
    """
    mean = float(vector.mean(dtype=np.float64)) if len(vector) else 0.0
    share = 1 - mean if vector.dtype == np.bool_ and better != "higher" else mean
    if not abs(share - value) <= 1e-6 * max(1.0, abs(share)):
        raise RecordError(who, f"value {value}", f"{share}, the share or mean of its vector", where)


def flips(then: npt.NDArray[Any], now: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices of the examples that were right and are not (lost), and that were not and are (gained).

    Example:
        >>> lost, gained = flips(unpack(pack([1, 1, 0])), unpack(pack([0, 1, 1])))
        >>> lost.tolist(), gained.tolist()
        ([0], [2])
    """
    if then.shape != now.shape:
        raise RecordError("vector", f"{now.shape[0]} examples", f"{then.shape[0]}, as in the baseline")
    return np.flatnonzero(then & ~now), np.flatnonzero(now & ~then)
