"""What a class is made of: its own file and what that imports of the user's code; and when nobody can tell."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import pruning_bench
from pruning_bench import sources
from pruning_bench.discover import discover
from pruning_bench.registry import STEPS
from pruning_bench.sources import UnknownSourceError, package_digest, sources_of

METHOD = """
from dataclasses import dataclass
from typing import ClassVar
{imports}

@dataclass(frozen=True)
class Own:
    name: ClassVar[str] = "own"
    share: float = 0.5

    def plan(self, model, level, context):
        {body}
        return None
"""


class Repository:
    """A folder of a user's code, written before this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        monkeypatch.setattr(pruning_bench, "STARTED", math.inf)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        importlib.invalidate_caches()
        return file

    def method(self, imports: str = "", body: str = "pass", name: str = "conftest.py") -> type:
        return self.load(self.write(name, METHOD.format(imports=imports, body=body))).Own

    def load(self, file: Path, name: str = "users_module") -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None, file
        assert spec.loader is not None, file
        module = importlib.util.module_from_spec(spec)
        self.monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    before = set(sys.modules)
    yield Repository(tmp_path, monkeypatch)
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("helper_a", "helper_b", "helpers", "spaces", "plug_in"):
            del sys.modules[name]


def test_a_users_method_is_its_file(repository: Repository) -> None:
    cls = repository.method()
    before = sources_of([cls])
    assert [name for name, _ in before] == ["conftest.py"], before
    assert sources_of([cls]) == before, "the same file gives another digest"
    repository.method(body="# only a remark")
    assert sources_of([cls]) != before, "a change is not seen"


IMPORTS: dict[str, tuple[str, str, str]] = {  # where the import stands, what it says, the file that it means
    "module": ("imports", "import helper_a", "helper_a.py"),
    "constant": ("imports", "from helper_a import LIMIT", "helper_a.py"),
    "renamed": ("imports", "import helper_a as np", "helper_a.py"),
    "inside the method": ("body", "from helper_a import LIMIT", "helper_a.py"),
    "inside a package": ("imports", "from helpers.deep import one", "helpers/deep/one.py"),
    "a package on the way": ("imports", "from helpers.deep import one", "helpers/__init__.py"),
    "dotted": ("imports", "import helpers.deep.one", "helpers/deep/one.py"),
    "a namespace": ("imports", "import spaces.one", "spaces/one.py"),
    "a name of a package": ("imports", "from helpers import LIMIT", "helpers/__init__.py"),
    "relative to its package": ("imports", "import helpers.near", "helpers/deep/one.py"),
    "of an import": ("imports", "import helper_b", "helper_a.py"),
    "by a call": ("body", "import importlib; importlib.import_module('helper_a')", "helper_a.py"),
    "by a renamed call": ("imports", "from importlib import import_module as get\nget('helper_a')", "helper_a.py"),
    "by the built-in": ("imports", "__import__('helpers.deep', fromlist=['one'])", "helpers/deep/one.py"),
    "by a call inside a package": ("imports", "import helpers.by_name", "helpers/deep/one.py"),
    "by a call in a package": (
        "imports",
        "import importlib as i\ni.import_module('.deep', 'helpers')",
        "helpers/deep/__init__.py",
    ),
    "called like one of the standard library": ("imports", "import sched", "sched.py"),
    "by the name of an object": (
        "body",
        "import pkgutil; pkgutil.resolve_name('helpers.deep.one:LIMIT')",
        "helpers/deep/one.py",
    ),
    "by a dotted name": ("body", "import pydoc; pydoc.locate('helpers.deep.one.LIMIT')", "helpers/deep/one.py"),
    "by a dotted name taken from its module": (
        "body",
        "from pydoc import locate; locate('helper_a.LIMIT')",
        "helper_a.py",
    ),
    "to be run": ("body", "import runpy; runpy.run_module('helper_a')", "helper_a.py"),
    "one that may be missing": ("imports", "try: import helper_a\nexcept ImportError: pass", "helper_a.py"),
}


@pytest.mark.parametrize("kind", IMPORTS)
def test_what_it_imports_counts(kind: str, repository: Repository) -> None:
    repository.write("helper_a.py", "LIMIT = 1")
    repository.write("helper_b.py", "import helper_a")
    repository.write("helpers/__init__.py", "LIMIT = 1")
    repository.write("helpers/near.py", "from .deep import one")
    repository.write("helpers/by_name.py", "import importlib\nimportlib.import_module('.deep.one', __package__)")
    repository.write("helpers/deep/__init__.py", "")
    repository.write("helpers/deep/one.py", "from .. import LIMIT")
    repository.write("spaces/one.py", "")
    repository.write("sched.py", "")
    repository.write("beside.py", "")
    repository.monkeypatch.delitem(sys.modules, "sched", raising=False)
    where, text, meant = IMPORTS[kind]
    cls = repository.method(**{where: text})
    before = sources_of([cls])
    repository.write("beside.py", "changed = True")
    assert sources_of([cls]) == before, "a file that is not imported counts"
    with (repository.folder / meant).open("a") as stream:
        stream.write("\nLIMIT = 2")
    assert sources_of([cls]) != before, f"a change of {meant} is not seen"


def test_a_cut_in_the_walk_is_caught(repository: Repository) -> None:
    """The mutant that reads the class's own file only."""
    repository.write("helper_a.py", "LIMIT = 1")
    cls = repository.method("import helper_a")
    repository.monkeypatch.setattr(sources, "_imported", lambda file, content: ())
    before = sources_of([cls])
    repository.write("helper_a.py", "LIMIT = 2")
    assert sources_of([cls]) == before, "the mutant sees the change"


COMPUTED = {
    "a variable": "import importlib; importlib.import_module(level)",
    "a sum": "__import__('helper_' + level)",
    "the function itself": "import importlib; list(map(importlib.import_module, level))",
    "an unknown package": "import importlib; importlib.import_module('.helper_a', level)",
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_an_import_by_a_computed_name_is_unknown(kind: str, repository: Repository) -> None:
    with pytest.raises(UnknownSourceError, match=r"conftest.py:\d+ imports what no text names"):
        sources_of([repository.method(body=COMPUTED[kind])])


def test_a_function_that_is_only_called_like_one_that_imports(repository: Repository) -> None:
    rows = sources_of(
        [repository.method(body="self.locate(level); model.run_module(level); level.resolve_name(model)")]
    )
    assert [name for name, _ in rows] == ["conftest.py"], rows


def test_an_installed_method_may_import_by_a_computed_name(repository: Repository) -> None:
    cls = repository.method(body=COMPUTED["a variable"], name="site-packages/plug_in/method.py")
    assert [name for name, _ in sources_of([cls])] == ["method.py"], sources_of([cls])


def test_calls_that_are_passed_over_are_caught(repository: Repository) -> None:
    """The mutant that knows import statements only."""
    repository.monkeypatch.setattr(sources, "_imports_in", sources._imports_in.__wrapped__)
    repository.monkeypatch.setattr(sources, "_imports", lambda node, names: False)
    repository.write("helper_a.py", "LIMIT = 1")
    cls = repository.method("import importlib\nimportlib.import_module('helper_a')", COMPUTED["a variable"])
    before = sources_of([cls])
    repository.write("helper_a.py", "LIMIT = 2")
    assert sources_of([cls]) == before, "the mutant sees the change"


def test_files_that_change_places_count(repository: Repository) -> None:
    repository.write("helper_a.py", "LIMIT = 1")
    repository.write("helper_b.py", "LIMIT = 2")
    cls = repository.method("import helper_a, helper_b")
    before = sources_of([cls])
    repository.write("helper_a.py", "LIMIT = 2")
    repository.write("helper_b.py", "LIMIT = 1")
    assert sources_of([cls]) != before, "the exchange is not seen"


def test_the_right_one_of_two_modules_of_one_name(repository: Repository) -> None:
    """pytest knows every conftest.py under the same name; the last one wins it."""
    cls = repository.method()
    other = repository.write("deeper/conftest.py", "LIMIT = 1")
    repository.load(other, cls.__module__)
    before = sources_of([cls])
    other.write_text("LIMIT = 2")
    assert sources_of([cls]) == before, "another file is taken for the method's"
    repository.method(body="# changed")
    assert sources_of([cls]) != before, "a change is not seen"


def test_what_is_installed_counts_by_its_version(repository: Repository) -> None:
    rows = sources_of([repository.method("import numpy, torch\nfrom safetensors import torch as other")])
    assert [name for name, _ in rows] == ["conftest.py", "numpy", "torch", "safetensors"], rows
    assert all(any(c.isdigit() for c in version) for _, version in rows[1:]), rows
    repository.monkeypatch.setattr(sources, "_version", lambda top: "another")
    assert sources_of([repository.method("import numpy")])[1:] == [["numpy", "another"]], "no other version is seen"


def test_an_installed_method_counts_by_its_files(repository: Repository) -> None:
    place = "site-packages/plug_in"
    repository.monkeypatch.syspath_prepend(str(repository.folder / "site-packages"))
    repository.write(f"{place}/__init__.py", "")
    repository.write(f"{place}/scores.py", "LIMIT = 1")
    cls = repository.method("import plug_in.scores, numpy", name=f"{place}/method.py")
    repository.monkeypatch.setattr(sources, "_version", lambda top: "1.0")
    before = sources_of([cls])
    assert ["numpy", "1.0"] in before, before
    repository.write(f"{place}/scores.py", "LIMIT = 2")
    assert sources_of([cls]) != before, "a change in the same distribution is not seen"


def test_the_packages_own_methods_need_no_files(repository: Repository) -> None:
    discover()
    assert sources_of([STEPS[name] for name in STEPS if STEPS[name].__module__.startswith("pruning_bench.")]) == []


def test_torchs_layers_count_by_torchs_version() -> None:
    layers = {
        type(m) for m in nn.Sequential(nn.Linear(1, 1), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU()).modules()
    }
    rows = sources_of([], layers)
    assert [name for name, _ in rows] == ["torch"], rows


class Plain:
    """Has no function of its own."""


def test_a_class_without_functions_is_found_by_its_module() -> None:
    assert sources_of([Plain])[0][0] == Path(__file__).name, sources_of([Plain])


def captured(limit: float) -> Callable[[Any], float]:
    return lambda self: limit


def local() -> type:
    class Local:
        def plan(self) -> None: ...

    return Local


def typed_in() -> type:
    scope: dict[str, Any] = {"__name__": "nowhere"}
    exec("class Typed:\n    def plan(self): ...", scope)
    return scope["Typed"]  # type: ignore[no-any-return]


def decorated(function: Any) -> Any:
    """A decorator that does not say what it wraps."""
    return lambda *arguments: function(*arguments)


UNKNOWN: dict[str, Callable[[], type]] = {
    "typed in": typed_in,
    "made in a function": local,
    "holds a value": lambda: type("Holds", (Plain,), {"plan": captured(0.5), "__module__": __name__}),
    "wrapped": lambda: type("Wrapped", (Plain,), {"plan": decorated(print), "__module__": __name__}),
    "made of nothing": lambda: type("Nothing", (), {"__module__": __name__}),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_cannot_be_told_is_unknown(kind: str) -> None:
    with pytest.raises(UnknownSourceError):
        sources_of([UNKNOWN[kind]()])


def test_a_decorator_that_says_what_it_wraps_is_seen_through(repository: Repository) -> None:
    imports = "import torch\nclass Base:\n    @torch.no_grad()\n    def score(self): return 1\n"
    assert sources_of([repository.method(imports)])[0][0] == "conftest.py"
    assert torch.no_grad


def test_a_missing_file_is_unknown(repository: Repository) -> None:
    cls = repository.method()
    (repository.folder / "conftest.py").unlink()
    with pytest.raises(UnknownSourceError):
        sources_of([cls])


def test_a_file_younger_than_the_process_is_unknown(repository: Repository) -> None:
    """What runs may be its earlier text; a file that was written by an editor that keeps times is seen too."""
    cls = repository.method()
    file = repository.folder / "conftest.py"
    repository.monkeypatch.setattr(pruning_bench, "STARTED", file.stat().st_mtime - 60)
    os.utime(file, (0, 0))
    with pytest.raises(UnknownSourceError, match="changed since"):
        sources_of([cls])


def test_what_changed_after_it_was_imported_is_younger_than_the_process(tmp_path: Path) -> None:
    """Also where the package is imported later: a notebook does so."""
    (tmp_path / "net.py").write_text("def build(): ...")
    text = (
        "import os, sys, time; sys.path.insert(0, ''); import net; began = time.time(); os.utime('net.py');"
        "import pruning_bench; print(pruning_bench.STARTED < began, began - pruning_bench.STARTED < 60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(pruning_bench.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first = "True" if Path("/proc/self/stat").exists() else "False"
    assert done.stdout.split() == [first, "True"], done.stdout


def test_every_source_of_the_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)
    monkeypatch.setattr(pruning_bench, "STARTED", math.inf)
    with pytest.raises(UnknownSourceError):
        package_digest()
    (tmp_path / "pruning").mkdir()
    for name in ("one.py", "pruning/two.py"):
        (tmp_path / name).write_text("x = 1")
    digests = [package_digest()]
    (tmp_path / "pruning" / "two.py").write_text("x = 2")
    digests.append(package_digest())
    (tmp_path / "pruning" / "two.py").rename(tmp_path / "pruning" / "three.py")
    digests.append(package_digest())
    assert len(set(digests)) == 3, f"changes are not seen: {digests}"
    monkeypatch.setattr(pruning_bench, "STARTED", 0)
    with pytest.raises(UnknownSourceError, match="changed since"):
        package_digest()


def test_a_function_is_its_file_too(repository: Repository) -> None:
    def build() -> type:
        return repository.load(repository.folder / "conftest.py").build  # type: ignore[no-any-return]

    repository.write("helper_a.py", "LIMIT = 1")
    repository.write("conftest.py", "import helper_a\ndef build(): ...")
    before = sources_of([], [build()])
    assert [name for name, _ in before] == ["conftest.py", "helper_a.py"], before
    repository.write("helper_a.py", "LIMIT = 2")
    assert sources_of([], [build()]) != before, "a change is not seen"
    for unknown in (build, captured(1), print):
        with pytest.raises(UnknownSourceError):
            sources_of([], [unknown])
