"""Quality of predictions: against plain loops, with ties and NaN; a control that changes exactly what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning_bench.errors import DataError
from pruning_bench.metrics import accuracy

NAN = math.nan
# Few values, so that ties are the rule.
cells = st.sampled_from([0.0, 1.0, 2.0, -1.0, NAN])


@st.composite
def labelled(draw: st.DrawFn, sets: int = 1, element: st.SearchStrategy[float] = cells) -> tuple[Tensor, ...]:
    """`sets` logits [N, C] and labels [N]."""
    n, classes = draw(st.integers(1, 8), label="N"), draw(st.integers(1, 7), label="C")
    rows = st.lists(st.lists(element, min_size=classes, max_size=classes), min_size=n, max_size=n)
    logits = [torch.tensor(draw(rows, label="logits")) for _ in range(sets)]
    return *logits, torch.tensor(draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n), label="labels"))


def predicted(row: list[float]) -> int:
    return -1 if any(map(math.isnan, row)) else row.index(max(row))


def ranked(row: list[float], label: int, k: int) -> bool:
    order = sorted(range(len(row)), key=lambda c: (-row[c], c))
    return not any(map(math.isnan, row)) and label in order[:k]


def check_correct(correct: Callable[[Tensor, Tensor, int], Tensor], logits: Tensor, labels: Tensor, k: int) -> None:
    found = correct(logits, labels, k).tolist()
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    expected = [ranked(row, label, k) for row, label in rows]
    assert found == expected, f"{found}, should be {expected} for k={k}, {logits.tolist()}, {labels.tolist()}"


@settings(deadline=None)
@given(labelled(), st.integers(1, 8))
def test_correct_is_the_rank_with_ties_to_the_lower_class(data: tuple[Tensor, Tensor], k: int) -> None:
    check_correct(accuracy.correct, *data, k)


def optimistic(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Mutant: a tie counts for the label."""
    return (logits > logits.gather(1, labels[:, None])).sum(1) < k


def pessimistic(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Mutant: a tie counts against the label."""
    return (logits >= logits.gather(1, labels[:, None])).sum(1) <= k


def off_by_one(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Mutant: one place too many."""
    return accuracy.correct(logits, labels, k + 1)


@pytest.mark.parametrize(
    ("mutant", "row", "label"),
    [
        (optimistic, [1.0, 1.0], 1),
        (optimistic, [NAN, 1.0], 0),
        (pessimistic, [1.0, 1.0], 0),
        (off_by_one, [1.0, 2.0], 0),
    ],
)
def test_correct_rejects(mutant: Callable[..., Tensor], row: list[float], label: int) -> None:
    data = torch.tensor([row]), torch.tensor([label])
    check_correct(accuracy.correct, *data, 1)
    with pytest.raises(AssertionError):
        check_correct(mutant, *data, 1)


@settings(deadline=None)
@given(labelled())
def test_predictions_are_first_maxima(data: tuple[Tensor, Tensor]) -> None:
    logits, labels = data
    found, expected = accuracy.predictions(logits).tolist(), [predicted(row) for row in logits.tolist()]
    assert found == expected, f"{found}, should be {expected} for {logits.tolist()}"
    same = (accuracy.predictions(logits) == labels).tolist()
    assert accuracy.correct(logits, labels).tolist() == same, f"top-1 of {logits.tolist()} should be its prediction"


@settings(deadline=None)
@given(labelled())
def test_scores_fit_together(data: tuple[Tensor, Tensor]) -> None:
    logits, labels = data
    n, classes = logits.shape
    confusion, per_class = accuracy.confusion_matrix(logits, labels), accuracy.per_class_accuracy(logits, labels)
    top1, top5 = accuracy.top1(logits, labels), accuracy.top5(logits, labels)
    expected = torch.zeros(classes, classes, dtype=torch.int64)
    for label, guess in zip(labels.tolist(), accuracy.predictions(logits).tolist(), strict=True):
        if guess >= 0:
            expected[label, guess] += 1
    assert confusion.tolist() == expected.tolist(), f"{confusion.tolist()}, not {expected.tolist()}"
    right = int(confusion.diagonal().sum())
    assert top1 == pytest.approx(right / n), f"top-1 {top1}, but {right} of {n} on the diagonal"
    assert top1 <= top5 <= 1, f"top-1 {top1} and top-5 {top5}"
    counts = torch.bincount(labels, minlength=classes).tolist()
    mean = sum(a * c for a, c in zip(per_class, counts, strict=True) if a is not None) / n
    assert mean == pytest.approx(top1), f"classes average {mean}, but top-1 is {top1}"
    absent = [a is None for a in per_class]
    assert absent == [c == 0 for c in counts], f"{per_class} for {counts} examples a class"


@settings(deadline=None)
@given(labelled(element=st.floats(-80, 80, width=32)))
def test_loss_is_the_definition(data: tuple[Tensor, Tensor]) -> None:
    logits, labels = data
    rows = list(zip(logits.tolist(), labels.tolist(), strict=True))
    terms = [max(row) + math.log(math.fsum(math.exp(z - max(row)) for z in row)) - row[y] for row, y in rows]
    found, expected = accuracy.cross_entropy(logits, labels), math.fsum(terms) / len(terms)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12), f"loss {found}, should be {expected}"


def test_loss_of_nan_is_nan() -> None:
    loss = accuracy.cross_entropy(torch.tensor([[NAN, 0.0]]), torch.tensor([1]))
    assert math.isnan(loss), f"loss {loss}, should be NaN, which no record takes"


def sure(confidences: list[float]) -> Tensor:
    """Two-class logits whose softmax gives class 0 these confidences, each at least 1/2."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p, 1 - p], 1).log()


def binned(logits: Tensor, labels: Tensor) -> float:
    """The definition, bin by bin and example by example."""
    bins: dict[int, list[tuple[bool, float]]] = {}
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        best = max(row)
        confidence = 1 / math.fsum(math.exp(z - best) for z in row)
        bins.setdefault(math.ceil(15 * confidence), []).append((predicted(row) == label, confidence))
    gaps = []
    for members in bins.values():
        right, confidences = zip(*members, strict=True)
        gaps.append(len(members) * abs(sum(right) / len(members) - math.fsum(confidences) / len(members)))
    return math.fsum(gaps) / len(labels)


def check_calibration_error(error: Callable[[Tensor, Tensor], float], logits: Tensor, labels: Tensor) -> None:
    found, expected = error(logits, labels), binned(logits, labels)
    assert found == pytest.approx(expected, abs=1e-9), (
        f"ECE {found}, should be {expected} for {logits.tolist()}, {labels.tolist()}"
    )


@settings(deadline=None)
@given(labelled(element=st.floats(-9, 9, width=32)))
def test_calibration_error_is_the_definition(data: tuple[Tensor, Tensor]) -> None:
    logits, labels = data
    places = logits.double().softmax(1).amax(1) * 15
    assume(bool(((places - places.round()).abs() > 1e-6).all()))  # at the edge of a bin a rounding error may decide
    check_calibration_error(accuracy.calibration_error, logits, labels)


@settings(deadline=None)
@given(labelled(element=st.floats(-80, 80, width=32)), st.randoms(use_true_random=False))
def test_calibration_error_is_a_share_that_no_order_changes(data: tuple[Tensor, Tensor], chance: Any) -> None:
    logits, labels = data
    found = accuracy.calibration_error(logits, labels)
    assert 0 <= found <= 1 + 1e-12, f"ECE {found}, should be in [0, 1]"
    order = list(range(len(labels)))
    chance.shuffle(order)
    again = accuracy.calibration_error(logits[order], labels[order])
    assert again == pytest.approx(found, abs=1e-12), f"ECE {again} in the order {order}, should be {found}"


@settings(deadline=None)
@given(st.lists(st.integers(5, 10), min_size=1, max_size=6, unique=True))
def test_a_calibrated_model_has_no_calibration_error(tenths: list[int]) -> None:
    # Of ten examples that are k tenths sure k are right.
    logits = sure([k / 10 for k in tenths for _ in range(10)])
    labels = torch.tensor([int(i >= k) for k in tenths for i in range(10)])
    found = accuracy.calibration_error(logits, labels)
    assert found == pytest.approx(0, abs=1e-12), f"ECE {found} of a calibrated model, should be 0"


@pytest.mark.parametrize(("labels", "expected"), [([0, 0], 0.0), ([1, 1], 1.0), ([0, 1], 0.5)])
def test_calibration_error_reaches_its_bounds(labels: list[int], expected: float) -> None:
    found = accuracy.calibration_error(torch.tensor([[99.0, -99.0]] * 2), torch.tensor(labels))
    assert found == pytest.approx(expected), f"ECE {found}, should be {expected}"


def test_calibration_error_of_nan_is_nan() -> None:
    found = accuracy.calibration_error(torch.tensor([[NAN, 0.0], [1.0, 0.0]]), torch.tensor([1, 0]))
    assert math.isnan(found), f"ECE {found}, should be NaN, which no record takes"


def of_bins(weigh: Callable[[Tensor, Tensor, Tensor], float], count: int = 15) -> Callable[[Tensor, Tensor], float]:
    """A calibration error from each bin's examples, accuracies less confidences."""

    def error(logits: Tensor, labels: Tensor) -> float:
        confidence = logits.softmax(1).amax(1)
        gaps = accuracy.correct(logits, labels).double() - confidence
        index = (confidence * count).ceil().long() - 1
        sizes = torch.bincount(index, minlength=count)
        return weigh(gaps, sizes, torch.bincount(index, weights=gaps, minlength=count))

    return error


def weighted(gaps: Tensor, sizes: Tensor, sums: Tensor) -> float:
    """No mutant: the definition."""
    return float(sums.abs().sum() / len(gaps))


def unweighted(gaps: Tensor, sizes: Tensor, sums: Tensor) -> float:
    """Mutant: every bin counts the same, however many examples it holds."""
    return float((sums.abs() / sizes.clamp(min=1)).sum() / (sizes > 0).sum())


def signed(gaps: Tensor, sizes: Tensor, sums: Tensor) -> float:
    """Mutant: too sure in one bin makes up for too doubtful in another."""
    return float(sums.sum().abs() / len(gaps))


def by_example(gaps: Tensor, sizes: Tensor, sums: Tensor) -> float:
    """Mutant: no bins, so that a calibrated model has an error."""
    return float(gaps.abs().mean())


def worst(gaps: Tensor, sizes: Tensor, sums: Tensor) -> float:
    """Mutant: the maximum calibration error."""
    return float((sums.abs() / sizes.clamp(min=1)).max())


# Two bins of three examples and one; the larger is too sure, the smaller too doubtful.
UNEVEN = sure([0.95, 0.95, 0.95, 0.55]), torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(of_bins(unweighted), id="unweighted"),
        pytest.param(of_bins(signed), id="signed"),
        pytest.param(of_bins(by_example), id="by example"),
        pytest.param(of_bins(worst), id="worst"),
        pytest.param(of_bins(weighted, count=1), id="one bin"),
    ],
)
def test_calibration_error_rejects(mutant: Callable[[Tensor, Tensor], float]) -> None:
    check_calibration_error(of_bins(weighted), *UNEVEN)
    with pytest.raises(AssertionError):
        check_calibration_error(mutant, *UNEVEN)


@settings(deadline=None)
@given(labelled(sets=2))
def test_flips_explain_the_change(data: tuple[Tensor, Tensor, Tensor]) -> None:
    before, after, labels = data
    n, flips = len(labels), accuracy.flips(before, after, labels)
    change = (accuracy.top1(after, labels) - accuracy.top1(before, labels)) * n
    assert change == pytest.approx(flips.wrong_to_right - flips.right_to_wrong), f"{flips} for a change of {change}"
    assert flips.right_to_wrong + flips.wrong_to_right <= flips.count <= n, f"{flips} of {n}"
    for label, of_class in enumerate(accuracy.flips_per_class(before, after, labels)):
        own = labels == label
        parts = before[own], after[own], labels[own]
        expected = accuracy.flips(*parts) if own.any() else accuracy.Flips(0, 0, 0)
        assert of_class == expected, f"{of_class} of class {label}, should be {expected}"
    agreement = accuracy.agreement(before, after)
    assert agreement == pytest.approx(1 - flips.count / n), f"agreement {agreement} with {flips.count} flips of {n}"
    assert agreement == accuracy.agreement(after, before), "agreement should be symmetric"


@settings(deadline=None)
@given(labelled(element=st.floats(-9, 9, width=32)))
def test_a_model_agrees_with_itself(data: tuple[Tensor, Tensor]) -> None:
    logits, labels = data
    assert accuracy.agreement(logits, logits.double() * 2) == 1, "scaled logits should predict the same"
    assert accuracy.flips(logits, logits, labels) == accuracy.Flips(0, 0, 0), "nothing should have flipped"


def test_what_is_nan_agrees_with_nothing() -> None:
    logits = torch.tensor([[NAN, 1.0], [0.0, 1.0]])
    assert accuracy.agreement(logits, logits) == 0.5, f"{accuracy.agreement(logits, logits)}, should be 0.5"


@settings(deadline=None)
@given(labelled(), st.data())
def test_injected_flips_are_exactly_those(data: tuple[Tensor, Tensor], more: st.DataObject) -> None:
    logits, labels = data
    right = int(accuracy.correct(logits, labels).sum()) if logits.shape[1] > 1 else 0
    count = more.draw(st.integers(0, right), label="count")
    if logits.shape[1] < 2:
        return
    kept = logits.clone()
    changed = accuracy.with_flips(logits, labels, count, torch.Generator().manual_seed(0))
    flips = accuracy.flips(logits, changed, labels)
    broken = int(logits.isnan().any(1).sum())  # these never agree
    expected = accuracy.Flips(count + broken, count, 0)
    assert flips == expected, f"{flips}, should be {expected} for {logits.tolist()} -> {changed.tolist()}"
    assert torch.equal(logits.nan_to_num(9), kept.nan_to_num(9)), "the logits that came in should not change"


BAD: dict[str, tuple[Any, Any]] = {
    "one dimension": (torch.zeros(3), torch.tensor([0])),
    "no example": (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
    "no class": (torch.zeros(3, 0), torch.zeros(3, dtype=torch.int64)),
    "integers": (torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0])),
    "too few labels": (torch.zeros(2, 3), torch.tensor([0])),
    "labels in a column": (torch.zeros(2, 3), torch.tensor([[0], [0]])),
    "labels of bytes": (torch.zeros(1, 3), torch.tensor([0], dtype=torch.uint8)),
    "a label too high": (torch.zeros(1, 3), torch.tensor([3])),
    "a negative label": (torch.zeros(1, 3), torch.tensor([-1])),
}


EVERY = (
    *(accuracy.top1, accuracy.top5, accuracy.cross_entropy, accuracy.calibration_error, accuracy.correct),
    *(accuracy.confusion_matrix, accuracy.per_class_accuracy),
)


@pytest.mark.parametrize("function", EVERY, ids=lambda function: function.__name__)
@pytest.mark.parametrize("name", BAD)
def test_wrong_shapes_and_labels(name: str, function: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="should be"):
        function(*BAD[name])


def test_logits_of_different_shapes() -> None:
    with pytest.raises(DataError, match="of one shape"):
        accuracy.agreement(torch.zeros(2, 3), torch.zeros(3, 3))


def test_more_flips_than_right_predictions() -> None:
    with pytest.raises(DataError, match="at most 1"):
        accuracy.with_flips(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), 2, torch.Generator())
