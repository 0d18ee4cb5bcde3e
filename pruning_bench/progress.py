"""Progress on the terminal: one bar, or a few words after what its line shows; silent where nobody looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """Yields `progress(message, done, total)`, which draws a bar where the console is a terminal.

    Args:
        console: lines printed on it appear above the bar; standard error if left out.
    """
    console = console or Console(stderr=True)
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda message, done, total: bar.update(task, description=message, completed=done, total=total)


LEAST_ROOM = 30  # characters below which words after a line tell nothing
SHOW_SECONDS = 0.2  # between two updates


class StatusLine:
    """Words behind what stands on the terminal's line, in the room that is left; gone without a trace when cleared.

    Args:
        write: writes to the terminal at once.
        room: how many characters are free on its line, when nothing is shown.
        clock: seconds.
    """

    def __init__(
        self, write: Callable[[str], None], room: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._room, self._clock = write, room, clock
        self._shown = ""
        self._at = -SHOW_SECONDS

    def show(self, words: str) -> None:
        """Shows the words instead of those before; not more often than one can read."""
        now, room = self._clock(), self._room()
        if room < LEAST_ROOM or now - self._at < SHOW_SECONDS:
            return
        words = " " + " ".join(words.split())
        words = words if len(words) <= room else f"{words[: room - 3]}..."
        self._write(self._erasing() + words)
        self._shown, self._at = words, now

    def clear(self) -> None:
        """Leaves the line as it was."""
        if self._shown:
            self._write(self._erasing())
        self._shown, self._at = "", -SHOW_SECONDS

    def _erasing(self) -> str:
        return f"\x1b[{len(self._shown)}D\x1b[K" if self._shown else ""
