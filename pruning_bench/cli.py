"""The command line of `pruning-bench`.

    list | train | compress | compare | sensitivity | compare-runs | doctor | judge | accept | cache

Exit statuses: 0, 1 a failing verdict, 2 bad input, 6 a run that was not fit to be judged.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning_bench import __version__
from pruning_bench.errors import PruningBenchError, UnknownNameError, closest, one_line

BAD_INPUT = 2
DATASET = "fashion_mnist"  # the one whose trained models ship
RUNTIME = "onnxruntime"  # where quantized models run as such
KINDS = ("methods", "models", "datasets", "runtimes", "metrics", "profiles")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; a user's mistake ends in one line on standard error and status 2."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        chosen = _parser("train" in words[:1]).parse_args(words)
        return int(chosen.run(chosen))
    except PruningBenchError as problem:
        print(f"pruning-bench: {problem}", file=sys.stderr)
        return BAD_INPUT
    except OSError as problem:
        print(f"pruning-bench: {one_line(problem)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("pruning-bench: interrupted; no file is half written", file=sys.stderr)
        return 130


def _parser(training_wanted: bool = False) -> argparse.ArgumentParser:
    """All commands; the arguments of `train` only when it is wanted, since they come with torch."""
    parser = argparse.ArgumentParser(prog="pruning-bench", description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--version", action="version", version=f"pruning-bench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="what is registered: methods, models, data sets, runtimes, metrics")
    listing.add_argument(
        "kind", nargs="?", default=None, metavar="KIND", help=f"one of {', '.join(KINDS)}; all if left out"
    )
    listing.set_defaults(run=_list)

    training = commands.add_parser("train", help="train a model and write its checkpoint", formatter_class=_Formatter)
    if training_wanted:
        _add_training(training)

    making = commands.add_parser("compress", help="run a recipe on a trained model and write the result")
    making.add_argument("model", help="a registered model, torchvision:NAME[:WEIGHTS], or a checkpoint's path")
    making.add_argument("recipe", help="for instance l1_filter:0.5+finetune:2+static:w8a8")
    making.add_argument("-o", "--output", required=True, type=Path, help="the safetensors file to write")
    making.add_argument(
        "--dataset", default=None, help=f"which trained model by that name (default: {DATASET}); a path's card tells it"
    )
    making.add_argument("--data", type=Path, default=None, help="folder of the full data; the shipped part if left out")
    making.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    making.add_argument("--force", action="store_true", help="overwrite the output")
    making.set_defaults(run=_compress)

    comparing = commands.add_parser("compare", help="two models side by side: accuracy, flips, size, MACs, latency")
    what = "a model, MODEL/RECIPE, or the path of a checkpoint or of a file that compress wrote"
    comparing.add_argument("a", metavar="A", help=what)
    comparing.add_argument("b", metavar="B", help="the same; differences are those of B against A")
    comparing.add_argument(
        "--dataset", default=None, help=f"which trained models by name (default: {DATASET}); a path's card tells it"
    )
    comparing.add_argument("--runtime", default=RUNTIME, help="what both run on (default: %(default)s)")
    comparing.add_argument("--threads", type=int, default=1, metavar="N", help="of each call (default: %(default)s)")
    comparing.add_argument("--no-time", dest="timed", action="store_false", help="do not measure latencies")
    comparing.set_defaults(run=_compare)

    looking = commands.add_parser("sensitivity", help="what a recipe's last step costs, run on one layer at a time")
    looking.add_argument("model", help="a registered model, torchvision:NAME[:WEIGHTS], or a checkpoint's path")
    looking.add_argument("recipe", help="for instance static:w4a8, or magnitude:0.8")
    looking.add_argument(
        "--dataset", default=None, help=f"which trained model by that name (default: {DATASET}); a path's card tells it"
    )
    looking.add_argument(
        "--data", type=Path, default=None, help="folder of the full data; the shipped part if left out"
    )
    looking.add_argument(
        "--limit", type=int, default=None, metavar="N", help="measure on so many examples of the selection split"
    )
    looking.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    looking.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="also write it: .md a table, .json the numbers, .svg a plot; repeatable",
    )
    looking.add_argument("--force", action="store_true", help="overwrite the outputs")
    looking.set_defaults(run=_sensitivity)

    both = commands.add_parser("compare-runs", help="two recorded runs: what changed but times, say with torch")
    which = "id (or its beginning), file, 'latest', or torch=2.11 for the latest run with that version"
    both.add_argument("a", metavar="A", help=which)
    both.add_argument("b", metavar="B", help="the same; changes are those of B against A")
    both.add_argument("--into", type=Path, default=None, metavar="FILE", help="also put it into this Markdown file")
    both.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: %(default)s)")
    both.set_defaults(run=_compare_runs)

    examining = commands.add_parser("doctor", help="what is fit to measure here, what is missing, how to mend it")
    examining.add_argument(
        "--results", type=Path, default=Path("results"), help="results folder (default: %(default)s)"
    )
    examining.set_defaults(run=_doctor)

    judging = commands.add_parser("judge", help="judge a recorded run against the baselines again; needs no torch")
    judging.add_argument(
        "--require", action="append", default=[], metavar="RUNTIME", help="fail where it was not there"
    )
    judging.add_argument(
        "--into", type=Path, default=None, metavar="FILE", help="also put the tables into this Markdown file"
    )
    judging.set_defaults(run=_judge)

    accepting = commands.add_parser("accept", help="make a run the baseline, deliberately")
    accepting.add_argument("--only", action="append", default=None, metavar="CASE", help="only this case; repeatable")
    accepting.add_argument("--reason", required=True, help="why; it is kept with every line that changes")
    part = accepting.add_mutually_exclusive_group()
    part.add_argument("--portable", action="store_true", help="only what does not depend on the machine")
    part.add_argument("--times", action="store_true", help="only times")
    accepting.add_argument("--data", type=Path, default=None, help="folder of the full data, if the run used it")
    accepting.add_argument(
        "--checkpoints", type=Path, default=None, help="folder of your own models, if the run used it"
    )
    accepting.set_defaults(run=_accept)
    for command in (listing, making, comparing, looking, accepting):
        command.add_argument(
            "--import",
            dest="imports",
            action="append",
            default=[],
            metavar="FILE",
            help="a file with definitions; those of the conftest.py and the pyproject.toml here are known",
        )
    for command in (judging, accepting):
        command.add_argument("run_id", metavar="RUN", help="id (or its beginning), file, 'latest', or torch=2.11")
        command.add_argument(
            "--results", type=Path, default=Path("results"), help="results folder (default: %(default)s)"
        )
    _add_cache(commands)
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _add_training(parser: argparse.ArgumentParser) -> None:
    from pruning_bench.training import command

    command.add_arguments(parser)
    parser.set_defaults(run=command.run)


def _use_own(chosen: argparse.Namespace) -> None:
    """Registers the user's own definitions."""
    from pruning_bench.discover import discover
    from pruning_bench.own import use_own

    discover()
    use_own(Path.cwd(), chosen.imports)


def _list(chosen: argparse.Namespace) -> int:
    from tabulate import tabulate

    from pruning_bench.listing import rows_of

    if chosen.kind is not None and chosen.kind not in KINDS:
        raise UnknownNameError("list", repr(chosen.kind), closest(chosen.kind, KINDS))
    _use_own(chosen)
    for kind in [chosen.kind] if chosen.kind else KINDS:
        header, rows = rows_of(kind)
        print(f"{kind}\n{tabulate(rows, headers=header, tablefmt='simple')}\n")
    return 0


def _compress(chosen: argparse.Namespace) -> int:
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

    own = own_pairs([model])
    if own or (not _is_path(model) and (own := ready_pairs([model]))):
        case = Case(*own[0], "dense", "eager")
        _check_dataset(dataset, case.dataset, "which its examples are", model)
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


def _compare(chosen: argparse.Namespace) -> int:
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


def _sensitivity(chosen: argparse.Namespace) -> int:
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


def _compare_runs(chosen: argparse.Namespace) -> int:
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


def _doctor(chosen: argparse.Namespace) -> int:
    from pruning_bench.doctor import examine
    from pruning_bench.reporting.findings import findings_text

    print(findings_text(examine(chosen.results)))
    return 0


def _judge(chosen: argparse.Namespace) -> int:
    from pruning_bench import reviewing

    report = reviewing.review(chosen.results, chosen.run_id, require=chosen.require)
    print("\n".join(report.lines))
    if chosen.into:
        reviewing.put_into(chosen.into, report)
    return report.exit_status


def _accept(chosen: argparse.Namespace) -> int:
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


def _add_cache(commands: Any) -> None:
    about = (
        "Compressed models are kept between runs as long as nothing changed that they were made from: methods, recipe, "
        "checkpoint, data, seed, calibration, versions, processor, cores. A method whose source cannot be found (typed "
        "in, or made inside a function) is not kept; one that reads files or variables needs --pb-no-cache. "
        "PRUNING_BENCH_CACHE names another folder, PRUNING_BENCH_CACHE_MIB another size than 2048; 0 keeps nothing."
    )
    keeping = commands.add_parser(
        "cache", help="the compressed models kept between runs: list, clear", description=about
    )
    keeping.add_argument("--clear", action="store_true", help="delete them all")
    keeping.add_argument("--dir", action="store_true", help="print the folder and nothing else")
    keeping.set_defaults(run=_cache)


def _cache(chosen: argparse.Namespace) -> int:
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


if __name__ == "__main__":
    sys.exit(main())
