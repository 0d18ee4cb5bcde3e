"""Definitions are found without an edit elsewhere, and a broken one is loud."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from pruning_bench import discover
from pruning_bench.errors import DuplicateNameError, PluginError
from pruning_bench.registry import DATASETS, METRICS, MODELS, RUNTIMES, STEPS

NEW_METHOD = '''
"""A method that a user dropped in."""
from dataclasses import dataclass
from typing import ClassVar

from pruning_bench.pruning.contract import MaskPlan, PruningTags, pruning_method
from pruning_bench.pruning.masks import prunable
from pruning_bench.levels import sparsity_of


@pruning_method
@dataclass(frozen=True)
class Nothing:
    """Keeps every weight."""

    name: ClassVar[str] = "nothing"
    tags: ClassVar[PruningTags] = PruningTags(structure="element")
    examples: ClassVar[tuple[str, ...]] = ("nothing:0",)

    def plan(self, model, level, context):
        sparsity_of(self.name, level)
        weights = prunable(model, context.example_inputs)
        return MaskPlan({name: weight.detach().bool() | True for name, weight in weights.items()})
'''

DROPPED_IN = """
import sys
from pathlib import Path
import pruning_bench.pruning.methods as methods

folder = sys.argv[1]
methods.__path__.append(folder)
from pruning_bench import compress
from pruning_bench.cases import PROFILES, grid, recipes_of
from pruning_bench.discover import discover
from pruning_bench.listing import rows_of
import torch

discover()
assert "nothing:0" in recipes_of(PROFILES["nightly"]), recipes_of(PROFILES["nightly"])
assert any(case.recipe == "nothing:0" for case in grid(PROFILES["nightly"], [("resnet20", "fashion_mnist")]))
assert any(row[0] == "nothing" for row in rows_of("methods")[1]), rows_of("methods")
net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
made = compress(net, "nothing:0", example_inputs=(torch.zeros(1, 4),))
assert torch.equal(made.model(torch.ones(1, 4)), net(torch.ones(1, 4)))
print("found")
"""


def test_the_own_folders_fill_every_registry() -> None:
    discover.discover()
    for registry, name in (
        (STEPS, "magnitude"),
        (STEPS, "static"),
        (STEPS, "finetune"),
        (MODELS, "resnet20"),
        (DATASETS, "fashion_mnist"),
        (RUNTIMES, "onnxruntime"),
        (METRICS, "top1"),
    ):
        assert name in registry, f"{registry.kind} {name} not among {list(registry)}"


def test_a_method_dropped_into_the_folder_is_complete(tmp_path: Path) -> None:
    (tmp_path / "nothing.py").write_text(NEW_METHOD)
    command = [sys.executable, "-c", DROPPED_IN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "found", done.stderr


class _Entry(importlib.metadata.EntryPoint):
    @property
    def dist(self):  # type: ignore[no-untyped-def]
        return type("Distribution", (), {"name": "acme-pruning", "version": "1.2"})


def test_a_broken_plug_in_names_its_distribution() -> None:
    entry = _Entry("acme", "pruning_bench_no_such_module", "pruning_bench.methods")
    with pytest.raises(PluginError, match=r"acme-pruning 1\.2") as caught:
        discover._load(entry)
    assert "ModuleNotFoundError" in str(caught.value), str(caught.value)


def test_a_plug_in_that_exits_names_its_distribution() -> None:
    class Exits(_Entry):
        def load(self):  # type: ignore[no-untyped-def]
            sys.exit("needs libfoo")

    with pytest.raises(PluginError, match=r"entry point acme: SystemExit: needs libfoo, .*acme-pruning 1\.2"):
        discover._load(Exits("acme", "acme", "pruning_bench.methods"))


def test_a_plug_in_that_claims_a_taken_name_names_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    discover.discover()
    (tmp_path / "acme_methods.py").write_text(NEW_METHOD.replace('"nothing"', '"magnitude"'))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DuplicateNameError, match=r"acme-pruning 1\.2"):
        discover._load(_Entry("acme", "acme_methods", "pruning_bench.methods"))


USER_FILE = """
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Settings:
    name: ClassVar[str] = "ordinary"
"""


def test_an_ordinary_user_file_is_imported_once(tmp_path: Path) -> None:
    file = tmp_path / "ordinary_conftest.py"
    file.write_text(USER_FILE + f"with open({str(tmp_path / 'count')!r}, 'a') as count:\n    count.write('x')\n")
    discover.import_files([str(file)])
    discover.import_files([str(file)])
    assert (tmp_path / "count").read_text() == "x", "imported again"


@pytest.mark.parametrize("text", [None, "raise RuntimeError('half written')"])
def test_a_user_file_that_cannot_be_imported_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "conftest.py"
    if text:
        file.write_text(text)
    with pytest.raises(PluginError, match=r"conftest\.py"):
        discover.import_files([str(file)])
