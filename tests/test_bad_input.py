"""What a user gets wrong ends in one line that names it: a broken plug-in, a model that cannot be exported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pruning_bench import compress
from pruning_bench.errors import ModelError
from pruning_bench.registry import RUNTIMES

BROKEN = "from acme_missing import something\n"
SOUND = "something = 1\n"


def install(folder: Path, code: str) -> None:
    """A distribution with an entry point, as pip would install it."""
    (folder / "acme_pruning.py").write_text(code)
    about = folder / "acme_pruning-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-pruning\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[pruning_bench.methods]\nacme = acme_pruning\n")


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    head = f"import sys; sys.path.insert(0, {str(folder)!r}); sys.argv = {list(command)!r}"
    code = f"{head}; import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.parametrize(("code", "status"), [(BROKEN, 2), (SOUND, 0)], ids=["broken", "sound"])
def test_a_broken_plug_in_is_named_on_the_command_line(code: str, status: int, tmp_path: Path) -> None:
    install(tmp_path, code)
    done = run(tmp_path, "pruning_bench.cli", "list", "methods")
    assert done.returncode == status, done.stderr
    if status:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        for words in ("acme-pruning 1.2", "acme_missing", "entry point acme"):
            assert words in done.stderr, f"{words!r} is not in {done.stderr}"


def test_a_broken_plug_in_is_named_by_the_suite(tmp_path: Path) -> None:
    install(tmp_path, BROKEN)
    (tmp_path / "test_size.py").write_text("def test_size(footprint_case):\n    footprint_case.measure()\n")
    done = run(tmp_path, "pytest", "test_size.py", "-p", "no:cacheprovider")
    assert done.returncode == 4, done.stdout + done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if "acme" in line]
    assert len(said) == 1, f"{said} should be one line"
    assert "acme-pruning 1.2" in said[0], said


class Deciding(nn.Module):
    """Looks at its data to decide what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.sum() > 0:
            return x
        return -x


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip() == text)


def by_channels(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    compress(model, "l1_filter:0.5", example_inputs=inputs)


def by_onnx(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    RUNTIMES["onnxruntime"].build(compress(model, "dense", example_inputs=inputs), inputs)


@pytest.mark.parametrize("way", [by_channels, by_onnx])
def test_a_model_that_cannot_be_exported_is_told_by_operator_and_line(way: Callable[..., None]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Deciding(), nn.Linear(4, 2))
    with pytest.raises(ModelError) as caught:
        way(model, (torch.ones(1, 4),))
    message = str(caught.value)
    line = line_of("if x.sum() > 0:")
    for words in ("1 (Deciding)", "if x.sum() > 0:", f"test_bad_input.py:{line}", "Tensor.__bool__"):
        assert words in message, f"{words!r} is not in {message!r}"
    assert "\n" not in message, message


def test_the_line_is_the_users_where_torchs_own_code_fails() -> None:
    """Mutant: the innermost line of all, which is torch's."""

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x[:, :2])

    with pytest.raises(ModelError) as caught:
        compress(nn.Sequential(Narrow()), "l1_filter:0.5", example_inputs=(torch.ones(1, 4),))
    message = str(caught.value)
    line = line_of("return self.inner(x[:, :2])")
    for words in ("0.inner (Linear)", "return self.inner(x[:, :2])", f"test_bad_input.py:{line}"):
        assert words in message, f"{words!r} is not in {message!r}"
