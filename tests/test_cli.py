"""The command line: what it makes, and one clear line for what it cannot."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pruning_bench import cli, commands, load, workbench
from pruning_bench.datasets.contract import Dataset, load_dataset
from pruning_bench.models.checkpoints import SHIPPED, checkpoint_path
from pruning_bench.records import Environment, Measurement, Run, write_run


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


@pytest.mark.parametrize("kind", commands.KINDS)
def test_list_shows_what_is_registered(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", kind) == 0
    shown = capsys.readouterr().out
    expected = {
        "methods": ["magnitude", "l1_filter", "static", "finetune"],
        "models": ["resnet20", "image_classifier"],
        "datasets": ["fashion_mnist", "cifar10"],
        "runtimes": ["eager", "onnxruntime"],
        "metrics": ["top1", "relative_time"],
        "profiles": ["smoke", "ci", "nightly"],
    }[kind]
    assert all(name in shown for name in expected), shown


def test_compress_writes_what_load_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.safetensors"
    assert run("compress", "resnet20", "l1_filter:0.5+static:w8a8", "-o", str(file)) == 0, capsys.readouterr().err
    images = load_dataset("fashion_mnist").selection
    model = load(file).model
    with torch.no_grad():
        outputs = model(images.inputs(slice(0, 64)))
    assert outputs.shape == (64, 10), outputs.shape
    dense = checkpoint_path("resnet20", "fashion_mnist").stat().st_size
    assert dense / file.stat().st_size > 10, f"{dense / file.stat().st_size:.1f} times smaller"
    card = json.loads(file.with_suffix(".json").read_text())
    assert card["recipe"] == "l1_filter:0.5+static:w8a8", card["recipe"]


def test_compress_leaves_an_existing_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_text("precious")
    assert run("compress", "resnet20", "magnitude:0.5", "-o", str(file)) == 2
    assert "--force" in capsys.readouterr().err
    assert file.read_text() == "precious", "the file was overwritten"


def _pickled(folder: Path) -> str:
    torch.save({"weight": torch.zeros(1)}, folder / "model.pt")
    return str(folder / "model.pt")


def _spoilt(folder: Path) -> str:
    source = checkpoint_path("resnet20", "fashion_mnist")
    content = bytearray(source.read_bytes())
    content[-1] ^= 1
    (folder / source.name).write_bytes(content)
    (folder / source.name).with_suffix(".json").write_text(source.with_suffix(".json").read_text())
    return str(folder / source.name)


def _copied(folder: Path, **changes: object) -> str:
    """A copy of a shipped checkpoint whose card says something else."""
    source = checkpoint_path("resnet20", "fashion_mnist")
    shutil.copy(source, folder)
    card = {**json.loads(source.with_suffix(".json").read_text()), **changes}
    (folder / source.name).with_suffix(".json").write_text(json.dumps(card))
    return str(folder / source.name)


def _compressed(folder: Path) -> str:
    options = {"num_classes": 5, "in_channels": 1}  # narrower, as after a channel method: the weights do not fit
    return _copied(folder, recipe="magnitude:0.9", options=options)


def _written(file: Path) -> str:
    file.touch()
    return str(file)


@pytest.mark.parametrize(
    ("model", "recipe", "says"),
    [
        ("resnet2", "magnitude:0.5", "'resnet20'"),
        ("resnet20", "magnitud:0.5", "'magnitude'"),
        ("resnet20", "magnitude:1.0", "in [0, 1)"),
        ("resnet20", "magnitude:0.5,,", "^"),
        ("nowhere/model.safetensors", "magnitude:0.5", "No such file"),
        (".", "magnitude:0.5", "a directory"),
        ("/", "magnitude:0.5", "a directory"),
        ("", "magnitude:0.5", "'', should be"),
        (lambda folder: str(folder), "magnitude:0.5", "a directory"),
        (lambda folder: _written(folder / "empty.safetensors"), "magnitude:0.5", "no card"),
        (_compressed, "magnitude:0.5", "compressed by magnitude:0.9 already"),
        (_pickled, "magnitude:0.5", "never read"),
        (_spoilt, "magnitude:0.5", "sha256"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    model: object, recipe: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "small.safetensors"
    name = model(tmp_path) if callable(model) else str(model)
    assert run("compress", name, recipe, "-o", str(output)) == 2
    error = capsys.readouterr().err
    assert says in error, error
    assert "Traceback" not in error, error
    assert len(error.strip().splitlines()) == (3 if says == "^" else 1), error
    assert not output.parent.exists(), "something was written"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seed", "-1"], "seed -1, should be a whole number in [0, 2**53)"),
        (["--seed", "1" * 30], "seed 111"),
        (["--dataset", "fashion"], "'fashion', should be 'fashion_mnist'"),
        (["--dataset", "cifar10"], "no checkpoint resnet20-cifar10, should be a shipped one"),
    ],
)
def test_bad_options_are_one_line(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compress", "resnet20", "magnitude:0.5", "-o", str(tmp_path / "small.safetensors"), *words) == 2
    error = capsys.readouterr().err
    assert says in error, error
    assert len(error.strip().splitlines()) == 1, error
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (".", "a name ending in .safetensors"),
        ("small.pt", "a name ending in .safetensors"),
        ("folder.safetensors", "a directory, should be a file"),
        ("file/small.safetensors", "in a folder that can be written"),
        ("file/deeper/small.safetensors", "in a folder that can be written"),
    ],
)
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_bad_output_is_refused_before_the_work(
    output: str,
    says: str,
    force: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder.safetensors").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workbench, "compress_with", lambda *_, **__: pytest.fail("compressed, should refuse before"))
    assert run("compress", "resnet20", "magnitude:0.5", "-o", output, *force) == 2
    error = capsys.readouterr().err
    assert says in error, error
    assert (tmp_path / "file").read_text() == "precious", "the file was overwritten"


def _asked_dataset(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the data sets that are loaded from now on."""
    names: list[str] = []

    def note(self: workbench.Workbench, name: str) -> Dataset:
        names.append(name)
        return load_dataset("fashion_mnist")

    monkeypatch.setattr(workbench.Workbench, "dataset", note)
    return names


def test_the_data_set_is_that_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, output = _copied(tmp_path, dataset="cifar10"), tmp_path / "small.safetensors"
    names = _asked_dataset(monkeypatch)
    assert run("compress", model, "magnitude:0.5", "-o", str(output)) == 0
    assert names == ["cifar10"], f"{names}, should be that of the card"
    assert run("compress", model, "magnitude:0.5", "-o", str(output), "--force", "--dataset", "cifar10") == 0
    assert names == ["cifar10"] * 2, f"{names}, should be that of the card"


def test_another_data_set_than_the_checkpoints_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = _copied(tmp_path), tmp_path / "small.safetensors"
    assert run("compress", model, "magnitude:0.5", "-o", str(output), "--dataset", "cifar10") == 2
    error = capsys.readouterr().err
    assert "--dataset cifar10, should be fashion_mnist, which it was trained on" in error, error
    assert not output.exists(), "something was written"


@pytest.mark.parametrize(("folder", "says"), [("nowhere", "nowhere"), ("empty", "empty"), ("corrupt", "train-images")])
def test_bad_data_folders_are_named(folder: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / folder
    if folder != "nowhere":
        place.mkdir()
    if folder == "corrupt":
        for name in ("train-images", "t10k-images"):
            (place / f"{name}-idx3-ubyte.gz").write_bytes(b"\x1f\x8bno")
        for name in ("train-labels", "t10k-labels"):
            (place / f"{name}-idx1-ubyte.gz").write_bytes(b"\x1f\x8bno")
    output = tmp_path / "small.safetensors"
    assert run("compress", "resnet20", "magnitude:0.5", "-o", str(output), "--data", str(place)) == 2
    error = capsys.readouterr().err
    assert says in error, error
    assert len(error.strip().splitlines()) == 1, error
    assert not output.exists(), "something was written"


def test_judge_and_accept_without_a_run_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("judge", "latest", "--results", str(tmp_path)) == 2
    assert "latest" in capsys.readouterr().err
    assert run("accept", "latest", "--results", str(tmp_path), "--reason", "none") == 2
    assert "latest" in capsys.readouterr().err


def test_judge_needs_no_torch(tmp_path: Path) -> None:
    size = Measurement("net-data/dense/eager", "bytes", 10, "B", "lower", "exact")
    record = Run("20260101T000000-smoke", "2026-01-01", "smoke", Environment({"cpu": "x"}), (), (size,))
    write_run(record, tmp_path / "runs" / f"{record.id}.jsonl")
    judged = f"status = main(['judge', 'latest', '--results', {str(tmp_path)!r}])"
    code = f"import sys; from pruning_bench.cli import main; {judged}; sys.exit(status or 'torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 NEW" in done.stdout, done.stdout


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    sizes = [Measurement(f"net-data/dense/eager-s{s}", "bytes", 10, "B", "lower", "exact") for s in range(2000)]
    record = Run("20260101T000000-smoke", "2026-01-01", "smoke", Environment({"cpu": "x"}), (), tuple(sizes))
    write_run(record, tmp_path / "runs" / f"{record.id}.jsonl")
    command = [sys.executable, "-m", "pruning_bench.cli", "judge", "latest", "--results", str(tmp_path)]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout is not None
    done.stdout.close()
    error = done.communicate()[1]
    assert (done.returncode, error) == (141, ""), f"{done.returncode}: {error}"


def test_judge_puts_the_report_between_the_marks(tmp_path: Path) -> None:
    size = Measurement("net-data/dense/eager", "bytes", 10, "B", "lower", "exact")
    record = Run("20260101T000000-smoke", "2026-01-01", "smoke", Environment({"cpu": "x"}), (), (size,))
    write_run(record, tmp_path / "runs" / f"{record.id}.jsonl")
    file = tmp_path / "page.md"
    file.write_text("before\n<!-- pruning-bench: begin -->\nold\n<!-- pruning-bench: end -->\nafter\n")
    assert run("judge", "latest", "--results", str(tmp_path), "--into", str(file)) == 0
    text = file.read_text()
    assert text.startswith("before\n<!-- pruning-bench: begin -->"), text
    assert text.endswith("<!-- pruning-bench: end -->\nafter\n"), text
    assert "old" not in text, text
    assert "1 NEW" in text, text
    file.write_text("no marks")
    assert run("judge", "latest", "--results", str(tmp_path), "--into", str(file)) == 2
    assert file.read_text() == "no marks", "a file without marks was changed"


# What every retraining must reach.
PROMISED = {"image_classifier": 0.93, "lenet5": 0.90, "mobilenet_v2": 0.93, "resnet20": 0.93, "vit_tiny": 0.90}


def test_the_shipped_checkpoints_say_how_they_were_made() -> None:
    cards = sorted(SHIPPED.glob("*.json"))
    assert {path.name.partition("-")[0] for path in cards} >= {*PROMISED}, cards
    for path in cards:
        card = json.loads(path.read_text())
        assert card["test_top1"] >= PROMISED[card["model"]], f"{path.name}: test accuracy {card['test_top1']}"
        assert "pruning-bench train" in card["command"], card["command"]


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (OSError(28, "No space left on device"), "pruning-bench: No space left on device\n"),
        (PermissionError(13, "Permission denied", "/a/b"), "pruning-bench: Permission denied [/a/b]\n"),
        (KeyboardInterrupt(), "pruning-bench: interrupted; no file is half written\n"),
    ],
    ids=["no place", "place", "interrupted"],
)
def test_what_the_system_refuses_is_one_line(
    problem: BaseException, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(chosen: object) -> int:
        raise problem

    monkeypatch.setattr(commands, "do_list", fail)
    assert run("list") == (130 if isinstance(problem, KeyboardInterrupt) else 2)
    error = capsys.readouterr().err
    assert error == says, f"{error!r}, should be {says!r}"
