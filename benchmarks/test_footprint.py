"""Parameters, bytes on disk, MACs."""

from pruning_bench.pytest_plugin import BoundCase


def test_footprint(footprint_case: BoundCase) -> None:
    footprint_case.measure()
