"""Time of one call, interleaved with the dense model on the same runtime."""

from typing import Any

from pruning_bench.pytest_plugin import BoundCase


def test_latency(latency_case: BoundCase, benchmark: Any) -> None:
    latency_case.measure()
    latency_case.replay(benchmark)
