"""A user's own definitions: named in the `[tool.pruning_bench]` table of a pyproject.toml, or made in a conftest.py.

[tool.pruning_bench]
model = "package.module:function"     # gives the model with its weights
data = "package.module:function"      # gives its examples
score = "package.module:score"        # made by @score; left out for classification
imports = ["package.module"]          # modules that register something: methods, runtimes, ...
profile = "smoke"
recipes = ["magnitude:0.5", "static:w8a8"]
runtimes = ["onnxruntime"]
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pruning_bench.discover import import_files
from pruning_bench.errors import PluginError, PruningBenchError, closest, describe
from pruning_bench.registry import DATASETS, MODELS, Registry

TABLE = "[tool.pruning_bench]"
CONFTEST = "conftest.py"


@dataclass(frozen=True)
class Settings:
    """What the table says; () and "" stand for what it leaves out.

    Args:
        file: the pyproject.toml; None where there is no table.
    """

    file: Path | None = None
    model: str = ""
    data: str = ""
    score: str = ""
    imports: tuple[str, ...] = ()
    profile: str = ""
    recipes: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()

    def register(self) -> None:
        """Imports and registers what the table names, from the folder of its file; what is there already stays.

        Raises:
            PluginError: a module or name that cannot be imported, with file and key.
        """
        if self.file is None:
            return
        for folder in map(str, [self.file.parent, *_import_paths(self.file)]):
            if folder not in sys.path:
                sys.path.append(folder)
        for module in self.imports:
            self._module("imports", module)
        if self.model or self.data:  # with torch
            from pruning_bench.datasets.contract import add_evaluation_data
            from pruning_bench.metrics.contract import Score
            from pruning_bench.models.contract import add_trained_model
        name: str | None = None
        if self.data:
            give = self._named("data", self.data)
            score = self._named("score", self.score) if self.score else None
            if score is not None and not isinstance(score, Score):
                raise self._wrong("score", f"{self.score!r} of type {type(score).__name__}", "made by @score(...)")
            name = str(getattr(give, "__name__", ""))
            if not self._stays(DATASETS, name, "load", give):
                add_evaluation_data(give, score, self.file)
        if self.model:
            build = self._named("model", self.model)
            own = getattr(build, "__name__", "")
            if not self._stays(MODELS, own, "build", build):
                add_trained_model(build, name, self.file)

    def _stays(self, registry: Registry[Any], name: str, member: str, function: Callable[..., Any]) -> bool:
        """Whether this table has registered the name already, or a decorator the very same function."""
        if name not in registry:
            return False
        there = registry[name]
        same = inspect.unwrap(getattr(there, member)) is inspect.unwrap(function)
        return same or there.declared == self.file

    def _module(self, key: str, name: str) -> Any:
        try:
            return importlib.import_module(name)
        except PruningBenchError:
            raise
        except (Exception, SystemExit) as problem:
            found = f"{name!r} ({describe(problem)})"
            raise self._wrong(key, found, "a module that can be imported") from problem

    def _named(self, key: str, text: str) -> Callable[..., Any]:
        """The function that a text `module:function` names."""
        module, colon, name = text.partition(":")
        if not (module and colon and name.isidentifier()):
            raise self._wrong(key, repr(text), "module:function")
        found = getattr(self._module(key, module), name, None)
        if not callable(found):
            raise self._wrong(
                key, f"{text!r}, {'no such name' if found is None else 'no function'}", "a function there"
            )
        return found  # type: ignore[no-any-return]

    def _wrong(self, key: str, found: str, expected: str) -> PluginError:
        return PluginError(f"{TABLE} {key}", found, expected, str(self.file))


def read_settings(root: Path) -> Settings:
    """The table in the pyproject.toml of a folder; raises `PruningBenchError` for what it should not hold."""
    file = root / "pyproject.toml"
    if not file.is_file():
        return Settings()
    table = _table(file, "pruning_bench")
    if table is None:
        return Settings()
    if not isinstance(table, dict):
        raise PruningBenchError(TABLE, f"a {type(table).__name__}", "a table", str(file))
    known = {field.name: field.type for field in fields(Settings) if field.name != "file"}
    for key, value in table.items():
        if key not in known:
            raise PruningBenchError(TABLE, f"key {key!r}", closest(key, known), str(file))
        if not _fits(value, many := "tuple" in str(known[key])):
            raise PruningBenchError(f"{TABLE} {key}", repr(value), "a list of texts" if many else "a text", str(file))
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    found = Settings(file.resolve(), **values)
    if found.score and not found.data:
        raise PruningBenchError(f"{TABLE} score", repr(found.score), "given beside data", str(file))
    return found


def _fits(value: object, many: bool) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value) if many else isinstance(value, str)


def _import_paths(file: Path) -> list[Path]:
    """What pytest puts onto the path of imports by its option `pythonpath`, for commands outside pytest."""
    options = _table(file, "pytest", "ini_options") or {}
    given = options.get("pythonpath", []) if isinstance(options, dict) else []
    words = given.split() if isinstance(given, str) else given
    return [file.parent / word for word in words if isinstance(word, str)]


def _table(file: Path, *names: str) -> Any:
    """A table as it stands below `tool`; None without one."""
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest brings the latter
    try:
        table = tomllib.loads(file.read_text("utf-8")).get("tool", {})
        for name in names[:-1]:
            table = table.get(name, {})
        return table.get(names[-1])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError) as problem:
        raise PruningBenchError("pyproject.toml", str(problem), "TOML", str(file)) from None


def use_own(folder: Path, imports: tuple[str, ...] | list[str] = ()) -> Settings:
    """Registers what a user's folder defines, for commands outside pytest.

    That is: the given files, the table of the pyproject.toml, and a conftest.py that speaks of pruning_bench, in
    `folder` or, where it has neither, in the nearest folder above that has one of them.
    """
    import_files(imports)
    for root in (folder, *folder.parents):
        conftest = root / CONFTEST
        speaks = conftest.is_file() and "pruning_bench" in conftest.read_text("utf-8", errors="replace")
        settings = read_settings(root)
        if speaks:
            import_files([str(conftest)])
        settings.register()
        if speaks or settings.file or (root / "pyproject.toml").is_file():
            return settings
    return Settings()


def own_pairs(models: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """(model, data) of the models that a user brought along: of those that are named, or of all.

    Raises:
        PruningBenchError: a model whose examples are not registered, or cannot be told among several.
    """
    known = [name for name in DATASETS if DATASETS[name].own]
    pairs = []
    for name in MODELS if models is None else dict.fromkeys(models):
        if name not in MODELS or not MODELS[name].own:
            continue
        data = MODELS[name].data
        if data is None and len(known) != 1:
            found = f"{len(known)} functions that give examples ({', '.join(known)})" if known else "no examples"
            expected = "@trained_model(data=...)" if known else "a function decorated by @evaluation_data"
            raise PruningBenchError(f"model {name}", found, expected)
        if data is not None and not (data in DATASETS and DATASETS[data].own):
            raise PruningBenchError(f"model {name}", f"data {data!r}", closest(data, known))
        pairs.append((name, data or known[0]))
    return pairs
