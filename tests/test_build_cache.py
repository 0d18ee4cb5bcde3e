"""The build cache: never stale, never damaged, never in the way."""

from __future__ import annotations

import ast
import functools
import importlib.util
import io
import math
import os
import platform
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import pruning_bench
from pruning_bench import build_cache, build_entries, cli, measuring, workbench
from pruning_bench.build_cache import BuildCache, Order, usual_cache
from pruning_bench.cases import Case
from pruning_bench.datasets.contract import Dataset, ReferenceDataset, Split
from pruning_bench.discover import discover
from pruning_bench.engine import Compressed
from pruning_bench.errors import PruningBenchError
from pruning_bench.models.checkpoints import save_checkpoint
from pruning_bench.models.contract import ReferenceModel
from pruning_bench.pruning.contract import MaskPlan, PruningTags
from pruning_bench.registry import DATASETS, MODELS, STEPS
from pruning_bench.runtimes import onnx_export
from pruning_bench.training.contract import StepTags
from pruning_bench.workbench import Workbench


class Net(nn.Module):
    """Convolutions that a residual add couples, batch norm, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.bn1(self.conv1(x)).relu()
        return self.fc((self.bn2(self.conv2(a)) + a).relu().mean((2, 3)))


@dataclass(frozen=True)
class Steady:
    """A method that takes no time: it draws a mask."""

    share: float = 0.5
    name: ClassVar[str] = "steady"
    tags: ClassVar[PruningTags] = PruningTags(structure="element", random=True)

    def plan(self, model: nn.Module, level: Any, context: Any) -> MaskPlan:
        return MaskPlan({"fc.weight": torch.rand(model.fc.weight.shape, generator=context.generator) < self.share})


@dataclass(frozen=True)
class Rebuilding:
    """A training step that puts another module in."""

    name: ClassVar[str] = "rebuilding"
    tags: ClassVar[StepTags] = StepTags(trains_weights=False)

    def run(self, model: nn.Module, level: Any, plans: Any, context: Any) -> None:
        model.fc = nn.Sequential(model.fc, nn.Identity())


def net(*, setting: int = 0) -> nn.Module:
    """Without a trace of its option in the model."""
    return Net()


class World:
    """A model and a data set that can change, and a cache of their own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.cache = BuildCache(folder / "cache")
        self.orders: list[Order] = []
        self.compressed_again = 0
        self.shift = 0
        self.train()
        whole, serve = workbench.compress_with, BuildCache.serve

        def counted(*arguments: Any, **options: Any) -> Compressed:
            self.compressed_again += 1
            return whole(*arguments, **options)

        def noted(cache: BuildCache, order: Order, make: Callable[[], Compressed]) -> Compressed:
            self.orders.append(order)
            return serve(cache, order, make)

        monkeypatch.setattr(workbench, "compress_with", counted)
        monkeypatch.setattr(BuildCache, "serve", noted)

    def train(self, seed: int = 0, **options: Any) -> None:
        torch.manual_seed(seed)
        card = {"model": "net", "dataset": "dots", "options": options}
        save_checkpoint(Net(), card, self.folder / "net-dots.safetensors")

    def load(self, folder: Path | None = None, *, full: bool = False) -> Dataset:
        parts = []
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed + self.shift)
            images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=generator)
            labels = torch.randint(0, 3, (64,), generator=generator)
            parts.append(Split(images, labels, torch.tensor([0.5]), torch.tensor([0.25])))
        return Dataset("dots", ("a", "b", "c"), *parts, digest="dots", source="made")

    def bench(self, **options: Any) -> Workbench:
        """As in a new run."""
        return Workbench(checkpoints=self.folder, **{"cache": self.cache, **options})

    def compressed(self, recipe: str = "steady:1", seed: int = 0, **options: Any) -> Compressed:
        return self.bench(**options).compressed(Case("net", "dots", recipe, "eager", seed=seed))

    def is_served(self, *arguments: Any, **options: Any) -> bool:
        """Whether a new run compresses nothing."""
        before = self.compressed_again
        self.compressed(*arguments, **options)
        return self.compressed_again == before

    @property
    def files(self) -> list[Path]:
        return sorted(self.cache.folder.iterdir()) if self.cache.folder.is_dir() else []

    def own_method(self, body: str = "pass") -> None:
        """A method of a user's conftest.py, written before this process."""
        self.monkeypatch.setattr(pruning_bench, "STARTED", math.inf)
        file = self.folder / "conftest.py"
        file.write_text(OWN.format(body=body))
        spec = importlib.util.spec_from_file_location("conftest_of_a_user", file)
        assert spec is not None, file
        assert spec.loader is not None, file
        module = importlib.util.module_from_spec(spec)
        self.monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        self.monkeypatch.setitem(STEPS._items, "own", module.Own)


OWN = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from pruning_bench.pruning.contract import MaskPlan, PruningTags

@dataclass(frozen=True)
class Own:
    name: ClassVar[str] = "own"
    tags: ClassVar[PruningTags] = PruningTags(structure="element")

    def plan(self, model, level, context):
        {body}
        return MaskPlan({{"fc.weight": torch.ones(3, 8, dtype=torch.bool)}})
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    discover()
    made = World(tmp_path, monkeypatch)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    with (
        MODELS.temporarily("net", ReferenceModel("net", net)),
        DATASETS.temporarily("dots", ReferenceDataset("dots", made.load)),
        STEPS.temporarily("steady", Steady),
        STEPS.temporarily("rebuilding", Rebuilding),
    ):
        yield made


RECIPES = ["steady:1", "magnitude:0.5", "l1_filter:0.5", "static:w8a8", "l1_filter:0.5+finetune:1+static:w8a8"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_new_run_is_served_what_was_made(world: World, recipe: str) -> None:
    """Every family but latency measures the same; that each bit is the same is tested with the entries."""
    case = Case("net", "dots", recipe, "eager")
    measured = []
    for bench in (world.bench(), world.bench(), world.bench(cache=None)):
        measured.append([*measuring.measure_quality(bench, case), *measuring.measure_footprint(bench, case)])
        outputs = bench.compressed(case).masked_twin(bench.example_inputs(case)[0])
        measured.append(outputs.tolist())
    assert world.compressed_again == 5, (
        f"{world.compressed_again} made, should be dense in each of three runs, the other in two"
    )
    assert measured[:2] == measured[2:4], "a served model measures otherwise"
    assert measured[:2] == measured[4:], "making is not repeatable, so that serving proves nothing"


def test_dense_is_not_kept(world: World) -> None:
    world.compressed("dense")
    assert not world.files, world.files


def exports(world: World, kind: str = "a", content: bytes = b"exported") -> list[bytes]:
    """What had to be made to serve an export of the last order."""
    made: list[bytes] = []

    def make() -> bytes:
        made.append(content)
        return content

    order = world.orders[-1]
    served = world.cache.serve_export(order, build_cache.key_of(order), kind, make)
    assert served == b"exported", "another export than was made"
    return made


def test_an_export_is_made_once_for_each_kind_and_order(world: World) -> None:
    world.compressed()
    assert exports(world), "nothing was kept yet"
    assert not exports(world, content=b"other"), "made again"
    assert exports(world, kind="b"), "another kind was served"
    world.compressed(seed=1)
    assert exports(world), "that of another seed was served"
    world.monkeypatch.setattr(build_cache, "package_digest", lambda: "another")
    assert exports(world), "that of another package was served"


def test_what_changed_since_the_model_was_made_keeps_no_export(world: World) -> None:
    world.compressed("dense")
    order = world.orders[-1]
    before = build_cache.key_of(order)
    world.monkeypatch.setattr(build_cache, "package_digest", lambda: "another")
    with pytest.warns(UserWarning, match=r"not kept \(changed meanwhile: package\) \[\S+/dense\]"):
        world.cache.serve_export(order, before, "a", lambda: b"exported")
    assert not world.files, f"kept as made from what is there now: {world.files}"


def test_a_kind_that_the_key_forgets_is_caught(world: World) -> None:
    """The mutant serves what another exporter made."""
    whole = build_cache.name_of
    world.monkeypatch.setattr(
        build_cache, "name_of", lambda key: whole({name: value for name, value in key.items() if name != "export"})
    )
    world.compressed("dense")
    exports(world)
    assert not exports(world, kind="b"), "told all the same"


def test_a_damaged_export_is_dropped_with_one_line_and_made_again(world: World) -> None:
    world.compressed("dense")
    exports(world)
    (file,) = world.files
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match="damaged entry"):
        assert exports(world), "a damaged export was served"
    assert not exports(world), "the new one is not served"


def test_a_new_run_exports_nothing_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By way of the workbench and a runtime: the bytes, and so the predictions, are those that were exported."""
    case, made = Case("net", "dots", "static:w8a8", "onnxruntime"), []
    whole = onnx_export.export_onnx

    def counted(*arguments: Any, **options: Any) -> bytes:
        made.append(arguments)
        return whole(*arguments, **options)

    monkeypatch.setattr(onnx_export, "export_onnx", counted)
    outputs = [world.bench().logits(case), world.bench().logits(case), world.bench(cache=None).logits(case)]
    assert len(made) == 2, f"exported {len(made)} times, should be in the first run and in the one without a cache"
    assert torch.equal(outputs[0], outputs[1]), "a served export predicts otherwise"
    assert torch.equal(outputs[0], outputs[2]), "exporting is not repeatable, so that serving proves nothing"


def _other_default(world: World) -> dict[str, Any]:
    world.monkeypatch.setattr(Steady.__init__, "__defaults__", (0.25,))
    return {}


def _patched(target: object, name: str, value: object) -> Callable[[World], dict[str, Any]]:
    def change(world: World) -> dict[str, Any]:
        world.monkeypatch.setattr(target, name, value)
        return {}

    return change


def _done(change: Callable[[World], object]) -> Callable[[World], dict[str, Any]]:
    def done(world: World) -> dict[str, Any]:
        change(world)
        return {}

    return done


Change = Callable[[World], dict[str, Any]]
CHANGES: dict[str, tuple[str, Change]] = {  # what changes: the entry of the key that must tell, and how
    "package": ("package", _patched(build_cache, "package_digest", lambda: "another")),
    "conftest.py": ("sources", _done(lambda world: world.own_method("# changed"))),
    "recipe": ("recipe", lambda world: {"recipe": "steady:2"}),
    "default of an option": ("methods", _other_default),
    "seed": ("seed", lambda world: {"seed": 1}),
    "checkpoint": ("dense", _done(lambda world: world.train(seed=1))),
    "option of the model": ("dense", _done(lambda world: world.train(setting=1))),
    "examples": ("data", _done(lambda world: setattr(world, "shift", 9))),
    "full data": ("full", lambda world: {"full": True}),
    "calibration examples": ("calibration", _patched(workbench, "CALIBRATION_IMAGES", 8)),
    "calibration batch": ("calibration", _patched(workbench, "CALIBRATION_BATCH", 8)),
    "cores": ("threads", _patched(workbench, "cores", lambda: 3)),
    "torch": ("versions", _patched(torch, "__version__", "9.9.9")),
    "numpy": ("versions", _patched(np, "__version__", "9.9.9")),
    "python": ("versions", _patched(platform, "python_version_tuple", lambda: ("9", "9", "9"))),
    "pruning_bench": ("versions", _patched(pruning_bench, "__version__", "9.9.9")),
    "processor": ("machine", _patched(build_cache, "_environment", lambda: dict.fromkeys(build_cache._PROCESSOR, "x"))),
    "instructions": ("machine", _done(lambda world: world.monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41"))),
    "format": ("format", _patched(build_cache, "FORMAT", 99)),
}


def is_stale(world: World, change: Change, recipe: str) -> bool:
    """Whether what was made before a change is served after it."""
    world.compressed(recipe)
    assert world.is_served(recipe), "nothing is served, so that nothing can be stale"
    return world.is_served(**{"recipe": recipe, **change(world)})


def recipe_for(world: World, what: str) -> str:
    if what != "conftest.py":
        return "steady:1"
    world.own_method()
    return "own:1"


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_made_again(what: str, world: World) -> None:
    assert not is_stale(world, CHANGES[what][1], recipe_for(world, what)), f"stale after another {what}"


@pytest.mark.parametrize("what", CHANGES)
def test_a_key_that_forgets_an_item_is_caught(what: str, world: World) -> None:
    """The mutants: each item of the key is the only one that tells its change."""
    item, change = CHANGES[what]
    whole = build_cache.name_of

    def forgetful(key: Mapping[str, Any]) -> str:
        return whole({name: value for name, value in key.items() if name != item})

    world.monkeypatch.setattr(build_cache, "name_of", forgetful)
    assert is_stale(world, change, recipe_for(world, what)), f"the key without {item} tells {what} all the same"


@contextmanager
def set_to(read: Callable[[], Any], write: Callable[[Any], object], value: object) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def attribute(owner: Any, name: str, value: object) -> AbstractContextManager[None]:
    return set_to(lambda: getattr(owner, name), lambda to: setattr(owner, name, to), value)


SWITCHED: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "mkldnn": lambda: attribute(torch.backends.mkldnn, "enabled", False),
    "mkldnn deterministic": lambda: attribute(torch.backends.mkldnn, "deterministic", True),
    "mkldnn precision": lambda: attribute(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "cudnn": lambda: attribute(torch.backends.cudnn, "benchmark", True),
    "cudnn precision": lambda: attribute(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    "cuda precision": lambda: attribute(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "deterministic": lambda: set_to(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "default type": lambda: set_to(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "fused transformer layers": lambda: set_to(
        torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, False
    ),
    "fused attention": lambda: sdpa_kernel(SDPBackend.MATH),
    "denormals": lambda: set_to(lambda: False, torch.set_flush_denormal, True),
}


@pytest.mark.parametrize("switch", SWITCHED)
def test_a_switch_of_torch_is_part_of_the_key(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a key that forgets it."""
    before = build_cache._machine()
    with SWITCHED[switch]():
        assert build_cache._machine() != before, f"stale after another {switch}"
        monkeypatch.delitem(build_cache._SWITCHES, switch)
        forgetful = build_cache._machine()
    del before[switch]
    assert forgetful == before, f"the key without {switch} tells it all the same"


def test_every_switch_has_its_change() -> None:
    assert {*build_cache._SWITCHES} == {*SWITCHED, "kernels"}, f"{sorted(build_cache._SWITCHES)}"  # those are the CPU's


def test_precisions_of_old_and_new_kind_may_be_mixed() -> None:
    """Torch itself refuses to tell the old kind then."""
    with attribute(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"):
        with pytest.raises(RuntimeError, match="mix"):
            torch.get_float32_matmul_precision()
        assert "bf16" in build_cache._machine()["mkldnn precision"], build_cache._machine()


def test_every_item_of_the_key_has_its_change(world: World) -> None:
    world.compressed()
    key = build_cache.key_of(world.orders[-1])
    assert key is not None, "no key"
    assert set(key) == {item for item, _ in CHANGES.values()}, f"{sorted(key)}"
    assert key["dense"][0] == world.bench().card(Case("net", "dots", "dense", "eager"))["sha256"], key["dense"]


def test_a_checkpoint_is_told_by_what_was_loaded(world: World) -> None:
    """A card that lies, or was replaced after the weights were read, makes nothing stale."""
    card = (world.folder / "net-dots.json").read_text()

    def trained_with_the_old_card(changed: World) -> dict[str, Any]:
        changed.train(seed=1)
        bench = changed.bench()
        bench.dense(Case("net", "dots", "dense", "eager"))
        (changed.folder / "net-dots.json").write_text(card)
        changed.monkeypatch.setattr(changed, "bench", lambda **options: bench)
        return {}

    assert not is_stale(world, trained_with_the_old_card, "steady:1"), "told by its card only"


def test_a_source_that_changes_while_a_model_is_made_keeps_nothing(world: World) -> None:
    digests = iter(["before", "before", "after"])
    world.monkeypatch.setattr(build_cache, "package_digest", lambda: next(digests))
    with pytest.warns(UserWarning, match=r"not kept \(changed meanwhile: package\) \[net-dots/steady:1\]"):
        world.compressed()
    assert not world.files, world.files


@pytest.mark.parametrize("age", ["older", "younger"])
def test_a_file_that_is_rewritten_while_a_model_is_made_keeps_nothing_and_is_named(age: str, world: World) -> None:
    """Whether its time tells that, or its content."""
    world.own_method()
    whole = workbench.compress_with

    def edited(*arguments: Any, **options: Any) -> Compressed:
        (world.folder / "conftest.py").write_text(OWN.format(body="# changed"))
        if age == "younger":
            world.monkeypatch.setattr(pruning_bench, "STARTED", time.time() - 60)
        return whole(*arguments, **options)

    world.monkeypatch.setattr(workbench, "compress_with", edited)
    told = "sources" if age == "older" else r"\S+\.py changed since this process started"
    with pytest.warns(UserWarning, match=rf"not kept \(changed meanwhile: {told}\) \[net-dots/own:1\]"):
        world.compressed("own:1")
    assert not world.files, f"kept as made from what is there now: {world.files}"


def test_what_the_package_computes_with_is_in_the_versions() -> None:
    """Every import of the code that compresses that is neither Python's nor the package's own."""
    root, found = Path(pruning_bench.__file__).parent, set()
    for file in [
        root / "engine.py",
        *(f for part in ("pruning", "quantization", "training") for f in (root / part).rglob("*.py")),
    ]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.partition(".")[0] for name in names}
    third = found - set(sys.stdlib_module_names) - {"pruning_bench", "rich", "safetensors"}  # to show, to store
    assert "torch" in third, found
    assert third <= set(build_cache._versions()), f"{third - set(build_cache._versions())} may change what is made"


@dataclass(frozen=True)
class Scaled:
    """Examples of a user's own, with more than tensors about them."""

    split: Split
    factor: float

    @property
    def targets(self) -> Tensor:
        return self.split.labels

    def __len__(self) -> int:
        return len(self.split)

    def arguments(self, index: Tensor | slice = slice(None)) -> tuple[Tensor, ...]:
        return tuple(self.factor * value for value in self.split.arguments(index))

    def sample(self, count: int, generator: torch.Generator) -> Split:
        return self.split.sample(count, generator)


@dataclass(frozen=True, slots=True)
class Slotted(Scaled):
    pass


@dataclass(frozen=True)
class Remembering(Scaled):
    """Keeps what it has computed."""

    @functools.cached_property
    def twice(self) -> float:
        return 2 * self.factor

    def __post_init__(self) -> None:
        object.__setattr__(self, "known", {})
        object.__setattr__(self, "lock", threading.Lock())

    def arguments(self, index: Tensor | slice = slice(None)) -> tuple[Tensor, ...]:
        self.known[str(index)] = self.twice  # type: ignore[attr-defined]
        return super().arguments(index)


def test_what_examples_remember_does_not_count(world: World) -> None:
    world.compressed()
    order = world.orders[-1]
    train = Remembering(order.dataset.train, 1.0)
    order = replace(order, dataset=replace(order.dataset, train=train))
    before = build_cache.key_of(order)
    train.arguments(slice(0, 1))
    assert train.known, "nothing was remembered"  # type: ignore[attr-defined]
    assert build_cache.key_of(order) == before is not None, "nothing would ever be kept"


@pytest.mark.parametrize("kind", [Scaled, Slotted])
def test_examples_count_with_all_that_they_hold(kind: Any, world: World) -> None:
    world.compressed()
    order = world.orders[-1]

    def key(factor: float) -> Any:
        train = kind(order.dataset.train, factor)
        return build_cache.key_of(replace(order, dataset=replace(order.dataset, train=train)))

    assert key(1.0) == key(1.0) is not None, "equal ones differ, or cannot be told"
    assert key(1.0) != key(3.0), "a change is not seen"


class Raising:
    def __getattribute__(self, name: str) -> Any:
        raise KeyError(name)


@pytest.mark.parametrize("value", [torch.zeros(2).to_sparse(), torch.zeros(2, device="meta"), Raising])
def test_examples_that_cannot_be_told_are_compressed_with_all_the_same(value: Any, world: World) -> None:
    world.compressed()
    order = world.orders[-1]
    train = Scaled(order.dataset.train, value() if value is Raising else value)
    assert build_cache.key_of(replace(order, dataset=replace(order.dataset, train=train))) is None


def _local() -> type:
    @dataclass(frozen=True)
    class Local:
        name: ClassVar[str] = "local"
        tags: ClassVar[PruningTags] = PruningTags(structure="element")

        def plan(self, model: nn.Module, level: Any, context: Any) -> MaskPlan:
            return MaskPlan({"fc.weight": torch.ones(3, 8, dtype=torch.bool)})

    return Local


def test_a_method_whose_source_cannot_be_told_is_made_anew_silently(world: World) -> None:
    world.monkeypatch.setitem(STEPS._items, "local", _local())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not world.is_served("local:1")
        assert not world.is_served("local:1"), "served, though its source is unknown"
    assert not world.files, world.files


def test_a_conftest_that_is_younger_than_the_process_is_made_anew(world: World) -> None:
    world.own_method()
    world.monkeypatch.setattr(pruning_bench, "STARTED", time.time() - 60)
    assert not world.is_served("own:1")
    assert not world.is_served("own:1"), "what runs may be its earlier text"


def test_a_model_that_a_step_rebuilt_is_made_anew_silently(world: World) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not world.is_served("steady:1+rebuilding")
        assert not world.is_served("steady:1+rebuilding"), "served, though a file cannot tell it"
    assert not world.files, world.files


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1],
    "cut header": lambda content: content[:100],
    "longer": lambda content: content + b"\0",
    "one bit of a weight": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "another plan": lambda content: content.replace(b"fc.weight", b"fc.weighs", 1),
    "a pickle": lambda content: b"\x80\x02" + content,
    "text": lambda content: b"<html>" * 1000,
    "a huge header": lambda content: b"\xff" * 8 + content,
    "no card": lambda content: save({"model:fc.weight": torch.zeros(3, 8)}),
    "an empty card": lambda content: save({"x": torch.zeros(1)}, {"card": "0" * 64 + "{}"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_dropped_with_one_line_and_made_again(damage: str, world: World) -> None:
    first = world.compressed()
    (file,) = world.files
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[damage](whole))
    with pytest.warns(UserWarning, match="damaged entry") as caught:
        second = world.compressed()
    assert len(caught) == 1, [str(w.message) for w in caught]
    assert "\n" not in str(caught[0].message), str(caught[0].message)
    assert str(file) in str(caught[0].message), str(caught[0].message)
    assert world.compressed_again == 2, "a damaged entry was served"
    assert torch.equal(first.float_model.fc.weight, second.float_model.fc.weight), "made otherwise"
    assert file.read_bytes() == whole, "the entry was not made whole again"
    assert world.is_served(), "the new entry is not served"


ABOUT: dict[str, Any] = {}


def served_otherwise(world: World, content: bytes) -> bool:
    """Whether the cache serves another model than the one of the whole file from `content`."""
    (file,) = world.files
    whole = file.read_bytes()
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        served = world.cache._read(file, lambda read: build_cache._decoded(read, world.orders[-1], file))
    file.write_bytes(whole)
    return served is not None and build_entries.encode(served, ABOUT) != build_entries.encode(
        build_entries.decode(whole, world.orders[-1].dense, served.recipe, served.example_inputs)[0], ABOUT
    )


def turned(content: bytes, position: int) -> bytes:
    """One bit turned."""
    return content[:position] + bytes([content[position] ^ (1 << position % 8)]) + content[position + 1 :]


def test_no_turned_bit_is_served(world: World) -> None:
    world.compressed()
    content = world.files[0].read_bytes()
    step = max(len(content) // 400, 1)
    wrong = [at for at in range(0, len(content), step) if served_otherwise(world, turned(content, at))]
    assert not wrong, f"a bit turned at {wrong} of {len(content)} bytes is served"


def test_without_the_digest_a_turned_bit_is_served(world: World) -> None:
    """The mutant that trusts the file."""
    world.compressed()
    content = world.files[0].read_bytes()
    whole = build_entries.digest_tensors
    sha = build_entries._card(io.BytesIO(content))[0]
    world.monkeypatch.setattr(
        build_entries, "digest_tensors", lambda tensors, text="": sha if text else whole(tensors, text)
    )
    assert served_otherwise(world, content[:-1] + bytes([content[-1] ^ 1])), "caught by something else"


def test_an_entry_under_another_name_is_not_served(world: World) -> None:
    world.compressed()
    (one,) = world.files
    world.compressed("steady:2")
    (two,) = [file for file in world.files if file != one]
    one.write_bytes(two.read_bytes())
    with pytest.warns(UserWarning, match="another key than its name says"):
        assert not world.is_served(), "another recipe's model was served"


def test_the_least_recently_used_goes_first(world: World) -> None:
    world.compressed("steady:1")
    world.compressed("steady:2")
    size = max(file.stat().st_size for file in world.files)
    world.cache = BuildCache(world.cache.folder, 2 * size + size // 2)
    for file in world.files:
        os.utime(file, (1e9, 1e9))
    assert world.is_served("steady:1")
    world.compressed("steady:3")
    kept = [e.recipe for e in world.cache.entries()]
    assert kept == ["steady:3", "steady:1"], f"{kept} are kept, the last used first"
    assert sum(file.stat().st_size for file in world.files) <= world.cache.limit, "more than the limit"


def test_a_model_larger_than_the_limit_drives_nothing_out(world: World) -> None:
    world.compressed()
    (file,) = world.files
    world.cache = BuildCache(world.cache.folder, file.stat().st_size - 1)
    world.compressed("steady:2")
    assert world.files == [file], world.files


def test_no_limit_at_all_switches_it_off(world: World) -> None:
    world.compressed()
    world.cache = BuildCache(world.cache.folder, 0)
    assert not world.is_served(), "served, though it is switched off"
    assert len(world.files) == 1, "kept, or deleted, though it is switched off"


def test_what_is_not_its_own_is_left_alone(world: World) -> None:
    world.cache.folder.mkdir()
    foreign = [world.cache.folder / name for name in ("notes.txt", "model.safetensors", "0" * 64, ".x.safetensors.y")]
    for file in foreign:
        file.write_text("precious")
    partial = world.cache.folder / f".{'0' * 64}.safetensors.abc"
    young = world.cache.folder / f".{'1' * 64}.safetensors.abc"
    for file in (partial, young):
        file.write_text("half")
    os.utime(partial, (1e9, 1e9))
    world.compressed()
    assert not partial.exists(), "what a process left that died is still there"
    assert young.exists(), "what another process is writing was deleted"
    assert world.cache.clear() == 1
    assert world.files == sorted(foreign), world.files


def test_an_interrupted_write_leaves_nothing(world: World) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with world.monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            world.compressed()
    assert not world.files, world.files
    assert not world.is_served(), "half an entry was served"


@pytest.mark.parametrize("place", ["file", "file/deeper"])
def test_a_folder_that_cannot_be_written_costs_a_line(world: World, place: str) -> None:
    (world.folder / "file").write_text("precious")
    world.cache = BuildCache(world.folder / place)
    with pytest.warns(UserWarning, match="nothing is kept") as caught:
        world.compressed()
    assert len(caught) == 1, [str(w.message) for w in caught]
    assert str(world.folder / place) in str(caught[0].message), str(caught[0].message)
    assert (world.folder / "file").read_text() == "precious", "a file was overwritten"
    assert world.cache.entries() == []


def test_a_folder_that_is_only_read_serves(world: World) -> None:
    world.compressed()

    def refused(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    world.monkeypatch.setattr(os, "utime", refused)
    assert world.is_served(), "not served"


def test_writers_readers_and_evictions_at_once(world: World) -> None:
    """Each thread as another process would: nothing is shared but the folder."""
    recipes = ["steady:1", "steady:2", "steady:3"]
    made = {recipe: world.compressed(recipe) for recipe in recipes}
    orders = {str(order.recipe): order for order in world.orders}
    contents = {r: build_entries.encode(made[r], ABOUT) for r in recipes}
    limit = 2 * max(file.stat().st_size for file in world.files) + 1
    problems: list[str] = []
    serve = BuildCache(world.cache.folder, limit).serve

    def work(number: int) -> None:
        for turn in range(8):
            recipe = recipes[(number + turn) % 3]
            try:
                found = serve(orders[recipe], functools.partial(made.get, recipe))
                if build_entries.encode(found, ABOUT) != contents[recipe]:
                    problems.append(f"{recipe} served otherwise")
            except BaseException as problem:  # a thread's exception reaches nobody
                problems.append(repr(problem))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems, problems
    assert not caught, [str(w.message) for w in caught]
    assert all(file.name[0] != "." for file in world.files), "a partial file was left"


PROCESS = """
import sys, warnings
from pathlib import Path
from pruning_bench import build_cache, workbench
from pruning_bench.cases import parse_id
from pruning_bench.discover import discover, import_files
from pruning_bench.models.checkpoints import SHIPPED
discover()
import_files([sys.argv[1]])
warnings.simplefilter("error")
made = []
whole = workbench.compress_with
workbench.compress_with = lambda *a, **k: made.append(1) or whole(*a, **k)
bench = workbench.Workbench(checkpoints=Path(sys.argv[2]))
found = bench.compressed(parse_id("toy-pixels/planted:0/eager"))
print(len(made), float(found.float_model[3].weight.detach().sum()))
"""


def test_two_processes_at_once_and_a_third_that_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a user's own method, model and data, from files; as `pytest`, `accept` and workers share them."""
    monkeypatch.setenv("PRUNING_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(pruning_bench.__file__).parents[1]))
    definitions = Path(__file__).parent / "toy_suite" / "toy_definitions.py"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
    card = {"model": "toy", "dataset": "pixels", "options": {}}
    save_checkpoint(model, card, tmp_path / "toy-pixels.safetensors")
    command = [sys.executable, "-c", PROCESS, str(definitions), str(tmp_path)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    ends = [process.communicate(timeout=300) for process in [start(), start()]]
    ends.append(start().communicate(timeout=300))
    assert not [error for _, error in ends if error], ends
    counts, sums = zip(*(out.split() for out, _ in ends), strict=True)
    assert counts[2] == "0", f"{counts} models made: the third process should have been served"
    assert len(set(sums)) == 1, f"{sums}, should be the same"
    assert len(list((tmp_path / "cache").iterdir())) == 1, list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PRUNING_BENCH_CACHE": "/a/b", "XDG_CACHE_HOME": "/c", "HOME": "/home/me"}, "/a/b"),
        ({"PRUNING_BENCH_CACHE": "", "XDG_CACHE_HOME": "/c", "HOME": "/home/me"}, "/c/pruning_bench"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.cache/pruning_bench"),
        ({"HOME": "/home/me"}, "/home/me/.cache/pruning_bench"),
    ],
)
def test_where_it_lies(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PRUNING_BENCH_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cache = usual_cache()
    assert cache is not None
    assert cache.folder == Path(expected), f"{cache.folder}, should be {expected}"
    assert cache.limit == 2 << 30, cache.limit


def test_a_relative_folder_is_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNING_BENCH_CACHE", "here")
    cache = usual_cache()
    monkeypatch.chdir("/")
    assert cache is not None
    assert cache.folder == tmp_path / "here", cache.folder


def test_without_a_home_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PRUNING_BENCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert usual_cache() is None
    assert cli.main(["cache"]) == 2


@pytest.mark.parametrize(("text", "limit"), [("0", 0), ("1", 1 << 20), ("", 2 << 30)])
def test_its_size_is_in_mib(text: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNING_BENCH_CACHE_MIB", text)
    cache = usual_cache()
    assert cache is not None
    assert cache.limit == limit, f"{cache.limit}, should be {limit}"


@pytest.mark.parametrize("text", ["2GB", "-1", "1.5", "٣", "9" * 5000])
def test_a_size_that_is_none_is_one_line(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRUNING_BENCH_CACHE_MIB", text)
    with pytest.raises(PruningBenchError, match="a whole number of MiB"):
        usual_cache()
    assert cli.main(["cache"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_tests_have_a_cache_of_their_own() -> None:
    cache = usual_cache()
    assert cache is not None
    assert Path.home() not in cache.folder.parents, f"{cache.folder} is the user's"
    assert "pruning_bench-cache-" in cache.folder.name, cache.folder


def test_the_command_lists_and_clears(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.monkeypatch.setenv("PRUNING_BENCH_CACHE", str(world.cache.folder))
    assert cli.main(["cache"]) == 0
    assert "0 models" in capsys.readouterr().out
    world.compressed("steady:1", seed=4)
    world.compressed("steady:0.25")
    (world.cache.folder / f"{'0' * 64}.safetensors").write_text("damaged")
    assert cli.main(["cache"]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["steady:1", "net-dots", "4"] in [line[:3] for line in lines], shown
    assert ["steady:0.25", "net-dots", "0"] in [line[:3] for line in lines], shown
    assert f"{time.strftime('%Y-%m-%d')}" in shown, shown
    assert "unreadable" in shown, shown
    assert "3 models, " in shown, shown
    assert str(world.cache.folder) in shown, shown
    assert cli.main(["cache", "--dir"]) == 0
    assert capsys.readouterr().out == f"{world.cache.folder}\n"
    assert cli.main(["cache", "--clear"]) == 0
    assert "3 models deleted" in capsys.readouterr().out
    assert not world.files, world.files
