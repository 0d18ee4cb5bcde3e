"""Keeps pytest-benchmark's own files under the results folder."""

import pytest

from pruning_bench.pytest_plugin import use_suite_storage


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    use_suite_storage(config)
