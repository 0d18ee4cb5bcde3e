"""Dense storage of small whole numbers: codes of 2 to 7 bits, one behind the other in a stream of bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruning_bench.errors import CheckpointError

NARROW = "narrow"  # the entry of a card that names such tensors with their lowest and highest code and their shapes


def narrow(
    tensors: Mapping[str, Tensor], ranges: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
    """The tensors with those of `ranges` as streams of bits, uint8 [bytes], and their entries for the card.

    A code takes the bits that `highest - lowest` needs, as the distance from the lowest code, the highest bit first;
    the last byte is filled with zeros. What needs 8 bits stays as it is.

    Args:
        tensors: those that `ranges` names are int8 or uint8.
        ranges: name -> lowest and highest code.
    Example:
        >>> stored, entries = narrow({"w": torch.tensor([-3, 3, 0], dtype=torch.int8)}, {"w": (-3, 3)})
        >>> [format(int(byte), "08b") for byte in stored["w"]], entries
        (['00011001', '10000000'], {'w': [-3, 3, [3]]})
    """
    stored, entries = dict(tensors), {}
    for name, (low, high) in ranges.items():
        if (bits := _bits(low, high)) >= 8:
            continue
        distance = (tensors[name].to(torch.int16) - low).to(torch.uint8).reshape(-1, 1).cpu().numpy()
        stored[name] = torch.from_numpy(np.packbits(np.unpackbits(distance, axis=1)[:, 8 - bits :].reshape(-1)))
        entries[name] = [low, high, list(tensors[name].shape)]
    return stored, entries


def widen(stored: Mapping[str, Tensor], card: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors that `narrow` was given; codes are int8 where the lowest is negative, else uint8.

    Args:
        stored: the tensors of the file at `path`.
        card: its card, with the entries under "narrow", or without.
    Raises:
        CheckpointError: bytes, range and shape do not belong together.
    """
    entries = card.get(NARROW, {})
    if not isinstance(entries, dict):
        raise _damaged(f"{NARROW} {entries!r:.40}", "tensor names with ranges and shapes", path)
    tensors = dict(stored)
    for name, entry in entries.items():
        if name not in tensors:
            raise _damaged(f"no tensor {name}", "a tensor for each entry of the card", path)
        low, high, shape = _read(name, entry, path)
        tensors[name] = _codes(name, tensors[name], low, high, path, math.prod(shape)).view(shape)
    return tensors


def _read(name: str, entry: Any, path: Path) -> tuple[int, int, list[int]]:
    try:
        low, high, shape = entry
        whole = all(type(value) is int for value in (low, high, *shape)) and isinstance(shape, list)
    except (TypeError, ValueError):
        whole = False
    if not whole or not -128 <= low < high <= 255 or _bits(low, high) >= 8 or min(shape, default=0) < 0:
        raise _damaged(f"{NARROW} {entry!r:.60} of {name}", "lowest and highest code and a list of sizes", path)
    return low, high, shape


def _codes(name: str, stream: Tensor, low: int, high: int, path: Path, count: int) -> Tensor:
    bits = _bits(low, high)
    length = -(-count * bits // 8)
    if stream.dtype != torch.uint8 or stream.dim() != 1 or len(stream) != length:
        found = f"{name} of shape {list(stream.shape)}, {stream.dtype}"
        raise _damaged(found, f"{length} bytes for {count} codes of {bits} bits", path)
    single = np.unpackbits(stream.numpy())
    if single[count * bits :].any():
        raise _damaged(f"{name} with bits behind its last code", "zeros there", path)
    parts = np.zeros((count, 8), np.uint8)
    parts[:, 8 - bits :] = single[: count * bits].reshape(count, bits)
    distance = torch.from_numpy(np.packbits(parts, axis=1).reshape(-1)).to(torch.int16)
    if count and int(distance.max()) > high - low:
        raise _damaged(f"a code of {int(distance.max()) + low} in {name}", f"{low} to {high}", path)
    return (distance + low).to(torch.int8 if low < 0 else torch.uint8)


def _bits(low: int, high: int) -> int:
    return int(high - low).bit_length()


def _damaged(found: str, expected: str, path: Path) -> CheckpointError:
    return CheckpointError("load", f"a damaged tensor of codes ({found})", expected, str(path))
