"""Calls of steps that others wrote: what these raise becomes one line with the place in their own code."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pruning_bench.errors import PluginError, PruningBenchError, describe

T = TypeVar("T")

PACKAGE = Path(__file__).parent
_STANDARD = Path(sysconfig.get_path("stdlib"))
_INSTALLED = {"site-packages", "dist-packages"}


def call_step(module: str, who: str, function: str, call: Callable[[], T], expected: str) -> T:
    """What a step's function gives.

    Args:
        module: of the step's class; what the package's own steps raise is a bug of the package and stays as it is.
    Raises:
        PluginError: the step raised what is no `PruningBenchError`; that is chained.
    """
    try:
        return call()
    except PruningBenchError:
        raise
    except (Exception, SystemExit) as problem:
        if _top(module) == PACKAGE.name:
            raise
        where = _place(problem, _top(module)) or module
        raise PluginError(who, f"{function}() raises {describe(problem)}", expected, where) from problem


def _top(module: str) -> str:
    return module.partition(".")[0]


def _place(problem: BaseException, own: str) -> str:
    """`file:line` of the innermost frame in the package `own`, or in code that is not installed; "" without one."""
    found = ""
    for frame, line in traceback.walk_tb(problem.__traceback__):
        file = frame.f_code.co_filename
        if _top(str(frame.f_globals.get("__name__"))) == own or _is_loose(Path(file)):
            found = found if file.startswith("<") else f"{file}:{line}"
    return found


def _is_loose(file: Path) -> bool:
    """Whether a file belongs to no installed distribution, to Python or to this package."""
    return not _INSTALLED.intersection(file.parts) and not {PACKAGE, _STANDARD}.intersection(file.parents)
