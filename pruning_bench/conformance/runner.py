"""Runs the checks that the tags of a method or training step ask for: in a call, or as a pytest decorator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from pruning_bench.conformance.pruning_checks import checks_for_pruning
from pruning_bench.conformance.strategies import Subject
from pruning_bench.conformance.training_checks import checks_for_training
from pruning_bench.errors import PluginError, describe
from pruning_bench.pruning.contract import PruningTags
from pruning_bench.quantization.contract import QuantizationTags
from pruning_bench.training.contract import StepTags

WHO = "check_method"


def checks_for(
    method: Any, subjects: Sequence[Subject] | None = None, graphs: int = 0
) -> list[tuple[str, Callable[[Any], None]]]:
    """The checks of a method by name, each called with the method; chosen by its tags.

    A check that fails raises `AssertionError` with the method, the check and the counterexample; one that meets an
    exception which the contract does not allow raises `CheckCrashedError`.

    Args:
        method: a pruning or quantization method or a training step, or its class, taken with its default options.
        subjects: models for the checks of pruning methods; None takes the small ones that come with them.
        graphs: random networks for one more check of pruning methods, `random_graphs`; a second or more for each.
    Raises:
        PluginError: no such method, or an expected failure that names no check.
    Example:
        >>> from pruning_bench.pruning.methods.magnitude import Magnitude
        >>> names = dict(checks_for(Magnitude()))
        >>> names["bad_levels"](Magnitude())
    """
    method = _instance(method)
    if isinstance(method.tags, PruningTags):
        checks: list[tuple[str, Callable[[Any], None]]] = checks_for_pruning(method, subjects, graphs)
        known = {name for name, _ in checks} | {"random_graphs"}
    elif isinstance(method.tags, StepTags):
        checks = checks_for_training(method)
        known = {name for name, _ in checks}
    else:
        # heavy, not always wanted
        from pruning_bench.conformance.quantization_checks import checks_for_quantization
        from pruning_bench.conformance.quantization_sweeps import sweeps_for_quantization

        checks = [*checks_for_quantization(method), *sweeps_for_quantization(method)]
        known = {name for name, _ in checks}
    if unknown := sorted(set(method.tags.expected_failures) - known):
        raise PluginError(label(method), f"expected failures {unknown}", f"among {sorted(known)}")
    return [(name, _named(name, check)) for name, check in checks]


def _instance(method: Any) -> Any:
    """The method of a class; raises `PluginError` for what is neither a method nor a training step."""
    made = method() if isinstance(method, type) and is_dataclass(method) else method
    tags, name = getattr(made, "tags", None), getattr(made, "name", None) or repr(method)
    if not isinstance(tags, (PruningTags, QuantizationTags, StepTags)):
        expected = "a pruning or quantization method or a training step"
        raise PluginError(WHO, f"tags of type {type(tags).__name__}", expected, str(name))
    verb = "run" if isinstance(tags, StepTags) else "plan"
    if not is_dataclass(made) or not callable(getattr(made, verb, None)):
        raise PluginError(WHO, f"a {type(made).__name__}", f"a frozen dataclass with a method {verb}", str(name))
    return made


def _named(name: str, check: Callable[[Any], None]) -> Callable[[Any], None]:
    def run(method: Any) -> None:
        try:
            check(method)
        except AssertionError as failure:
            raise AssertionError(f"{label(method)} fails {name}: {failure}") from failure
        except Exception as error:
            found = f"{describe(error)} in {name}"
            raise CheckCrashedError(label(method), found, "a check that runs to its end") from error

    return run


class CheckCrashedError(PluginError):
    """A check neither held nor failed: the method, or what it needs, broke; never an expected failure."""


def check_method(method: Any, subjects: Sequence[Subject] | None = None, graphs: int = 0) -> None:
    """Runs all checks of a method or training step, as `checks_for` lists them; returns nothing when all hold.

    Expected failures of its tags are strict: one that passes is an error too.

    Args:
        method, subjects, graphs: as for `checks_for`; a training step is tried on a tiny model of its own.
    Raises:
        AssertionError: the first check that fails, with the method, the check and the counterexample.
        CheckCrashedError: the first check that does not run to its end.
        PluginError: no such method or step.
    Example:
        >>> from dataclasses import dataclass
        >>> from typing import ClassVar
        >>> from pruning_bench import check_method
        >>> from pruning_bench.pruning.contract import MaskPlan, PruningTags
        >>> from pruning_bench.pruning.masks import keep_largest, prunable
        >>> @dataclass(frozen=True)
        ... class EveryLayer:
        ...     '''Keeps the largest weights of each layer, one too few.'''
        ...     name: ClassVar[str] = "every_layer"
        ...     tags: ClassVar[PruningTags] = PruningTags(structure="element")
        ...
        ...     def plan(self, model, level, context):
        ...         weights = prunable(model, context.example_inputs)
        ...         masks = {name: keep_largest(weight.abs(), level) for name, weight in weights.items()}
        ...         for mask in masks.values():
        ...             mask.view(-1)[mask.view(-1).nonzero()[:1]] = False
        ...         return MaskPlan(masks)
        >>> try:
        ...     check_method(EveryLayer)
        ... except AssertionError as failure:
        ...     print(str(failure)[:47])
        every_layer fails counts: every_layer:0.29 on r
    """
    method = _instance(method)
    for name, check in checks_for(method, subjects, graphs):
        reason = method.tags.expected_failures.get(name)
        try:
            check(method)
        except AssertionError:
            if reason is None:
                raise
        else:
            assert reason is None, f"{label(method)} passes {name}, although its tags expect a failure: {reason}"


def parametrize_with_checks(methods: Iterable[Any], graphs: int = 0) -> pytest.MarkDecorator:
    """Decorates a test of `(method, check)`, one case for each method and check; the test calls `check(method)`.

    Expected failures of a method's tags become strict xfails with their reasons.

    Args:
        methods: methods and training steps, as for `checks_for`.
        graphs: as for `checks_for`.
    Example:
        >>> from pruning_bench.pruning.methods.magnitude import Magnitude
        >>> @parametrize_with_checks([Magnitude()])
        ... def test_mine(method, check):
        ...     check(method)
    """
    cases = []
    for method in map(_instance, methods):
        for name, check in checks_for(method, graphs=graphs):
            reason = method.tags.expected_failures.get(name)
            marks = [] if reason is None else [pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)]
            cases.append(pytest.param(method, check, id=f"{label(method)}/{name}", marks=marks))
    return pytest.mark.parametrize(("method", "check"), cases)


def label(method: Any) -> str:
    """The method as a recipe spells it, without a level: `magnitude,scope=layer`."""
    options = [f for f in fields(method) if getattr(method, f.name) != f.default]
    return ",".join([str(method.name), *(f"{f.name}={getattr(method, f.name)}" for f in options)])
