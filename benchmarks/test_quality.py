"""Accuracy on the test split, agreement with the dense model, flips."""

from pruning_bench.pytest_plugin import BoundCase


def test_quality(quality_case: BoundCase) -> None:
    quality_case.measure()
