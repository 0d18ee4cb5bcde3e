"""Shared by all tests: one thread, since small tensors gain nothing from more and busy machines lose much by them."""

import os
import tempfile
from contextlib import suppress

import pytest
import torch
from hypothesis import settings
from torch import nn

torch.set_num_threads(1)
settings.register_profile("suite", deadline=None)  # how long an example takes is nobody's property
settings.load_profile("suite")

# Definitions for suites of their own; importing them here would register them.
collect_ignore = ["toy_suite", "planted_suite", "own_suite"]


def pytest_configure(config: pytest.Config) -> None:
    """No test touches the user's build cache, nor does any process that a test starts."""
    folder = tempfile.TemporaryDirectory(prefix="pruning_bench-cache-")
    config.add_cleanup(folder.cleanup)
    os.environ["PRUNING_BENCH_CACHE"] = folder.name
    os.environ.pop("PRUNING_BENCH_CACHE_MIB", None)


@pytest.fixture(scope="session")
def everything_imported() -> None:
    """For runs of pytest inside this process, which forget the modules that they were first to import: torch's cannot
    be imported twice."""
    from pruning_bench import compress
    from pruning_bench.discover import discover
    from pruning_bench.errors import UnavailableError
    from pruning_bench.registry import RUNTIMES

    discover()
    inputs = (torch.zeros(1, 1, 4, 4),)
    for recipe in ("dense", "static:w8a8"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
        made = compress(model, recipe, example_inputs=inputs, calibration=[inputs])
        for name in RUNTIMES:
            with suppress(UnavailableError):
                RUNTIMES[name].build(made, inputs)
