"""What the results column reads from a case id; ids that the grid did not make are kept whole."""

from __future__ import annotations

from dataclasses import replace

from pruning_bench.cases import Case, parse_id
from pruning_bench.errors import PruningBenchError


def case_of(case_id: str) -> Case | None:
    """The case of an id, None when it is not of the grid's form."""
    try:
        return parse_id(case_id)
    except PruningBenchError:
        return None


def group_of(case_id: str) -> tuple[str, int]:
    """The id without its seed, and the seed: what the seeds of one case have in common.

    Example:
        >>> group_of("resnet20-fashion_mnist/l1_filter:0.5+finetune:2/eager-t2-s3")
        ('resnet20-fashion_mnist/l1_filter:0.5+finetune:2/eager-t2', 3)
        >>> group_of("my own case-s3")
        ('my own case-s3', 0)
    """
    case = case_of(case_id)
    return (case_id, 0) if case is None else (str(replace(case, seed=0)), case.seed)
