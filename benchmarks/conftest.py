"""Keeps pytest-benchmark's own files under the results folder."""

import pytest

from pruning_bench.pytest_plugin import use_suite_storage

collect_ignore = ["peers", "studies"]  # scripts without tests, which find each other only when they are run as such


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    use_suite_storage(config)
