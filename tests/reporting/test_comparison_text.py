"""Two models side by side in words: what is better is called so, and nothing that was not measured is shown."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pruning_bench.judging.comparison import ClassChange, Comparison, Side
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.statistics import Estimate
from pruning_bench.reporting import comparison_text as module
from pruning_bench.reporting.comparison_text import (
    class_table,
    comparison_text,
    confusion_table,
    numbers_table,
    summary,
)

POLICY = Policy()
DENSE = Side(
    "net, dense",
    {
        "top1": 0.94, "loss": 0.25, "calibration_error": 0.012, "bytes": 1.11e6, "bytes_zipped": 1e6, "params": 270e3,
        "nonzeros": 270e3, "macs": 40e6, "macs_effective": 40e6, "latency": 716e-6,
    },
    ((47, 3), (3, 47)),
)  # fmt: skip
SMALL = Side(
    "net, static:w8a8",
    DENSE.numbers
    | {"top1": 0.93, "loss": 0.26, "calibration_error": 0.02, "bytes": 294e3, "nonzeros": 27e3, "latency": 359e-6},
    ((45, 5), (2, 48)),
)
CLASSES = (ClassChange("cat", 50, 47, 45, 4, 3, 1), ClassChange("dog", 50, 47, 48, 1, 0, 1))
FOUND = Comparison(DENSE, SMALL, "pets, onnxruntime, 1 thread", CLASSES, Estimate(math.log(0.5), 0.01), ("B is odd",))


def rows(found: Comparison) -> dict[str, list[str]]:
    return {cells[0]: list(cells[1:]) for cells in numbers_table(found, POLICY).cells}


def test_what_is_better_is_called_so() -> None:
    found = rows(FOUND)
    expected = {
        "top-1": ["94.00 %", "93.00 %", "-1.00 pp"],
        "loss (NLL)": ["0.2500", "0.2600", "+0.0100"],
        "calibration error": ["1.20 %", "2.00 %", "+0.80 pp"],
        "size": ["1.11 MB", "294 kB", "3.78x smaller"],
        "size, zipped": ["1.00 MB", "1.00 MB", "the same"],
        "nonzeros": ["270 k", "27.0 k", "10.0x fewer"],
        "latency": ["716.0 us", "359.0 us", "2.00x faster [1.95x, 2.05x]"],
    }
    for title, cells in expected.items():
        shown = [cell[: len(want)] for cell, want in zip(found[title], cells, strict=True)]
        assert shown == cells, f"{title}: {found[title]}, should begin {cells}"


def test_the_other_way_round_it_is_worse() -> None:
    turned = tuple(replace(c, right_a=c.right_b, right_b=c.right_a, lost=c.gained, gained=c.lost) for c in CLASSES)
    found = rows(Comparison(SMALL, DENSE, "", turned, Estimate(math.log(2), 0.01)))
    seen = [found["size"][2], found["nonzeros"][2], found["latency"][2], found["top-1"][2][:8]]
    assert seen == ["3.78x larger", "10.0x more", "2.00x slower [1.95x, 2.05x]", "+1.00 pp"], f"{seen}"


def test_the_change_of_accuracy_has_its_interval() -> None:
    low, high = FOUND.change_interval(POLICY)
    shown = rows(FOUND)["top-1"][2]
    assert shown == f"-1.00 pp [{100 * low:+.2f}, {100 * high:+.2f}] pp", shown


def test_what_was_not_measured_is_not_shown() -> None:
    without = [replace(s, numbers={k: v for k, v in s.numbers.items() if k != "latency"}) for s in (DENSE, SMALL)]
    found = replace(FOUND, a=without[0], b=without[1], ratio=None)
    assert "latency" not in rows(found), rows(found)
    assert "single process" not in comparison_text(found), "nothing should be said of times"
    assert "single process" in comparison_text(FOUND), "what times of one process are worth should be said"


@pytest.mark.parametrize(("lost", "words"), [(1, "no difference is shown"), (20, ", a difference is shown")])
def test_whether_a_difference_is_shown(lost: int, words: str) -> None:
    found = replace(FOUND, classes=(ClassChange("cat", 50, 47, 47 - lost, lost, lost, 0),))
    text = "\n".join(summary(found, POLICY))
    assert words in text, text
    assert f"{lost} flipped: {lost} right only in A, 0 right only in B" in text, text


def test_everything_is_there() -> None:
    text = comparison_text(FOUND)
    where = "on pets, onnxruntime, 1 thread, 100 test examples"
    for words in ("A  net, dense", "B  net, static:w8a8", where, "B is odd"):
        assert words in text, f"{words!r} should be in\n{text}"
    longest = max(map(len, text.splitlines()))
    assert longest <= 120, f"{longest} columns"


def test_classes_with_their_flips() -> None:
    found = [list(cells) for cells in class_table(FOUND).cells]
    assert found[0] == ["cat", "50", "94.0 %", "90.0 %", "-4.00 pp", "4", "3", "1"], f"{found[0]}"
    empty = replace(FOUND, classes=(*CLASSES, ClassChange("emu", 0, 0, 0, 0, 0, 0)))
    assert list(class_table(empty).cells[2]) == ["emu", "0", "-", "-", "-", "0", "0", "0"], class_table(empty).cells


def many(classes: int) -> Comparison:
    """The more flips the higher the class; every class is taken for the next, in B once more often each."""
    changes = tuple(ClassChange(f"c{i}", 99, 99, 99 - i, i, i, 0) for i in range(classes))

    def confusion(more: int) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(99 - more * i if j == i else more * i * (j == (i + 1) % classes) for j in range(classes))
            for i in range(classes)
        )

    a, b = (replace(DENSE, confusion=confusion(more)) for more in (0, 1))
    return Comparison(a, b, "", changes)


def test_of_many_classes_those_with_the_most_flips() -> None:
    table = class_table(many(30))
    names = [cells[0] for cells in table.cells]
    assert names == [f"c{i}" for i in range(29, 9, -1)], f"{names}"
    assert "20 of 30" in table.title, table.title


def test_confusion_side_by_side() -> None:
    table = confusion_table(FOUND)
    assert list(table.headings) == ["", "0", "1", "|", "0", "1"], f"{table.headings}"
    assert [list(row) for row in table.cells] == [
        ["0 cat", "47", "3", "|", "45", "5"],
        ["1 dog", "3", "47", "|", "2", "48"],
    ], f"{table.cells}"
    zero = confusion_table(replace(FOUND, b=replace(SMALL, confusion=((50, 0), (0, 50)))))
    assert list(zero.cells[0]) == ["0 cat", "47", "3", "|", "50", "."], f"{zero.cells[0]}"


def test_of_large_confusion_matrices_the_mistakes_that_changed_most() -> None:
    found = many(module.MOST_COLUMNS + 1)
    table = confusion_table(found)
    assert len(table.cells) == module.MOST_CELLS, f"{len(table.cells)} rows, should be {module.MOST_CELLS}"
    assert list(table.cells[0]) == ["c12", "c0", "0", "12", "+12"], f"{table.cells[0]}"
    same = replace(found, b=found.a)
    assert "mistakes" not in comparison_text(same), "no mistake changed, so there should be no such table"
