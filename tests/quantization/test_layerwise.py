"""Layer by layer: what each layer is shown, in one pass."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.conformance.quantization_checks import ExampleNet, example
from pruning_bench.contracts import Context
from pruning_bench.errors import ModelError
from pruning_bench.pruning.inputs import watch_inputs
from pruning_bench.quantization.layerwise import Grams, Layer, decide_layers
from pruning_bench.quantization.methods.static import Static
from pruning_bench.quantization.plans import prepare


def setting() -> tuple[nn.Module, Context, list[tuple[Tensor, ...]]]:
    model, _, context = example(Static())
    return model, context, list(context.need_calibration("test"))


def halved(layer: Layer) -> dict[str, Tensor]:
    return {layer.name: layer.weight / 2}


def shown(forget: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What every layer's weight met, in float and with halved weights before it."""
    model, context, batches = setting()
    prepared = prepare(model, context, "test")
    changed: dict[str, Tensor] = {}
    floats: dict[str, Tensor] = {}

    def decide(layer: Layer) -> Mapping[str, Tensor]:
        for found, watch in ((changed, layer.watch), (floats, layer.watch_float)):
            parts: list[Tensor] = []
            watch(parts.append)
            found[layer.name] = torch.cat(parts, 1)
        return {} if forget else halved(layer)

    decide_layers(prepared, batches, decide, context, "test")
    return changed, floats


def by_hand(halve: bool) -> dict[str, Tensor]:
    """The same by a pass through the model for each layer."""
    model, context, batches = setting()
    folded = prepare(model, context, "test").folded
    names = [name for name, p in folded.named_parameters() if p.dim() > 1]
    found: dict[str, Tensor] = {}
    for name in names:
        parts: list[Tensor] = []
        watch_inputs(folded, batches, [name], lambda _, patches, parts=parts: parts.append(patches), "test")
        found[name] = torch.cat(parts, 1)
        if halve:
            folded.get_parameter(name).data /= 2
    return found


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(found) == list(expected), f"layers {list(found)}, should be {list(expected)}"
    for name, patches in found.items():
        torch.testing.assert_close(patches, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_layers_are_shown_what_the_decided_ones_before_them_make() -> None:
    changed, floats = shown()
    same(changed, by_hand(halve=True))
    same(floats, by_hand(halve=False))
    with pytest.raises(AssertionError, match=r"conv2\.weight"):  # the mutant: nothing that was decided is used
        same(shown(forget=True)[0], by_hand(halve=True))


class Pair(nn.Module):
    """Two layers that read the same values, one that reads others, and one weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.c(self.c(self.a(x).relu_() + self.b(x)))
        return made


def test_layers_that_read_the_same_values_share_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    context = Context((x,), torch.Generator(), [(x,), (2 * x,)])
    grams, seen = Grams("test"), dict[str, Tensor]()

    def decide(layer: Layer) -> Mapping[str, Tensor]:
        seen[layer.name] = grams.of(layer)
        return {}

    decide_layers(prepare(Pair(), context, "test"), context.need_calibration("test"), decide, context, "test")
    assert list(seen) == ["a.weight", "b.weight", "c.weight"], f"decided about {list(seen)}, should be once each"
    assert seen["a.weight"] is seen["b.weight"], "the product of the same inputs was made twice"
    assert len(grams.last) == 1, f"{len(grams.last)} products are kept, should be 1"
    expected = (5 * x.double().T @ x.double())[None]
    torch.testing.assert_close(seen["a.weight"], expected)


def test_progress_counts_layers_and_bad_batches_are_named() -> None:
    model, context, batches = setting()
    told: list[tuple[str, int, int]] = []
    watched = Context(context.example_inputs, context.generator, batches, progress=lambda *words: told.append(words))
    decide_layers(prepare(model, context, "test"), batches, halved, watched, "test")
    assert told == [(f"test: {name}", at, 5) for at, name in enumerate(by_hand(halve=False))], f"{told}"
    prepared = prepare(ExampleNet().eval(), context, "test")
    with pytest.raises(ModelError, match=r"^test: a batch that does not run .*calibration batch 1"):
        decide_layers(prepared, [batches[0], (torch.zeros(2, 7),)], halved, context, "test")
