"""Text that a command puts into a Markdown file, between two marks; what is around it stays as it is."""

from __future__ import annotations

from pathlib import Path

from pruning_bench.errors import RecordError
from pruning_bench.records import write_atomically


def marks(name: str = "") -> tuple[str, str]:
    """The lines between which a command writes; a file with several such places names them.

    Example:
        >>> marks("torch")
        ('<!-- pruning-bench: begin torch -->', '<!-- pruning-bench: end torch -->')
    """
    suffix = f" {name}" if name else ""
    return f"<!-- pruning-bench: begin{suffix} -->", f"<!-- pruning-bench: end{suffix} -->"


def put_between_marks(path: Path, body: str, name: str = "") -> None:
    """Replaces what stands between the marks of that name.

    Raises:
        RecordError: a file that is missing, or that has not each mark once, the first before the second; it stays as
            it is.
    """
    begin, end = marks(name)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        found = "no file" if not path.is_file() else f"{text.count(begin)} and {text.count(end)} marks"
        raise RecordError("report", found, f"{begin} and then {end}, once each", str(path))
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    write_atomically(path, f"{head}{begin}\n\n{body.strip()}\n\n{end}{tail}")
