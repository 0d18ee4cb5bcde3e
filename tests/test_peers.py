"""The scripts in benchmarks/peers: their candidates are what their own users would make."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from pruning_bench.runtimes import inductor
from pruning_bench.runtimes.compiled import Compiled
from pruning_bench.runtimes.kernels import float_fallbacks, multiplies

PATH = Path(__file__).parents[1] / "benchmarks" / "peers" / "quantization.py"


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
def test_torchao_quantizes_a_model_that_calls_a_module_twice() -> None:
    spec = importlib.util.spec_from_file_location("peers_quantization", PATH)
    assert spec and spec.loader, f"no {PATH}"  # noqa: PT018
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
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
