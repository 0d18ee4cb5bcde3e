"""Errors of the suite: one line that says what was found, what it should be, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 40  # that a message lists


class PruningBenchError(Exception):
    """`{who}: {found}, should be {expected} [{where}]`; `where` is left out when there is nothing to point at.

    Example:
        >>> str(PruningBenchError("magnitude", "sparsity 1.2", "in [0, 1)", "magnitude:1.2"))
        'magnitude: sparsity 1.2, should be in [0, 1) [magnitude:1.2]'
    """

    def __init__(self, who: str, found: str, expected: str, where: str | None = None) -> None:
        self.who, self.found, self.expected, self.where = who, found, expected, where
        super().__init__(f"{who}: {found}, should be {expected}" + (f" [{where}]" if where else ""))

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str | None]]:
        return type(self), (self.who, self.found, self.expected, self.where)


class RecipeError(PruningBenchError):
    """A recipe that does not parse; the message ends with the text and a caret under the place."""

    def __init__(self, who: str, found: str, expected: str, text: str = "", position: int = 0) -> None:
        super().__init__(who, found, expected)
        self.text, self.position = text, position

    def __str__(self) -> str:
        head = super().__str__()
        return f"{head}\n  {self.text}\n  {' ' * self.position}^" if self.text else head

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str, int]]:  # type: ignore[override]
        return type(self), (self.who, self.found, self.expected, self.text, self.position)


class LevelError(PruningBenchError):
    """A level (sparsity, bits, count) that a method cannot take."""


class OptionError(PruningBenchError):
    """An option of a method or a training that is outside what its type says."""


class UnknownNameError(PruningBenchError):
    """A name that no registry holds."""


class DuplicateNameError(PruningBenchError):
    """Two definitions claim one name."""


class PluginError(PruningBenchError):
    """A plug-in that cannot be imported or does not keep its contract; names its distribution."""


class ModelError(PruningBenchError):
    """A model that cannot be compressed: nothing prunable, NaN weights, cannot be exported ..."""


class PlanError(PruningBenchError):
    """A plan that does not fit the model it is applied to."""


class DataError(PruningBenchError):
    """Data that is missing, corrupt or of the wrong shape."""


class CheckpointError(PruningBenchError):
    """A checkpoint that is missing, has the wrong digest, or is of a format that is never read (pickles)."""


class RecordError(PruningBenchError):
    """A run or baseline file that is truncated or foreign; `where` is `file:line`."""


class UnavailableError(PruningBenchError):
    """A runtime or device that is not here; the message ends with how to get it."""


def one_line(problem: Exception) -> str:
    """What went wrong in one line; of the operating system's errors the reason and the file.

    Example:
        >>> one_line(OSError(28, "No space left on device", "results/runs/1.jsonl"))
        'No space left on device [results/runs/1.jsonl]'
    """
    if isinstance(problem, OSError):
        return f"{problem.strerror or problem}" + (f" [{problem.filename}]" if problem.filename else "")
    return str(problem)


def describe(problem: BaseException) -> str:
    """Type and text of an exception in one line.

    Example:
        >>> describe(ValueError("two\\nlines")), describe(NotImplementedError())
        ('ValueError: two lines', 'NotImplementedError')
    """
    text = one_line(problem) if isinstance(problem, Exception) else str(problem)
    return " ".join(f"{type(problem).__name__}: {text}".split()).removesuffix(":")


def closest(name: str, known: Iterable[str]) -> str:
    """What a name should be, for error messages: the closest names, then all of them unless they are too many.

    Example:
        >>> closest("magnitud", ["random", "magnitude"])
        "'magnitude' (known: magnitude, random)"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    listing = f"known: {', '.join(names) if names else 'none'}"
    if len(names) > MOST_NAMES:
        listing = f"{len(names)} are known, pruning-bench list shows them"
    return f"{' or '.join(map(repr, near))} ({listing})" if near else f"a registered name ({listing})"
