"""Folding batch norms changes no output, and folds only what can be folded."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.conformance.quantization_checks import ExampleNet, randomise
from pruning_bench.models.resnet20 import resnet20
from pruning_bench.quantization import fold
from pruning_bench.quantization.fold import fold_batch_norms

CLOSE = 1e-5  # of the largest output


class Shared(nn.Module):
    """Cases that cannot be folded: a norm after a branch, one before its layer, one layer with two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 1)
        self.branch = nn.BatchNorm2d(3)
        self.twice = nn.Conv2d(3, 3, 1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.before(x))
        y = self.branch(y) + y
        out: Tensor = self.first(self.twice(y)) + self.second(self.twice(-y))
        return out


def models() -> list[tuple[str, nn.Module, Tensor, int]]:
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(4, 3, 8, 8, generator=generator)
    line = torch.randn(4, 3, 9, generator=generator)
    return [
        ("residual", ExampleNet(), image, 0),
        ("resnet20", resnet20(in_channels=3), image, 0),
        ("no bias", nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), image, 0),
        ("no affine", nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), image, 0),
        ("conv1d", nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), line, 0),
        ("grouped", nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), image, 0),
        ("linear", nn.Sequential(nn.Flatten(), nn.Linear(27, 4), nn.BatchNorm1d(4)), line, 0),
        ("linear over 3d", nn.Sequential(nn.Linear(9, 5), nn.BatchNorm1d(3)), line, 1),
        ("transposed", nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4)), image, 1),
        ("batch statistics", nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), image, 1),
        ("shared", Shared(), image, 4),
        ("none", nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), image, 0),
    ]


@pytest.mark.parametrize(("name", "model", "x", "left"), [pytest.param(*case, id=case[0]) for case in models()])
def test_folded_model_computes_the_same(name: str, model: nn.Module, x: Tensor, left: int) -> None:
    randomise(model, torch.Generator().manual_seed(5))
    model.train()
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norms(model, (x[:1],))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items()), "the model was changed"
    assert model.training, "the model's training flag was changed"
    norms = [m for m in folded.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == left, f"{name}: {len(norms)} batch norms left, should be {left}"
    with torch.no_grad():
        expected, found = model.eval()(x), folded(x)
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < CLOSE, f"{name}: folded output is off by {error:.2e}, should be below {CLOSE}"
    assert not folded.training, "the folded model should be in eval mode"


def test_mutant_without_the_mean_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fold._fold

    def forgets_the_mean(layer: nn.Module, norm: nn.Module) -> None:
        norm.running_mean.zero_()  # type: ignore[operator, union-attr]
        original(layer, norm)

    monkeypatch.setattr(fold, "_fold", forgets_the_mean)
    with pytest.raises(AssertionError, match="folded output is off"):
        test_folded_model_computes_the_same(*models()[0])


def test_mutant_that_folds_shared_layers_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "_feeds_only", lambda source, norm: fold.operator(source) in fold.LAYERS)
    with pytest.raises(AssertionError, match="batch norms left"):
        test_folded_model_computes_the_same(*models()[-2])
