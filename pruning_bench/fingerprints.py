"""What a model is, as a digest: its classes, its plain attributes, and the bytes of its tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pruning_bench.build_entries import digest_tensors, tensors_of
from pruning_bench.errors import ModelError
from pruning_bench.records import digest_of

_PLAIN = (bool, int, float, str, type(None), torch.dtype)


def fingerprint(model: nn.Module) -> str:
    """Hex digest of a model: the same in every process, another one when a weight, a class or an attribute differs.

    Attributes are the public ones of every module that are plain values, or tuples and lists of such; what begins with
    an underscore is the library's own business. A text counts only where the class names it in `__constants__`, as
    torch's own do with `padding_mode` or `approximate`: any other may be a folder, which differs between machines.

    Raises:
        ModelError: a tensor without bytes of its own (on the meta device, lazy).
    Example:
        >>> fingerprint(nn.Dropout(0.1)) == fingerprint(nn.Dropout(0.1)) != fingerprint(nn.Dropout(0.2))
        True
    """
    rows = [[path, type(m).__qualname__, _attributes(m)] for path, m in model.named_modules(remove_duplicate=False)]
    try:
        return digest_of([rows, digest_tensors(tensors_of(model))])
    except (RuntimeError, NotImplementedError, ValueError) as problem:
        found = " ".join(str(problem).split())[:120]
        raise ModelError("fingerprint", f"a tensor that cannot be read ({found})", "weights that are there") from None


def _attributes(module: nn.Module) -> list[list[Any]]:
    constants = getattr(module, "__constants__", ())
    return [
        [name, repr(value)]
        for name, value in sorted(vars(module).items())
        if name[0] != "_" and _is_plain(value, texts=name in constants)
    ]


def _is_plain(value: object, texts: bool) -> bool:
    items = value if isinstance(value, (tuple, list)) else (value,)
    return all(isinstance(item, _PLAIN) and (texts or not isinstance(item, str)) for item in items)
