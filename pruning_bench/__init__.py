"""pruning_bench: benchmark and regression suite for compressed PyTorch models.

The public names load lazily, so that judging and reporting work where torch is not installed.
"""

from __future__ import annotations

import os
import time
from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def _started() -> float:
    """When this process started (whatever it executes now), in seconds since the epoch; now, if nobody tells."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as stream:
            ticks = 1 + int(stream.read().rpartition(")")[2].split()[19])  # rounded up: Python itself takes longer
        return time.time() - max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return time.time()


STARTED = _started()  # a source that is younger may not be the code that runs

_HOME = {
    "compress": "pruning_bench.engine",
    "Compressed": "pruning_bench.engine",
    "load": "pruning_bench.artifacts",
    "save": "pruning_bench.artifacts",
    "measure": "pruning_bench.measuring",
    "Case": "pruning_bench.cases",
    "judge": "pruning_bench.judging.verdicts",
    "check_method": "pruning_bench.conformance.runner",
    "parametrize_with_checks": "pruning_bench.conformance.runner",
    "pruning_method": "pruning_bench.pruning.contract",
    "quantization_method": "pruning_bench.quantization.contract",
    "training_step": "pruning_bench.training.contract",
    "reference_model": "pruning_bench.models.contract",
    "reference_dataset": "pruning_bench.datasets.contract",
    "trained_model": "pruning_bench.models.contract",
    "evaluation_data": "pruning_bench.datasets.contract",
    "score": "pruning_bench.metrics.contract",
    "cosine_agreement": "pruning_bench.metrics.scores",
    "runtime": "pruning_bench.runtimes.contract",
    "PruningBenchError": "pruning_bench.errors",
}
__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pruning_bench' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
