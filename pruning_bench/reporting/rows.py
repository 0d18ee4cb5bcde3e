"""A run and its report as flat rows, one a case; the same for terminal, Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pruning_bench.judging.baseline import Baseline
from pruning_bench.judging.case_ids import case_of, group_of
from pruning_bench.judging.gate import Report
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.processes import Processes, process_mean
from pruning_bench.judging.verdicts import Verdict, too_few_pairs
from pruning_bench.records import Measurement, Run, merge
from pruning_bench.reporting import text
from pruning_bench.reporting.verdict_text import explained

PAPER_SHARE = 0.5  # a case with at most this share of the dense MACs is held against its claim
NO_SPEEDUP = 1.05  # a speed-up that may be below this is none worth the name
MOST_LAYERS = 5  # named in a note; JSON has them all

Metrics = Mapping[str, Measurement]


@dataclass(frozen=True)
class Row:
    """One case of the table, its seeds together; what was not measured is None.

    Args:
        case_id: id without seed.
        settings: what differs from one CPU thread and batch 1, such as "t2 b64".
        seeds: how many seeds `top1` (a share) is the mean of.
        top1_change: to the dense model, a difference of shares.
        score_name, score_unit: of the metric that scores each example; "" for classification.
        score, score_change: its mean over `seeds`, and less that of the dense model.
        bytes, compression: of the saved file; dense size / size.
        macs, macs_share: multiply-accumulates with a nonzero weight; and over those of the dense model.
        latency: seconds per call.
        speedup, speedup_low, speedup_high: dense time / time on the same runtime, with its interval.
        processes: behind the speed-up; one says little of others.
        strongest_speedup, strongest: time of the strongest dense model here / time; and which that is.
        simulation_agreement: of a quantized model, the share of predictions equal to its simulation's, of the first
            `measuring.SIMULATED_EXAMPLES`; of one whose examples have scores, the mean cosine between the outputs.
        simulation_agreement_float: the same of the model just before quantization, for comparison.
        quantized_layers: how many layers the plan quantizes; None where the runtime lists no kernels.
        float_fallbacks: those of them that ran in float all the same, as `layer (operator dtype)`.
        float_weights: where weights alone are quantized: the layers that read them as floats, likewise.
        outcome: the worst of the case's verdicts, "" when nothing of it was judged.
    """

    case_id: str
    model: str
    dataset: str
    recipe: str
    runtime: str
    settings: str = ""
    seeds: int = 0
    top1: float | None = None
    top1_change: float | None = None
    bytes: float | None = None
    compression: float | None = None
    macs: float | None = None
    macs_share: float | None = None
    latency: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    processes: int = 0
    strongest_speedup: float | None = None
    strongest: str = ""
    simulation_agreement: float | None = None
    simulation_agreement_float: float | None = None
    quantized_layers: int | None = None
    float_fallbacks: tuple[str, ...] = ()
    float_weights: tuple[str, ...] = ()
    outcome: str = ""
    note: str = ""
    score_name: str = ""
    score_unit: str = "1"
    score: float | None = None
    score_change: float | None = None


def rows_of(
    run: Run, report: Report, baseline: Baseline | None = None, policy: Policy | None = None
) -> tuple[Row, ...]:
    """Rows of all cases that were selected, in the order of the grid.

    Args:
        baseline: where the spread between processes is known from; None takes that of the run alone.
    """
    policy, baseline = policy or Policy(), baseline or Baseline()
    measured = _by_group(run)
    judged: dict[str, list[Verdict]] = {}
    for verdict in report.verdicts:
        judged.setdefault(group_of(verdict.case_id)[0], []).append(verdict)
    shown = [case.case_id for case in run.cases if case.state in ("ran", "skipped", "error")]
    groups = dict.fromkeys(group_of(case_id)[0] for case_id in (*shown, *(m.case_id for m in run.measurements)))
    known = baseline.own_times(run.environment)
    rows = []
    for group in groups:
        line = known.get((group, "relative_time"))
        row = _measured(group, measured.get(group, {}), line.summary if line else None, policy)
        rows.append(_judged(row, judged.get(group, [])))
    return tuple(_against_dense(row, rows) for row in rows)


def _by_group(run: Run) -> dict[str, dict[int, Metrics]]:
    """id without seed -> seed -> metric -> measurement."""
    found: dict[str, dict[int, dict[str, Measurement]]] = {}
    for m in merge(run.measurements):
        group, seed = group_of(m.case_id)
        found.setdefault(group, {}).setdefault(seed, {})[m.metric] = m
    return {group: dict(sorted(seeds.items())) for group, seeds in found.items()}


def _measured(group: str, seeds: Mapping[int, Metrics], known: Processes | None, policy: Policy) -> Row:
    case = case_of(group)
    if case is None:
        row = Row(group, group, "", "", "")
    else:
        differ = (("" if case.device == "cpu" else case.device), f"t{case.threads}", f"b{case.batch}")
        settings = " ".join(word for word in differ if word not in ("", "t1", "b1"))
        row = Row(group, case.model, case.dataset, case.recipe, case.runtime, settings)
    first = {name: m for metrics in reversed(list(seeds.values())) for name, m in metrics.items()}
    top1 = [metrics["top1"].value for metrics in seeds.values() if "top1" in metrics]
    scores = [m for metrics in seeds.values() for m in metrics.values() if m.rule == "paired" and m.metric != "top1"]
    strongest = first.get("strongest_ratio")
    row = replace(
        row,
        seeds=max(len(top1), len(scores)),
        score_name=scores[0].metric if scores else "",
        score_unit=scores[0].unit if scores else "1",
        score=sum(m.value for m in scores) / len(scores) if scores else None,
        top1=sum(top1) / len(top1) if top1 else None,
        bytes=_value(first, "bytes"),
        macs=_value(first, "macs_effective", "macs"),
        latency=_value(first, "latency"),
        strongest_speedup=1 / strongest.value if strongest and strongest.value else None,
        strongest=str(strongest.detail.get("strongest", "")) if strongest else "",
    )
    alike = first.get("agreement_simulation") or first.get("similarity_simulation")
    row = _quantized(row, alike, first.get("latency"))
    return _timed(row, first.get("relative_time"), known, policy)


def _quantized(row: Row, agreement: Measurement | None, latency: Measurement | None) -> Row:
    """With what tells whether a quantized model runs as quantized; the row as it is for any other."""
    if agreement and "float" in agreement.detail:
        unquantized = agreement.detail["float"]
        row = replace(row, simulation_agreement=agreement.value, simulation_agreement_float=unquantized)
    if latency and "quantized_layers" in latency.detail:
        fallbacks = tuple(map(str, latency.detail.get("float_fallbacks", ())))
        weights = tuple(map(str, latency.detail.get("float_weights", ())))
        layers = latency.detail["quantized_layers"]
        row = replace(row, quantized_layers=layers, float_fallbacks=fallbacks, float_weights=weights)
    return row


def _value(metrics: Metrics, *names: str) -> float | None:
    return next((metrics[name].value for name in names if name in metrics), None)


def _timed(row: Row, ratio: Measurement | None, known: Processes | None, policy: Policy) -> Row:
    if ratio is None or not ratio.samples:
        return row
    if why := too_few_pairs(ratio, policy):
        return replace(row, speedup=1 / ratio.value, processes=len(ratio.samples), note=why)
    estimate = process_mean(Processes.of(ratio.samples, ratio.errors), known)
    low, high = estimate.interval(policy.confidence)
    return replace(
        row,
        speedup=math.exp(-estimate.value),
        speedup_low=math.exp(-high),
        speedup_high=math.exp(-low),
        processes=len(ratio.samples),
    )


def _judged(row: Row, verdicts: Iterable[Verdict]) -> Row:
    worst = min(verdicts, key=lambda v: (not v.fails, v.severity), default=None)
    if worst is None:
        return row
    words = explained(worst)
    note = words if row.note in words else _joined(row.note, words)
    return replace(row, outcome=worst.outcome.value, note=note)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _against_dense(row: Row, rows: Iterable[Row]) -> Row:
    """With what only a look at the dense model tells: the one of the same runtime and settings, if it was measured."""
    same = [r for r in rows if r.recipe == "dense" and (r.model, r.dataset) == (row.model, row.dataset)]
    same.sort(key=lambda r: (r.runtime != row.runtime, r.settings != row.settings))

    def dense(name: str) -> float | None:
        return next((value for r in same if (value := getattr(r, name)) is not None), None)

    top1, size, macs, score = dense("top1"), dense("bytes"), dense("macs"), dense("score")
    row = replace(
        row,
        top1_change=None if row.top1 is None or top1 is None else row.top1 - top1,
        score_change=None if row.score is None or score is None else row.score - score,
        compression=size / row.bytes if size and row.bytes else None,
        macs_share=row.macs / macs if macs and row.macs is not None else None,
    )
    return replace(row, note=_joined(name_only(row), off_simulation(row), paper_claim(row), row.note))


def name_only(row: Row) -> str:
    """In plain words, when layers that the plan quantizes ran in float, or read float weights; "" otherwise.

    Example:
        >>> name_only(Row("", "", "", "", "", quantized_layers=2, float_fallbacks=("fc (Gemm float32)",)))
        'int8 in part only: 1 of 2 quantized layers ran in float: fc (Gemm float32)'
    """
    if row.quantized_layers and (count := len(row.float_weights)):
        which = "all" if count >= row.quantized_layers else f"{count} of"
        return f"smaller on disk: {which} {row.quantized_layers} quantized layers read their weights as floats"
    if not row.quantized_layers or not (count := len(row.float_fallbacks)):
        return ""
    if count >= row.quantized_layers:
        return f"int8 in name only: all {row.quantized_layers} quantized layers ran in float"
    listed = ", ".join(row.float_fallbacks[:MOST_LAYERS]) + (", ..." if count > MOST_LAYERS else "")
    return f"int8 in part only: {count} of {row.quantized_layers} quantized layers ran in float: {listed}"


def off_simulation(row: Row) -> str:
    """In plain words, when the unquantized model predicts more as the simulation does than the runtime; "" otherwise.

    Example:
        >>> off_simulation(Row("", "", "", "", "", simulation_agreement=0.99, simulation_agreement_float=0.998))
        'not what the plan says: predicts as its simulation in 99.00 %, the unquantized model in 99.80 %'
    """
    own, unquantized = row.simulation_agreement, row.simulation_agreement_float
    if own is None or unquantized is None or own >= unquantized:
        return ""
    if row.score_name:
        shares = f"cosine to its simulation {own:.6f}, of the unquantized model {unquantized:.6f}"
        return f"not what the plan says: {shares}"
    shares = f"in {text.percent(own, 2)}, the unquantized model in {text.percent(unquantized, 2)}"
    return f"not what the plan says: predicts as its simulation {shares}"


def paper_claim(row: Row) -> str:
    """In plain words, when MACs went and time did not; "" otherwise.

    Example:
        >>> paper_claim(Row("", "", "", "", "", macs_share=0.1, speedup=1.0, speedup_low=0.98, speedup_high=1.02))
        'removes 90 % of the MACs on paper and none of the time'
    """
    if row.macs_share is None or row.macs_share > PAPER_SHARE or row.speedup_low is None or row.speedup_high is None:
        return ""
    if row.speedup_low > NO_SPEEDUP:
        return ""
    head = f"removes {100 * (1 - row.macs_share):.0f} % of the MACs on paper and"
    if row.speedup_high < 1 / NO_SPEEDUP:
        return f"{head} takes more time"
    return f"{head} none of the time" if row.speedup_high <= NO_SPEEDUP else f"{head} no time that this run can prove"
