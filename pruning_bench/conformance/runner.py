"""Runs the checks that a method's tags ask for: in a call, or as a pytest decorator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

import pytest

from pruning_bench.conformance.pruning_checks import checks_for_pruning
from pruning_bench.conformance.strategies import Subject
from pruning_bench.errors import PluginError
from pruning_bench.pruning.contract import PruningTags
from pruning_bench.quantization.contract import QuantizationTags


def checks_for(method: Any, subjects: Sequence[Subject] | None = None) -> list[tuple[str, Callable[[Any], None]]]:
    """The checks of a method by name, each called with the method; chosen by its tags.

    Args:
        method: an instance of a pruning or quantization method.
        subjects: models for the pruning checks; None takes the small ones that come with them.
    Raises:
        PluginError: no such method, or an expected failure that names no check.
    Example:
        >>> from pruning_bench.pruning.methods.magnitude import Magnitude
        >>> names = dict(checks_for(Magnitude()))
        >>> names["bad_levels"](Magnitude())
    """
    if isinstance(method.tags, PruningTags):
        checks: list[tuple[str, Callable[[Any], None]]] = checks_for_pruning(method, subjects)
    elif isinstance(method.tags, QuantizationTags):
        from pruning_bench.conformance.quantization_checks import checks_for_quantization  # heavy, not always wanted

        checks = checks_for_quantization(method)
    else:
        raise PluginError(method.name, f"tags of type {type(method.tags).__name__}", "a pruning or quantization method")
    unknown = set(method.tags.expected_failures) - {name for name, _ in checks}
    if unknown:
        raise PluginError(method.name, f"expected failures {sorted(unknown)}", f"among {[name for name, _ in checks]}")
    return checks


def check_method(method: Any, subjects: Sequence[Subject] | None = None) -> None:
    """Runs all checks of a method; raises `AssertionError` at the first that fails.

    Expected failures of its tags are strict: one that passes is an error too.
    """
    for name, check in checks_for(method, subjects):
        reason = method.tags.expected_failures.get(name)
        try:
            check(method)
        except AssertionError as failure:
            if reason is None:
                raise AssertionError(f"{label(method)} fails {name}: {failure}") from failure
        else:
            assert reason is None, f"{label(method)} passes {name}, although its tags expect a failure: {reason}"


def parametrize_with_checks(methods: Iterable[Any]) -> pytest.MarkDecorator:
    """Decorates a test of `(method, check)`, one case for each method and check; the test calls `check(method)`.

    Example:
        >>> from pruning_bench.pruning.methods.magnitude import Magnitude
        >>> @parametrize_with_checks([Magnitude()])
        ... def test_mine(method, check):
        ...     check(method)
    """
    cases = []
    for method in methods:
        for name, check in checks_for(method):
            reason = method.tags.expected_failures.get(name)
            marks = [] if reason is None else [pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)]
            cases.append(pytest.param(method, check, id=f"{label(method)}/{name}", marks=marks))
    return pytest.mark.parametrize(("method", "check"), cases)


def label(method: Any) -> str:
    """The method as a recipe spells it, without a level: `magnitude,scope=layer`."""
    options = [f for f in fields(method) if getattr(method, f.name) != f.default]
    return ",".join([str(method.name), *(f"{f.name}={getattr(method, f.name)}" for f in options)])
