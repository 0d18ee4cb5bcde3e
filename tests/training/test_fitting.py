"""How images go to a model that is trained: in which format and batches, and what of the two does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench import compress
from pruning_bench.conformance.training_checks import split_of, state, tiny_model
from pruning_bench.datasets.contract import Dataset, Split
from pruning_bench.errors import DataError, ModelError, PruningBenchError
from pruning_bench.training.fitting import Feed, fit
from pruning_bench.training.loop import TrainConfig
from pruning_bench.training.reference import train

CONFIG = TrainConfig(epochs=1, batch=16)
STEPS = ["finetune:1", "distill:1", "agp:0.5,epochs=1", "slim:1", "lr_rewind:1", "qat:w8a8,epochs=1"]


class Viewing(nn.Module):
    """Says `view`, as many do; a batch norm behind the pooling sees one value per channel and example."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.hidden, self.after, self.out = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 2).view(-1, 64)
        return self.out(self.after(self.hidden(x)).relu())


class Pair(Viewing):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Frozen(Viewing):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            return super().forward(x)


class Overwriting(Viewing):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).exp().mul_(2)  # exp needs its own output to go back


class Steep(Viewing):
    """Its loss is finite, and the gradient is 0 * infinity."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return logits + (logits * 0).sqrt()


def images(channels: int = 1, count: int = 32) -> Split:
    split = split_of(count)
    full = torch.full((channels,), 0.4)
    return Split(split.images.repeat(1, channels, 1, 1), split.labels, full, full)


def tuned(
    recipe: str, model: nn.Module | None = None, split: Split | None = None, dtype: torch.dtype = torch.float32
) -> nn.Module:
    split = images() if split is None else split
    example = (torch.zeros(2, split.images.shape[1], 8, 8, dtype=dtype),)
    model = (model or Viewing()).to(dtype)
    return compress(model, recipe, example_inputs=example, calibration=[example], train=split).float_model


def check_formats(find: Callable[[nn.Module, Split], Feed]) -> None:
    """channels_last for a model that runs on it, contiguous for one that does not; nothing else about them changes."""
    for model, channels, expected in (
        (tiny_model(), 1, torch.channels_last),
        (Viewing(1), 1, torch.contiguous_format),
        (Viewing(3), 3, torch.contiguous_format),
    ):
        model.train()
        before, noise = state(model), torch.get_rng_state()
        found = find(model, images(channels)).memory_format
        told = f"{type(model).__name__}, {channels} channels"
        assert found == expected, f"{told}: {found}, should be {expected}"
        assert torch.equal(state(model), before), f"{told}: values changed, should stay"
        assert torch.equal(torch.get_rng_state(), noise), f"{told}: random numbers drawn, should be none"
        assert all(module.training for module in model.modules()), f"{told}: modes changed, should stay"


def always(memory_format: torch.memory_format) -> Callable[[nn.Module, Split], Feed]:
    return lambda model, split: Feed(memory_format=memory_format)


def in_training_mode(model: nn.Module, split: Split) -> Feed:
    model.train()(split.inputs(slice(2)))
    return fit(model, split, CONFIG)


def leaves_evaluation_mode(model: nn.Module, split: Split) -> Feed:
    return fit(model.eval(), split, CONFIG)


def test_the_format_is_one_that_the_model_runs_on() -> None:
    check_formats(lambda model, split: fit(model, split, CONFIG))


@pytest.mark.parametrize(
    "mutant",
    [always(torch.channels_last), always(torch.contiguous_format), in_training_mode, leaves_evaluation_mode],
)
def test_the_check_of_formats_rejects(mutant: Callable[[nn.Module, Split], Feed]) -> None:
    with pytest.raises(AssertionError, match="should"):
        check_formats(mutant)


@pytest.mark.parametrize("recipe", STEPS)
def test_models_that_view_train_and_one_example_left_over_joins_the_batch_before(recipe: str) -> None:
    tuned(f"{recipe},batch=16", split=images(count=33))


def test_a_reference_model_that_views_trains() -> None:
    model, split = Viewing(3), images(3)
    train(model, Dataset("invented", ("above", "below"), split, split, split, "0", "memory"), CONFIG)


def check_batches(batches: Callable[[Feed, int, int], list[int]]) -> None:
    """Every example once, in batches of the size given; one alone joins, but only where it may not be alone."""
    for alone, count, size, expected in (
        (True, 33, 16, [16, 16, 1]),
        (False, 33, 16, [16, 17]),
        (False, 34, 16, [16, 16, 2]),
        (False, 32, 16, [16, 16]),
        (False, 5, 16, [5]),
        (False, 1, 16, [1]),
    ):
        found = batches(Feed(alone=alone), count, size)
        assert found == expected, f"{count} in {size}, alone {alone}: {found}, should be {expected}"


def sizes(feed: Feed, count: int, size: int) -> list[int]:
    batches = feed.batches(torch.arange(count), size)
    assert torch.equal(torch.cat(batches), torch.arange(count)), "should hold every example once, in order"
    return [len(batch) for batch in batches]


def leaves_it_out(feed: Feed, count: int, size: int) -> list[int]:
    found = sizes(Feed(), count, size)
    return found if feed.alone else [size for size in found if size > 1]


def test_batches() -> None:
    check_batches(sizes)


@pytest.mark.parametrize(
    "mutant", [leaves_it_out, lambda feed, *given: sizes(replace(feed, alone=not feed.alone), *given)]
)
def test_the_check_of_batches_rejects(mutant: Callable[[Feed, int, int], list[int]]) -> None:
    with pytest.raises(AssertionError, match="should"):
        check_batches(mutant)


@pytest.mark.parametrize(("count", "make", "alone"), [(33, Viewing, 0), (32, Viewing, 1), (33, tiny_model, 1)])
def test_only_a_model_that_needs_it_gets_other_batches(count: int, make: Callable[[], nn.Module], alone: int) -> None:
    assert fit(make(), images(count=count), CONFIG).alone == alone


def test_gradual_pruning_ends_at_its_level_where_batches_are_joined() -> None:
    pruned = tuned("agp:0.5,epochs=2,batch=16,ramp=1", split=images(count=33)).hidden.weight
    found = int((pruned == 0).sum())
    assert found > 200, f"{found} of {pruned.numel()} weights pruned, should be about half"


def labelled(label: int) -> Split:
    split = images()
    split.labels[3] = label
    return split


LARGE = Split(torch.zeros(8, 1, 10, 9, dtype=torch.uint8), torch.zeros(8).long(), torch.zeros(1), torch.ones(1))


@pytest.mark.parametrize(
    ("model", "split", "error", "message"),
    [
        (Viewing, LARGE, ModelError, r"inputs \[2, 1, 10, 9\] that do not run \(RuntimeError: .*\[Viewing\]"),
        (Viewing, labelled(17), DataError, r"target 17 of example 3, should be in \[0, 2\), as many as the model's"),
        (Viewing, labelled(-1), DataError, r"target -1 of example 3, should be in \[0, 2\)"),
        (Viewing, images(count=0), DataError, "training data with no examples, should be at least one"),
        (Viewing, images(count=1), DataError, "one training example, should be at least 2"),
        (Viewing, replace(images(), labels=torch.zeros(4).long()), DataError, r"images \[32, 1, 8, 8\] with labels"),
        (Frozen, images(), ModelError, r"outputs that have no gradient, .* without torch.no_grad\(\)"),
        (Overwriting, images(), ModelError, r"train: gradients that fail \(RuntimeError: .*inplace operation"),
        (Steep, images(), ModelError, r"non-finite values in \S+ in epoch 1, should be finite; a rate below 0.01"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(
    model: Callable[[], nn.Module], split: Split, error: type[PruningBenchError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        tuned("finetune:1", model(), split)
    assert "\n" not in str(caught.value), str(caught.value)


def test_batches_of_one_are_refused_where_batch_norm_needs_two() -> None:
    with pytest.raises(DataError, match="batches of one example, should be at least 2"):
        tuned("finetune:1,batch=1")
    fit(tiny_model(), images(), replace(CONFIG, batch=1))


@pytest.mark.parametrize("recipe", ["finetune:1", "distill:1", "snip:0.5", "bn_recalibrate"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_images_come_in_the_type_of_the_examples(recipe: str, dtype: torch.dtype) -> None:
    found = tuned(recipe, dtype=dtype)
    assert {p.dtype for p in found.parameters()} == {dtype}


@pytest.mark.parametrize("recipe", ["finetune:1", "distill:1"])
def test_the_first_tensor_that_a_model_returns_counts(recipe: str) -> None:
    model = Viewing()
    pair = Pair()
    pair.load_state_dict(model.state_dict())
    assert torch.equal(state(tuned(recipe, pair)), state(tuned(recipe, model))), "a pair trains otherwise"


@pytest.mark.parametrize(
    ("around", "recipe"),
    [(torch.no_grad, recipe) for recipe in ("finetune:1", "agp:0.5,epochs=1", "qat:w8a8,epochs=1")]
    + [(torch.inference_mode, recipe) for recipe in ("finetune:1", "distill:1", "snip:0.5")],
)
def test_training_is_the_same_where_gradients_are_switched_off(around: Callable[[], Any], recipe: str) -> None:
    model = Viewing()
    with around():
        found = state(tuned(recipe, model))
    assert torch.equal(found.clone(), state(tuned(recipe, model))), "other weights than with gradients"


def test_inference_mode_around_a_training_alone_is_said() -> None:
    model = Viewing()
    with torch.inference_mode(), pytest.raises(ModelError, match=r"torch.inference_mode\(\), should be left"):
        fit(model, images(), CONFIG)
