"""Imports point down only, definitions are imported by nobody, and the results column needs no torch.

What is read is the source: every import, also one inside a function, except those for the type checker.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import pruning_bench

PACKAGE = "pruning_bench"
ROOT = Path(pruning_bench.__file__).parent

# From the bottom up. A name stands for a module or for all of a folder; the longest one that fits counts.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("", "errors", "registry", "records", "levels", "options", "recipe", "environment", "progress", "functions"),
    ("contracts", "datasets.given", *(f"{part}.contract" for part in ("datasets", "metrics", "models", "pruning"))),
    ("quantization.contract", "training.contract", "runtimes.contract"),
    ("graphs", "datasets", "metrics", "models", "pruning", "quantization", "training", "runtimes"),
    ("discover", "engine", "foreign", "artifacts", "sources", "build_entries", "build_cache", "fingerprints", "own"),
    ("cases",),
    ("judging",),
    ("reporting",),
    ("tasks", "workbench", "yardstick", "rivals", "measuring", "conformance", "listing"),
    ("processes", "worker", "reviewing", "accepting", "suite", "comparing", "sensitivity", "machine_checks", "doctor"),
    ("pytest_plugin", "suite_cases", "cli", "commands", "training.command"),
)
RESULTS = ("judging", "reporting")
RESULTS_MAY_IMPORT = ("errors", "registry", "records", "levels", "options", "recipe", "cases", *RESULTS)
TORCH_FREE = (
    "errors",
    "registry",
    "records",
    "levels",
    "options",
    "recipe",
    "environment",
    "functions",
    "cases",
    "pytest_plugin",
    *RESULTS,
)
TORCH = frozenset({"torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "safetensors"})
REGISTERS = frozenset(
    [
        "pruning_method",
        "quantization_method",
        "training_step",
        "reference_model",
        "reference_dataset",
        "trained_model",
        "evaluation_data",
        "runtime",
        "metric",
    ]
)


@dataclass(frozen=True)
class Import:
    """One import of one module; `lazy` when it stands inside a function."""

    module: str
    line: int
    lazy: bool


def modules_of(root: Path) -> dict[str, ast.Module]:
    """Dotted name below the package ("" for the package itself) -> syntax tree."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(), str(path))
    return found


def imports_of(name: str, tree: ast.Module, known: Iterable[str], packages: Iterable[str]) -> list[Import]:
    """What a module imports, by full dotted names; `from package import module` counts as the module."""
    inside = f"{PACKAGE}.{name}".rstrip(".").split(".")
    inside = inside if name in packages else inside[:-1]
    known = {f"{PACKAGE}.{module}".rstrip(".") for module in known}
    found = []
    for node, lazy in _imports(tree, False):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno, lazy) for alias in node.names]
            continue
        parent = inside[: len(inside) + 1 - node.level] if node.level else []
        source = ".".join([*parent, node.module] if node.module else parent)
        for alias in node.names:
            whole = f"{source}.{alias.name}"
            found.append(Import(whole if whole in known else source, node.lineno, lazy))
    return found


def _imports(node: ast.AST, lazy: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, lazy
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _imports(ast.Module([other], []), lazy)
        else:
            yield from _imports(child, lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))


@dataclass(frozen=True)
class Tree:
    """A package's modules and what they import."""

    modules: Mapping[str, ast.Module]
    imports: Mapping[str, list[Import]]

    @classmethod
    def read(cls, root: Path) -> Tree:
        modules = modules_of(root)
        packages = {name for name in modules if (root / name.replace(".", "/") / "__init__.py").is_file()}
        return cls(modules, {name: imports_of(name, tree, modules, packages) for name, tree in modules.items()})

    def inner(self) -> Iterator[tuple[str, Import, str]]:
        """(module, import, imported module below the package) of imports inside the package."""
        for name, imports in self.imports.items():
            for found in imports:
                if found.module == PACKAGE or found.module.startswith(f"{PACKAGE}."):
                    yield name, found, found.module[len(PACKAGE) + 1 :]


def fits(name: str, prefix: str) -> bool:
    return name == prefix or (prefix != "" and name.startswith(f"{prefix}."))


def layer_of(name: str) -> int | None:
    fitting = [(len(prefix), i) for i, layer in enumerate(LAYERS) for prefix in layer if fits(name, prefix)]
    return max(fitting)[1] if fitting else None


def upward(tree: Tree) -> list[str]:
    """Modules without a layer, and imports of a higher layer."""
    wrong = [f"{name}: in no layer" for name in tree.modules if layer_of(name) is None]
    for name, found, target in tree.inner():
        here, there = layer_of(name), layer_of(target)
        if here is not None and there is not None and there > here:
            wrong.append(f"{name}:{found.line}: imports {target}, which is above it")
    return wrong


def circular(tree: Tree) -> list[str]:
    """Modules that import each other while they load."""
    edges: dict[str, set[str]] = {name: set() for name in tree.modules}
    for name, found, target in tree.inner():
        if not found.lazy and target in edges and target != name:
            edges[name].add(target)
    while leaves := [name for name, targets in edges.items() if not targets]:
        edges = {name: targets.difference(leaves) for name, targets in edges.items() if targets}
    return [f"{name}: in or above a circle of imports ({', '.join(sorted(to))})" for name, to in edges.items()]


def beside_the_results(tree: Tree) -> list[str]:
    """Imports of the results column that leave it."""
    return [
        f"{name}:{found.line}: imports {target}, should be one of {', '.join(RESULTS_MAY_IMPORT)}"
        for name, found, target in tree.inner()
        if any(fits(name, part) for part in RESULTS) and not any(fits(target, part) for part in RESULTS_MAY_IMPORT)
        if target  # the package itself holds the version and nothing else
    ]


def imported_definitions(tree: Tree) -> list[str]:
    """Imports of a module that registers something: from another folder, or of a method or step at all."""
    defining = {name for name, module in tree.modules.items() if defines(module)}
    wrong = []
    for name, found, target in tree.inner():
        folder = target.rpartition(".")[0]
        alone = folder.endswith((".methods", ".steps"))
        if target in defining and (alone or name.rpartition(".")[0] != folder):
            wrong.append(f"{name}:{found.line}: imports the definition {target}; only discover loads those")
    return wrong


def defines(module: ast.Module) -> bool:
    for node in module.body:
        for decorator in getattr(node, "decorator_list", ()):
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            if ast.unparse(called).rpartition(".")[2] in REGISTERS:
                return True
    return False


def loads_torch(tree: Tree) -> list[str]:
    """Modules that promise not to and load torch, directly or by what they import, while they load."""
    wrong = []
    for name in tree.modules:
        if any(fits(name, part) for part in TORCH_FREE):
            chain = torch_chain(tree, name, ())
            if chain:
                wrong.append(f"{name}: loads torch by way of {' -> '.join(chain)}")
    return wrong


def torch_chain(tree: Tree, name: str, above: tuple[str, ...]) -> tuple[str, ...]:
    for found in tree.imports.get(name, ()):
        if found.lazy:
            continue
        if found.module.partition(".")[0] in TORCH:
            return (*above, name, found.module)
        inner = found.module[len(PACKAGE) + 1 :] if found.module.startswith(f"{PACKAGE}.") else None
        # Importing a.b.c loads a and a.b too.
        parts = inner.split(".") if inner else []
        for target in (".".join(parts[: i + 1]) for i in range(len(parts))):
            if target not in (*above, name) and (chain := torch_chain(tree, target, (*above, name))):
                return chain
    return ()


RULES: tuple[Callable[[Tree], list[str]], ...] = (
    upward,
    circular,
    beside_the_results,
    imported_definitions,
    loads_torch,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Callable[[Tree], list[str]]) -> None:
    wrong = rule(Tree.read(ROOT))
    assert not wrong, f"{len(wrong)} breaches:\n" + "\n".join(wrong)


SOUND = {
    "__init__.py": "",
    "errors.py": "",
    "cases.py": "from .errors import Bad",
    "judging/__init__.py": "",
    "judging/gate.py": "from typing import TYPE_CHECKING\nfrom .. import cases\nif TYPE_CHECKING:\n    import torch",
    "pruning/__init__.py": "",
    "pruning/contract.py": "import torch\nfrom pruning_bench.errors import Bad",
    "pruning/masks.py": "from pruning_bench.pruning import contract",
    "pruning/methods/__init__.py": "",
    "pruning/methods/one.py": "from pruning_bench.pruning.contract import x\n@pruning_method\nclass One: ...",
    "engine.py": "def f():\n    from pruning_bench.pruning import masks",
    "cli.py": "import pruning_bench.engine",
}
MUTANTS: dict[str, tuple[Callable[[Tree], list[str]], dict[str, str]]] = {
    "up from the ground": (upward, {"errors.py": "from pruning_bench.engine import compress"}),
    "up inside a function": (upward, {"pruning/masks.py": "def f():\n    from pruning_bench import engine"}),
    "up by a plain import": (upward, {"errors.py": "import pruning_bench.cli"}),
    "up by a relative import": (upward, {"pruning/masks.py": "from ..engine import compress"}),
    "up by a relative package": (upward, {"pruning/masks.py": "from .. import engine"}),
    "up beside a type check": (
        upward,
        {"errors.py": "if TYPE_CHECKING:\n    pass\nelse:\n    import pruning_bench.cli"},
    ),
    "up in a try": (upward, {"errors.py": "try:\n    import pruning_bench.cli\nexcept ImportError:\n    pass"}),
    "from the contract to its folder": (upward, {"pruning/contract.py": "from pruning_bench.pruning import masks"}),
    "a module that nobody placed": (upward, {"helpers.py": ""}),
    "a circle": (circular, {"errors.py": "import pruning_bench.records", "records.py": "from .errors import Bad"}),
    "judging reads the engine": (beside_the_results, {"judging/gate.py": "from pruning_bench import engine"}),
    "judging reads it lazily": (beside_the_results, {"judging/gate.py": "def f():\n    import pruning_bench.engine"}),
    "the engine knows a method": (imported_definitions, {"engine.py": "from pruning_bench.pruning.methods import one"}),
    "a method knows another": (imported_definitions, {"pruning/methods/two.py": "from .one import One"}),
    "judging loads torch": (loads_torch, {"judging/gate.py": "import torch.nn"}),
    "judging loads it on the way": (loads_torch, {"judging/gate.py": "from pruning_bench.pruning import contract"}),
    "a folder's init loads it": (loads_torch, {"judging/__init__.py": "import torch"}),
    "the plugin loads it": (loads_torch, {"pytest_plugin.py": "from onnxruntime import InferenceSession"}),
}


def write_tree(root: Path, files: Mapping[str, str]) -> Tree:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Tree.read(root)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_sound_tree_passes(rule: Callable[[Tree], list[str]], tmp_path: Path) -> None:
    wrong = rule(write_tree(tmp_path, SOUND))
    assert not wrong, f"{wrong} should be empty"


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_rule_bites(mutant: str, tmp_path: Path) -> None:
    rule, files = MUTANTS[mutant]
    wrong = rule(write_tree(tmp_path, SOUND | files))
    assert wrong, f"{rule.__name__} accepts {files}"
    culprit = next(iter(files)).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    assert any(line.startswith(culprit) for line in wrong), f"{wrong} should name {culprit}"


WITHOUT_TORCH = """
import importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocked())
for name in {names}:
    importlib.import_module(name)
"""


def load_without_torch(names: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """Imports the modules in a process where torch cannot be imported."""
    code = WITHOUT_TORCH.format(blocked=set(TORCH), names=list(names))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_the_results_column_loads_where_torch_is_not() -> None:
    names = [n for n in modules_of(ROOT) if any(fits(n, part) for part in TORCH_FREE)]
    done = load_without_torch(f"{PACKAGE}.{name}" for name in names)
    assert done.returncode == 0, f"importing {names} without torch fails:\n{done.stderr}"


def test_loading_without_torch_rejects_what_needs_it() -> None:
    done = load_without_torch([f"{PACKAGE}.contracts"])
    assert "blocked: torch" in done.stderr, f"contracts should not load without torch, but {done}"
