"""Case -> list[Measurement], by family: quality, footprint, latency."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pruning_bench import recipe as grammar
from pruning_bench.artifacts import file_sizes
from pruning_bench.cases import Case, parse_id
from pruning_bench.errors import PluginError
from pruning_bench.judging.controls import broken, same_holds, slower_holds
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.statistics import (
    Estimate,
    bootstrap_error,
    estimate_log_ratio,
    q10,
    q10_log_ratio,
)
from pruning_bench.metrics.contract import Evaluation
from pruning_bench.metrics.cost import count_cost
from pruning_bench.metrics.latency import Samples, sample, slowed
from pruning_bench.metrics.memory import peak_memory
from pruning_bench.quantization.contract import QuantizationTags, QuantPlan
from pruning_bench.quantization.places import layer_of_weight
from pruning_bench.records import Measurement
from pruning_bench.registry import DATASETS, METRICS, RUNTIMES, STEPS
from pruning_bench.rivals import is_rival, name_of, rival_calls
from pruning_bench.runtimes.contract import Kernel, clock_of, torch_threads
from pruning_bench.runtimes.kernels import float_fallbacks, float_weights
from pruning_bench.tasks import Record, task_of
from pruning_bench.workbench import Workbench
from pruning_bench.yardstick import yardstick

LATENCY_SECONDS = 3.0  # of one case; used up, sampling ends at the least number of pairs
SIMULATED_EXAMPLES = 2_000  # simulations are slow, and this many tell whether a runtime runs something else
SLOWED, YARDSTICK = "slowed anchor", "yardstick"
ATTEMPTS = 2


@dataclass(frozen=True)
class Family:
    """A kind of benchmark: what it measures of a case, and of which cases.

    Args:
        measure: (workbench, case) -> measurements.
        due: case -> names of the metrics that it must record.
        covers: whether a case belongs to it.
    """

    measure: Callable[[Workbench, Case], list[Measurement]]
    due: Callable[[Case], tuple[str, ...]]
    covers: Callable[[Case], bool]


def measure(case: Case | str, workbench: Workbench | None = None) -> list[Measurement]:
    """All measurements of one case.

    Raises:
        UnavailableError: the runtime or device is not here.
        PruningBenchError: the case cannot be built.
    """
    case = parse_id(case) if isinstance(case, str) else case
    bench = workbench or Workbench()
    return [m for family in FAMILIES.values() if family.covers(case) for m in family.measure(bench, case)]


def measure_quality(bench: Workbench, case: Case) -> list[Measurement]:
    """Quality on the test examples, and how alike the outputs are to the dense model's and the simulation's.

    Outputs that depend on this machine are shown and not judged: baselines of quality hold on every machine.
    """
    task, record = task_of(DATASETS[case.dataset]), _recorder(bench, case)
    outputs, dense = bench.logits(case), bench.logits(case.dense)
    targets = bench.dataset(case.dataset).test.targets
    seen = Evaluation(outputs, targets, dense, bench.compressed(case).float_model, bench.example_inputs(case))
    measured = task.measure(record, seen)
    if task.against_simulation in _quality_due(case):
        simulated, detail = bench.simulated_logits(case, SIMULATED_EXAMPLES), {}
        plan = bench.compressed(case).quant_plan
        if plan is not None and plan.dtype is None:
            detail = {"float": task.alike(bench.float_logits(case, SIMULATED_EXAMPLES), simulated)}
        alike = task.alike(outputs[:SIMULATED_EXAMPLES], simulated)
        measured.append(record(task.against_simulation, alike, detail=detail))
    if case == case.dense and (control := task.control(record, seen)):
        measured.append(control)
    measured += [record(name, METRICS[name].compute(seen)) for name in METRICS if METRICS[name].compute]
    depends = getattr(RUNTIMES[case.runtime], "depends", None)
    bound = depends is not None and depends(bench.compressed(case))
    return [replace(found, rule="shown") for found in measured] if bound else measured


def measure_footprint(bench: Workbench, case: Case) -> list[Measurement]:
    """Parameters, bytes of the file that `compress -o` writes, and MACs of one example."""
    compressed = bench.compressed(case)
    cost = count_cost(compressed.float_model, bench.example_inputs(case))
    raw, zipped = file_sizes(compressed)
    record = _recorder(bench, case)
    return [
        record("params", cost.params),
        record("nonzeros", cost.nonzeros),
        record("bytes", raw),
        record("bytes_zipped", zipped),
        record("macs", cost.macs),
        record("macs_effective", cost.macs_effective),
    ]


def measure_latency(bench: Workbench, case: Case, *, seed: int = 0) -> list[Measurement]:
    """Time of one call beside the dense anchor's, interleaved; its controls, kernels and peak memory.

    The anchor is the dense model on the same runtime. The dense models on the other runtimes, and their casts where the
    run has any, run along, so that the ratio to the strongest of them comes from the same blocks; a dense case is its
    own anchor and takes the controls.
    """
    with torch_threads(case.threads):  # runtimes set the process's for the time of the measurement
        return _time(bench, case, seed)


def _time(bench: Workbench, case: Case, seed: int) -> list[Measurement]:
    policy = Policy()
    inputs = tuple(x.repeat(case.batch, *[1] * (x.dim() - 1)) for x in bench.example_inputs(case))
    session = bench.session(case)
    if not session.timed:
        raise PluginError(case.runtime, "a session that only simulates", "one that is timed, or `simulates_quantized`")
    call, anchor = session.bind(*inputs), bench.session(case.dense).bind(*inputs)
    others = rival_calls(bench, case, inputs, anchor, session.clock)
    if case.device == "cpu" and session.clock is clock_of("cpu"):  # another clock does not tell the time of its work
        others[YARDSTICK] = yardstick()
    if case == case.dense:
        others[SLOWED] = slowed(anchor, policy.promised_slowdown, session.clock)
    peak = peak_memory(call, case.device)
    seed = zlib.crc32(f"{case} {seed}".encode())
    record = _recorder(bench, case)
    for attempt in range(ATTEMPTS):  # a hiccup of the machine may spoil one; a machine that is unfit spoils them all
        taken = sample(
            anchor,
            call,
            others=others,
            seed=seed + attempt,
            enough=narrow(policy, seed),
            min_pairs=policy.min_pairs,
            max_pairs=policy.max_pairs,
            twin_every=1 if case == case.dense else 0,
            block_seconds=1e-3 if case.device == "cpu" else 2e-3,
            budget_seconds=LATENCY_SECONDS,
            clock=session.clock,
        )
        controls = _controls(record, taken, policy, seed) if case == case.dense else []
        if not broken(controls):
            break
    ratio = estimate_log_ratio(taken.case, taken.anchor, seed=seed, draws=policy.bootstrap_draws)
    ran = kernel_detail(session.kernels, bench.compressed(case).quant_plan)
    how = {"pairs": len(taken.case), "settled": taken.settled, "stopped": taken.stopped}
    relative = record("relative_time", math.exp(ratio.value), samples=(ratio.value,), errors=(ratio.error,), detail=how)
    if case == case.dense:  # the same code on both sides: the twin judges that
        relative = replace(relative, rule="shown")
    return [
        record("latency", q10(taken.case), samples=taken.case, detail=ran),
        record("anchor_latency", q10(taken.anchor), samples=taken.anchor),
        relative,
        _strongest(record, bench, case, taken),
        *controls,
        *([record("yardstick", q10(taken.others[YARDSTICK]))] if YARDSTICK in taken.others else []),
        *([record("peak_memory", peak.bytes)] if peak.bytes is not None else []),
    ]


def kernel_detail(kernels: Sequence[Kernel], plan: QuantPlan | None) -> dict[str, Any]:
    """What ran, layer by layer, and which of the layers whose inputs the plan quantizes fell back to float.

    Of a plan for weights alone, whose layers compute in float by intent: which of them read their weights as floats. A
    layer whose name the runtime has lost counts as one of the plan's.
    """
    listed = [f"{kernel.layer} {kernel.operator} {kernel.dtype}" for kernel in kernels]
    if plan is None or not plan.weights or not kernels:
        return {"kernels": listed}
    planned = {layer_of_weight(name) for name in plan.weights}
    own = [kernel for kernel in kernels if kernel.layer in {"", *planned}]
    found = {"float_weights": float_weights(own)} if plan.weights_only else {"float_fallbacks": float_fallbacks(own)}
    return {"kernels": listed, "quantized_layers": len(planned), **{name: list(value) for name, value in found.items()}}


def simulates(case: Case) -> bool:
    """Whether the runtime only simulates this case, so that its time means nothing."""
    tags = [STEPS[step.name].tags for step in grammar.parse(case.recipe).steps()]
    quantizes = any(
        not found.casts if isinstance(found, QuantizationTags) else getattr(found, "quantizes", False) for found in tags
    )
    return quantizes and getattr(RUNTIMES[case.runtime], "simulates_quantized", False)


def narrow(policy: Policy, seed: int) -> Callable[[Sequence[tuple[float, float]]], bool]:
    """Stopping rule of `sample`: the ratio's interval is narrower than half the smallest margin on either side."""

    def enough(pairs: Sequence[tuple[float, float]]) -> bool:
        anchor, case = zip(*pairs, strict=True)
        error = bootstrap_error(case, anchor, seed=seed, draws=policy.bootstrap_draws)
        low, high = Estimate(0.0, error).interval(policy.confidence)
        return high - low < policy.speed_floor

    return enough


def _recorder(bench: Workbench, case: Case) -> Record:
    """Makes measurements of a case that depend on its checkpoint and data."""
    depends = {"checkpoint": bench.card(case)["sha256"], "data": bench.dataset(case.dataset).digest}

    def record(metric: str, value: float, **further: Any) -> Measurement:
        measurement: Measurement = METRICS[metric].measurement(str(case), value, depends, **further)
        return measurement

    return record


def _strongest(record: Record, bench: Workbench, case: Case, taken: Samples) -> Measurement:
    dense = {name_of(case.dense): taken.anchor}
    dense |= {name: times for name, times in taken.others.items() if name not in (SLOWED, YARDSTICK)}
    if is_rival(bench, case):
        dense[name_of(case)] = taken.case
    strongest = min(dense, key=lambda name: q10(dense[name]))
    ratio = math.exp(q10_log_ratio(taken.case, dense[strongest]))
    return record("strongest_ratio", ratio, detail={"strongest": strongest})


def _controls(record: Record, taken: Samples, policy: Policy, seed: int) -> list[Measurement]:
    """An anchor against itself, which must not differ, and one slowed down, which must; none of too few pairs."""
    if taken.stopped == "cut":
        return []
    anchor, twin = zip(*taken.twin_pairs, strict=True)
    same = estimate_log_ratio(twin, anchor, seed=seed, draws=policy.bootstrap_draws)
    slow = estimate_log_ratio(taken.others[SLOWED], taken.anchor, seed=seed, draws=policy.bootstrap_draws)
    return [
        _control(record, "twin", same, same_holds(same, policy), policy),
        _control(record, "slowed_twin", slow, slower_holds(slow, policy), policy),
    ]


def _control(record: Record, metric: str, estimate: Estimate, holds: bool, policy: Policy) -> Measurement:
    low, high = map(math.expm1, estimate.interval(policy.confidence))
    why = f"{policy.confidence:.0%} interval {low:+.1%} to {high:+.1%}"
    return record(metric, math.exp(estimate.value), detail={"holds": holds, "why": why})


def _quality_due(case: Case) -> tuple[str, ...]:
    task = task_of(DATASETS[case.dataset])
    shared = (*task.due, *(name for name in METRICS if METRICS[name].compute))
    simulates_itself = getattr(RUNTIMES[case.runtime], "simulates_quantized", False)
    return shared if simulates_itself or case.seed else (*shared, task.against_simulation)


FAMILIES = {
    "quality": Family(measure_quality, _quality_due, lambda case: case.labelled),
    "footprint": Family(
        measure_footprint,
        lambda case: ("params", "nonzeros", "bytes", "bytes_zipped", "macs", "macs_effective"),
        lambda case: case.seed == 0,
    ),
    "latency": Family(
        measure_latency,
        lambda case: ("latency", "anchor_latency", "relative_time", "strongest_ratio"),
        lambda case: case.seed == 0 and not simulates(case),
    ),
}
