"""Torch's 2:4 kernels: which layers they are for; what they compute, where a GPU has them."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench import compress
from pruning_bench.runtimes import semi_structured
from pruning_bench.runtimes.contract import Kernel
from pruning_bench.runtimes.eager import Eager

X = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
CUDA = torch.cuda.is_available() and torch.cuda.get_device_capability() >= semi_structured.LEAST_CAPABILITY


def by_hand(weight: Tensor) -> bool:
    rows = weight.tolist()
    fours = [row[start : start + 4] for row in rows for start in range(0, len(row), 4)]
    return all(len(four) == 4 and sum(value != 0 for value in four) <= 2 for four in fours)


@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 10_000), st.sampled_from([0.2, 0.4, 0.6]))
def test_two_of_every_four(rows: int, columns: int, seed: int, share: float) -> None:
    weight = (torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < share).float()
    assert semi_structured.two_of_four(weight) == by_hand(weight), f"{weight}"


def test_masks_of_two_of_four_are_such_and_others_are_not() -> None:
    for recipe, expected in (("magnitude:2of4", True), ("magnitude:0.5", False), ("magnitude:3of4", False)):
        made = compress(net(), recipe, example_inputs=(X[:1],))
        found = semi_structured.two_of_four(made.model[0].weight.detach())
        assert found == expected, f"{recipe}: {found}"


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(64, 2, batch_first=True), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        head: Tensor = self.head(self.attention(x, x, x)[0])
        return head


@pytest.mark.parametrize(("build", "expected"), [(net, ["0", "2"]), (Attends, ["head"])])
def test_layers_that_call_their_weight_themselves_are_compressed(
    build: Callable[[], nn.Module], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the device and the compression, which need a GPU."""
    given: list[Tensor] = []
    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", lambda weight: given.append(weight) or weight + 1)
    monkeypatch.setattr(semi_structured, "fits", lambda weight: weight.shape[0] % 32 == 0)
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kernels = semi_structured.sparsify(model)
    assert kernels == tuple(Kernel(path, "2:4 linear", "float32") for path in expected), f"{kernels}"
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == [f"{path}.weight" for path in expected], f"{changed} changed"
    assert len(given) == len(expected)


def test_on_the_cpu_no_weight_fits() -> None:
    weight = torch.zeros(32, 64, dtype=torch.float16)
    assert semi_structured.two_of_four(weight)
    assert not semi_structured.fits(weight), "a CPU has no such kernels"
    model = net().half()
    assert semi_structured.sparsify(model) == ()


@pytest.mark.skipif(not CUDA, reason="no CUDA device of compute capability 8.0 here")
def test_on_cuda_the_kernels_run_and_compute_what_dense_ones_do() -> None:
    made = compress(net(), "magnitude:2of4+cast:fp16", example_inputs=(X[:1],))
    session = Eager().build(made, (X[:1],), device="cuda")
    assert [k.layer.split(".")[-1] for k in session.kernels if k.operator == "2:4 linear"] == ["0", "2"]
    with torch.no_grad():
        expected = made.model(X)
    assert torch.allclose(session.run(X).float(), expected.float(), atol=2e-3), "the kernels compute something else"
