"""Two models side by side as text: numbers, flips by class, confusion matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from pruning_bench.judging.comparison import ClassChange, Comparison, ScoreDifference
from pruning_bench.judging.policy import Policy
from pruning_bench.reporting import text
from pruning_bench.reporting.tables import Table
from pruning_bench.reporting.terminal import table_text

MOST_CLASSES = 20  # listed by class; of more those with the most flips
MOST_COLUMNS = 12  # of a confusion matrix that is shown whole; of larger ones the cells that changed most
MOST_CELLS = 10
_FEWER, _SMALLER, _FASTER = ("fewer", "more"), ("smaller", "larger"), ("faster", "slower")

Form = Callable[[float], str]
Against = Callable[[float, float], str]


def comparison_text(found: Comparison, policy: Policy | None = None) -> str:
    """What `pruning-bench compare` prints: what can be said in words, then the tables."""
    policy = policy or Policy()
    tables = (numbers_table(found, policy), class_table(found), confusion_table(found))
    return "\n\n".join(["\n".join(summary(found, policy)), *(table_text(table) for table in tables if table.cells)])


def summary(found: Comparison, policy: Policy) -> list[str]:
    """What was compared, where, and whether the accuracies, or the scores, are shown to differ."""
    if found.scored is not None:
        return _scored_summary(found, found.scored, policy)
    sides = [f"A  {found.a.name}", f"B  {found.b.name}"]
    if not found.examples:
        return [*sides, f"on {found.where}; intervals of {text.percent(policy.confidence, 0)}"]
    shown = _shown(found.p, policy)
    same = f"{text.percent(found.agreement, 2)} of the predictions are equal, {found.flips} flipped"
    return [
        *sides,
        f"on {found.where}, {found.examples} test examples; intervals of {text.percent(policy.confidence, 0)}",
        f"{same}: {found.lost} right only in A, {found.gained} right only in B",
        f"McNemar's mid-p, two-sided: {found.p:.2g}, {shown}",
    ]


def _shown(p: float, policy: Policy) -> str:
    return "a difference is shown" if p < policy.accuracy_p else "no difference is shown"


def _scored_summary(found: Comparison, scored: ScoreDifference, policy: Policy) -> list[str]:
    change = scored.change
    p = min(1.0, 2 * min(change.p, change.mirrored))
    return [
        f"A  {found.a.name}",
        f"B  {found.b.name}",
        f"on {found.where}, {change.n} test examples; intervals of {text.percent(policy.confidence, 0)}",
        f"{scored.name}: {change.worse} examples are worse in B, {change.better} better",
        f"paired t test, two-sided: {p:.2g}, {_shown(p, policy)}",
    ]


def _score_rows(scored: ScoreDifference) -> tuple[tuple[str, str, Form, Against], ...]:
    """The mean score and the interval of its difference; how alike the outputs are."""
    low, high = scored.change.drop if scored.better == "lower" else tuple(-x for x in scored.change.drop[::-1])
    unit = "" if scored.unit == "1" else f" {scored.unit}"
    return (
        (
            scored.name,
            scored.name,
            lambda value: f"{value:.6g}{unit}",
            lambda a, b: f"{b - a:+.3g} [{low:+.3g}, {high:+.3g}]",
        ),
        ("outputs, cosine to A", "similarity", "{:.6f}".format, lambda a, b: text.NOTHING),
    )


def numbers_table(found: Comparison, policy: Policy) -> Table:
    """A row for each number that both have; below them what to know of them."""
    share, size = partial(text.percent, places=2), partial(text.amount, unit="B")
    rows: tuple[tuple[str, str, Form, Against], ...] = (
        *(_score_rows(found.scored) if found.scored else ()),
        ("top-1", "top1", share, lambda a, b: _change(found, policy)),
        ("loss (NLL)", "loss", "{:.4f}".format, lambda a, b: f"{b - a:+.4f}"),
        ("calibration error", "calibration_error", share, lambda a, b: text.points(b - a)),
        ("size", "bytes", size, partial(_factor, words=_SMALLER)),
        ("size, zipped", "bytes_zipped", size, partial(_factor, words=_SMALLER)),
        ("parameters", "params", text.amount, partial(_factor, words=_FEWER)),
        ("nonzeros", "nonzeros", text.amount, partial(_factor, words=_FEWER)),
        ("MACs", "macs", text.amount, partial(_factor, words=_FEWER)),
        ("MACs, nonzero weights", "macs_effective", text.amount, partial(_factor, words=_FEWER)),
        ("latency", "latency", text.seconds, lambda a, b: _ratio(found, policy)),
    )
    both = [row for row in rows if row[1] in found.a.numbers and row[1] in found.b.numbers]
    cells = []
    for title, metric, form, against in both:
        a, b = found.a.numbers[metric], found.b.numbers[metric]
        cells.append([title, form(a), form(b), against(a, b)])
    notes = list(found.remarks)
    if found.ratio is not None:
        notes.append("times are those of a single process: other processes may differ by more than the interval says")
    return Table("numbers", ("", "A", "B", "B against A"), ("left", "right", "right", "left"), cells, notes)


def _change(found: Comparison, policy: Policy) -> str:
    return f"{text.points(found.change)} {text.interval(found.change_interval(policy), text.points)}"


def _factor(a: float, b: float, words: tuple[str, str]) -> str:
    """How many times less, or more, b is than a."""
    if a == b:
        return "the same"
    if not a or not b:
        return text.NOTHING
    return f"{text.times(a / b)} {words[0]}" if b < a else f"{text.times(b / a)} {words[1]}"


def _ratio(found: Comparison, policy: Policy) -> str:
    """The same of the times, from their paired ratio and with its interval."""
    if found.ratio is None:
        return text.NOTHING
    low, high = found.ratio.interval(policy.confidence)
    bounds = (-high, -low) if found.ratio.value < 0 else (low, high)
    factor = _factor(1.0, math.exp(found.ratio.value), _FASTER)
    return f"{factor} {text.interval((math.exp(bounds[0]), math.exp(bounds[1])), text.times)}"


def class_table(found: Comparison) -> Table:
    """Accuracy and flips of each class; of many classes those with the most flips."""
    headings = ("class", "examples", "A", "B", "change", "flips", "only A right", "only B right")
    shown, title = list(found.classes), "by class"
    if len(shown) > MOST_CLASSES:
        title = f"by class, the {MOST_CLASSES} of {len(shown)} with the most flips"
        shown = sorted(shown, key=lambda c: -c.flips)[:MOST_CLASSES]
    return Table(title, headings, ("left", *["right"] * 7), [_class_cells(change) for change in shown])


def _class_cells(change: ClassChange) -> list[str]:
    shares: tuple[float | None, ...] = (None, None, None)
    if change.examples:
        right = change.right_a, change.right_b, change.right_b - change.right_a
        shares = tuple(count / change.examples for count in right)
    accuracies = [text.percent(shares[0]), text.percent(shares[1]), text.points(shares[2])]
    counts = map(str, (change.flips, change.lost, change.gained))
    return [change.name, str(change.examples), *accuracies, *counts]


def confusion_table(found: Comparison) -> Table:
    """Both confusion matrices side by side; of many classes the cells off the diagonal that changed most."""
    return _whole(found) if len(found.classes) <= MOST_COLUMNS else _changed_most(found)


def _whole(found: Comparison) -> Table:
    """Rows are labels, columns predictions by number; a zero is a dot."""
    numbers = [str(number) for number in range(len(found.classes))]

    def counts(row: Any) -> list[str]:
        return [str(count or ".") for count in row]

    cells = [
        [f"{number} {of_class.name}", *counts(a), "|", *counts(b)]
        for number, of_class, a, b in zip(numbers, found.classes, found.a.confusion, found.b.confusion, strict=True)
    ]
    title = "confusion: labels down, predictions across; A on the left, B on the right"
    align = ("left", *["right"] * len(numbers), "left", *["right"] * len(numbers))
    return Table(title, ("", *numbers, "|", *numbers), align, cells)


def _changed_most(found: Comparison) -> Table:
    changed = [
        (label, guess, a, b)
        for label, rows in enumerate(zip(found.a.confusion, found.b.confusion, strict=True))
        for guess, (a, b) in enumerate(zip(*rows, strict=True))
        if a != b and guess != label
    ]
    changed.sort(key=lambda cell: -abs(cell[3] - cell[2]))
    names = [of_class.name for of_class in found.classes]
    cells = [[names[label], names[guess], str(a), str(b), f"{b - a:+d}"] for label, guess, a, b in changed[:MOST_CELLS]]
    title = f"confusion: the {len(cells)} mistakes whose number changed most"
    return Table(title, ("label", "prediction", "A", "B", "change"), ("left", "left", *["right"] * 3), cells)
