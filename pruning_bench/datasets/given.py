"""A user's own examples: what their data function gives, checked and taken as a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pruning_bench.datasets.contract import Dataset, Tensors
from pruning_bench.errors import DataError
from pruning_bench.models.contract import call_seeded, place_of

TEST, CALIBRATION = "test", ("calibration", "train")
LEAST = 2  # examples of a role; of one the spread of a score cannot be told
WANTED = '{"test": (inputs, targets), "calibration": (inputs, targets)}, inputs a tuple of tensors'


def dataset_from(give: Callable[[], object], *, classify: bool) -> Dataset:
    """The data set of what `give` returns; see `evaluation_data`.

    Args:
        classify: targets are to be class numbers.
    Raises:
        DataError: it fails, or gives something else; with the place of the function.
    """
    name, given, where = give.__name__, call_seeded(give, DataError), place_of(give)
    roles = _roles(name, given, where)
    test, calibration = (_examples(f"{name}: {role}", value, where) for role, value in roles.items())
    if _signature(test) != _signature(calibration):
        found = f"test inputs {_signature(test)} and {[*roles][1]} inputs {_signature(calibration)}"
        raise DataError(name, found, "of the same types and shapes", where)
    if classify:
        _check_classes(name, test.targets, where)
    return Dataset(name, (), calibration, calibration, test, _digest((calibration, test)), "own")


def _roles(name: str, given: object, where: str) -> dict[str, Any]:
    """Test first, then what calibrates."""
    if not isinstance(given, Mapping):
        raise DataError(name, f"a result of type {type(given).__name__}", WANTED, where)
    if unknown := sorted(map(str, {*given} - {TEST, *CALIBRATION})):
        raise DataError(name, f"role {unknown[0]!r}", f"one of {TEST}, {', '.join(CALIBRATION)}", where)
    second = [role for role in CALIBRATION if role in given]
    if TEST not in given or len(second) != 1:
        raise DataError(
            name, f"roles {', '.join(given) or 'none'}", f"test and one of {' or '.join(CALIBRATION)}", where
        )
    return {role: given[role] for role in (TEST, *second)}


def _examples(who: str, value: object, where: str) -> Tensors:
    inputs, targets = value, None
    if isinstance(value, tuple) and len(value) == 2 and not isinstance(value[0], Tensor):
        inputs, targets = value
    if not isinstance(inputs, tuple) or not inputs or not all(isinstance(x, Tensor) for x in inputs):
        kinds = ", ".join(type(x).__name__ for x in inputs) if isinstance(inputs, (tuple, list)) else ""
        found = f"inputs of type {type(inputs).__name__}{f' ({kinds})' if kinds else ''}"
        raise DataError(who, found, "a tuple of tensors, such as ((x,), y)", where)
    for number, x in enumerate(inputs):
        _check_strided(who, f"input {number}", x, where)
    if any(x.dim() == 0 for x in inputs) or len({len(x) for x in inputs}) != 1:
        shapes = ", ".join(str(list(x.shape)) for x in inputs)
        raise DataError(who, f"inputs of shapes {shapes}", "as many rows each, the examples first", where)
    count = len(inputs[0])
    if count < LEAST:
        raise DataError(who, f"{count} examples", f"at least {LEAST}", where)
    if isinstance(targets, Tensor):
        _check_strided(who, "targets", targets, where)
    if targets is not None and (not isinstance(targets, Tensor) or targets.dim() == 0 or len(targets) != count):
        shape = f" of shape {list(targets.shape)}" if isinstance(targets, Tensor) else ""
        found = f"targets of type {type(targets).__name__}{shape}"
        raise DataError(who, found, f"None, or a tensor with {count} rows like the inputs", where)
    fixed = tuple(x.detach().cpu().contiguous() for x in inputs)
    return Tensors(fixed, None if targets is None else targets.detach().cpu().contiguous())


def _check_strided(who: str, what: str, value: Tensor, where: str) -> None:
    """Raises `DataError` for a tensor whose elements cannot be read one by one: sparse, nested, quantized, meta."""
    kinds = {"on the device meta": value.is_meta, "nested": value.is_nested, "quantized": value.is_quantized}
    kinds[f"of layout {value.layout}"] = value.layout is not torch.strided
    if kind := next((kind for kind, found in kinds.items() if found), ""):
        raise DataError(who, f"{what} {kind}", "a dense tensor with values", where)


def _check_classes(name: str, targets: Tensor | None, where: str) -> None:
    if targets is None:
        expected = "((inputs,), targets); or @evaluation_data(score=...) with a score that needs none"
        raise DataError(f"{name}: test", "no targets", expected, where)
    if targets.dtype != torch.int64 or targets.dim() != 1:
        found = f"targets {targets.dtype} of shape {list(targets.shape)}"
        expected = f"class numbers, torch.int64 [{len(targets)}]; or @evaluation_data(score=...)"
        raise DataError(f"{name}: test", found, expected, where)
    if (lowest := int(targets.min())) < 0:
        found = f"target {lowest} of example {int(targets.argmin())}"
        raise DataError(f"{name}: test", found, "class numbers, from 0; or @evaluation_data(score=...)", where)


def _signature(examples: Tensors) -> str:
    """Types and shapes of one example.

    Example:
        >>> _signature(Tensors((torch.zeros(3, 8), torch.zeros(3, dtype=torch.int64))))
        'float32 [8], int64 []'
    """
    return ", ".join(f"{str(x.dtype).removeprefix('torch.')} {list(x.shape[1:])}" for x in examples.values)


def _digest(roles: Iterable[Tensors]) -> str:
    """sha256 (hex) over types, shapes and bytes of all tensors."""
    sha = hashlib.sha256()
    for examples in roles:
        for value in (*examples.values, *(() if examples.targets is None else (examples.targets,))):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
