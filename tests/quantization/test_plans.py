"""What methods share: calibration that stays as it was, and biases that are those of the graph."""

import pytest
import torch
from torch import Tensor, nn

from pruning_bench import compress
from pruning_bench.contracts import Context
from pruning_bench.discover import discover
from pruning_bench.quantization import plans
from pruning_bench.quantization.methods.bias_correction import BiasCorrection
from pruning_bench.quantization.methods.static import Static


class InPlace(nn.Module):
    """Changes its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.sub_(0.5)).relu())


RECIPES = ["static:w8a8", "gptq:w4", "bias_correction:w8a8", "mixed:w4a8,images=8"]


def calibration_stays(recipe: str) -> None:
    discover()
    batch = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    before = batch.clone()
    compress(InPlace(), recipe, example_inputs=(torch.zeros(1, 6),), calibration=[(batch,)])
    assert torch.equal(batch, before), f"{recipe} moves calibration data by {float((batch - before).abs().max())}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_model_that_changes_its_inputs_does_not_change_the_calibration_data(recipe: str) -> None:
    calibration_stays(recipe)


def test_the_mutant_that_runs_on_the_batch_itself_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "fresh", lambda batch: batch)
    with pytest.raises(AssertionError, match="static:w8a8 moves calibration data by"):
        calibration_stays("static:w8a8")


class Named(nn.Module):
    """A layer whose parameters have names of their own; tiny weights beside a large offset."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.offset = nn.Parameter(torch.randn(4, 6) * 1e-9), nn.Parameter(torch.full((4,), 100.0))
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.linear(x, self.kernel, self.offset).relu())


def test_a_bias_is_the_one_that_the_layer_reads_whatever_its_name() -> None:
    context = Context((torch.zeros(1, 6),), torch.Generator(), [(torch.rand(16, 6),)])
    corrected = BiasCorrection().plan(Named(), "w8a8", context)
    assert "offset" in corrected.writes, f"{sorted(corrected.writes)}, the layer's bias is passed over"
    plan = Static().plan(Named(), "w8a8", context)
    step = plan.weights["kernel"].scale * plan.activations["input"].scale
    codes = 100.0 / step
    assert float(codes.max()) <= plans.LARGEST_BIAS_CODE * 1.001, f"a bias of {float(codes.max()):.3g} steps is cut off"
