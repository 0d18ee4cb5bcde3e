"""Layer by layer: what each layer is shown, in one pass."""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.conformance.quantization_checks import ExampleNet, example
from pruning_bench.contracts import Context
from pruning_bench.errors import ModelError
from pruning_bench.pruning.inputs import watch_inputs
from pruning_bench.quantization import layerwise
from pruning_bench.quantization.layerwise import Grams, Layer, decide_layers
from pruning_bench.quantization.methods.awq import Awq
from pruning_bench.quantization.methods.bias_correction import BiasCorrection
from pruning_bench.quantization.methods.gptq import Gptq
from pruning_bench.quantization.methods.smoothquant import SmoothQuant
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


IMAGES = 7  # of one batch: no other tensor has so many rows
LAYERS = ("conv1.weight", "conv2.weight", "conv3.weight", "hidden.weight", "classifier.weight")


def held(asks: Sequence[str]) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Numbers that are kept of a batch when a layer is decided about, and what those that ask are shown in float."""
    model, context, batches = setting()
    batch = (batches[0][0][:IMAGES],)
    found: dict[str, int] = {}
    floats: dict[str, Tensor] = {}

    def decide(layer: Layer) -> Mapping[str, Tensor]:
        if layer.name in asks:
            parts: list[Tensor] = []
            layer.watch_float(parts.append)
            floats[layer.name] = torch.cat(parts, 1)
            del parts
        kept = [t for t in gc.get_objects() if type(t) is Tensor and t.dim() > 1 and len(t) == IMAGES]
        found[layer.name] = sum({t.data_ptr(): t.numel() for t in kept if t.data_ptr() != batch[0].data_ptr()}.values())
        return halved(layer)

    decide_layers(prepare(model, context, "test"), [batch], decide, context, "test")
    return found, floats


def keeps_what_is_asked_for(asks: Sequence[str]) -> None:
    once, _ = held([])
    assert all(once.values()), f"{once}: nothing is seen of what is kept"
    found, floats = held(asks)
    start = LAYERS.index(asks[0])
    expected = {name: once[name] * (2 if at >= start else 1) for at, name in enumerate(LAYERS)}
    assert found == expected, f"{found} numbers of a batch are kept, should be {expected}"
    _, every = held(LAYERS)
    for name, patches in floats.items():
        assert torch.equal(patches, every[name]), f"{name} is shown other values than to those who asked before"


@pytest.mark.parametrize(
    "asks",
    [
        pytest.param(LAYERS, marks=pytest.mark.slow, id="all"),
        pytest.param(LAYERS[2:], id="from the third"),
        pytest.param(LAYERS[3:4], marks=pytest.mark.slow, id="one"),
    ],
)
def test_the_float_model_runs_from_the_first_time_it_is_asked_for(asks: Sequence[str]) -> None:
    keeps_what_is_asked_for(asks)


layers, floats_at = layerwise._Walk.layers, layerwise._Walk._floats_at


def from_the_start(self: Any) -> Any:
    """The mutant that has them for those who never ask too."""
    floats_at(self, next(iter(self.module.graph.nodes)))
    return layers(self)


def none_of_its_own(self: Any, node: Any) -> Any:
    """The mutant that shows the changed model's."""
    return self.changed


def forked(self: Any, node: Any) -> Any:
    """The mutant that takes them from the changed model."""
    for run, batch in zip(self.changed, self.calibration, strict=True) if not self.floats else ():
        self.floats.append(self._start(batch))
        self.floats[-1].env = {key: value.clone() for key, value in run.env.items()}
    return self.floats


@pytest.mark.parametrize(
    ("at", "mutant", "message"),
    [
        pytest.param("layers", from_the_start, "numbers of a batch are kept", marks=pytest.mark.slow),
        pytest.param("_floats_at", none_of_its_own, "numbers of a batch are kept", marks=pytest.mark.slow),
        ("_floats_at", forked, "is shown other values"),
    ],
    ids=["from the start", "none of its own", "forked"],
)
def test_the_law_of_float_runs_bites(
    at: str, mutant: Callable[..., Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerwise._Walk, at, mutant)
    with pytest.raises(AssertionError, match=message):
        keeps_what_is_asked_for(LAYERS[2:])


@pytest.mark.parametrize(
    ("method", "runs"),
    [(Gptq(), 1), (Awq(), 1), (SmoothQuant(), 1), (BiasCorrection(), 2)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_methods_run_the_float_model_only_if_they_need_it(
    method: Any, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, start = list[Any](), layerwise._Walk._start
    monkeypatch.setattr(layerwise._Walk, "_start", lambda self, batch: started.append(batch) or start(self, batch))
    method.plan(*example(method))
    assert len(started) == 2 * runs, f"{len(started)} runs of 2 batches, should be {runs} of each"
