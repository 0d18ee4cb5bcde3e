"""The suite's own benchmarks, which `pytest --pb-suite` collects; one for each family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruning_bench.pytest_plugin import BoundCase


def test_quality(quality_case: BoundCase) -> None:
    """Scores on the test examples, agreement with the dense model."""
    quality_case.measure()


def test_footprint(footprint_case: BoundCase) -> None:
    """Parameters, bytes on disk, MACs."""
    footprint_case.measure()


def test_latency(latency_case: BoundCase, benchmark: Any) -> None:
    """Time of one call, interleaved with the dense model on the same runtime."""
    latency_case.measure()
    latency_case.replay(benchmark)
