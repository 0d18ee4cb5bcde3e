"""What is registered, as tables for `pruning-bench list`; made from the definitions themselves."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from pruning_bench.cases import PROFILES, recipes_of
from pruning_bench.discover import discover
from pruning_bench.models.checkpoints import checkpoint_path
from pruning_bench.pruning.contract import PruningTags
from pruning_bench.quantization.contract import QuantizationTags
from pruning_bench.registry import DATASETS, METRICS, MODELS, RUNTIMES, STEPS


def rows_of(kind: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one of methods, models, datasets, runtimes, metrics, profiles."""
    discover()
    return {
        "methods": _methods,
        "models": _models,
        "datasets": _datasets,
        "runtimes": _runtimes,
        "metrics": _metrics,
        "profiles": _profiles,
    }[kind]()


def _first_line(definition: Any) -> str:
    return (definition.__doc__ or "").strip().split("\n")[0]


def _methods() -> tuple[list[str], list[list[str]]]:
    rows = []
    for name in STEPS:
        cls = STEPS[name]
        kind = {PruningTags: "pruning", QuantizationTags: "quantization"}.get(type(cls.tags), "training")
        options = ", ".join(f"{f.name}={f.default}" for f in dataclasses.fields(cls))
        rows.append([name, kind, getattr(cls.tags, "structure", ""), options, _first_line(cls)])
    return ["method", "kind", "structure", "options", "what it does"], rows


def _models() -> tuple[list[str], list[list[str]]]:
    trained = {m: ", ".join(d for d in DATASETS if checkpoint_path(m, d).is_file()) for m in MODELS}
    rows = [[m, trained[m] or "-", _first_line(MODELS[m].build)] for m in MODELS]
    for prefix, family in MODELS.families.items():
        names = textwrap.fill(", ".join(family.names()), 100)
        rows.append([f"{prefix}:NAME", "-", f"{family.about}\n{names}"])
    return ["model", "trained on", "what it is"], rows


def _datasets() -> tuple[list[str], list[list[str]]]:
    return ["data set", "what it is"], [[name, _first_line(DATASETS[name].load)] for name in DATASETS]


def _runtimes() -> tuple[list[str], list[list[str]]]:
    rows = [
        [name, RUNTIMES.ask(name, "available") or "available", _first_line(type(RUNTIMES[name]))] for name in RUNTIMES
    ]
    return ["runtime", "here", "what it is"], rows


def _metrics() -> tuple[list[str], list[list[str]]]:
    rows = [[m.name, m.unit, m.better, m.rule, m.description] for m in map(METRICS.__getitem__, METRICS)]
    return ["metric", "unit", "better", "judged", "what it is"], rows


def _profiles() -> tuple[list[str], list[list[str]]]:
    rows = [
        [p.name, "\n".join(recipes_of(p)), ", ".join(map(str, p.threads)), str(p.seeds), "\n".join(p.leaves_out)]
        for p in PROFILES.values()
    ]
    return ["profile", "recipes", "threads", "seeds of recipes that train", "models left out"], rows
