"""Gradients on training examples: their values, and all that must not change on the way to them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.datasets.contract import Tensors
from pruning_bench.errors import DataError, ModelError, PruningBenchError
from pruning_bench.pruning.gradients import batch_gradients, mean_gradients


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


def context(examples: int = 10, seed: int = 0, **changes: Any) -> Context:
    generator = torch.Generator().manual_seed(5)
    train = Tensors((torch.randn(examples, 4, generator=generator),), torch.arange(examples) % 3)
    return Context((torch.zeros(2, 4),), torch.Generator().manual_seed(seed), **{"train": train, **changes})


def by_hand(model: nn.Module, given: Context) -> dict[str, Tensor]:
    """All examples at once, in eval mode."""
    work = copy.deepcopy(model).eval()
    loss = nn.functional.cross_entropy(work(*given.train.arguments()), given.train.targets)
    loss.backward()
    return {name: parameter.grad for name, parameter in work.named_parameters()}


def close_to(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys(), f"gradients of {list(found)}, should be of {list(expected)}"
    for name in expected:
        error = float((found[name] - expected[name]).abs().max())
        assert error < 1e-6, f"the gradient of {name} is off by {error}"


def unweighted(model: nn.Module, given: Context) -> dict[str, Tensor]:
    """A mean over batches, whatever their size."""
    found = [gradients for _, gradients in batch_gradients(model, given, "test", batch=4)]
    return {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}


def test_the_mean_is_the_gradient_over_all_examples_in_eval_mode() -> None:
    model = network().train()
    close_to(mean_gradients(model, context(), "test", batch=4), by_hand(model, context()))


@pytest.mark.parametrize("mutant", [unweighted])
def test_the_comparison_of_gradients_rejects(mutant: Callable[[nn.Module, Context], dict[str, Tensor]]) -> None:
    model = network()
    with pytest.raises(AssertionError, match="off by"):
        close_to(mutant(model, context()), by_hand(model, context()))


def test_single_examples_average_to_the_whole() -> None:
    model, singles = network(), list(batch_gradients(network(), context(), "test", batches=10, batch=1))
    assert [count for count, _ in singles] == [1] * 10, f"batches of {[count for count, _ in singles]}, should be ones"
    mean = {name: sum(gradients[name] for _, gradients in singles) / 10 for name in singles[0][1]}
    close_to(mean, by_hand(model, context()))


def test_no_more_examples_are_used_than_asked_for() -> None:
    counts = [count for count, _ in batch_gradients(network(), context(100), "test", batches=3, batch=7)]
    assert counts == [7, 7, 7], f"batches of {counts}, should be three of seven"


def test_equal_seeds_give_equal_gradients_and_others_other_examples() -> None:
    one, same, other = (
        mean_gradients(network(), context(100, seed), "test", batches=1, batch=5)["0.weight"] for seed in (0, 0, 1)
    )
    assert torch.equal(one, same), "two gradients for one seed"
    assert not torch.equal(one, other), "two seeds drew the same examples"


def test_the_model_stays_as_it_was() -> None:
    model = network().train()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones(3, 6)
    before = copy.deepcopy(model.state_dict())
    found = mean_gradients(model, context(), "test")
    assert found["0.weight"].abs().sum() > 0, "a frozen weight has no gradient"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()), "values changed"
    assert all(module.training for module in model.modules()), "training flags changed"
    assert not model[0].weight.requires_grad, "a frozen weight was thawed"
    grads = [name for name, p in model.named_parameters() if p.grad is not None]
    assert grads == ["4.weight"], f"gradients left in {grads}"
    assert model[4].weight.grad.eq(1).all(), "a gradient that was there changed"


def test_gradients_come_where_they_are_switched_off() -> None:
    with torch.no_grad():
        found = mean_gradients(network(), context(), "test")
    close_to(found, by_hand(network(), context()))


def test_what_the_loss_does_not_hear_has_a_zero_gradient() -> None:
    model = network()
    model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    assert mean_gradients(model, context(), "test")["spare"].eq(0).all(), "a spare parameter has a gradient"


class Tokens(nn.Module):
    """Logits [N, classes, places] inside a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        return (self.layer(inputs).movedim(-1, 1),)


def test_targets_may_have_places() -> None:
    train = Tensors((torch.ones(2, 5, 4),), torch.zeros(2, 5, dtype=torch.int64))
    assert mean_gradients(Tokens(), context(train=train), "test")["layer.weight"].shape == (3, 4)


class Overwriting(nn.Linear):
    """Changes what its gradient needs."""

    def __init__(self) -> None:
        super().__init__(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).exp().mul_(2)


class Silent(nn.Linear):
    """No gradient passes its forward."""

    def __init__(self) -> None:
        super().__init__(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(inputs)


def test_targets_that_cross_entropy_leaves_out_may_stand_among_the_others() -> None:
    kept = context(train=Tensors((torch.ones(1, 4),), torch.tensor([2])))
    with_one_ignored = context(train=Tensors((torch.ones(2, 4),), torch.tensor([-100, 2])))
    close_to(mean_gradients(network(), with_one_ignored, "test"), mean_gradients(network(), kept, "test"))


def poisoned() -> nn.Sequential:
    model = network()
    model[4].bias.data.fill_(float("nan"))
    return model


INPUTS = (torch.zeros(2, 4),)


@pytest.mark.parametrize(
    ("make", "train", "error", "message"),
    [
        (network, None, ModelError, "no training data"),
        (network, Tensors(INPUTS), DataError, "no targets"),
        (network, Tensors(INPUTS, torch.zeros(2)), DataError, "float32 targets"),
        (network, Tensors((torch.zeros(0, 4),), torch.zeros(0, dtype=torch.int64)), DataError, "no examples"),
        (network, Tensors(INPUTS, torch.zeros(2, 3, dtype=torch.int64)), ModelError, r"outputs \[2, 3\] for targets"),
        (poisoned, Tensors(INPUTS, torch.zeros(2, dtype=torch.int64)), ModelError, "a loss of nan"),
        (network, Tensors(INPUTS, torch.tensor([0, 17])), DataError, r"target 17 of example 1, should be in \[0, 3\)"),
        (network, Tensors(INPUTS, torch.tensor([-1, 0])), DataError, r"target -1 of example 0, should be in \[0, 3\)"),
        (network, Tensors((torch.zeros(2, 5),), torch.tensor([0, 1])), ModelError, r"inputs \[2, 5\] that do not run"),
        (Silent, Tensors(INPUTS, torch.tensor([0, 1])), ModelError, "outputs that have no gradient"),
        (Overwriting, Tensors(INPUTS, torch.tensor([0, 1])), ModelError, r"gradients that fail \(RuntimeError: .*"),
    ],
)
def test_bad_input_is_one_clear_error(
    make: Callable[[], nn.Module], train: Any, error: type[PruningBenchError], message: str
) -> None:
    with pytest.raises(error, match=f"^taylor: .*{message}") as caught:
        mean_gradients(make(), context(train=train), "taylor")
    assert "\n" not in str(caught.value), str(caught.value)
