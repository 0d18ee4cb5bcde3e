"""Imports every definition: the package's own folders, then entry points; the only importer of methods.

Third parties register through the entry-point groups below or with a decorator in their `conftest.py`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path

from pruning_bench.errors import PluginError, PruningBenchError, describe

FOLDERS = ("pruning.methods", "quantization.methods", "training.steps", "models", "datasets", "runtimes", "metrics")
GROUPS = ("methods", "models", "datasets", "runtimes", "metrics")


@functools.cache
def discover() -> None:
    """Fills the registries, once a process.

    Raises:
        PluginError: a module or entry point cannot be imported; names its distribution.
        DuplicateNameError: two definitions claim one name.
    """
    for folder in FOLDERS:
        package = importlib.import_module(f"pruning_bench.{folder}")
        for found in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{found.name}")
    for group in GROUPS:
        for entry in importlib.metadata.entry_points(group=f"pruning_bench.{group}"):
            _load(entry)


def _load(entry: importlib.metadata.EntryPoint) -> None:
    origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"
    try:
        entry.load()
    except PruningBenchError as problem:
        raise type(problem)(problem.who, problem.found, problem.expected, f"{entry.value} of {origin}") from problem
    except (Exception, SystemExit) as problem:
        found = describe(problem)
        raise PluginError(f"entry point {entry.name}", found, "importable", f"{entry.value} of {origin}") from problem


def import_files(files: Iterable[str]) -> None:
    """Imports user files that register definitions (a `conftest.py`), for fresh processes; each at most once.

    Raises:
        PluginError: a file that is missing or fails to import.
    """
    for file in (Path(name).resolve() for name in files):
        if file in _loaded_files():
            continue
        name = f"pruning_bench_user_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(name, file) if file.is_file() else None
        if spec is None or spec.loader is None:
            raise PluginError("import", "no such file", "a Python file that registers definitions", str(file))
        sys.modules[name] = module = importlib.util.module_from_spec(spec)  # before it runs: dataclasses look there
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as problem:
            del sys.modules[name]
            raise PluginError("import", describe(problem), "importable", str(file)) from problem


def _loaded_files() -> set[Path]:
    """Files that are imported already, under whatever name: an entry point's, a `conftest.py`."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return {Path(file).resolve() for file in files if file}
