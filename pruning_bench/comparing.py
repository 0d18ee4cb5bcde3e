"""What `pruning-bench compare A B` measures: two models on the same examples, runtime and stretch of time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruning_bench import recipe as grammar
from pruning_bench.artifacts import file_sizes, load
from pruning_bench.cases import Case, ready_pairs
from pruning_bench.errors import PruningBenchError, UnavailableError
from pruning_bench.judging.comparison import ClassChange, Comparison, ScoreDifference, Side
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.scores import change_of_scores, with_margin
from pruning_bench.judging.statistics import estimate_log_ratio, q10
from pruning_bench.judging.verdicts import direction
from pruning_bench.measuring import LATENCY_SECONDS, kernel_detail, narrow
from pruning_bench.metrics import accuracy
from pruning_bench.metrics.contract import Score
from pruning_bench.metrics.cost import count_cost
from pruning_bench.metrics.latency import Samples, sample
from pruning_bench.metrics.scores import similarity
from pruning_bench.models.checkpoints import read_card, shipped_path
from pruning_bench.own import own_pairs
from pruning_bench.registry import DATASETS, METRICS, MODELS, RUNTIMES
from pruning_bench.reporting.rows import Row, name_only
from pruning_bench.workbench import Workbench

WHO = "compare"
SEED = 0


def prepare(
    bench: Workbench, a: str, b: str, *, dataset: str | None, default: str, runtime: str, threads: int = 1
) -> list[Case]:
    """Finds and compresses two models, so that `compare` has nothing left to build but sessions.

    Args:
        bench: where what is built is kept.
        a, b: each the name of a model with a shipped checkpoint, `model/recipe`, or the path of a checkpoint or of what
            `compress -o` wrote.
        dataset: None for the one on the card of a file that is given, or else `default`.
        runtime: what both will run on.
        threads: of each call, >= 1.
    Returns:
        A case each; of a file the path stands for the model, so that two files of one model are two.
    Raises:
        UnknownNameError: a model, method, data set or runtime that is not registered; the message has the closest.
        UnavailableError: the runtime cannot run here; with the install command.
        PruningBenchError: models of different data sets; a file that is damaged; a recipe that cannot run.
    """
    if threads < 1:
        raise PruningBenchError(WHO, f"--threads {threads}", "at least 1")
    if reason := RUNTIMES.ask(runtime, "available"):
        raise UnavailableError(runtime, reason, "available")
    cards = {name: read_card(Path(name)) for name in (a, b) if _is_path(name)}
    names = [name.partition("/")[0] for name in (a, b) if name not in cards]
    own = dict(own_pairs(names))
    own |= dict(ready_pairs(name for name in names if name not in own))
    data = _dataset(cards, dataset, next((own[name] for name in names if name in own), default))
    cases = []
    for name in (a, b):
        if name in cards:
            made = load(name)
            case = Case(name, data, str(made.recipe), runtime, threads=threads)
            bench.put(case, made)
        else:
            case = Case(*_model_and_recipe(name, data), runtime, threads=threads)
        cases.append(case)
    for case in cases:
        bench.compressed(case)
    return cases


def compare(bench: Workbench, a: Case, b: Case, *, timed: bool = True) -> Comparison:
    """Compares two models on the test split, and their times in interleaved blocks.

    Args:
        a, b: of one data set, runtime and number of threads; see `prepare`.
        timed: also measure times, where the runtime really runs both.
    """
    policy, remarks = Policy(), [*_remarks("A", bench, a), *_remarks("B", bench, b)]
    taken: Samples | None = None
    if timed and bench.session(a).timed and bench.session(b).timed:
        taken = _time(bench, a, b, policy)
    elif timed:
        remarks.append("no times: this runtime only simulates quantized models")
    if taken and taken.stopped == "cut":
        remarks.append(f"sampling ran out of time after {len(taken.case)} pairs, an interval needs {policy.min_pairs}")
    data = bench.dataset(a.dataset)
    score: Score | None = DATASETS[a.dataset].score
    outputs, targets = (bench.logits(a), bench.logits(b)), data.test.targets
    quality: list[dict[str, float]] = [{}, {}]
    classes, scored, confusions = (), None, [(), ()]  # type: Any, ScoreDifference | None, Any
    if not a.labelled:
        remarks.append("no accuracy: the images are noise, for shapes and times")
    elif score is not None:
        quality, scored = _scores(score, *outputs, targets)
    elif targets is not None:
        classes = class_changes(*outputs, targets, data.classes)
        quality = [_accuracies(logits, targets) for logits in outputs]
        confusions = [tuple(map(tuple, accuracy.confusion_matrix(logits, targets).tolist())) for logits in outputs]
    return Comparison(
        _side(bench, a, taken.anchor if taken else (), quality[0], confusions[0]),
        _side(bench, b, taken.case if taken else (), quality[1], confusions[1]),
        where=f"{data.name}, {a.runtime}, {a.threads} thread{'s' * (a.threads > 1)}",
        classes=classes,
        scored=scored,
        ratio=estimate_log_ratio(taken.case, taken.anchor, seed=SEED, draws=policy.bootstrap_draws) if taken else None,
        remarks=tuple(remarks),
    )


def class_changes(a: Tensor, b: Tensor, labels: Tensor, names: Sequence[str]) -> tuple[ClassChange, ...]:
    """What became of each class.

    Args:
        a, b: logits [N, C] of the two models.
        labels: int64 [N].
        names: of the classes; where there are fewer than C the others go by their number.

    Example:
        >>> a = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> class_changes(a, a.flip(1), torch.tensor([0, 0]), ("cat", "dog"))[0]
        ClassChange(name='cat', examples=2, right_a=2, right_b=0, flips=2, lost=2, gained=0)
    """
    classes = a.shape[1]
    counts = torch.bincount(labels, minlength=classes).tolist()
    right = [accuracy.confusion_matrix(logits, labels).diagonal().tolist() for logits in (a, b)]
    flips = accuracy.flips_per_class(a, b, labels)
    named = [*names, *map(str, range(len(names), classes))][:classes]
    return tuple(
        ClassChange(name, count, was, now, of_class.count, of_class.right_to_wrong, of_class.wrong_to_right)
        for name, count, was, now, of_class in zip(named, counts, *right, flips, strict=True)
    )


def _is_path(name: str) -> bool:
    """Whether a file is meant: no model or recipe ends in .safetensors, or begins like a path."""
    return name.startswith((".", "/")) or name.endswith(".safetensors") or os.path.isfile(name)


def _dataset(cards: Mapping[str, Mapping[str, Any]], asked: str | None, default: str) -> str:
    """The one data set of both models."""
    trained_on = {name: card["dataset"] for name, card in cards.items() if card["dataset"]}
    chosen = asked or next(iter(trained_on.values()), default)
    for name, own in trained_on.items():
        if own != chosen:
            found = f"--dataset {chosen}" if asked else f"data set {chosen} of the other model"
            raise PruningBenchError(WHO, found, f"{own}, which this one was trained on", name)
    return str(DATASETS[chosen].name)


def _model_and_recipe(name: str, dataset: str) -> tuple[str, str, str]:
    """Model, data set and recipe of `model` or `model/recipe`."""
    model, slash, recipe = name.partition("/")
    if not MODELS[model].own:
        if (model, dataset) not in ready_pairs([model]):
            shipped_path(MODELS[model].name, dataset)
    elif (data := dict(own_pairs([model]))[model]) != dataset:
        raise PruningBenchError(WHO, f"data set {dataset} for {model}", data, name)
    return model, dataset, str(grammar.parse(recipe if slash else "dense"))


def _accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    return {
        "top1": accuracy.top1(logits, labels),
        "loss": accuracy.cross_entropy(logits, labels),
        "calibration_error": accuracy.calibration_error(logits, labels),
    }


def _scores(
    score: Score, a: Tensor, b: Tensor, targets: Tensor | None
) -> tuple[list[dict[str, float]], ScoreDifference]:
    """Mean scores of both, and what changed example by example; a score against the dense model takes A as that."""
    before, after = (score.of(outputs, targets, a).numpy().astype(np.float32) for outputs in (a, b))
    alike = [similarity(outputs, a) for outputs in (a, b)]
    sign, policy = direction(score.better), with_margin(Policy(), float(score.margin))
    change = change_of_scores(before, after, sign, policy)
    found = ScoreDifference(score.name, METRICS[score.name].unit, score.better, change)
    means = [float(values.mean(dtype=np.float64)) for values in (before, after)]
    return [{score.name: m, "similarity": s} for m, s in zip(means, alike, strict=True)], found


def _side(
    bench: Workbench, case: Case, times: Sequence[float], quality: Mapping[str, float], confusion: tuple[Any, ...]
) -> Side:
    """All numbers of one model; without times no latency, without labels no accuracy."""
    made = bench.compressed(case)
    cost = count_cost(made.float_model, bench.example_inputs(case))
    size, zipped = file_sizes(made)
    numbers: dict[str, float] = {
        **quality,
        "bytes": size,
        "bytes_zipped": zipped,
        "params": cost.params,
        "nonzeros": cost.nonzeros,
        "macs": cost.macs,
        "macs_effective": cost.macs_effective,
    }
    if times:
        numbers["latency"] = q10(times)
    return Side(f"{case.model}, {case.recipe}", numbers, confusion)


def _time(bench: Workbench, a: Case, b: Case, policy: Policy) -> Samples:
    """Times of A, as those of the anchor, and of B in interleaved blocks."""
    threads = torch.get_num_threads()  # runtimes set the process's
    try:
        calls = [bench.session(case).bind(*bench.example_inputs(case)) for case in (a, b)]
        return sample(
            *calls,
            seed=SEED,
            enough=narrow(policy, SEED),
            min_pairs=policy.min_pairs,
            max_pairs=policy.max_pairs,
            twin_every=0,
            budget_seconds=LATENCY_SECONDS,
            clock=bench.session(a).clock,
        )
    finally:
        torch.set_num_threads(threads)


def _remarks(letter: str, bench: Workbench, case: Case) -> list[str]:
    """What the numbers of a model do not say by themselves."""
    found = []
    detail = kernel_detail(bench.session(case).kernels, bench.compressed(case).quant_plan)
    layers = detail.get("quantized_layers")
    fallbacks, weights = (tuple(detail.get(name, ())) for name in ("float_fallbacks", "float_weights"))
    if words := name_only(
        Row("", "", "", "", "", quantized_layers=layers, float_fallbacks=fallbacks, float_weights=weights)
    ):
        found.append(f"{letter} is {words}")
    if case.trains:
        found.append(f"{letter} was trained with one seed: others may differ by more than the interval says")
    return found
