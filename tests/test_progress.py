"""What a terminal shows of progress, and that nothing of it stays."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_bench.progress import LEAST_ROOM, SHOW_SECONDS, StatusLine

WIDTH = 80


class Terminal:
    """One line of a terminal: what stands on it after plain characters, steps to the left and erasing to the end."""

    def __init__(self, shown: str = "") -> None:
        self.shown, self.cursor, self.now, self.history = shown, len(shown), 0.0, []

    def write(self, text: str) -> None:
        for left, erase, plain in re.findall(r"\x1b\[(\d+)D|(\x1b\[K)|([^\x1b]+)", text):
            if left:
                self.cursor -= int(left)
            elif erase:
                self.shown = self.shown[: self.cursor]
            else:
                self.shown = self.shown[: self.cursor] + plain + self.shown[self.cursor + len(plain) :]
                self.cursor += len(plain)
            assert 0 <= self.cursor < WIDTH, f"the cursor left the line: {self.cursor}"
        self.history.append(self.shown)


def line_on(terminal: Terminal, dots: int) -> StatusLine:
    return StatusLine(terminal.write, lambda: WIDTH - dots - 1, lambda: terminal.now)


WORDS = st.lists(st.text(st.characters(codec="ascii", categories=["L", "P", "Zs"]), max_size=120), max_size=5)


@given(st.integers(0, WIDTH - 1), WORDS)
def test_the_line_is_as_before_when_cleared(dots: int, words: list[str]) -> None:
    terminal = Terminal("." * dots)
    line = line_on(terminal, dots)
    for text in words:
        line.show(text)
        terminal.now += 2 * SHOW_SECONDS
    assert terminal.shown.startswith("." * dots), f"{terminal.shown!r} should begin with the dots"
    line.clear()
    assert terminal.shown == "." * dots, f"{terminal.shown!r} is left"


def test_each_message_stands_alone_behind_the_line() -> None:
    terminal = Terminal("..")
    line = line_on(terminal, 2)
    for text in ("finetune epoch 1/2", "static"):
        line.show(text)
        terminal.now += 2 * SHOW_SECONDS
        assert terminal.shown == f".. {text}", terminal.shown


def test_messages_come_no_faster_than_they_can_be_read() -> None:
    terminal = Terminal()
    line = line_on(terminal, 0)
    for number in range(10):
        line.show(f"step {number}")
        terminal.now += 0.26 * SHOW_SECONDS
    assert terminal.history == [" step 0", " step 4", " step 8"], terminal.history


@pytest.mark.parametrize(("room", "shows"), [(LEAST_ROOM - 1, False), (LEAST_ROOM, True)])
def test_without_room_nothing_is_shown(room: int, shows: bool) -> None:
    terminal = Terminal("." * (WIDTH - 1 - room))
    line_on(terminal, WIDTH - 1 - room).show("building " * 20)
    assert bool(terminal.history) == shows, terminal.history
    assert len(terminal.shown) < WIDTH, f"{len(terminal.shown)} characters would wrap"
