"""Shared by all tests: one thread, since small tensors gain nothing from more and busy machines lose much by them."""

import functools
import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import _pytest.pytester
import pytest
import torch
from hypothesis import settings
from torch.onnx._internal.exporter._registration import ONNXRegistry

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


def pytest_collection_finish() -> None:
    """What was imported stays anyway: the collector need not look through all of torch again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def operators_read_once() -> Iterator[None]:
    """For every export torch reads the sources of all of onnxscript's operators anew; nothing takes longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def libraries_stay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs of pytest inside this process forget what they were first to import: from the tests' folders alone, since
    torch's modules cannot be imported twice."""
    folder = f"{tmp_path_factory.getbasetemp()}{os.sep}"

    def stays(name: str) -> bool:
        return not (getattr(sys.modules[name], "__file__", None) or "").startswith(folder)

    class Snapshot(_pytest.pytester.SysModulesSnapshot):
        def __init__(self, preserve: Any = None) -> None:
            super().__init__(preserve=stays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pytest.pytester, "SysModulesSnapshot", Snapshot)
        yield
