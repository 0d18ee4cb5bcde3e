"""The number in a recipe's step, how much of it: a fraction, a count, N of M, bits or a type; text <-> values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from pruning_bench.errors import LevelError, RecipeError

WHO = "recipe"
DTYPES = ("bf16", "fp16", "fp32", "fp8")
_N_OF_M = re.compile(r"([0-9]{1,6})of([0-9]{1,6})\Z")
_BITS = re.compile(r"w([0-9]{1,3})(?:a([0-9]{1,3}))?\Z")
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+(?:e-?[0-9]+)?\Z")


@dataclass(frozen=True)
class Number:
    """A fraction (`0.9`) or a count (`2`); what it means is the method's business."""

    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise LevelError(WHO, f"level {self.value}", "finite")

    def __str__(self) -> str:
        return spell(float(self.value))


@dataclass(frozen=True)
class NofM:
    """`kept` of every `group` consecutive weights."""

    kept: int
    group: int

    def __str__(self) -> str:
        return f"{self.kept}of{self.group}"


@dataclass(frozen=True)
class Bits:
    """Bits of weights and, unless None, of activations: `w8a8`, `w4`."""

    weights: int
    activations: int | None = None

    def __str__(self) -> str:
        return f"w{self.weights}" + ("" if self.activations is None else f"a{self.activations}")


@dataclass(frozen=True)
class DType:
    """A floating-point type by its short name."""

    name: str

    def __str__(self) -> str:
        return self.name


Level: TypeAlias = Number | NofM | Bits | DType
LevelReader: TypeAlias = Callable[[str, Any], object]  # (name of the step, its level) -> what it means


def as_level(level: Level | float | int | str | None) -> Level | None:
    """A level from what a user may pass in Python: 0.9, 2, "w8a8", "2of4" or a `Level`.

    Example:
        >>> as_level(0.9), as_level("2of4")
        (Number(value=0.9), NofM(kept=2, group=4))
    """
    if isinstance(level, bool):
        raise LevelError(WHO, f"level {level}", "a number, N of M, bits or a dtype")
    if isinstance(level, (int, float)):
        return Number(float(level))
    if isinstance(level, str):
        return read_level(level, level, 0)
    if level is not None and not isinstance(level, Level):
        raise LevelError(WHO, f"level {level!r}", "a number, N of M, bits or a dtype")
    return level


def sparsity_of(who: str, level: Level | float | int | str | None) -> float:
    """The level as a sparsity in [0, 1); raises `LevelError` otherwise.

    Example:
        >>> sparsity_of("magnitude", Number(0.9))
        0.9
        >>> sparsity_of("magnitude", 1)
        Traceback (most recent call last):
        ...
        pruning_bench.errors.LevelError: magnitude: sparsity 1, should be in [0, 1)
    """
    level = as_level(level)
    if not isinstance(level, Number):
        raise LevelError(who, _found(level), "a sparsity in [0, 1)")
    if not 0 <= level.value < 1:
        raise LevelError(who, f"sparsity {level}", "in [0, 1)")
    return level.value


def _found(level: Level | None) -> str:
    return "no level" if level is None else f"level {level}"


def count_of(who: str, level: Level | float | int | str | None, least: int = 1) -> int:
    """The level as a whole number >= `least`; raises `LevelError` otherwise."""
    level = as_level(level)
    if not isinstance(level, Number) or level.value != int(level.value) or level.value < least:
        raise LevelError(who, _found(level), f"a whole number >= {least}")
    return int(level.value)


def bits_of(who: str, level: Level | float | int | str | None) -> Bits:
    """The level as bits, each in 2..8; raises `LevelError` otherwise."""
    level = as_level(level)
    if not isinstance(level, Bits):
        raise LevelError(who, _found(level), "bits such as w8a8")
    for bits in (level.weights, level.activations):
        if bits is not None and not 2 <= bits <= 8:
            raise LevelError(who, f"{bits} bits in {level}", "2 to 8 bits")
    return level


def both_bits_of(who: str, level: Level | float | int | str | None) -> Bits:
    """The level as bits of weights and of activations; raises `LevelError` otherwise."""
    bits = bits_of(who, level)
    if bits.activations is None:
        raise LevelError(who, f"level {bits} without activations", "bits of both, such as w8a8")
    return bits


def weight_bits_of(who: str, level: Level | float | int | str | None) -> Bits:
    """The level as bits of weights alone; raises `LevelError` otherwise."""
    bits = bits_of(who, level)
    if bits.activations is not None:
        raise LevelError(who, f"level {bits}", f"weights alone, such as w{bits.weights}")
    return bits


def read_level(word: str, text: str, at: int) -> Level:
    """The level that a word spells; raises `RecipeError` where it spells none, and points `at` it in the text."""
    if match := _N_OF_M.match(word):
        kept, group = int(match[1]), int(match[2])
        if 0 < kept <= group:
            return NofM(kept, group)
    elif match := _BITS.match(word):
        return Bits(int(match[1]), int(match[2]) if match[2] else None)
    elif word in DTYPES:
        return DType(word)
    elif _NUMBER.match(word) and math.isfinite(float(word)):
        return Number(float(word))
    raise RecipeError(WHO, repr(word), "a fraction, a count, N of M, bits (w8a8) or a dtype (bf16)", text, at)


def spell(value: Any) -> str:
    """An option or number as a recipe spells it: shortest, reads back to the same value, without the sign `+`."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e16 else repr(value).replace("e+", "e")
    return str(value)
