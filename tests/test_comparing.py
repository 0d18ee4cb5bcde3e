"""`pruning-bench compare`: what is compared is what was asked for, and mistakes are one clear line before any work."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench import cli, comparing, workbench
from pruning_bench.comparing import class_changes, compare, prepare
from pruning_bench.datasets.contract import Dataset, ReferenceDataset, Split
from pruning_bench.engine import Compressed
from pruning_bench.judging.comparison import ClassChange
from pruning_bench.metrics import accuracy
from pruning_bench.metrics.latency import Samples
from pruning_bench.models.checkpoints import checkpoint_path, save_checkpoint
from pruning_bench.models.contract import ReferenceModel
from pruning_bench.registry import DATASETS, MODELS, RUNTIMES
from pruning_bench.runtimes.contract import Session
from pruning_bench.workbench import Workbench

NAMES = ("cat", "dog", "emu")


@st.composite
def invented(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, 3] of two models, one of them NaN now and then, and labels [N]."""
    cells = st.sampled_from([0.0, 1.0, 2.0, float("nan")])
    n = draw(st.integers(1, 9), label="N")
    logits = st.lists(st.lists(cells, min_size=3, max_size=3), min_size=n, max_size=n)
    labels = st.lists(st.integers(0, 2), min_size=n, max_size=n)
    a, b = (torch.tensor(draw(logits, label=side)) for side in "ab")
    return a, b, torch.tensor(draw(labels, label="labels"))


Changes = Callable[[Tensor, Tensor, Tensor, Sequence[str]], Sequence[ClassChange]]


def check_changes(changes: Changes, a: Tensor, b: Tensor, labels: Tensor) -> None:
    guesses = [accuracy.predictions(logits).tolist() for logits in (a, b)]
    expected = []
    for label, name in enumerate(NAMES):
        own = [(x, y) for x, y, z in zip(*guesses, labels.tolist(), strict=True) if z == label]
        right = [(x == label, y == label) for x, y in own]
        flips = sum(x != y or x == accuracy.NO_PREDICTION for x, y in own)
        lost, gained = right.count((True, False)), right.count((False, True))
        counts = len(own), sum(x for x, _ in right), sum(y for _, y in right), flips, lost, gained
        expected.append(ClassChange(name, *counts))
    found = list(changes(a, b, labels, NAMES))
    assert found == expected, f"{found}, should be {expected}"


@settings(deadline=None)
@given(invented())
def test_changes_by_class_are_counts(data: tuple[Tensor, Tensor, Tensor]) -> None:
    check_changes(class_changes, *data)


def turned(a: Tensor, b: Tensor, labels: Tensor, names: Sequence[str]) -> Sequence[ClassChange]:
    """Mutant: B is compared with A as if it were A."""
    return class_changes(b, a, labels, names)


def by_prediction(a: Tensor, b: Tensor, labels: Tensor, names: Sequence[str]) -> Sequence[ClassChange]:
    """Mutant: the class is what A predicts."""
    return class_changes(a, b, accuracy.predictions(a), names)


@pytest.mark.parametrize("mutant", [turned, by_prediction])
def test_changes_by_class_reject(mutant: Changes) -> None:
    a = torch.eye(3)
    data = a, a.roll(1, 0), torch.tensor([0, 1, 1])
    check_changes(class_changes, *data)
    with pytest.raises(AssertionError):
        check_changes(mutant, *data)


def test_classes_without_a_name_go_by_their_number() -> None:
    found = [change.name for change in class_changes(torch.eye(4), torch.eye(4), torch.tensor([0, 1, 2, 3]), NAMES[:2])]
    assert found == ["cat", "dog", "2", "3"], f"{found}"


# from the command line, on a model and data that are made up


def tiny_net(*, num_classes: int = 4, in_channels: int = 1) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, num_classes))


def tiny(folder: Path | None = None, *, full: bool = False) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (200, 1, 4, 4), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(200) % 4, torch.tensor([0.5]), torch.tensor([0.25]))
    return Dataset("tiny", ("a", "b", "c", "d"), split, split, split, "tiny-1", "made")


@pytest.fixture(autouse=True)
def definitions() -> Iterator[None]:
    Workbench()  # what is registered anyway comes first
    threads = torch.get_num_threads()
    with (
        MODELS.temporarily("tiny_net", ReferenceModel("tiny_net", tiny_net)),
        DATASETS.temporarily("tiny", ReferenceDataset("tiny", tiny)),
    ):
        yield
    assert torch.get_num_threads() == threads, "the number of threads is not as it was"


def checkpoint(path: Path, seed: int = 0, **card: Any) -> str:
    torch.manual_seed(seed)
    options = {"num_classes": 4, "in_channels": 1}
    save_checkpoint(tiny_net(**options), {"model": "tiny_net", "dataset": "tiny", "options": options, **card}, path)
    return str(path)


def run(*words: str) -> int:
    return cli.main(["compare", *words])


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """A checkpoint and what `compress` makes of it."""
    dense, small = checkpoint(tmp_path / "dense.safetensors"), str(tmp_path / "small.safetensors")
    assert cli.main(["compress", dense, "l1_filter:0.5", "-o", small]) == 0
    return dense, small


def row(shown: str, title: str) -> str:
    return next((line for line in shown.splitlines() if line.startswith(title)), "")


def test_a_checkpoint_and_what_compress_made_of_it(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(*two, "--runtime", "eager") == 0
    shown = capsys.readouterr().out
    assert f"A  {two[0]}, dense" in shown, shown
    assert f"B  {two[1]}, l1_filter:0.5" in shown, shown
    assert "on tiny, eager, 1 thread, 200 test examples" in shown, shown
    assert "2.00x fewer" in row(shown, "MACs "), row(shown, "MACs ")
    assert "smaller" in row(shown, "size "), row(shown, "size ")
    assert "[" in row(shown, "latency"), "the ratio of the times should have an interval"


def test_sizes_are_those_of_the_files(two: tuple[str, str], tmp_path: Path) -> None:
    small = str(tmp_path / "int8.safetensors")
    assert cli.main(["compress", two[0], "static:w8a8", "-o", small]) == 0
    for pair in (two, (two[0], small)):
        bench = Workbench()
        found = compare(bench, *prepare(bench, *pair, dataset=None, default="", runtime="eager"), timed=False)
        sizes = [Path(file).stat().st_size for file in pair]
        told = [found.a.numbers["bytes"], found.b.numbers["bytes"]]
        assert told == sizes, f"{told} bytes, should be {sizes} of {pair}"


def test_a_model_and_itself(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(two[0], two[0], "--runtime", "eager", "--no-time") == 0
    shown = capsys.readouterr().out
    assert "100.00 % of the predictions are equal, 0 flipped" in shown, shown
    assert "mid-p, two-sided: 1, no difference is shown" in shown, shown
    assert row(shown, "size ").endswith("the same"), row(shown, "size ")


def test_without_times_nothing_is_timed(two: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "sample", lambda *_, **__: pytest.fail("timed, should not be"))
    assert run(*two, "--runtime", "eager", "--no-time") == 0


def test_quantized_models_are_not_timed_where_they_are_simulated(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = str(tmp_path / "int8.safetensors")
    assert cli.main(["compress", two[0], "static:w8a8", "-o", small]) == 0
    capsys.readouterr()
    assert run(two[0], small, "--runtime", "eager") == 0
    shown = capsys.readouterr().out
    assert "no times: this runtime only simulates quantized models" in shown, shown
    assert not row(shown, "latency"), row(shown, "latency")
    assert run(two[0], small, "--runtime", "onnxruntime", "--threads", "2") == 0
    shown = capsys.readouterr().out
    assert "on tiny, onnxruntime, 2 threads" in shown, shown
    assert "[" in row(shown, "latency"), shown


class Paced:
    """A runtime on a clock of its own, which its calls move: dense models take two seconds, others one."""

    name = "paced"

    def __init__(self) -> None:
        self.now = 0.0

    def available(self, device: str = "cpu") -> str | None:
        return None

    def version(self) -> str:
        return "paced 1"

    def run(self, seconds: float) -> None:
        self.now += seconds

    def build(self, compressed: Compressed, example_inputs: Any, *, threads: int = 1, device: str = "cpu") -> Session:
        seconds = 2.0 if str(compressed.recipe) == "dense" else 1.0
        outputs = torch.inference_mode()(lambda *inputs: compressed.model(*inputs))
        return Session(outputs, lambda *_: lambda: self.run(seconds), clock=lambda: self.now)


def test_times_are_those_of_their_models(two: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "LATENCY_SECONDS", 1e6)
    for pair, seconds in ((two, (2.0, 1.0)), (two[::-1], (1.0, 2.0)), ((two[0], two[0]), (2.0, 2.0))):
        bench = Workbench()
        with RUNTIMES.temporarily("paced", Paced()):
            found = compare(bench, *prepare(bench, *pair, dataset=None, default="", runtime="paced"))
        times = found.a.numbers["latency"], found.b.numbers["latency"]
        assert times == pytest.approx(seconds), f"{times} seconds, should be {seconds}"
        assert found.ratio is not None, "should have been timed"
        assert math.exp(found.ratio.value) == pytest.approx(seconds[1] / seconds[0]), f"{found.ratio}"


def test_int8_in_name_only_is_told(two: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    detail = {"quantized_layers": 2, "float_fallbacks": ["1 (Gemm float32)"]}
    monkeypatch.setattr(comparing, "kernel_detail", lambda kernels, plan: detail)
    bench = Workbench()
    found = compare(bench, *prepare(bench, *two, dataset=None, default="", runtime="eager"), timed=False)
    expected = "A is int8 in part only: 1 of 2 quantized layers ran in float: 1 (Gemm float32)"
    assert found.remarks[0] == expected, f"{found.remarks}, should begin {expected}"


def test_a_sampling_that_was_cut_is_told(two: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    cut = Samples((1.0,) * 9, (1.0,) * 9, (), (), {}, (1, 1), False, "cut", 1.0)
    monkeypatch.setattr(comparing, "sample", lambda *_, **__: cut)
    bench = Workbench()
    found = compare(bench, *prepare(bench, *two, dataset=None, default="", runtime="eager"))
    assert "sampling ran out of time after 9 pairs, an interval needs 60" in found.remarks, f"{found.remarks}"


def test_names_and_recipes() -> None:
    bench = Workbench()
    data = bench.dataset("fashion_mnist")
    test = replace(data.test, images=data.test.images[:100], labels=data.test.labels[:100])
    bench._made["dataset", "fashion_mnist"] = replace(data, test=test)
    names = "image_classifier", "image_classifier/magnitude:0.50"
    cases = prepare(bench, *names, dataset=None, default="fashion_mnist", runtime="eager")
    found = compare(bench, *cases, timed=False)
    assert [found.a.name, found.b.name] == ["image_classifier, dense", "image_classifier, magnitude:0.5"], found
    assert found.a.numbers["params"] == found.b.numbers["params"], "masks take no parameters away"
    share = found.b.numbers["nonzeros"] / found.a.numbers["nonzeros"]
    assert 0.45 < share < 0.55, f"{share:.1%} of the weights are left, should be about half"
    right = bench.dense(cases[0])(test.inputs()).argmax(1) == test.labels
    assert found.a.numbers["top1"] == pytest.approx(float(right.float().mean())), f"{found.a.numbers}"
    assert sum(map(sum, found.a.confusion)) == found.examples == 100, f"{found.examples} examples"


def test_two_files_of_one_model_are_two(tmp_path: Path) -> None:
    files = [checkpoint(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1)]
    bench = Workbench()
    found = compare(bench, *prepare(bench, *files, dataset=None, default="", runtime="eager"), timed=False)
    assert found.flips > 0, "models of other weights should predict otherwise"


def test_a_recipe_that_trains_is_one_seed_of_many(two: tuple[str, str], tmp_path: Path) -> None:
    trained = str(tmp_path / "trained.safetensors")
    assert cli.main(["compress", two[0], "magnitude:0.5+finetune:1", "-o", trained]) == 0
    bench = Workbench()
    found = compare(bench, *prepare(bench, two[0], trained, dataset=None, default="", runtime="eager"), timed=False)
    assert any(remark.startswith("B was trained with one seed") for remark in found.remarks), f"{found.remarks}"
    assert not any(remark.startswith("A ") for remark in found.remarks), f"{found.remarks}"


class Away:
    """A runtime that is not here."""

    name = "away"

    def available(self, device: str = "cpu") -> str:
        return "away not installed; python -m pip install away"

    def version(self) -> str:
        return "away 1"


def _pickled(folder: Path) -> str:
    torch.save({"weight": torch.zeros(1)}, folder / "model.pt")
    return str(folder / "model.pt")


def _spoilt(folder: Path) -> str:
    content = bytearray(Path(checkpoint(folder / "spoilt.safetensors")).read_bytes())
    content[-1] ^= 1
    (folder / "spoilt.safetensors").write_bytes(content)
    return str(folder / "spoilt.safetensors")


def _copied(folder: Path) -> str:
    source = checkpoint_path("resnet20", "fashion_mnist")
    for end in (".safetensors", ".json"):
        shutil.copy(source.with_suffix(end), folder / f"resnet{end}")
    return str(folder / "resnet.safetensors")


def _tiny(folder: Path) -> str:
    return checkpoint(folder / "tiny.safetensors")


@pytest.mark.parametrize(
    ("b", "options", "says"),
    [
        ("resnet2", [], "'resnet2', should be 'resnet20'"),
        ("resnet20/magnitud:0.5", [], "'magnitud', should be 'magnitude'"),
        ("resnet20/", [], "recipe"),
        ("resnet20/magnitude:0.5,,", [], "^"),
        ("", [], "model: ''"),
        ("nowhere.safetensors", [], "No such file"),
        ("nowhere/model", [], "model: 'nowhere'"),
        (".", [], "a directory"),
        (_pickled, [], "never read"),
        (_spoilt, ["--dataset", "tiny"], "sha256"),
        (_tiny, ["--dataset", "fashion_mnist"], "--dataset fashion_mnist, should be tiny, which this one was trained"),
        ("resnet20", ["--dataset", "fashion"], "'fashion', should be 'fashion_mnist'"),
        ("resnet20", ["--dataset", "cifar10"], "no checkpoint resnet20-cifar10, should be a shipped one"),
        ("resnet20", ["--runtime", "onnxruntim"], "'onnxruntim', should be 'onnxruntime'"),
        ("resnet20", ["--runtime", "away"], "away not installed; python -m pip install away"),
        ("resnet20", ["--threads", "0"], "--threads 0, should be at least 1"),
    ],
)
def test_mistakes_are_one_line_before_any_work(
    b: object,
    options: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(workbench, "compress_with", lambda *_, **__: pytest.fail("compressed, should refuse before"))
    name = b(tmp_path) if callable(b) else str(b)
    with RUNTIMES.temporarily("away", Away()):
        # Where the data set is tiny, so must be what the wrong model is compared with.
        status = run(_tiny(tmp_path) if "tiny" in options else "resnet20", name, *options)
    error = capsys.readouterr().err
    assert status == 2, f"status {status}, should be 2: {error}"
    assert says in error, error
    assert len(error.strip().splitlines()) == (3 if says == "^" else 1), error


def test_two_files_of_different_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_tiny(tmp_path), _copied(tmp_path)) == 2
    error = capsys.readouterr().err
    assert "data set tiny of the other model, should be fashion_mnist, which this one was trained on" in error, error
    assert len(error.strip().splitlines()) == 1, error


@pytest.mark.slow
def test_a_shipped_model_and_its_int8(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("resnet20", "resnet20/static:w8a8") == 0
    shown = capsys.readouterr().out
    assert "10000 test examples" in shown, shown
    assert "smaller" in row(shown, "size "), shown
    assert "no difference is shown" in shown, shown
