"""Sparse storage: tensors of many zeros as one bit for each element and the values that are none. Nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruning_bench.errors import CheckpointError

KEY = "sparse"  # the entry of a card that names packed tensors with their shapes
_BITS, VALUES = ":bits", ":values"
_ENTRY = 160  # bytes that the header of a file grows by when a tensor becomes two, and its shape in the card
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack(
    tensors: Mapping[str, Tensor], widths: Mapping[str, int] | None = None
) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The tensors as they are stored, and the shapes of those that are packed.

    A floating-point tensor `name` of two or more dimensions (no bias or statistic) becomes `name:bits`, a bit for each
    element in order (1 = stored; the first is the highest of its byte), and `name:values`, the stored elements, where
    that takes fewer bytes. Elements that are not stored are +0; -0 is stored. So do codes of quantized weights.

    Args:
        widths: name -> bits that each element of a tensor of codes, int8 or uint8, takes on disk (see `narrowing`).
    Raises:
        CheckpointError: a tensor has the name that one of these would have.

    Example:
        >>> stored, shapes = pack({"a": torch.zeros(40, 20), "b": torch.ones(40, 20)})
        >>> {name: tensor.numel() for name, tensor in stored.items()}, shapes
        ({'a:bits': 100, 'a:values': 0, 'b': 800}, {'a': [40, 20]})
    """
    stored: dict[str, Tensor] = {}
    shapes = {}
    widths = widths or {}
    for name, tensor in tensors.items():
        kept = _kept(tensor) if (tensor.is_floating_point() or name in widths) and tensor.dim() > 1 else None
        if kept is None or not _is_smaller(kept, widths.get(name, 8 * tensor.element_size())):
            stored[name] = tensor
            continue
        if taken := {name + _BITS, name + VALUES} & {*tensors}:
            raise CheckpointError(
                "save", f"a tensor {min(taken)} beside {name}", "names that packing leaves free", name
            )
        shapes[name] = list(tensor.shape)
        stored[name + _BITS] = torch.from_numpy(np.packbits(kept.cpu().numpy()))
        stored[name + VALUES] = tensor.detach().reshape(-1)[kept]
    return stored, shapes


def _kept(tensor: Tensor) -> Tensor:
    """Which elements are not +0; bool [N]."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(_WHOLE[flat.element_size()]) != 0


def _is_smaller(kept: Tensor, width: int) -> bool:
    """Do a bit for each element and `width` bits for those that are kept take less than `width` bits for each?"""
    return kept.numel() + int(kept.sum()) * width + 8 * _ENTRY < kept.numel() * width


def unpack(stored: Mapping[str, Tensor], card: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors that `pack` was given, bit for bit.

    Args:
        stored: the tensors of the file at `path`.
        card: its card, with the shapes of the packed tensors under "sparse", or without.
    Raises:
        CheckpointError: bits, values and shapes do not belong together.
    """
    shapes = card.get(KEY, {})
    if not isinstance(shapes, dict):
        raise _damaged(f"{KEY} {shapes!r:.40}", "tensor names with shapes", path)
    tensors = dict(stored)
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise _damaged(f"{KEY} shape {shape!r:.40} of {name}", "a list of sizes", path)
        bits, values = tensors.pop(name + _BITS, None), tensors.pop(name + VALUES, None)
        if bits is None or values is None or name in tensors:
            raise _damaged(f"no single pair {name}{_BITS} and {name}{VALUES}", "both of them, and no other", path)
        tensors[name] = _whole(name, shape, bits, values, path)
    return tensors


def _whole(name: str, shape: list[int], bits: Tensor, values: Tensor, path: Path) -> Tensor:
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.dim() != 1 or len(bits) != -(-count // 8):
        found = f"{name}{_BITS} of {len(bits) if bits.dim() == 1 else tuple(bits.shape)} {bits.dtype}"
        raise _damaged(found, f"{-(-count // 8)} bytes for the shape {shape}", path)
    kept = torch.from_numpy(np.unpackbits(bits.numpy())).bool()
    numbers = values.is_floating_point() or values.dtype in (torch.int8, torch.uint8)
    if not numbers or values.dim() != 1 or kept[count:].any() or int(kept.sum()) != len(values):
        found = f"{name}{VALUES} of shape {tuple(values.shape)}, {values.dtype}"
        raise _damaged(found, f"a number for each of the {int(kept.sum())} bits, in the first {count}", path)
    whole = torch.zeros(count, dtype=values.dtype)
    whole[kept[:count]] = values
    return whole.view(shape)


def _damaged(found: str, expected: str, path: Path) -> CheckpointError:
    return CheckpointError("load", f"a damaged sparse tensor ({found})", expected, str(path))
