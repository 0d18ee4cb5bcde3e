"""The same examples scored before and after: how much worse the mean is, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pruning_bench.judging.policy import Policy
from pruning_bench.judging.statistics import paired_mean, smallest_effect
from pruning_bench.judging.vectors import Scores
from pruning_bench.records import Measurement


@dataclass(frozen=True)
class ScoreChange:
    """What became of n scored examples.

    Args:
        worse, better: how many examples changed which way.
        drop: interval of how much worse the mean is.
        p, mirrored: one-sided p-values of "not worse" and of "not better".
        smallest: the smallest drop that the test could have shown; None where nothing changed at all.
    """

    n: int
    worse: int
    better: int
    drop: tuple[float, float] = (0.0, 0.0)
    p: float = 1.0
    mirrored: float = 1.0
    smallest: float | None = None


def change_of_scores(before: Scores, after: Scores, sign: int, policy: Policy) -> ScoreChange:
    """Paired t test over the examples: the mean of `sign * (after - before)`.

    Args:
        before, after: scores of the same examples, [N], N >= 2.
        sign: +1 where a higher score is worse, -1 where it is better.
        policy: with the score's own margin, see `policy_of`.
    Example:
        >>> ones = np.ones(40, np.float32)
        >>> change_of_scores(ones, ones * 0.5, -1, Policy()).drop, change_of_scores(ones, ones, -1, Policy()).p
        ((0.5, 0.5), 1.0)
    """
    drops = sign * (after.astype(np.float64) - before.astype(np.float64))
    worse, better = int((drops > 0).sum()), int((drops < 0).sum())
    if not worse and not better:
        return ScoreChange(len(drops), 0, 0)
    estimate = paired_mean(drops.tolist())
    return ScoreChange(
        len(drops),
        worse,
        better,
        estimate.interval(policy.confidence),
        estimate.p_above(0.0),
        replace(estimate, value=-estimate.value).p_above(0.0),
        smallest_effect(estimate, policy.accuracy_margin, policy.confidence, policy.power),
    )


def margin_of(now: Measurement) -> float | None:
    """The margin that a score brings along, in its unit; None where there is none, as of accuracy."""
    margin = now.detail.get("margin")
    return margin if isinstance(margin, float) and margin > 0 else None


def policy_of(now: Measurement, policy: Policy) -> Policy:
    """The policy with the margin that a score brings along, in its own unit, instead of that of accuracy.

    Example:
        >>> own = Measurement("case", "ssim", 0.9, "1", "higher", "paired", detail={"margin": 0.02})
        >>> policy_of(own, Policy()).accuracy_margin, round(policy_of(own, Policy()).collapse_margin, 6)
        (0.02, 0.3)
    """
    margin = margin_of(now)
    return policy if margin is None else with_margin(policy, margin)


def with_margin(policy: Policy, margin: float) -> Policy:
    """The policy for a score whose mean may be worse by `margin`, in its unit; > 0."""
    collapse = policy.collapse_margin / policy.accuracy_margin * margin
    return replace(policy, accuracy_margin=margin, collapse_margin=collapse)
