"""Metrics: the suite's own are complete, a user's goes in by a decorator, definitions are part of the fingerprint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from torch import nn

from pruning_bench.errors import DuplicateNameError, PluginError
from pruning_bench.metrics import catalog
from pruning_bench.metrics.contract import Evaluation, Metric, metric
from pruning_bench.records import Rule
from pruning_bench.registry import METRICS

SIZE = Metric("size", "B", "lower", "exact")


@pytest.fixture
def unregister() -> Iterator[list[str]]:
    """Names to take out of the registry again."""
    names: list[str] = []
    yield names
    for name in names:
        METRICS._items.pop(name, None)


def test_the_suites_own_metrics_are_registered_and_described() -> None:
    for each in catalog.SUITE:
        assert METRICS[each.name] is each, f"{each.name} should be registered"
        assert each.description, f"{each.name} should be described"
        assert each.compute is None, f"{each.name} is taken by the suite itself"


PINNED = {
    "top1": ("1", "higher", "paired"),
    "relative_time": ("1", "lower", "speed"),
    "anchor_latency": ("s", "lower", "canary"),
    "latency": ("s", "lower", "shown"),
    "bytes": ("B", "lower", "exact"),
    "macs": ("MAC", "lower", "exact"),
    "twin": ("1", "neither", "control"),
}


@pytest.mark.parametrize("name", PINNED)
def test_what_is_judged_and_how(name: str) -> None:
    found = METRICS[name].unit, METRICS[name].better, METRICS[name].rule
    assert found == PINNED[name], f"{name} is {found}, should be {PINNED[name]}"


def test_every_rule_is_used() -> None:
    missing = set(get_args(Rule)) - {each.rule for each in catalog.SUITE}
    assert not missing, f"no metric is judged by {missing}"


@pytest.mark.parametrize(
    ("change", "word"),
    [({"unit": "ms"}, "unit 'ms'"), ({"better": "less"}, "better 'less'"), ({"rule": "guess"}, "rule 'guess'")],
)
def test_words_outside_the_closed_sets(change: dict[str, Any], word: str) -> None:
    with pytest.raises(PluginError, match=word):
        dataclasses.replace(SIZE, **change)


def test_a_measurement_carries_the_definition() -> None:
    made = SIZE.measurement("case", 10, {"checkpoint": "ab"}, samples=(9.0, 11.0), detail={"of": "file"})
    found = made.metric, made.value, made.unit, made.better, made.rule, made.samples, made.detail
    assert found == ("size", 10.0, "B", "lower", "exact", (9.0, 11.0), {"of": "file"}), f"{made}"


@pytest.mark.parametrize("change", [{"version": 2}, {"name": "other"}])
def test_another_definition_has_another_fingerprint(change: dict[str, Any]) -> None:
    depends = {"checkpoint": "ab"}
    other = dataclasses.replace(SIZE, **change)
    assert other.fingerprint(depends) != SIZE.fingerprint(depends), f"{change} should change the fingerprint"
    again = dataclasses.replace(SIZE, description="in other words")
    assert again.fingerprint(depends) == SIZE.fingerprint(depends), "words should not change the fingerprint"


@pytest.mark.parametrize("depends", [{}, {"checkpoint": "cd"}, {"data": "ab"}, {"checkpoint": "ab", "data": "ab"}])
def test_what_it_depends_on_is_in_the_fingerprint(depends: dict[str, str]) -> None:
    assert SIZE.fingerprint(depends) != SIZE.fingerprint({"checkpoint": "ab"}), f"{depends} should be told apart"


def test_a_users_metric_goes_in_by_decorator(unregister: list[str]) -> None:
    unregister.append("margin_of_the_best")

    @metric(unit="1", better="higher", version=3)
    def margin_of_the_best(seen: Evaluation) -> float:
        """Mean gap between the two highest logits.

        More text.
        """
        best = seen.logits.topk(2, dim=1).values
        return float((best[:, 0] - best[:, 1]).mean())

    entry = METRICS["margin_of_the_best"]
    found = entry.unit, entry.better, entry.rule, entry.version, entry.description
    assert found == ("1", "higher", "shown", 3, "Mean gap between the two highest logits."), f"{entry}"
    logits = torch.tensor([[3.0, 1.0], [0.0, 1.0]])
    value = entry.compute(Evaluation(logits, torch.tensor([0, 1]), logits, nn.Identity(), (logits,)))
    assert value == 1.5, f"{value}, should be 1.5"
    assert margin_of_the_best.__name__ == "margin_of_the_best", "the function should stay a function"


@pytest.mark.parametrize("rule", ["paired", "speed", "canary", "control"])
def test_rules_that_need_more_than_a_number(rule: Rule) -> None:
    with pytest.raises(PluginError, match="exact or shown"):
        metric(unit="1", better="higher", rule=rule)


def test_a_name_that_is_taken() -> None:
    def top1(seen: Evaluation) -> float:
        return 0.0

    with pytest.raises(DuplicateNameError, match="'top1' defined twice"):
        metric(unit="1", better="higher")(top1)


@pytest.mark.parametrize(("name", "words"), [("loss", "(NLL)"), ("calibration_error", "(ECE)")])
def test_metrics_are_found_by_the_names_of_the_field(name: str, words: str) -> None:
    assert words in METRICS[name].description, f"{METRICS[name]} should say {words}"
    assert METRICS[name].rule == "shown", f"{METRICS[name]} should not be judged"
