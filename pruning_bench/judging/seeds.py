"""Accuracy of a recipe that trains: the seed is the unit, not the example.

McNemar's test over the examples of one retrained model calls chance between trainings a regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from pruning_bench.errors import RecordError
from pruning_bench.judging.baseline import BaselineLine
from pruning_bench.judging.case_ids import group_of
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.scores import change_of_scores, policy_of
from pruning_bench.judging.statistics import Estimate, drop_interval, paired_mean, smallest_effect
from pruning_bench.judging.vectors import flips
from pruning_bench.judging.verdicts import (
    NO_VECTORS,
    Verdict,
    comparable,
    direction,
    drop_outcome,
    examples,
    finished,
    incomparable,
    signed,
)
from pruning_bench.records import Measurement, Outcome


def judge_seeds(
    now: Mapping[int, Measurement], then: Mapping[int, BaselineLine], policy: Policy | None = None
) -> Verdict:
    """One verdict over all seeds of a case, from the seeds that both have.

    Identical predictions on all of them: PASS. With at least `policy.min_seeds` a paired t test over the seeds'
    accuracies. With fewer only a collapse (a drop beyond `policy.collapse_margin` on each seed) is REGRESSED;
    everything else is INCONCLUSIVE.

    Args:
        now: seed -> measurement of rule "paired"; at least one.
        then: seed -> line of the same case and metric.
    """
    policy = policy or Policy()
    first = now[min(now)]
    mean = sum(m.value for m in now.values()) / len(now)
    case_id = group_of(first.case_id)[0]
    verdict = Verdict(case_id, first.metric, Outcome.NEW, first.rule, first.unit, first.better, mean, n=len(now))
    common = {seed: (now[seed], then[seed]) for seed in sorted(now.keys() & then.keys())}
    if not common:
        return replace(verdict, note="other seeds than the baseline's") if then else verdict
    size = len(common)
    verdict = replace(
        verdict,
        now=sum(m.value for m, _ in common.values()) / size,
        then=sum(line.value for _, line in common.values()) / size,
        n=size,
    )
    flipped, sign, policy = [], direction(verdict.better), policy_of(first, policy)
    for seed, (measurement, line) in common.items():
        try:
            vector = examples(measurement, line)
        except RecordError as problem:
            return finished(replace(verdict, outcome=Outcome.ERROR, note=str(problem)))
        if vector is None or (why := comparable(measurement, line)):
            return incomparable(verdict, f"seed {seed}: {NO_VECTORS if vector is None else why}")
        if vector[0].dtype != np.bool_:
            change = change_of_scores(*vector, sign, policy)
            flipped.append(Flips(change.worse, change.better, change.n, change.drop))
            continue
        lost, gained = flips(*vector)
        flipped.append(Flips(len(lost), len(gained), len(vector[0])))
    drops = [sign * (m.value - line.value) for m, line in common.values()]
    return finished(_tested(replace(verdict, delta=sign * sum(drops) / size), drops, flipped, policy))


class Flips(NamedTuple):
    """Examples lost and gained by one seed, of n; of scored ones, those worse and better, and the drop's interval."""

    lost: int
    gained: int
    n: int
    drop: tuple[float, float] | None = None


def _tested(verdict: Verdict, drops: list[float], flipped: list[Flips], policy: Policy) -> Verdict:
    size = len(drops)
    verdict = replace(verdict, margin=policy.accuracy_margin)
    if not any(seed.lost or seed.gained for seed in flipped):
        note = f"{size} seed{'s' * (size > 1)}, all predictions identical"
        return replace(verdict, outcome=Outcome.PASS, interval=(0.0, 0.0), p=1.0, note=note)
    if size < policy.min_seeds:
        return _few(verdict, flipped, policy)
    estimate = paired_mean(drops)
    drop = estimate.interval(policy.confidence)
    p = estimate.p_above(0.0)
    mirrored = Estimate(-estimate.value, estimate.error, estimate.freedom).p_above(0.0)
    return replace(
        verdict,
        outcome=drop_outcome(drop, p, mirrored, policy),
        interval=signed(drop, verdict.better),
        p=p,
        smallest_detectable=smallest_effect(estimate, policy.accuracy_margin, policy.confidence, policy.power),
        note=f"over {size} seeds",
    )


def _few(verdict: Verdict, flipped: list[Flips], policy: Policy) -> Verdict:
    size = len(flipped)
    needs = f"{size} common seed{'s' * (size > 1)}, needs {policy.min_seeds} to be tested"
    least = min((seed.drop or drop_interval(*seed[:3], policy.confidence))[0] for seed in flipped)
    if least > policy.collapse_margin:
        return replace(verdict, outcome=Outcome.REGRESSED, margin=policy.collapse_margin, note=f"collapsed; {needs}")
    return replace(verdict, outcome=Outcome.INCONCLUSIVE, smallest_detectable=policy.collapse_margin, note=needs)
