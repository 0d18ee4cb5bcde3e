"""The grid models x recipes x runtimes, by profile, and the ids of its cases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pruning_bench import recipe as grammar
from pruning_bench.errors import PruningBenchError, UnknownNameError, closest
from pruning_bench.registry import MODELS, RUNTIMES, STEPS

COMBINED = "l1_filter:0.5+finetune:2+static:w8a8"
CASTS = ("cast:bf16", "cast:fp16")  # ten times slower and more where the processor must emulate the type
FAMILIES = ("dense", "magnitude:0.9", "l1_filter:0.5", "static:w8a8", COMBINED)
ACCURACY = ("random:0.9", "l1_filter:0.5+bn_recalibrate:8")  # as fast as magnitude:0.9 and l1_filter:0.5 anywhere
EVERY_FAMILY = (*FAMILIES, *ACCURACY, "dynamic:w8a8")
SEEDED = "onnxruntime"
RANDOM = "random"  # the data set of models that have no data of their own: noise, for shapes and times
_ID = re.compile(
    r"(?P<model>[a-z0-9_:]+)-(?P<dataset>[a-z0-9_]+)/(?P<recipe>[^/]+)/(?P<runtime>[a-z0-9_]+)"
    r"(?:-(?P<device>cuda))?(?:-t(?P<threads>[1-9][0-9]*))?(?:-b(?P<batch>[1-9][0-9]*))?(?:-s(?P<seed>[1-9][0-9]*))?\Z"
)


@dataclass(frozen=True)
class Case:
    """One cell of the grid; a field that is added later gets a default that leaves old ids as they are.

    Example:
        >>> str(Case("resnet20", "fashion_mnist", "dense", "eager", threads=2))
        'resnet20-fashion_mnist/dense/eager-t2'
    """

    model: str
    dataset: str
    recipe: str
    runtime: str
    device: str = "cpu"
    threads: int = 1
    batch: int = 1
    seed: int = 0

    def __str__(self) -> str:
        device = "" if self.device == "cpu" else f"-{self.device}"
        threads = "" if self.threads == 1 else f"-t{self.threads}"
        batch = "" if self.batch == 1 else f"-b{self.batch}"
        seed = "" if self.seed == 0 else f"-s{self.seed}"
        return f"{self.model}-{self.dataset}/{self.recipe}/{self.runtime}{device}{threads}{batch}{seed}"

    @property
    def dense(self) -> Case:
        """The anchor: the dense model, everything else the same."""
        return replace(self, recipe="dense", seed=0)

    @property
    def labelled(self) -> bool:
        """Whether its test examples have labels, so that the quality of predictions means something."""
        return self.dataset != RANDOM

    @property
    def trains(self) -> bool:
        """Whether the recipe changes weights by gradient, so that seeds are the unit of its accuracy."""
        methods = [STEPS[step.name] for step in grammar.parse(self.recipe).steps()]
        return any(getattr(method.tags, "trains_weights", False) for method in methods)


def parse_id(text: str) -> Case:
    """The case of an id; raises `PruningBenchError` when it is none, or not spelt as `str(case)` spells it.

    Example:
        >>> parse_id("resnet20-fashion_mnist/static:w8a8/onnxruntime-t2").threads
        2
    """
    match = _ID.match(text)
    if not match:
        raise PruningBenchError("case", repr(text), "model-dataset/recipe/runtime[-cuda][-tN][-bN][-sN]")
    words: dict[str, Any] = {key: value for key, value in match.groupdict().items() if value is not None}
    words.update({key: int(words[key]) for key in ("threads", "batch", "seed") if key in words})
    case = Case(**words)
    if str(case) != text:
        raise PruningBenchError("case", repr(text), f"{str(case)!r}: defaults are left out")
    return case


@dataclass(frozen=True)
class Profile:
    """What a run covers.

    Args:
        recipes: recipe texts that belong to no single method; the methods' own `examples` are added if `examples`.
        further: recipes that the optional runtimes and all but the first thread count are run with; None: all of them.
        once: recipes whose accuracy is all that is new about them: one runtime is enough, that of the seeds.
        leaves_out: models that there is no time for, unless they are asked for by name.
        decide: times that one process cannot decide are measured again in fresh ones, not only suspected slow-downs.
        optional: runtimes that few have, or that take long to build, belong to it too.
        seeds: how many seeds a recipe that trains is run with. All but the first are there for accuracy alone, which is
            the recipe's and not the runtime's: they run on `SEEDED`, or the first runtime where that is left out.
    """

    name: str
    recipes: tuple[str, ...] = FAMILIES
    examples: bool = False
    threads: tuple[int, ...] = (1,)
    seeds: int = 1
    further: tuple[str, ...] | None = None
    once: tuple[str, ...] = ()
    leaves_out: tuple[str, ...] = ()
    decide: bool = False
    optional: bool = False


PROFILES = {
    "smoke": Profile("smoke", leaves_out=("lenet5", "mobilenet_v2", "vit_tiny")),
    "ci": Profile(
        "ci",
        EVERY_FAMILY,
        threads=(1, 2),
        seeds=5,
        further=("dense", "static:w8a8"),
        once=ACCURACY,
        optional=True,
    ),
    "nightly": Profile(
        "nightly",
        (*FAMILIES, *CASTS),
        examples=True,
        threads=(1, 2),
        seeds=5,
        further=(*FAMILIES, *CASTS),
        decide=True,
        optional=True,
    ),
}


OWN = ("dense", "magnitude:0.5", "static:w8a8")


def own_profile(name: str, recipes: Sequence[str] = ()) -> Profile:
    """The profile of that name for a user's own models: `dense`, and their recipes or, without any, those of `OWN`.

    Example:
        >>> own_profile("ci", ["magnitude:0.7"]).recipes
        ('dense', 'magnitude:0.7')
    """
    chosen = tuple(dict.fromkeys(("dense", *(recipes or OWN))))
    return replace(profile(name), recipes=chosen, examples=False, further=None, once=())


def profile(name: str) -> Profile:
    """The profile of that name; raises `UnknownNameError`."""
    if name not in PROFILES:
        raise UnknownNameError("profile", repr(name), closest(name, PROFILES))
    return PROFILES[name]


def recipes_of(chosen: Profile) -> tuple[str, ...]:
    """Canonical recipes of a profile: its own, then the `examples` that methods carry."""
    texts = list(chosen.recipes)
    if chosen.examples:
        texts += [text for name in STEPS for text in getattr(STEPS[name], "examples", ())]
    return tuple(dict.fromkeys(str(grammar.parse(text)) for text in texts))


def runtimes_of(chosen: Profile) -> tuple[str, ...]:
    """The runtimes of a profile, whether they are here or not."""
    return tuple(name for name in RUNTIMES if chosen.optional or not getattr(RUNTIMES[name], "optional", False))


def is_cast(recipe: str) -> bool:
    """Whether a recipe only casts the dense model to another floating-point type.

    Example:
        >>> is_cast("dense")
        False
    """
    steps = list(grammar.parse(recipe).steps())
    return bool(steps) and all(getattr(STEPS[step.name].tags, "casts", False) for step in steps)


def rivals_of(cases: Iterable[Case]) -> tuple[tuple[str, str], ...]:
    """(runtime, recipe) of what may be the strongest dense model of a run.

    That is the dense model on every runtime of the cases and on those that every profile has, and the casts among the
    cases.
    """
    chosen = list(cases)
    names = {*runtimes_of(PROFILES["smoke"]), *(case.runtime for case in chosen)}
    casts = {(case.runtime, case.recipe) for case in chosen if is_cast(case.recipe)}
    return (*((name, "dense") for name in sorted(names)), *sorted(casts))


def grid(
    chosen: Profile,
    models: Iterable[tuple[str, str]],
    *,
    recipes: Sequence[str] | None = None,
    runtimes: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    device: str = "cpu",
) -> list[Case]:
    """The cases of a profile, or of the user's own choice of recipes, runtimes and threads.

    Args:
        models: (model, data set) pairs.
        recipes, runtimes, threads: instead of the profile's, and not limited by its `further` and `once`.
    """
    texts = recipes_of(chosen) if recipes is None else tuple(dict.fromkeys(str(grammar.parse(t)) for t in recipes))
    asked = recipes is not None
    names = runtimes_of(chosen) if runtimes is None else tuple(runtimes)
    counts = tuple(threads or chosen.threads)
    of_profile = all(choice is None for choice in (recipes, runtimes, threads))
    seeded = SEEDED if SEEDED in names else names[0]
    cases: dict[Case, None] = {}
    for model, dataset in models:
        for text in [text for text in texts if asked or _suits(text, model)]:
            once = of_profile and text in chosen.once
            for name in (seeded,) if once else names:
                for count in counts:
                    case = Case(model, dataset, text, name, device, count)
                    optional = runtimes is None and getattr(RUNTIMES[name], "optional", False)
                    further = recipes is None and (optional or (threads is None and count != counts[0]))
                    if not further or chosen.further is None or text in chosen.further:
                        cases.update(dict.fromkeys(_seeds(case, chosen.seeds if name == seeded else 1)))
    return list(cases)


def _suits(recipe: str, model: str) -> bool:
    """Whether no method of the recipe keeps its examples to other models."""
    kept_to = (getattr(STEPS[step.name], "example_models", ()) for step in grammar.parse(recipe).steps())
    return all(not models or model in models for models in kept_to)


def _seeds(case: Case, seeds: int) -> Iterator[Case]:
    """The case and, where its recipe trains, its further seeds: at every thread count, so that they are one group."""
    yield case
    if seeds > 1 and case.trains:
        yield from (replace(case, seed=seed) for seed in range(1, seeds))


def reference_pairs(datasets: Iterable[str], checkpoints: Path) -> list[tuple[str, str]]:
    """(model, data set) pairs that have a checkpoint in the folder."""
    from pruning_bench.models.checkpoints import checkpoint_path

    return [(m, d) for m in MODELS for d in datasets if checkpoint_path(m, d, checkpoints).is_file()]


def ready_pairs(models: Iterable[str]) -> list[tuple[str, str]]:
    """(model, data set) pairs of those models that bring their weights themselves; raises `UnknownNameError`."""
    return [(name, RANDOM) for name in dict.fromkeys(models) if MODELS[name].ready is not None]
