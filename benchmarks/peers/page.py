"""What both scripts share: what a child process finds, and a table that is printed and put into the docs."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pruning_bench.environment import current
from pruning_bench.errors import PruningBenchError, one_line
from pruning_bench.reporting.insertion import put_between_marks, with_section

BAD_INPUT = 2


def child(script: str, words: Sequence[str], seconds: float) -> dict[str, Any]:
    """What a fresh process finds; {"problem": why} where it fails or does not end in time."""
    command = [sys.executable, script, *words]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"problem": f"does not end within {seconds:g} s"}
    if ran.returncode:
        died = f"exit {ran.returncode}" if ran.returncode > 0 else f"killed by signal {-ran.returncode}: memory?"
        return {"problem": (ran.stderr.strip().splitlines() or [died])[-1][:200]}
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def options(about: str | None, work: Sequence[str], seconds: float, child: dict[str, Any]) -> argparse.ArgumentParser:
    """What both take.

    Args:
        child: how `--child`, by which a script starts itself, is read.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=work)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=seconds, help="the longest for a model (default: %(default)g)")
    parser.add_argument("--into", type=Path, metavar="FILE", help="also put the table into its section of this page")
    parser.add_argument("--child", help=argparse.SUPPRESS, **child)
    parser.set_defaults(usual_seconds=seconds)
    return parser


def versions(parser: argparse.ArgumentParser, names: Sequence[str]) -> str:
    """`torch 2.14.1, nncf 3.4.0`; ends the process where one is missing."""
    try:
        return ", ".join(f"{name} {version(name)}" for name in names)
    except PackageNotFoundError as absent:
        parser.error(f'{absent.name} is not installed: python -m pip install "pruning_bench[peers]"')


def check_page(args: argparse.Namespace, script: str) -> None:
    """Refuses a page without the section before anything is measured."""
    if args.into is not None:
        _on_page(
            args,
            lambda: with_section(args.into.read_text(encoding="utf-8"), "", f"{script} {args.work}", str(args.into)),
        )


def report(
    args: argparse.Namespace, script: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]
) -> None:
    """Prints a table, the command that measures it and what else is to be said; puts them where they belong."""
    longer = [] if args.seconds == args.usual_seconds else ["--seconds", f"{args.seconds:g}"]
    command = shlex.join(["python", f"benchmarks/peers/{script}.py", args.work, *args.models, *longer])
    said = "; ".join([*notes[:1], current().must_match["cpu"]])
    lines = [f"`{command}`: {said}.", *(f"* {note}" for note in notes[1:])]
    body = "\n\n".join([tabulate(rows, header, tablefmt="pipe", disable_numparse=True), *lines])
    print(body)
    if args.into is not None:
        _on_page(args, lambda: put_between_marks(args.into, body, f"{script} {args.work}"))


def _on_page(args: argparse.Namespace, write: Any) -> None:
    try:
        write()
    except (PruningBenchError, OSError) as problem:
        print(f"peers: {one_line(problem)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
