"""The README's Python runs as it is printed."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pruning_bench import check_method, compress
from pruning_bench.discover import discover
from pruning_bench.registry import STEPS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_the_three_examples() -> None:
    assert len(BLOCKS) == 3, f"{len(BLOCKS)} Python blocks in the README"


def test_the_first_example_halves_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(BLOCKS[1], scope)
    assert scope["compressed"].model[0].out_features == 64, str(scope["compressed"].model)
    assert scope["model"][0].out_features == 128, "the input model changed"
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    difference = (scope["compressed"].model(x) - scope["compressed"].masked_twin(x)).abs().max().item()
    assert difference < 1e-5, f"the masked twin differs by {difference}"
    assert (tmp_path / "half.safetensors").is_file(), "nothing was saved"


def test_the_method_of_the_readme_is_complete() -> None:
    discover()
    scope: dict[str, Any] = {"__name__": "readme"}
    try:
        exec(BLOCKS[2], scope)
        check_method(STEPS["far_from_mean"]())
        net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        made = compress(net, "far_from_mean:0.25", example_inputs=(torch.zeros(1, 8),))
        assert int((made.model[0].weight == 0).sum()) == 16, made.model[0].weight
    finally:
        STEPS._items.pop("far_from_mean", None)
