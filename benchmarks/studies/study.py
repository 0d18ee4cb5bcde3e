"""What a study is: a question with its bar, and the rows of a table, model by model; printed, and put into the docs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from lab import CONFIDENCE, DATASET, Keep, Lab, shipped
from tabulate import tabulate
from torch import nn

from pruning_bench.datasets.contract import load_dataset
from pruning_bench.discover import discover
from pruning_bench.errors import PruningBenchError, one_line
from pruning_bench.judging.statistics import Estimate
from pruning_bench.reporting.insertion import put_between_marks, with_section
from pruning_bench.runtimes.contract import torch_threads
from pruning_bench.sources import UnknownSourceError, package_digest

THREADS = 2
WORDS = ("model", "recipe")  # headings of columns that are aligned to the left
BAD_INPUT, INTERRUPTED = 2, 130


def pp(share: float) -> str:
    """`-0.52`, in percentage points."""
    return f"{100 * share:+.2f}"


def points(estimate: Estimate) -> str:
    """`+1.20 [+0.90, +1.50]`, in percentage points."""
    low, high = estimate.interval(CONFIDENCE)
    return f"{pp(estimate.value)} [{pp(low)}, {pp(high)}]"


def yes(holds: bool) -> str:
    """As a cell."""
    return "yes" if holds else "no"


@dataclass(frozen=True)
class Study:
    """One table.

    Args:
        asks: what the table answers, in a sentence or two; says the bar.
        header: of the table.
        rows: (lab, model) -> rows, each as soon as it is measured.
        models: that are measured if none are named.
        epochs: that its steps train if nothing else is said; None where nothing is trained.
        seeds: how many.
        threads: of torch.
        dense: name -> model that is compressed.
        notes: what else is to be said of where it was measured.
    """

    asks: str
    header: Sequence[str]
    rows: Callable[[Lab, str], Iterator[Sequence[str]]]
    models: tuple[str, ...]
    epochs: int | None = None
    seeds: int = 1
    threads: int = THREADS
    dense: Callable[[str], nn.Module] = shipped
    notes: Callable[[], str] = lambda: ""


def section(script: str, chosen: argparse.Namespace, study: Study, lab: Lab, rows: Sequence[Sequence[str]]) -> str:
    """What is asked, the table, and how to measure it again."""
    align = ["left" if heading in WORDS else "right" for heading in study.header]
    table = tabulate(rows, study.header, tablefmt="pipe", disable_numparse=True, colalign=align)
    said = [f"torch {torch.__version__}", study.notes(), *(_images(lab) if study.seeds else ())]
    return f"{study.asks}\n\n{table}\n\n`{command(script, chosen, study)}`: {'; '.join(filter(None, said))}."


def _images(lab: Lab) -> tuple[str, str]:
    seeds = ", ".join(map(str, lab.seeds))
    counts = f"{lab.images:,} of {len(lab.data.selection):,} for top-1, {len(lab.data.train):,} to train and calibrate"
    return f"threads {torch.get_num_threads()}; seeds {seeds}", f"images: {counts}"


def command(script: str, chosen: argparse.Namespace, study: Study) -> str:
    """How to measure a table again, with the folder of the data left open."""
    words = ["python", f"benchmarks/studies/{script}.py", chosen.study]
    words += chosen.models if tuple(chosen.models) != study.models else []
    for option in ("epochs", "seeds", "tune", "limit"):
        if value := getattr(chosen, option, None):
            words += [f"--{option}", str(value)]
    words += ["--threads", str(chosen.threads)] if chosen.threads != study.threads else []
    return shlex.join(words) + (" --data DIR" if getattr(chosen, "data", None) else "")


def run(script: str, about: str, studies: Mapping[str, Study], arguments: Sequence[str] | None = None) -> int:
    """Measures and prints one table; a user's mistake ends in one line on standard error and status 2."""
    chosen = _parser(about, studies).parse_args(arguments)
    study = studies[chosen.study]
    chosen.models = chosen.models or list(study.models)
    try:
        with torch_threads(chosen.threads):
            print(_measure(script, chosen, study))
    except (PruningBenchError, UnknownSourceError, OSError) as problem:
        print(f"{script}: {one_line(problem)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{script}: interrupted; {chosen.keep or 'without --keep FILE nothing'} is kept", file=sys.stderr)
        return INTERRUPTED
    return 0


def _measure(script: str, chosen: argparse.Namespace, study: Study) -> str:
    discover()
    name = f"{script} {chosen.study}"
    if chosen.into is not None:
        with_section(chosen.into.read_text(encoding="utf-8"), "", name, str(chosen.into))
    lab = _lab(chosen, study)
    for model in chosen.models:  # a name that is wrong is to be found now, not after the models before it
        lab.dense(model)
    rows = [row for model in chosen.models for row in study.rows(lab, model)]
    body = section(script, chosen, study, lab, rows)
    if chosen.into is not None:
        put_between_marks(chosen.into, body, name)  # read again: another study may have been put there meanwhile
    return body


def _lab(chosen: argparse.Namespace, study: Study) -> Lab:
    folder = getattr(chosen, "data", None)
    given = {option.name: value for option in fields(Lab) if (value := getattr(chosen, option.name, None)) is not None}
    given |= {"seeds": tuple(range(getattr(chosen, "seeds", 1))), "keep": Keep(chosen.keep), "code": package_digest()}
    return Lab(**{**given, "data": load_dataset(DATASET, folder, full=folder is not None), "dense": study.dense})


def _parser(about: str, studies: Mapping[str, Study]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    named = parser.add_subparsers(dest="study", required=True, metavar="STUDY")
    for name, study in studies.items():
        asks = study.asks.replace("%", "%%")
        one = named.add_parser(name, help=asks, description=asks)
        one.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(study.models)}")
        if study.epochs is not None:
            one.add_argument("--epochs", type=_count, default=study.epochs, help="default: %(default)s")
            one.add_argument("--tune", metavar="OPTIONS", default="", help="of steps that train, as lr=0.05,flip=true")
        if study.seeds:
            one.add_argument("--seeds", type=_count, default=study.seeds, help="how many (default: %(default)s)")
            one.add_argument("--data", type=Path, metavar="DIR", help="the full data; the shipped part if left out")
            one.add_argument("--limit", type=_count, metavar="N", help="only the first N selection images, to try it")
        one.add_argument("--threads", type=_count, default=study.threads, help="of torch (default: %(default)s)")
        one.add_argument("--keep", type=Path, metavar="FILE", help="JSON lines of what is measured, to go on from")
        one.add_argument("--into", type=Path, metavar="FILE", help="also put the table into its section of this page")
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}, should be a whole number above 0")
    return int(text)
