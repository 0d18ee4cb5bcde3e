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

from pruning_bench import __version__, commands
from pruning_bench.commands import DATASET, KINDS
from pruning_bench.errors import PruningBenchError, one_line

BAD_INPUT = 2
READER_GONE = 128 + 13  # as a shell calls the end by SIGPIPE
RUNTIME = "onnxruntime"  # where quantized models run as such


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; a user's mistake ends in one line on standard error and status 2."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        chosen = _parser("train" in words[:1]).parse_args(words)
        status = int(chosen.run(chosen))
        sys.stdout.flush()  # a reader that went away is met here, and not when Python ends
        return status
    except PruningBenchError as problem:
        print(f"pruning-bench: {problem}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be written has no reader
        return READER_GONE
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
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = subparsers.add_parser("list", help="what is registered: methods, models, data sets, runtimes, metrics")
    listing.add_argument(
        "kind", nargs="?", default=None, metavar="KIND", help=f"one of {', '.join(KINDS)}; all if left out"
    )
    listing.set_defaults(run=commands.do_list)

    training = subparsers.add_parser("train", help="train a model and write its checkpoint", formatter_class=_Formatter)
    if training_wanted:
        _add_training(training)

    making = subparsers.add_parser("compress", help="run a recipe on a trained model and write the result")
    making.add_argument("model", help="a registered model, torchvision:NAME[:WEIGHTS], or a checkpoint's path")
    making.add_argument("recipe", help="for instance l1_filter:0.5+finetune:2+static:w8a8")
    making.add_argument("-o", "--output", required=True, type=Path, help="the safetensors file to write")
    making.add_argument(
        "--dataset", default=None, help=f"which trained model by that name (default: {DATASET}); a path's card tells it"
    )
    making.add_argument("--data", type=Path, default=None, help="folder of the full data; the shipped part if left out")
    making.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    making.add_argument("--force", action="store_true", help="overwrite the output")
    making.set_defaults(run=commands.do_compress)

    comparing = subparsers.add_parser("compare", help="two models side by side: accuracy, flips, size, MACs, latency")
    what = "a model, MODEL/RECIPE, or the path of a checkpoint or of a file that compress wrote"
    comparing.add_argument("a", metavar="A", help=what)
    comparing.add_argument("b", metavar="B", help="the same; differences are those of B against A")
    comparing.add_argument(
        "--dataset", default=None, help=f"which trained models by name (default: {DATASET}); a path's card tells it"
    )
    comparing.add_argument("--runtime", default=RUNTIME, help="what both run on (default: %(default)s)")
    comparing.add_argument("--threads", type=int, default=1, metavar="N", help="of each call (default: %(default)s)")
    comparing.add_argument("--no-time", dest="timed", action="store_false", help="do not measure latencies")
    comparing.set_defaults(run=commands.do_compare)

    looking = subparsers.add_parser("sensitivity", help="what a recipe's last step costs, run on one layer at a time")
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
    looking.set_defaults(run=commands.do_sensitivity)

    both = subparsers.add_parser("compare-runs", help="two recorded runs: what changed but times, say with torch")
    which = "id (or its beginning), file, 'latest', or torch=2.11 for the latest run with that version"
    both.add_argument("a", metavar="A", help=which)
    both.add_argument("b", metavar="B", help="the same; changes are those of B against A")
    both.add_argument("--into", type=Path, default=None, metavar="FILE", help="also put it into this Markdown file")
    both.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: %(default)s)")
    both.set_defaults(run=commands.do_compare_runs)

    examining = subparsers.add_parser("doctor", help="what is fit to measure here, what is missing, how to mend it")
    examining.add_argument(
        "--results", type=Path, default=Path("results"), help="results folder (default: %(default)s)"
    )
    examining.set_defaults(run=commands.do_doctor)

    judging = subparsers.add_parser("judge", help="judge a recorded run against the baselines again; needs no torch")
    judging.add_argument(
        "--require", action="append", default=[], metavar="RUNTIME", help="fail where it was not there"
    )
    judging.add_argument(
        "--into", type=Path, default=None, metavar="FILE", help="also put the tables into this Markdown file"
    )
    judging.set_defaults(run=commands.do_judge)

    accepting = subparsers.add_parser("accept", help="make a run the baseline, deliberately")
    accepting.add_argument("--only", action="append", default=None, metavar="CASE", help="only this case; repeatable")
    accepting.add_argument("--reason", required=True, help="why; it is kept with every line that changes")
    part = accepting.add_mutually_exclusive_group()
    part.add_argument("--portable", action="store_true", help="only what does not depend on the machine")
    part.add_argument("--times", action="store_true", help="only times")
    accepting.add_argument("--data", type=Path, default=None, help="folder of the full data, if the run used it")
    accepting.add_argument(
        "--checkpoints", type=Path, default=None, help="folder of your own models, if the run used it"
    )
    accepting.set_defaults(run=commands.do_accept)
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
    _add_cache(subparsers)
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _add_training(parser: argparse.ArgumentParser) -> None:
    from pruning_bench.training import command

    command.add_arguments(parser)
    parser.set_defaults(run=command.run)


def _add_cache(subparsers: Any) -> None:
    about = (
        "Compressed models are kept between runs as long as nothing changed that they were made from: methods, recipe, "
        "checkpoint, data, seed, calibration, versions, processor, cores. A method whose source cannot be found (typed "
        "in, or made inside a function) is not kept; one that reads files or variables needs --pb-no-cache. "
        "PRUNING_BENCH_CACHE names another folder, PRUNING_BENCH_CACHE_MIB another size than 2048; 0 keeps nothing."
    )
    keeping = subparsers.add_parser(
        "cache", help="the compressed models kept between runs: list, clear", description=about
    )
    keeping.add_argument("--clear", action="store_true", help="delete them all")
    keeping.add_argument("--dir", action="store_true", help="print the folder and nothing else")
    keeping.set_defaults(run=commands.do_cache)


if __name__ == "__main__":
    sys.exit(main())
