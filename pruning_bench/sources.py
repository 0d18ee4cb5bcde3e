"""What code a result depends on, as digests of its sources: the package's own, and what users' classes are made of.

A user's file counts with all that it imports of the user's code, wherever the import stands, also by a call like
`import_module("name")`; what is installed counts by its version, unless a method lies in it. What cannot be told is
said to be unknown, never guessed. Not seen is a file that is run by its path, as `spec_from_file_location` does.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from itertools import chain
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, TypeAlias

import pruning_bench
from pruning_bench.functions import behind

PACKAGE = Path(__file__).parent.resolve()
_STANDARD = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
_INSTALLED = ("site-packages", "dist-packages")
_HERE = ("__package__", "__name__")
_IMPORTERS = ("import_module", "__import__", "importorskip")  # functions whose first argument names a module
_IMPORTERS_OF = {"run_module": "runpy", "resolve_name": "pkgutil", "locate": "pydoc"}  # names that others have too


Wanted: TypeAlias = tuple[int, tuple[str, ...]]  # how many folders up (0: where Python looks), parts of a dotted name


class UnknownSourceError(Exception):
    """Code whose source cannot be told: typed in, made inside a function, imported by a name that is computed, or
    changed since this process started.
    """


def package_digest() -> str:
    """sha256 over names and contents of the package's own sources; raises `UnknownSourceError`."""
    files = sorted(PACKAGE.rglob("*.py"))
    if not files:
        raise UnknownSourceError(f"no sources in {PACKAGE}")
    return _sha256("\n".join(f"{file.relative_to(PACKAGE)} {_sha256(_read(file))}" for file in files).encode())


def sources_of(methods: Iterable[type], others: Iterable[object] = ()) -> list[list[str]]:
    """What definitions are made of besides the package: [file name, sha256] or [distribution, version], in fixed order.

    Args:
        methods: steps of a recipe; one that lies in an installed distribution counts by its files.
        others: classes and functions that count by their distribution's version where they are installed.
    Raises:
        UnknownSourceError: a source cannot be told.
    """
    files = [_files_of(cls) for cls in dict.fromkeys(methods)]
    followed = {installed_name(own) for own, *_ in files}
    waiting = [*chain(*files), *chain(*map(_files_of, dict.fromkeys(others)))]
    rows: dict[str, list[str]] = {}
    while waiting:
        file = waiting.pop(0)
        top = installed_name(file)
        version = _version(top) if top and top not in followed else None
        if top and version:
            rows[top] = [top, version]
        elif str(file) not in rows and PACKAGE not in file.parents and (top or not _STANDARD & {*file.parents}):
            content = _read(file)
            rows[str(file)] = [file.name, _sha256(content)]
            waiting += _imported(file, content)
    return list(rows.values())


def _read(file: Path) -> bytes:
    """The source, which is the code that runs only if it is older than this process."""
    try:
        content, status = file.read_bytes(), file.stat()
    except OSError:
        raise UnknownSourceError(f"no source {file}") from None
    if max(status.st_mtime, status.st_ctime) > pruning_bench.STARTED:
        raise UnknownSourceError(f"{file} changed since this process started")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _files_of(definition: Any) -> list[Path]:
    """Where a function, or those of a class and its bases, were written: by code, as names of modules may repeat."""
    definition = inspect.unwrap(definition)
    if not isinstance(definition, (type, FunctionType)):
        raise UnknownSourceError(f"{definition!r} is neither a class nor a function")
    found: dict[str, None] = {}
    for part in definition.__mro__[:-1] if isinstance(definition, type) else [definition]:
        if "<locals>" in part.__qualname__:  # what it takes from around it stands in no text
            raise UnknownSourceError(f"{part.__qualname__} is made inside a function")
        functions = _functions(part)
        found.update(dict.fromkeys(function.__code__.co_filename for function in functions))
        if not functions:
            found[_file_of_module(part)] = None
        for function in functions:
            if function.__closure__ and not installed_name(Path(function.__code__.co_filename)):
                _refuse_captured(function)
    return [Path(name).resolve() for name in found if not name.startswith("<frozen ")]


def _functions(part: Any) -> list[FunctionType]:
    """The functions of a class alone, below decorators that say what they wrap, except special methods that a
    decorator like `dataclass` wrote; or a function.
    """
    values = [each for value in vars(part).values() for each in behind(value)] if isinstance(part, type) else [part]
    found = [inspect.unwrap(value) for value in values if callable(value)]
    return [
        f
        for f in found
        if isinstance(f, FunctionType) and not (f.__name__.startswith("__") and f.__code__.co_filename.startswith("<"))
    ]


def _refuse_captured(function: FunctionType) -> None:
    """Raises `UnknownSourceError` if a function holds more than classes: a value, or a function that it wraps."""
    for cell in function.__closure__ or ():
        try:
            is_class = isinstance(cell.cell_contents, type)
        except ValueError:  # empty
            continue
        if not is_class:
            raise UnknownSourceError(f"{function.__qualname__} holds what stands in no text")


def _file_of_module(cls: Any) -> str:
    """For a class without functions; it must be the one that its module has under its name."""
    module = sys.modules.get(cls.__module__)
    file: str = getattr(module, "__file__", None) or ""
    if cls.__module__.partition(".")[0] in sys.stdlib_module_names or installed_name(Path(file)):
        return file or functools.__file__
    found: object = module
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    if not file or found is not cls:
        raise UnknownSourceError(f"{cls.__module__}.{cls.__qualname__} is in no file")
    return file


def has_version(definition: type | FunctionType) -> bool:
    """Whether a version tells what a class or function is: Python's, the package's, or that of what is installed."""
    if isinstance(definition, FunctionType):
        return code_has_version(inspect.unwrap(definition).__code__)
    module = sys.modules.get(definition.__module__)
    found: object = module
    for name in definition.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is not definition:
        return False
    file = getattr(module, "__file__", None)
    return _file_has_version(file) if file else definition.__module__ in sys.builtin_module_names


def code_has_version(code: CodeType) -> bool:
    """`has_version` of code; what decorators like `dataclass` write has that of Python."""
    written = code.co_filename.startswith("<string>") and code.co_name.startswith("__")
    return written or code.co_filename.startswith("<frozen ") or _file_has_version(code.co_filename)


@functools.cache
def _file_has_version(name: str) -> bool:
    file = Path(name).resolve()
    return bool(installed_name(file) or {PACKAGE, *_STANDARD} & {*file.parents})


def installed_name(file: Path) -> str | None:
    """The name below site-packages, None for what is not installed there."""
    for folder in file.parents:
        if folder.name in _INSTALLED:
            return file.relative_to(folder).parts[0].partition(".")[0]
    return None


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return {top: list(names) for top, names in importlib.metadata.packages_distributions().items()}


def _version(top: str) -> str | None:
    """Versions of the distributions that bring a top-level name; None if none does."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _distributions().get(top, ())) or None


def _imported(file: Path, content: bytes) -> Iterator[Path]:
    """The files that a source imports, anywhere in it, and those of the packages that it is part of."""
    if file.suffix != ".py":
        return
    folder = file.parent
    while (folder / "__init__.py").is_file():
        yield folder / "__init__.py"
        folder = folder.parent
    try:
        wanted, unknown = _imports_in(content)
    except (SyntaxError, ValueError, ImportError):
        raise UnknownSourceError(f"{file} does not parse") from None
    if unknown and not installed_name(file):
        raise UnknownSourceError(f"{file}:{unknown[0]} imports what no text names")
    for level, names in wanted:
        yield from _modules(names, [str(file.parents[level - 1])] if level else None)


@functools.lru_cache(maxsize=1024)
def _imports_in(content: bytes) -> tuple[tuple[Wanted, ...], tuple[int, ...]]:
    """What a source asks for, and the lines where it asks for what cannot be told."""
    found: list[Wanted] = []
    unknown: list[int] = []
    nodes = list(ast.walk(ast.parse(content)))
    importers = {"__import__", *(name for node in nodes if isinstance(node, ast.ImportFrom) for name in _taken(node))}
    told: set[ast.AST] = set()  # mentions of such functions where they are called, and it stands there with what
    for node in nodes:  # a call comes before its parts
        if isinstance(node, ast.Import):
            found += [(0, tuple(alias.name.split("."))) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            found += [(node.level, (*base, alias.name)) for alias in node.names]
        elif isinstance(node, ast.Call) and _imports(node.func, importers) and (asked := _called(node)):
            found += asked
            told.add(node.func)
        elif _imports(node, importers) and node not in told:
            unknown.append(node.lineno)  # type: ignore[attr-defined]
    return tuple(dict.fromkeys(found)), tuple(unknown)


def _taken(node: ast.ImportFrom) -> list[str]:
    """Under what names a source takes functions that import."""
    return [
        alias.asname or alias.name
        for alias in node.names
        if alias.name in _IMPORTERS or _IMPORTERS_OF.get(alias.name, "") == node.module
    ]


def _imports(node: ast.AST, names: Collection[str]) -> bool:
    """Whether an expression is a function that imports: one of `names`, or `importlib.import_module` and its like."""
    if isinstance(node, ast.Name):
        return node.id in names
    if not isinstance(node, ast.Attribute):
        return False
    of = node.value.id if isinstance(node.value, ast.Name) else ""
    return node.attr in _IMPORTERS or _IMPORTERS_OF.get(node.attr) == of


def _called(call: ast.Call) -> list[Wanted]:
    """What a call of one of `_IMPORTERS` asks for; nothing where that stands in no text."""
    given = dict(zip(("name", "package", "locals", "fromlist", "level"), call.args, strict=False))
    given |= {str(keyword.arg): keyword.value for keyword in call.keywords}
    name, package = (_text(given.get(part)) for part in ("name", "package"))
    if name is None or {"level", "None"} & {*given}:  # a level is a number; None stands before what ** brings
        return []
    name = name.partition(":")[0]  # "package.module:object"
    level = len(name) - len(name.lstrip("."))
    if level and package not in _HERE:
        return [] if package is None else [(0, tuple(importlib.util.resolve_name(name, package).split(".")))]
    parts = tuple(name[level:].split("."))
    try:
        inner = ast.literal_eval(given["fromlist"]) if "fromlist" in given else ()
    except ValueError:
        return []
    return [(level, parts), *((level, (*parts, each)) for each in inner)]


def _text(node: ast.expr | None) -> str | None:
    """A text that stands in the source, or one of the names of the module that it is."""
    if isinstance(node, ast.Name) and node.id in _HERE:
        return node.id
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _modules(names: Sequence[str], folders: Sequence[str] | None = None) -> Iterator[Path]:
    """Files of `a`, `a.b`, `a.b.c`, as far as they are modules; in `folders`, or wherever Python looks."""
    for name in names:
        spec = _find(name) if folders is None else PathFinder.find_spec(name, folders)
        if spec is None:
            return
        if spec.has_location and spec.origin:
            yield Path(spec.origin).resolve()
        if spec.submodule_search_locations is None:
            return
        folders = list(spec.submodule_search_locations)


def _find(top: str) -> ModuleSpec | None:
    """Where a top-level module lies, maybe instead of the standard library's; nothing is imported. None for the
    package.
    """
    if top == pruning_bench.__name__:
        return None
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):
        raise UnknownSourceError(f"module {top} cannot be found again") from None
