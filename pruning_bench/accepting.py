"""`pruning-bench accept`: makes a run the baseline; times are first measured in enough fresh processes."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Collection
from pathlib import Path

from pruning_bench.errors import RecordError
from pruning_bench.judging.acceptance import accept as merged
from pruning_bench.judging.acceptance import refuse_run
from pruning_bench.judging.baseline import (
    ABSOLUTE,
    PORTABLE,
    TIMED,
    BaselineLine,
    Scope,
    differences,
    read_baseline,
    write_baseline,
)
from pruning_bench.judging.case_ids import group_of
from pruning_bench.judging.controls import broken, reason_of
from pruning_bench.judging.gate import runtime_of
from pruning_bench.judging.history import find_run
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.processes import Processes, process_difference
from pruning_bench.judging.verdicts import speed_margin
from pruning_bench.records import Measurement, Run, merge, read_run


def accept(
    results: Path,
    run_id: str,
    *,
    reason: str,
    only: Collection[str] | None = None,
    scope: Scope = "all",
    data: Path | None = None,
    checkpoints: Path | None = None,
) -> str:
    """Changes the baselines by a recorded run; returns what was written, in one line.

    A run times each case in one process; a baseline needs the spread between processes, so that the cases are measured
    again, here and now, in `Policy.min_processes` fresh ones. Baselines are only touched when everything is there: they
    are read once more then, since that takes minutes, and what others wrote meanwhile stays.

    Args:
        only, scope: see `judging.acceptance.accept`.
        data, checkpoints: where the run found its full data and its models, if not the shipped ones.
    Raises:
        RecordError: the run is not fit to be accepted, or times are to be accepted on another machine than the run's.
    """
    run = read_run(find_run(results / "runs", run_id))
    folder = results / "baselines"
    before = read_baseline(folder)
    refuse_run(run, reason)
    if scope == "all" and any(m.rule in PORTABLE for m in run.measurements):
        merged(before, run, reason=reason, only=only, scope="portable")  # what is unfit is refused before the long part
    if scope != "portable":
        run = _with_process_samples(run, only, data, checkpoints)
    after = merged(read_baseline(folder), run, reason=reason, only=only, scope=scope, known=before)
    names = ", ".join(path.name for path in write_baseline(after, folder, scope))
    said = f"accepted {run.id} into {folder}: {names or 'nothing changed'}; review it with git diff"
    measured = {m.case_id for m in run.measurements if m.rule == "speed" and scope != "portable"}
    speeds = [line for line in after.own_times(run.environment).values() if line.rule == "speed"]
    return "\n".join([said, *too_noisy([line for line in speeds if line.case_id in measured])])


def too_noisy(speeds: Collection[BaselineLine], policy: Policy | None = None) -> list[str]:
    """A line that says which accepted speeds cannot show the slow-down that the policy promises; none if all can."""
    policy = policy or Policy()
    wide = sorted(x.case_id for x in speeds if speed_margin(x.spread, policy) > math.log1p(policy.promised_slowdown))
    if not wide:
        return []
    return [
        f"{len(wide)} of {len(speeds)} speeds differ so much between processes that {policy.promised_slowdown:.0%} "
        f"slower will not be seen: {', '.join(wide)}; accept them again while the machine does nothing else"
    ]


def _with_process_samples(run: Run, only: Collection[str] | None, data: Path | None, checkpoints: Path | None) -> Run:
    """The run with each chosen speed and absolute time measured in enough fresh processes."""
    policy = Policy()
    chosen = [m for m in run.measurements if _is_chosen(m.case_id, only)]
    short = sorted({m.case_id for m in chosen if m.rule == "canary"})  # the dense ones too: they bring the controls
    speeds = [m for m in chosen if m.rule == "speed"]
    if not short or (speeds and all(len(m.samples) >= policy.min_processes for m in speeds)):
        return run
    fresh = _measure(run, short, policy, data, checkpoints)
    fresh = [m for m in fresh if m.rule in (*TIMED, "control")]
    if bad := broken(fresh):
        raise RecordError(
            "accept", f"{bad[0].metric} failed ({reason_of(bad[0])})", "controls that hold", bad[0].case_id
        )
    refuse_changed(speeds, merge(fresh), policy)
    recorded = {(m.case_id, m.metric): m.fingerprint for m in run.measurements}
    for m in fresh:
        if recorded.get((m.case_id, m.metric), m.fingerprint) != m.fingerprint:
            expected = "the run's: repeat its --checkpoints or --data"
            raise RecordError("accept", "another checkpoint or data than the run's", expected, m.case_id)
    replaced = {(m.case_id, m.metric) for m in fresh}
    kept = [m for m in run.measurements if (m.case_id, m.metric) not in replaced]
    return dataclasses.replace(run, measurements=(*kept, *merge([*fresh, *_best(fresh)])))


def refuse_changed(recorded: Collection[Measurement], fresh: Collection[Measurement], policy: Policy) -> None:
    """Refuses speeds that the run did not measure: beyond the promised slow-down, and the noise, either way.

    Raises:
        RecordError: the code, or the machine, is not what it was in the run that is to be accepted.
    """
    now = {m.case_id: m for m in fresh if m.rule == "speed"}
    for then in recorded:
        if (found := now.get(then.case_id)) is None or not then.samples or not found.samples:
            continue
        sides = (Processes.of(m.samples, m.errors) for m in (found, then))
        low, high = process_difference(*sides).interval(policy.confidence)
        if max(low, -high) > math.log1p(policy.promised_slowdown):
            values = f"{then.metric} {found.value:.4g} in fresh processes, {then.value:.4g} in the run"
            raise RecordError("accept", values, "the same; run the benchmarks again and accept that", then.case_id)


def _is_chosen(case_id: str, only: Collection[str] | None) -> bool:
    return only is None or case_id in only or group_of(case_id)[0] in only


def _best(fresh: list[Measurement]) -> list[Measurement]:
    """The fastest anchors and yardsticks of several processes: a busy machine only ever slows."""
    times = [m for m in fresh if m.rule in ABSOLUTE]
    return list({(m.case_id, m.metric): m for m in sorted(times, key=lambda m: -m.value)}.values())


def _measure(
    run: Run, case_ids: list[str], policy: Policy, data: Path | None, checkpoints: Path | None
) -> list[Measurement]:
    """Needs torch and this machine; imported here so that portable numbers can be accepted anywhere."""
    from pruning_bench import environment, processes, progress, workbench
    from pruning_bench.models.checkpoints import SHIPPED
    from pruning_bench.registry import RUNTIMES

    bench = workbench.Workbench(folder=data, full=data is not None, checkpoints=checkpoints or SHIPPED)
    device = "cuda" if any("-cuda" in case_id for case_id in case_ids) else "cpu"
    measured = [name.removeprefix("runtime ") for name in run.environment.must_match if name.startswith("runtime ")]
    here = environment.of_suite(RUNTIMES, device, [name for name in measured if name in RUNTIMES])
    if here.key != run.environment.key:
        changed = "; ".join(differences(run.environment.must_match, here.must_match))
        expected = "accepted where they were measured, with the run's own definitions (--import)"
        raise RecordError("accept", f"times of another environment ({changed})", expected, run.id)
    for runtime in sorted({runtime_of(case_id) for case_id in case_ids}):
        if reason := RUNTIMES.ask(runtime, "available", device):
            raise RecordError("accept", reason, "available", runtime)
    print(f"measuring {len(case_ids)} cases in {policy.min_processes} fresh processes", file=sys.stderr)
    with progress.progress_bar() as bar:
        parts = processes.measure_afresh(bench, case_ids, policy.min_processes, seed=1, progress=bar)
    return [m for part in parts for m in part]
