"""Options of methods and trainings: the type of a field says which values it takes.

Every place that makes one or reads its text goes by the same types, so that no method checks its own options.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pruning_bench.errors import OptionError


@dataclass(frozen=True)
class Range:
    """The numbers between two ends; a round bracket leaves its end out.

    Example:
        >>> allowed = Range("[0, 1)")
        >>> 0 in allowed, 1 in allowed, float("nan") in allowed
        (True, False, False)
        >>> print(allowed, "|", Range("[1, inf)"), "|", Range("(0, inf)"))
        in [0, 1) | at least 1 | above 0
    """

    text: str

    def __contains__(self, value: float) -> bool:
        low, high = map(float, self.text[1:-1].split(","))
        above = low <= value if self.text.startswith("[") else low < value
        return above and (value <= high if self.text.endswith("]") else value < high)

    def __str__(self) -> str:
        low, high = self.text[1:-1].split(", ")
        if high == "inf":
            return f"{'at least' if self.text.startswith('[') else 'above'} {low}"
        return f"in {self.text}"


Count = Annotated[int, Range("[1, 1e9]")]
Amount = Annotated[float, Range("[0, inf)")]
Positive = Annotated[float, Range("(0, inf)")]
Share = Annotated[float, Range("[0, 1]")]
BelowOne = Annotated[float, Range("[0, 1)")]
Pixels = Annotated[int, Range("[0, 1e9]")]
Group = Annotated[int, Range("[0, 1e9]")]  # columns of a weight that share a scale; 0: all of a channel


@functools.cache
def kinds(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields and class variables, ranges included."""
    return typing.get_type_hints(cls, include_extras=True)


def ranges(kind: Any) -> tuple[Range, ...]:
    """The ranges that a type demands of its values.

    Example:
        >>> ranges(Count), ranges(int)
        ((Range(text='[1, 1e9]'),), ())
    """
    return tuple(extra for extra in getattr(kind, "__metadata__", ()) if isinstance(extra, Range))


class Checked:
    """A dataclass that derives from this cannot be made with a value outside of what its types say.

    Raises:
        OptionError: a number outside its range, or none of the words of a `Literal`.
    Example:
        >>> @dataclass(frozen=True)
        ... class Rounds(Checked):
        ...     name: ClassVar[str] = "rounds"
        ...     count: Count = 3
        >>> Rounds(0)
        Traceback (most recent call last):
        ...
        pruning_bench.errors.OptionError: rounds: count 0, should be in [1, 1e9]
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for field in dataclasses.fields(cls):
            value, kind = getattr(self, field.name), kinds(cls)[field.name]
            words = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
            if words and value not in words:
                raise OptionError(self.name, f"{field.name} {value!r}", " or ".join(map(repr, words)))
            for allowed in ranges(kind):
                if value not in allowed:
                    raise OptionError(self.name, f"{field.name} {value}", str(allowed))
