"""The scripts in benchmarks/peers: their candidates are what their own users would make."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, fx, nn

from pruning_bench.runtimes import inductor
from pruning_bench.runtimes.compiled import Compiled
from pruning_bench.runtimes.kernels import float_fallbacks, multiplies

FOLDER = Path(__file__).parents[1] / "benchmarks" / "peers"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script of the folder as Python does when it runs one."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("page", "pruning", "quantization"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


class Residual(nn.Module):
    """One ReLU that is called twice, behind an addition too, as in torchvision's residual networks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        out = self.second(x)
        out += x
        logits: Tensor = self.head(self.relu(out)).mean((2, 3))
        return logits


@pytest.mark.skipif(Compiled().available() is not None, reason=str(Compiled().available()))
@pytest.mark.skipif(inductor.torchao_version() is None, reason=inductor.TORCHAO)
def test_torchao_quantizes_a_model_that_calls_a_module_twice(load: Callable[[str], ModuleType]) -> None:
    peers = load("quantization")
    model, x = Residual().eval(), torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    compiled: list[fx.GraphModule] = []
    earlier = torch.compile(nn.Tanh(), backend=lambda graph, _: compiled.append(graph) or graph.forward)
    earlier(x)
    session = peers.by_torchao(model, [(x,)], (x[:1],), torch.get_num_threads())
    count = sum(multiplies(kernel.operator) for kernel in session.kernels)
    assert (count, float_fallbacks(session.kernels)) == (3, ()), f"{session.kernels}, should be 3 layers on codes"
    earlier(x)
    assert len(compiled) == 1, "what was compiled before is forgotten: the others would be measured as they should not"
    with torch.no_grad():
        expected = model(x)
    off = float((session.run(x) - expected).abs().max() / expected.abs().max())
    assert 1e-5 < off < 0.1, f"outputs are {off} off those of float, should be a little"


def test_a_table_goes_into_its_section(
    load: Callable[[str], ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pruning, file = load("pruning"), tmp_path / "peers.md"
    begin, end = "<!-- pruning-bench: begin pruning masks -->", "<!-- pruning-bench: end pruning masks -->"
    file.write_text(f"# Title\n\n{begin}\nold\n{end}\n\nlast\n")
    found = {"ours": 1.0, "theirs": 4.0, "ours_bytes": 1e6, "theirs_bytes": 8e6, "differ": 0}
    monkeypatch.setattr(pruning.page, "child", lambda *_: found)
    monkeypatch.setattr(pruning.page, "version", lambda name: "1.0")
    monkeypatch.setattr(sys, "argv", ["pruning.py", "masks", "small", "--into", str(file)])
    pruning.main()
    text = file.read_text()
    assert "old" not in text, text
    assert text.startswith("# Title") and text.endswith("last\n"), text  # noqa: PT018
    row = next(line for line in text.splitlines() if line.startswith("| small"))
    assert " ".join(row.split()) == "| small | 1.00 s, 1 MB | 4.00 s, 8 MB | 0.250 | 0.125 | 0 |", row
    assert "`python benchmarks/peers/pruning.py masks small`: torch 1.0" in text, text
    assert capsys.readouterr().out.strip() in text, "another table is printed"


def test_a_page_without_the_section_is_refused_before_anything_runs(
    load: Callable[[str], ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pruning, file = load("pruning"), tmp_path / "peers.md"
    monkeypatch.setattr(pruning.page, "child", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(pruning.page, "version", lambda name: "1.0")
    for text in (None, "no marks"):
        if text is not None:
            file.write_text(text)
        monkeypatch.setattr(sys, "argv", ["pruning.py", "masks", "small", "--into", str(file)])
        with pytest.raises(SystemExit) as ended:
            pruning.main()
        said = capsys.readouterr().err
        assert ended.value.code == 2, f"status {ended.value.code}, should be 2: a mistake of the user"
        assert str(file) in said, said
        assert said.count("\n") == 1, f"{said!r}, should be one line"


def test_a_child_that_fails_or_hangs_is_said(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    page, script = load("page"), tmp_path / "child.py"
    script.write_text("import sys, time\nsys.argv[1] == 'hang' and time.sleep(60)\nsys.exit('out of luck')\n")
    assert page.child(str(script), ["fail"], 60) == {"problem": "out of luck"}
    assert page.child(str(script), ["hang"], 0.5) == {"problem": "does not end within 0.5 s"}


def test_the_folder_of_the_benchmarks_is_collected_without_its_scripts() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks/", "--collect-only", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(command, cwd=FOLDER.parents[1], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, f"{ran.stdout[-2000:]}{ran.stderr[-2000:]}"
    assert "benchmarks/test_quality.py::test_quality[" in ran.stdout, f"{ran.stdout[-2000:]}"


def test_the_command_below_a_table_says_how_long_rows_may_take(
    load: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    page = load("page")
    parser = page.options("", ["masks"], 90.0, {})
    for words, expected in ((["masks", "a"], "masks a`"), (["masks", "--seconds", "900"], "masks --seconds 900`")):
        page.report(parser.parse_args(words), "pruning", ["model"], [["a"]], ["torch"])
        found = capsys.readouterr().out
        assert f"`python benchmarks/peers/pruning.py {expected}" in found, f"{found}, should name {expected}"


def test_a_killed_process_is_said_so(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    for code, expected in (
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9: memory?"),
        ("import sys; sys.exit(3)", "exit 3"),
    ):
        script.write_text(code, encoding="utf-8")
        found = load("page").child(str(script), [], 60.0)
        assert found == {"problem": expected}, f"{found}, should be {expected}"
