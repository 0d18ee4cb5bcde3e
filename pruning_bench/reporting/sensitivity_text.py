"""The sensitivity of a model's layers as a table with bars, as Markdown, as JSON and as a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any
from xml.sax.saxutils import escape

from pruning_bench.judging.sensitivity import Alone, Sensitivity
from pruning_bench.reporting import text
from pruning_bench.reporting.markdown import table_lines
from pruning_bench.reporting.tables import Table
from pruning_bench.reporting.terminal import table_text

BAR = 20  # characters of the longest bar
WIDTH, ROW, NAMES, NUMBERS = 800, 20, 260, 90  # of the plot, in its own units


def sensitivity_text(found: Sensitivity) -> str:
    """What `pruning-bench sensitivity` prints."""
    return "\n".join(summary(found)) + "\n\n" + table_text(sensitivity_table(found))


def sensitivity_markdown(found: Sensitivity) -> str:
    """The same as Markdown."""
    return "\n".join([*(f"{line}  " for line in summary(found)), "", *table_lines(sensitivity_table(found))]) + "\n"


def sensitivity_json(found: Sensitivity) -> str:
    """All numbers; an infinite ratio, where nothing changed, is null."""
    return json.dumps(_finite(asdict(found)), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary(found: Sensitivity) -> list[str]:
    """What was measured, on what, and what the whole step costs."""
    score, loss = _forms(found)
    whole = found.whole
    return [
        f"{found.model}, {found.recipe}: {found.step} on one part alone",
        f"on {found.dataset}, {found.examples} selection examples; SQNR of the model's output",
        f"{found.score} {score(found.before)} before, {score(whole.score)} with all parts "
        f"({loss(whole.loss)} lost, SQNR {_decibels(whole.sqnr)})",
    ]


def sensitivity_table(found: Sensitivity) -> Table:
    """A row for each part, in the order of the model; the bars are the noise, from the quietest part to the loudest."""
    score, loss = _forms(found)
    bars = shares(found.parts)
    cells = [
        [
            part.part,
            text.amount(part.weights),
            part.change,
            score(part.score),
            loss(part.loss),
            _decibels(part.sqnr),
            "#" * round(BAR * bar),
        ]
        for part, bar in zip(found.parts, bars, strict=True)
    ]
    headings = ("part", "size", "change", found.score, "lost", "SQNR", "noise")
    return Table("each part alone", headings, ("left", "right", "left", "right", "right", "right", "left"), cells)


def shares(parts: Sequence[Alone]) -> list[float]:
    """How far each part's noise reaches, in (0, 1] linear in dB from 10 dB below the quietest to the loudest; 0: none.

    Example:
        >>> quiet, loud = (Alone("a", 1, "w4", 0.9, 0.0, ratio) for ratio in (30.0, 20.0))
        >>> shares([quiet, loud])
        [0.5, 1.0]
    """
    noises = [-part.sqnr for part in parts if math.isfinite(part.sqnr)]
    low, high = (min(noises) - 10, max(noises)) if noises else (0.0, 1.0)
    return [max(0.0, min(1.0, (-part.sqnr - low) / (high - low))) for part in parts]


def sensitivity_svg(found: Sensitivity) -> str:
    """A bar for each part: the noise that it makes, its SQNR and loss beside it."""
    _, loss = _forms(found)
    height, bars = ROW * (len(found.parts) + 2), shares(found.parts)
    room = WIDTH - NAMES - 2 * NUMBERS
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        _words(4, 1, f"{found.model}, {found.recipe}: noise in the output, SQNR, {found.score} lost", "start"),
    ]
    for row, (part, bar) in enumerate(zip(found.parts, bars, strict=True), 2):
        lines += [
            _words(NAMES - 6, row, f"{part.part} {part.change}", "end"),
            f'<rect x="{NAMES}" y="{ROW * row - 12}" width="{room * bar:.1f}" height="14" fill="#4878a8"/>',
            _words(WIDTH - NUMBERS, row, _decibels(part.sqnr), "end"),
            _words(WIDTH - 6, row, loss(part.loss), "end"),
        ]
    return "\n".join([*lines, "</svg>", ""])


def _words(x: int, row: int, words: str, anchor: str) -> str:
    return f'<text x="{x}" y="{ROW * row}" text-anchor="{anchor}">{escape(words)}</text>'


def _forms(found: Sensitivity) -> tuple[Callable[[float], str], Callable[[float], str]]:
    """How the score and a loss of it are written."""
    if found.score in ("top1", "agreement"):
        return partial(text.percent, places=2), text.points
    return text.score, partial(text.score, sign=True)


def _decibels(ratio: float) -> str:
    return text.NOTHING if not math.isfinite(ratio) else f"{ratio:.1f} dB"
