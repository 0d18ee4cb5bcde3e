"""Shared by all tests: one thread, since small tensors gain nothing from more and busy machines lose much by them."""

import os
import tempfile

import pytest
import torch
from hypothesis import settings

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
