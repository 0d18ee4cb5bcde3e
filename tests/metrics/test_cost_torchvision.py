"""Parameters, MACs and bytes of every torchvision classification model, against counts that are not the suite's.

MACs: half of what torch's own FlopCounterMode counts of the same forward, the fused attention of eval mode switched
off, and for some models what torchvision publishes. Parameters: a sum. Bytes: a file that safetensors writes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pruning_bench.artifacts import file_size
from pruning_bench.discover import discover
from pruning_bench.engine import Compressed
from pruning_bench.metrics import cost
from pruning_bench.metrics.cost import Cost, count_cost
from pruning_bench.models.contract import build_model
from pruning_bench.models.packing import pack
from pruning_bench.models.torchvision_models import find, names
from pruning_bench.recipe import parse

SOME = ("convnext_tiny", "mobilenet_v2", "resnet18", "shufflenet_v2_x0_5", "swin_t")
SMALL = 64  # pixels; every model takes it but those below
SIZES = {"inception_v3": 75, "maxvit_t": 224, "vit_h_14": 28}
LARGE = 1_500_000_000  # bytes that are not written to the disk for a test


def built(name: str) -> tuple[nn.Module, Tensor]:
    """The model with random weights, and one image of the smallest size that it takes."""
    size = SIZES.get(name, SMALL)
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit_") else {}
    model = build_model(f"torchvision:{name}", **find(name).options, **options)
    return model, torch.zeros(1, 3, size, size)


def counted_by_torch(model: nn.Module, image: Tensor) -> int:
    """MACs by torch's counter, attention as the operators that it is made of."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # The CPU's fused attention is an operator that torch's counter takes for free.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    flops = counter.get_total_flops()
    assert flops % 2 == 0, f"{flops} operations, a multiplication has its addition"
    return flops // 2


Count = Callable[[nn.Module, tuple[Tensor, ...]], Cost]


def check(name: str, folder: Path, count: Count = count_cost) -> None:
    model, image = built(name)
    found = count(model, (image,))
    params = sum(parameter.numel() for parameter in model.parameters())
    nonzeros = sum(int((parameter != 0).sum()) for parameter in model.parameters())
    expected = params, nonzeros, counted_by_torch(model, image)
    counted = found.params, found.nonzeros, found.macs
    assert counted == expected, f"{name}: {counted}, should be {expected}"
    tensors, _ = pack(model.state_dict())  # some heads begin as zeros
    stored = sum(tensor.nbytes for tensor in tensors.values())
    if stored < LARGE:
        size = file_size(Compressed(model, parse("dense"), example_inputs=(image,)))
        file = folder / "model.safetensors"
        save_file(tensors, file)
        assert size == file.stat().st_size, f"{name}: {size} bytes, the file has {file.stat().st_size}"
        assert stored < size < stored * 1.01 + 100_000, f"{name}: {size} bytes of {stored} in tensors"


@pytest.mark.parametrize("name", SOME)
def test_some_models(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(names()) - set(SOME)))
def test_all_other_models(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


def test_all_models_are_the_classification_models() -> None:
    discover()
    assert len(names()) >= 80, f"{len(names())} models"
    others = {"fasterrcnn_resnet50_fpn", "deeplabv3_resnet50", "raft_large", "r3d_18"} & set(names())
    assert not others, f"{others} classify no images"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_at_full_size_the_numbers_are_the_published_ones(name: str) -> None:
    """torchvision's table of its models, made with another tool: parameters, and 10^9 MACs to three digits."""
    about = torchvision.models.get_model_weights(name).DEFAULT.meta
    found = count_cost(built(name)[0], (torch.zeros(1, 3, 224, 224),))
    assert found.params == about["num_params"], f"{found.params}, published are {about['num_params']}"
    assert round(found.macs / 1e9, 3) == about["_ops"], f"{found.macs}, published are {about['_ops']} 10^9"


def test_a_vision_transformer_costs_what_its_formula_says() -> None:
    """By hand, since both counts choose the operators that attention is made of."""
    layers, width, hidden, patch, classes, size = 2, 32, 48, 8, 7, 24
    model = torchvision.models.VisionTransformer(size, patch, layers, 4, width, hidden, num_classes=classes)
    length = (size // patch) ** 2 + 1
    layer = 4 * length * width**2 + 2 * length**2 * width + 2 * length * width * hidden
    expected = (length - 1) * width * 3 * patch**2 + layers * layer + width * classes
    image = torch.zeros(1, 3, size, size)
    found = count_cost(model, (image,)).macs, counted_by_torch(model.eval(), image)
    assert found == (expected, expected), f"{found}, should be {expected} twice"


class WithoutAttention(cost._Counter):
    """Mutant: products of two activations are left out."""

    def _add(self, macs: int, *factors: Tensor) -> None:
        super()._add(0 if len(factors) == 2 else macs, *factors)


class GroupsTwice(cost._Counter):
    """Mutant: convolutions in groups count for more than they are."""

    def _count(self, op: Any, args: tuple[Any, ...], out: Any) -> None:
        super()._count(op, args, out)
        if op in cost._CONVOLUTIONS and args[8] > 1:
            super()._count(op, args, out)


@pytest.mark.parametrize(("name", "mutant"), [("swin_t", WithoutAttention), ("mobilenet_v2", GroupsTwice)])
def test_a_wrong_count_is_found(name: str, mutant: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_Counter", mutant)
    with pytest.raises(AssertionError, match=name):
        check(name, tmp_path)


def test_a_wrong_number_of_parameters_is_found(tmp_path: Path) -> None:
    def with_buffers(model: nn.Module, inputs: tuple[Tensor, ...]) -> Cost:
        """Mutant: buffers count as parameters."""
        found = count_cost(model, inputs)
        return Cost(found.params + sum(b.numel() for b in model.buffers()), found.nonzeros, found.layers)

    with pytest.raises(AssertionError, match="resnet18"):
        check("resnet18", tmp_path, with_buffers)
