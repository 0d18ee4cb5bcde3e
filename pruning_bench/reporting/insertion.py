"""Text that a command puts into a Markdown file, between two marks; what is around it stays as it is."""

from __future__ import annotations

from pathlib import Path

from pruning_bench.errors import RecordError
from pruning_bench.records import write_atomically

_SIGN = "<!-- pruning-bench: "


def marks(name: str = "") -> tuple[str, str]:
    """The lines between which a command writes; a file with several such places names them.

    Example:
        >>> marks("torch")
        ('<!-- pruning-bench: begin torch -->', '<!-- pruning-bench: end torch -->')
    """
    suffix = f" {name}" if name else ""
    return f"{_SIGN}begin{suffix} -->", f"{_SIGN}end{suffix} -->"


def with_section(text: str, body: str, name: str = "", where: str = "") -> str:
    """`text` with `body` in the place of what stands between the marks of that name.

    Args:
        where: the file, for an error.
    Raises:
        RecordError: not each mark once, the first before the second, with no other mark between them.
    """
    begin, end = marks(name)
    head, _, rest = text.partition(begin)
    section, _, tail = rest.partition(end)
    whole = text.count(begin) == text.count(end) == 1 and end in rest
    if not whole or any(sign in section for sign in (_SIGN + "begin", _SIGN + "end")):
        raise RecordError("report", "no such section", f"{begin} and, behind it, {end}, once each", where)
    return f"{head}{begin}\n\n{body.strip()}\n\n{end}{tail}"


def put_between_marks(path: Path, body: str, name: str = "") -> None:
    """Does so in a file; raises `RecordError` as `with_section`, also where there is none, and leaves it alone then."""
    if not path.is_file():
        begin, end = marks(name)
        raise RecordError("report", "no such file", f"one with {begin} and, behind it, {end}", str(path))
    write_atomically(path, with_section(path.read_text(encoding="utf-8"), body, name, str(path)))
