"""Quality of predictions, from logits and labels alone.

Two conventions, kept by every function here. Ties: of equal logits the class with the lower index ranks higher, so the
prediction is the first maximum. NaN: an example with a NaN logit has no prediction; it counts as wrong and as
disagreeing with everything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pruning_bench.errors import DataError

NO_PREDICTION = -1
CALIBRATION_BINS = 15  # as in Guo et al., so that numbers compare with published ones


def predictions(logits: Tensor) -> Tensor:
    """The predicted class of every example: `argmax_c logits[n, c]`, the first of equal maxima.

    Args:
        logits: [N, C], any floating type.
    Returns:
        int64 [N], in [0, C), or -1 where a logit is NaN.
    Raises:
        DataError: not [N, C] with at least one example and one class.

    Example:
        >>> predictions(torch.tensor([[1.0, 3.0, 3.0], [0.0, float("nan"), 1.0]])).tolist()
        [1, -1]
    """
    _check(logits)
    return torch.where(logits.isnan().any(1), NO_PREDICTION, _first_maximum(logits))


def correct(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Whether each example's label is among its k highest logits: bool [N].

    `rank_n = #{c: z_c > z_y} + #{c < y: z_c = z_y} < k`; with k >= C every example without NaN is right.

    Args:
        logits: [N, C].
        labels: int64 [N], in [0, C).
        k: >= 1.
    Raises:
        DataError: shapes that do not fit, or a label outside [0, C).

    Example:
        >>> z, y = torch.tensor([[1.0, 3.0, 3.0], [5.0, 1.0, 2.0]]), torch.tensor([2, 0])
        >>> correct(z, y).tolist(), correct(z, y, k=2).tolist()
        ([False, True], [True, True])
    """
    _check(logits, labels)
    own = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & before)).sum(1)
    return (rank < k) & ~logits.isnan().any(1)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of examples whose prediction is their label, in [0, 1]."""
    return correct(logits, labels).double().mean().item()


def top5(logits: Tensor, labels: Tensor) -> float:
    """Share of examples whose label is among the five highest logits, in [0, 1]; 1 for up to five classes."""
    return correct(logits, labels, k=5).double().mean().item()


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood (NLL) of the labels, in nats, computed in float64; NaN if any logit is NaN.

    `-log softmax(z)_y = log sum_c exp(z_c) - z_y`, averaged over the examples.

    Example:
        >>> round(cross_entropy(torch.zeros(3, 4), torch.tensor([0, 1, 2])), 6)  # log 4
        1.386294
    """
    _check(logits, labels)
    return functional.cross_entropy(logits.double(), labels).item()


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error (ECE): how far confidence and accuracy are apart; in [0, 1], 0 is best.

    `ECE = sum_b n_b / N * |accuracy_b - confidence_b|` over 15 bins of equal width: bin b holds the n_b examples whose
    confidence, `max_c softmax(z)_c`, is in (b / 15, (b + 1) / 15]; accuracy_b is the share of them predicted right,
    confidence_b their mean confidence. Computed in float64; NaN if any logit is NaN.

    Reference: Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015; with the
    prediction's confidence as in Guo et al., On calibration of modern neural networks, ICML 2017, arXiv 1706.04599.

    Args:
        logits: [N, C].
        labels: int64 [N], in [0, C).
    Raises:
        DataError: shapes that do not fit, or a label outside [0, C).

    Example:
        >>> z = torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log()  # 75 % sure, and right half of the time
        >>> round(calibration_error(z, torch.tensor([0, 1])), 6)
        0.25
    """
    right = correct(logits, labels).double()
    confidence = logits.double().softmax(1).amax(1)
    bins = (confidence.nan_to_num(1.0) * CALIBRATION_BINS).ceil().clamp(1, CALIBRATION_BINS).long() - 1
    # n_b * |accuracy_b - confidence_b| is the size of the sum of the differences in a bin.
    gaps = torch.bincount(bins, weights=right - confidence, minlength=CALIBRATION_BINS)
    return (gaps.abs().sum() / len(labels)).item()


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts of (label, prediction): int64 [C, C], rows are labels; examples without a prediction are left out.

    Example:
        >>> confusion_matrix(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])).tolist()
        [[1, 0], [1, 1]]
    """
    _check(logits, labels)
    predicted, classes = predictions(logits), logits.shape[1]
    made = predicted != NO_PREDICTION
    cells = labels[made] * classes + predicted[made]
    return torch.bincount(cells, minlength=classes**2).view(classes, classes)


def per_class_accuracy(logits: Tensor, labels: Tensor) -> tuple[float | None, ...]:
    """For every class the share of its examples that are predicted right; None for a class without examples.

    Example:
        >>> per_class_accuracy(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([0, 1]))
        (1.0, 0.0, None)
    """
    right, classes = correct(logits, labels), logits.shape[1]
    hits = torch.bincount(labels[right], minlength=classes).tolist()
    totals = torch.bincount(labels, minlength=classes).tolist()
    return tuple(hit / total if total else None for hit, total in zip(hits, totals, strict=True))


def agreement(logits_a: Tensor, logits_b: Tensor) -> float:
    """Share of examples on which two models predict the same class, in [0, 1]; symmetric.

    Example:
        >>> agreement(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        0.5
    """
    return agreeing(logits_a, logits_b).double().mean().item()


def agreeing(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """On which examples two models predict the same class: bool [N]; raises `DataError` when the shapes differ."""
    if logits_a.shape != logits_b.shape:
        found = f"logits of shapes {list(logits_a.shape)} and {list(logits_b.shape)}"
        raise DataError("agreement", found, "of one shape")
    a, b = predictions(logits_a), predictions(logits_b)
    return (a == b) & (a != NO_PREDICTION)


@dataclass(frozen=True)
class Flips:
    """Examples whose prediction changed.

    Args:
        count: all of them; also those that went from one wrong class to another.
        right_to_wrong, wrong_to_right: their difference over N is the change in top-1.
    """

    count: int
    right_to_wrong: int
    wrong_to_right: int


def flips(before: Tensor, after: Tensor, labels: Tensor) -> Flips:
    """What changed between two models' predictions on the same examples.

    Args:
        before, after: logits [N, C].
        labels: int64 [N].

    Example:
        >>> flips(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        Flips(count=2, right_to_wrong=1, wrong_to_right=1)
    """
    return Flips(*(int(chosen.sum()) for chosen in _flipped(before, after, labels)))


def flips_per_class(before: Tensor, after: Tensor, labels: Tensor) -> tuple[Flips, ...]:
    """`flips` among the examples of each label; over all classes they add up to those of all examples.

    Args:
        before, after: logits [N, C].
        labels: int64 [N].

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> flips_per_class(z, z.flip(1), torch.tensor([0, 0]))
        (Flips(count=2, right_to_wrong=2, wrong_to_right=0), Flips(count=0, right_to_wrong=0, wrong_to_right=0))
    """
    classes = before.shape[1]
    counts = [torch.bincount(labels[chosen], minlength=classes).tolist() for chosen in _flipped(before, after, labels)]
    return tuple(Flips(*of_class) for of_class in zip(*counts, strict=True))


def _flipped(before: Tensor, after: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which examples changed at all, from right to wrong, from wrong to right: bool [N] each."""
    was, now = correct(before, labels), correct(after, labels)
    return ~agreeing(before, after), was & ~now, ~was & now


def with_flips(logits: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Logits in which `count` right predictions, drawn at random, are made wrong; a control that a judge must catch.

    The two highest logits of such an example change places. Raises `DataError` when fewer than `count` are right.
    """
    right = correct(logits, labels).nonzero().flatten()
    if count > len(right) or logits.shape[1] < 2:
        raise DataError("with_flips", f"{count} flips", f"at most {len(right)}, of two classes or more")
    chosen = right[torch.randperm(len(right), generator=generator)[:count].to(right.device)]
    best = labels[chosen]
    second = _first_maximum(logits[chosen].scatter(1, best[:, None], -torch.inf))
    second = torch.where(second == best, (best + 1) % logits.shape[1], second)
    top, next_ = logits[chosen, best], logits[chosen, second]
    result = logits.clone()
    result[chosen, second] = top
    # Equal logits would leave the label the prediction where it has the lower index.
    result[chosen, best] = torch.where(next_ < top, next_, -torch.inf)
    return result


def _first_maximum(logits: Tensor) -> Tensor:
    # argmax promises the first of equal maxima on no device but in its prose, so the rule is spelled out.
    index = torch.arange(logits.shape[1], device=logits.device)
    at_maximum = logits == logits.amax(1, keepdim=True)
    return torch.where(at_maximum, index, logits.shape[1] - 1).amin(1)


def _check(logits: Tensor, labels: Tensor | None = None) -> None:
    shape = list(logits.shape)
    if logits.ndim != 2 or 0 in shape or not logits.is_floating_point():
        raise DataError("logits", f"{logits.dtype} {shape}", "floating point [N, C], neither zero")
    if labels is None:
        return
    if labels.dtype != torch.int64 or list(labels.shape) != shape[:1]:
        raise DataError("labels", f"{labels.dtype} {list(labels.shape)}", f"torch.int64 [{shape[0]}]")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= shape[1]:
        raise DataError("labels", f"values {low} to {high}", f"in [0, {shape[1]})")
