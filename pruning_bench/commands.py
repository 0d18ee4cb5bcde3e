"""What each command of `pruning-bench` does with its arguments; returns the exit status.

Whatever brings torch is imported by the command that needs it: `judge` runs without.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning_bench.errors import PruningBenchError, UnknownNameError, closest

DATASET = "fashion_mnist"  # the one whose trained models ship
KINDS = ("methods", "models", "datasets", "runtimes", "metrics", "profiles")


def _use_own(chosen: argparse.Namespace) -> None:
    """Registers the user's own definitions."""
    from pruning_bench.discover import discover
    from pruning_bench.own import use_own

    discover()
    use_own(Path.cwd(), chosen.imports)


def do_list(chosen: argparse.Namespace) -> int:
    """Prints what is registered."""
    from tabulate import tabulate

    from pruning_bench.listing import rows_of

    if chosen.kind is not None and chosen.kind not in KINDS:
        raise UnknownNameError("list", repr(chosen.kind), closest(chosen.kind, KINDS))
    _use_own(chosen)
    for kind in [chosen.kind] if chosen.kind else KINDS:
        header, rows = rows_of(kind)
        print(f"{kind}\n{tabulate(rows, headers=header, tablefmt='simple')}\n")
    return 0


def do_compress(chosen: argparse.Namespace) -> int:
    """Runs a recipe, writes the file, prints its size and cost."""
    from pruning_bench.artifacts import file_sizes, save
    from pruning_bench.metrics.cost import count_cost
    from pruning_bench.progress import progress_bar
    from pruning_bench.workbench import Workbench, compress_with

    _check_output(chosen.output, chosen.force, (".safetensors",))
    _use_own(chosen)
    bench = Workbench(folder=chosen.data, full=chosen.data is not None)
    dense, card, dense_size = _dense(bench, chosen.model, chosen.dataset)
    with progress_bar() as progress:
        made = compress_with(dense, chosen.recipe, bench.dataset(card["dataset"]), seed=chosen.seed, progress=progress)
    about = {"seed": chosen.seed, "checkpoint": card["sha256"]}
    save(made, chosen.output, model=card["model"], dataset=card["dataset"], options=card["options"], about=about)
    before, after = count_cost(dense, made.example_inputs), count_cost(made.float_model, made.example_inputs)
    size, zipped = file_sizes(made)
    print(f"{chosen.output}: {size} bytes ({zipped} zipped), {dense_size / size:.2f} times smaller than dense")
    print(f"MACs {after.macs} of {before.macs}, parameters {after.params} of {before.params}, nonzero {after.nonzeros}")
    return 0


def _dense(bench: Any, model: str, dataset: str | None) -> tuple[Any, dict[str, Any], int]:
    """The dense model that `compress` is to start from, its card, and the bytes of its file."""
    from pruning_bench.artifacts import file_size
    from pruning_bench.cases import Case, ready_pairs
    from pruning_bench.models.checkpoints import load_checkpoint, read_card
    from pruning_bench.own import own_pairs
    from pruning_bench.registry import DATASETS

    own = own_pairs([model])
    if own or (not _is_path(model) and (own := ready_pairs([model]))):
        case = Case(*own[0], "dense", "eager")
        _check_dataset(dataset, case.dataset, "which its examples are", model)
        if bench.folder is not None and DATASETS[case.dataset].own:
            expected = f"left out: {case.dataset}() gives the examples"
            raise PruningBenchError("compress", f"--data {bench.folder}", expected, model)
        return bench.dense(case), bench.card(case), file_size(bench.compressed(case))
    path = _checkpoint(model, dataset)
    card = read_card(path)
    if card.get("recipe", "dense") != "dense":
        found = f"a model compressed by {card['recipe']} already"
        raise PruningBenchError("compress", found, "the checkpoint of a dense one", str(path))
    _check_dataset(dataset, card["dataset"], "which it was trained on", str(path))
    return load_checkpoint(path), card, path.stat().st_size


def _check_dataset(asked: str | None, own: str, why: str, where: str) -> None:
    if asked not in (None, own):
        raise PruningBenchError("compress", f"--dataset {asked}", f"{own}, {why}, or left out", where)


def _is_path(model: str) -> bool:
    return "/" in model or "." in model


def _check_output(path: Path, force: bool, endings: Sequence[str], who: str = "compress") -> None:
    """Refuses what could not be written, or would destroy something, before the work is done."""
    if path.suffix not in endings:
        raise PruningBenchError(who, f"-o {path}", f"a name ending in {', '.join(endings)}")
    for file in (path, path.with_suffix(".json")) if path.suffix == ".safetensors" else (path,):
        if file.is_dir():
            raise PruningBenchError(who, "a directory", "a file", str(file))
        if file.exists() and not force:
            raise PruningBenchError(who, "an existing file", "a new one, or --force", str(file))
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise PruningBenchError(who, f"-o {path}", "in a folder that can be written", str(folder))


def _checkpoint(model: str, dataset: str | None) -> Path:
    """The checkpoint that is meant by a path, or by the names of a model and its data set."""
    from pruning_bench.models.checkpoints import shipped_path
    from pruning_bench.registry import DATASETS, MODELS

    if _is_path(model):
        return Path(model)
    return shipped_path(MODELS[model].name, DATASETS[dataset or DATASET].name)


def do_compare(chosen: argparse.Namespace) -> int:
    """Prints two models side by side."""
    from pruning_bench.comparing import compare, prepare
    from pruning_bench.progress import progress_bar
    from pruning_bench.reporting.comparison_text import comparison_text
    from pruning_bench.workbench import Workbench

    _use_own(chosen)
    bench = Workbench()
    with progress_bar() as bench.progress:  # gone before times are measured
        a, b = prepare(
            bench,
            chosen.a,
            chosen.b,
            dataset=chosen.dataset,
            default=DATASET,
            runtime=chosen.runtime,
            threads=chosen.threads,
        )
    print(comparison_text(compare(bench, a, b, timed=chosen.timed)))
    return 0


def do_sensitivity(chosen: argparse.Namespace) -> int:
    """Prints what each layer costs, and writes it in the forms that are asked for."""
    from pruning_bench.progress import progress_bar
    from pruning_bench.records import write_atomically
    from pruning_bench.registry import DATASETS
    from pruning_bench.reporting import sensitivity_text as forms
    from pruning_bench.sensitivity import measure_sensitivity
    from pruning_bench.workbench import Workbench

    writers = {".md": forms.sensitivity_markdown, ".json": forms.sensitivity_json, ".svg": forms.sensitivity_svg}
    for path in chosen.output:
        _check_output(path, chosen.force, tuple(writers), "sensitivity")
    _use_own(chosen)
    bench = Workbench(folder=chosen.data, full=chosen.data is not None)
    dense, card, _ = _dense(bench, chosen.model, chosen.dataset)
    dataset = bench.dataset(card["dataset"])
    with progress_bar() as progress:
        found = measure_sensitivity(
            dense,
            chosen.recipe,
            dataset,
            DATASETS[card["dataset"]],
            model=chosen.model,
            limit=chosen.limit,
            seed=chosen.seed,
            progress=progress,
        )
    print(forms.sensitivity_text(found))
    for path in chosen.output:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, writers[path.suffix](found))
    return 0


def do_compare_runs(chosen: argparse.Namespace) -> int:
    """Prints what changed between two runs."""
    from pruning_bench.judging.history import find_run
    from pruning_bench.judging.run_comparison import compare_runs
    from pruning_bench.records import read_run
    from pruning_bench.reporting.insertion import put_between_marks
    from pruning_bench.reporting.run_comparison_text import run_comparison_markdown, run_comparison_text

    paths = [find_run(chosen.results / "runs", name) for name in (chosen.a, chosen.b)]
    a, b = map(read_run, paths)
    found = compare_runs(a, b, (str(paths[0]), str(paths[1])))
    print(run_comparison_text(found))
    if chosen.into:
        put_between_marks(chosen.into, run_comparison_markdown(found))
    return 0


def do_doctor(chosen: argparse.Namespace) -> int:
    """Prints what is fit to measure here."""
    from pruning_bench.doctor import examine
    from pruning_bench.reporting.findings import findings_text

    print(findings_text(examine(chosen.results)))
    return 0


def do_judge(chosen: argparse.Namespace) -> int:
    """Judges a recorded run again."""
    from pruning_bench import reviewing

    report = reviewing.review(chosen.results, chosen.run_id, require=chosen.require)
    print("\n".join(report.lines))
    if chosen.into:
        reviewing.put_into(chosen.into, report)
    return report.exit_status


def do_accept(chosen: argparse.Namespace) -> int:
    """Makes a run the baseline."""
    from pruning_bench import accepting

    _use_own(chosen)
    scope: Any = "portable" if chosen.portable else "times" if chosen.times else "all"
    print(
        accepting.accept(
            chosen.results,
            chosen.run_id,
            reason=chosen.reason,
            only=chosen.only,
            scope=scope,
            data=chosen.data,
            checkpoints=chosen.checkpoints,
        )
    )
    return 0


def do_cache(chosen: argparse.Namespace) -> int:
    """Lists or deletes the compressed models that are kept."""
    from datetime import datetime

    from tabulate import tabulate

    from pruning_bench.build_cache import usual_cache
    from pruning_bench.reporting.text import amount

    if (cache := usual_cache()) is None:
        raise PruningBenchError("cache", "no home directory", "one, or a folder in PRUNING_BENCH_CACHE")
    if chosen.dir or chosen.clear:
        print(f"{cache.clear()} models deleted from {cache.folder}" if chosen.clear else cache.folder)
        return 0
    kept = cache.entries()
    rows = [
        [e.recipe, e.name, e.seed, amount(e.size, "B"), f"{datetime.fromtimestamp(e.used):%Y-%m-%d %H:%M}"]
        for e in kept
    ]
    print(tabulate(rows, headers=["recipe", "model", "seed", "size", "last use"], tablefmt="simple"))
    size = amount(sum(e.size for e in kept), "B")
    print(f"\n{len(kept)} models, {size} of {amount(cache.limit, 'B')} in {cache.folder}")
    return 0
