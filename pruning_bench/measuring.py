"""Case -> list[Measurement], by family: quality, footprint, latency."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pruning_bench import recipe as grammar
from pruning_bench.artifacts import file_sizes
from pruning_bench.cases import Case, parse_id
from pruning_bench.judging import statistics
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.vectors import pack
from pruning_bench.metrics import accuracy, cost, latency, memory
from pruning_bench.quantization.contract import QuantizationTags
from pruning_bench.records import Measurement, digest_of
from pruning_bench.registry import METRICS, RUNTIMES, STEPS
from pruning_bench.workbench import Workbench


@dataclass(frozen=True)
class Family:
    """A kind of benchmark: what it measures of a case, and of which cases.

    Args:
        measure: (workbench, case) -> measurements.
        due: names of the metrics that it must record.
        covers: whether a case belongs to it.
    """

    name: str
    measure: Callable[[Workbench, Case], list[Measurement]]
    due: tuple[str, ...]
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
    """Accuracy on the test split, and how often the outputs agree with the dense model's and the simulation's."""
    labels = bench.dataset(case.dataset).test.labels
    logits = bench.logits(case)
    scores = accuracy.scores(logits, labels)
    dense = bench.logits(case.dense)
    flips = accuracy.flips(dense, logits, labels)
    record = _Recorder(bench, case)
    detail = {"per_class": scores.per_class, "confusion": scores.confusion}
    measured = [
        record("top1", scores.top1, vector=pack(scores.correct), detail=detail),
        record("top5", scores.top5),
        record("loss", scores.loss),
        record("agreement", accuracy.agreement(logits, dense)),
        record("flips", flips.total, detail={"worse": flips.right_to_wrong, "better": flips.wrong_to_right}),
    ]
    if case.runtime != "eager":
        simulated = bench.simulated_logits(case)
        measured.append(record("agreement_simulation", accuracy.agreement(logits, simulated)))
    return measured


def measure_footprint(bench: Workbench, case: Case) -> list[Measurement]:
    """Parameters, bytes of the file that `compress -o` writes, and MACs of one example."""
    compressed = bench.compressed(case)
    inputs = bench.example_inputs(case)
    record = _Recorder(bench, case)
    counted = cost.macs(compressed.float_model, inputs)
    raw, zipped = file_sizes(compressed)
    return [
        record("params", cost.params(compressed.float_model)),
        record("nonzeros", cost.nonzeros(compressed.float_model)),
        record("bytes", raw),
        record("bytes_zipped", zipped),
        record("macs", counted.dense),
        record("macs_effective", counted.effective),
    ]


def measure_latency(bench: Workbench, case: Case) -> list[Measurement]:
    """Time of one call next to the dense anchor's, interleaved; the two controls; kernels and peak memory.

    The anchor is the dense model on the same runtime; the dense models on the other runtimes run along, so that the
    ratio to the strongest of them comes from the same blocks.
    """
    policy = Policy()
    inputs = tuple(x.repeat(case.batch, *[1] * (x.dim() - 1)) for x in bench.example_inputs(case))
    session = bench.session(case)
    rivals = {str(rival): rival for rival in _rivals(case)}
    call, anchor = session.bind(*inputs), bench.session(case.dense).bind(*inputs)
    others = {name: bench.session(rival).bind(*inputs) for name, rival in rivals.items()}
    others[SLOWED] = latency.slowed(anchor, policy.injected_slowdown)
    seed = zlib.crc32(str(case).encode())
    taken = latency.sample(anchor, call, others=others, seed=seed, enough=_enough(policy, seed))
    record = _Recorder(bench, case, timed=True)
    ratio = statistics.log_ratio_estimate(taken.anchor, taken.case, seed=seed)
    kernels = [f"{k.layer} {k.operator} {k.dtype}" for k in session.kernels]
    peak = memory.peak(call)
    measured = [
        record("latency", statistics.q10(taken.case), samples=taken.case, detail={"kernels": kernels}),
        record("anchor_latency", statistics.q10(taken.anchor), samples=taken.anchor),
        record("relative_time", ratio.ratio, samples=(ratio.log_ratio,), errors=(ratio.error,)),
        _strongest(record, case, taken),
        *_controls(record, taken, policy, seed),
    ]
    if peak.bytes is not None:
        measured.append(record("peak_memory", peak.bytes))
    return measured
