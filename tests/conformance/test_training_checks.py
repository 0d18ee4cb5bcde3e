"""The checks of training steps bite: each rejects the mutants named after what they do wrong."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from pruning_bench import check_method
from pruning_bench.conformance import training_checks as checks
from pruning_bench.conformance.runner import checks_for
from pruning_bench.conformance.training_checks import context, levels_of, masked_model
from pruning_bench.contracts import Context
from pruning_bench.errors import LevelError, PluginError
from pruning_bench.levels import Bits, Number, sparsity_of, weight_bits_of
from pruning_bench.pruning.contract import MaskPlan
from pruning_bench.training.contract import StepTags
from pruning_bench.training.loop import TrainConfig, make_optimizer, train_epoch
from pruning_bench.training.steps.bn_recalibrate import BnRecalibrate
from pruning_bench.training.steps.finetune import Finetune
from pruning_bench.training.steps.qat import Qat
from pruning_bench.training.steps.reinit import Reinit

Runner = Callable[[Any, Any, Any, Context], Any]


@dataclass(frozen=True)
class Mutant:
    """A step whose `run` is a function."""

    runner: Runner
    tags: StepTags = Finetune.tags
    name: str = "mutant"

    def run(self, model: Any, level: Any, plans: Any, given: Context) -> Any:
        return self.runner(model, level, plans, given)


def forgets_masks(model, level, plans, given):
    Finetune().run(model, level, (), given)


def masks_gradients_only(model, level, plans, given):
    """Gradient hooks alone: momentum and weight decay of an older state move the weights all the same."""
    config = TrainConfig(epochs=2, batch=64, lr=0.01, seed=1)
    optimizer = make_optimizer(model, config)
    train_epoch(model, given.train, optimizer, config, 0)
    for name, mask in given.earlier.items():
        model.get_parameter(name).register_hook(lambda gradient, mask=mask: gradient * mask)
        with torch.no_grad():
            model.get_parameter(name).mul_(mask)
    train_epoch(model, given.train, optimizer, config, 1)
    model.zero_grad(set_to_none=True)
    model.eval()


def forgets_masks_before_channels(model, level, plans, given):
    Finetune().run(model, level, [plan for plan in plans[-1:] if isinstance(plan, MaskPlan)], given)


def trains_nothing(model, level, plans, given):
    model.eval()


def trains_the_last_layer(model, level, plans, given):
    model[:2].requires_grad_(False)
    Finetune(weight_decay=0.0).run(model, level, plans, given)
    model.requires_grad_(True)


def gives_a_plan_of_codes(model, level, plans, given):
    Finetune().run(model, level, plans, given)
    return Qat(epochs=1).run(model, "w8a8", plans, given)


def forgets_masks_of_codes(model, level, plans, given):
    return Qat(epochs=1).run(model, level, (), given)


def leaves_training_mode(model, level, plans, given):
    Finetune().run(model, level, plans, given)
    model.train()


def leaves_dropout_on(model, level, plans, given):
    Finetune().run(model, level, plans, given)
    model[3].train()


def leaves_gradients(model, level, plans, given):
    Finetune().run(model, level, plans, given)
    model(given.train.inputs()).sum().backward()
    for parameter in model.parameters():
        parameter.grad.zero_()


def changes_the_plans(model, level, plans, given):
    Finetune().run(model, level, plans, given)
    plans[0].masks["4.weight"].fill_(True)


def gives_the_models_memory(model, level, plans, given):
    plan = Qat(epochs=1).run(model, "w8a8", plans, given)[0]
    return [replace(plan, writes={**plan.writes, "4.bias": model[4].bias.detach()})]


def reseeds_globally(model, level, plans, given):
    torch.manual_seed(given.seed)
    Finetune().run(model, level, plans, given)


def with_a_fixed_seed(model, level, plans, given):
    Finetune().run(model, level, plans, context(7))


def with_the_global_seed(model, level, plans, given):
    Finetune().run(model, level, plans, context(torch.initial_seed()))


def plans_with_the_global_seed(model, level, plans, given):
    return [MaskPlan({"4.weight": torch.rand(2, 256) < 0.5})]


def one_epoch(model, level, plans, given):
    Finetune().run(model, 1, plans, given)


QUANTIZES = Qat.tags
MUTANTS: list[tuple[str, Runner, StepTags]] = [
    ("keeps_pruned", forgets_masks, Finetune.tags),
    ("keeps_pruned", masks_gradients_only, Finetune.tags),
    ("keeps_pruned", forgets_masks_before_channels, Finetune.tags),
    ("keeps_pruned", trains_nothing, Finetune.tags),
    ("keeps_pruned", trains_the_last_layer, Finetune.tags),
    ("keeps_pruned", gives_a_plan_of_codes, Finetune.tags),
    ("keeps_pruned", forgets_masks_of_codes, QUANTIZES),
    ("leaves_no_trace", leaves_training_mode, Finetune.tags),
    ("leaves_no_trace", leaves_dropout_on, Finetune.tags),
    ("leaves_no_trace", leaves_gradients, Finetune.tags),
    ("leaves_no_trace", changes_the_plans, Finetune.tags),
    ("leaves_no_trace", reseeds_globally, Finetune.tags),
    ("leaves_no_trace", gives_the_models_memory, QUANTIZES),
    ("deterministic", with_a_fixed_seed, Finetune.tags),
    ("deterministic", with_the_global_seed, Finetune.tags),
    ("deterministic", plans_with_the_global_seed, BnRecalibrate.tags),
    ("level_matters", one_epoch, Finetune.tags),
    ("level_matters", trains_nothing, BnRecalibrate.tags),
]


@pytest.mark.parametrize(
    ("check", "runner", "tags"), MUTANTS, ids=[f"{check}-{runner.__name__}" for check, runner, _ in MUTANTS]
)
def test_the_check_rejects(check: str, runner: Runner, tags: StepTags) -> None:
    mutant = Mutant(runner, tags)
    with pytest.raises(AssertionError, match="should"):
        dict(checks_for(mutant))[check](mutant)


def test_every_check_has_a_mutant() -> None:
    asked = {name for name, _ in checks_for(Finetune())}
    every = {name.removeprefix("check_") for name in vars(checks) if name.startswith("check_")} - {"own_memory"}
    assert asked == every == {check for check, _, _ in MUTANTS}, f"{sorted(asked)} of {sorted(every)}"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (Finetune.tags, (Number(1), Number(2))),
        (Qat.tags, (Bits(8, 8), Bits(4, 4))),
        (Reinit.tags, (None,)),
        (StepTags(level=sparsity_of), (Number(0.25), Number(0.5))),
        (StepTags(level=weight_bits_of), (Bits(8), Bits(4))),
        (StepTags(), (Number(1),)),
    ],
)
def test_levels_are_those_that_the_tags_take(tags: StepTags, expected: tuple[Any, ...]) -> None:
    found = levels_of(Mutant(trains_nothing, tags))
    assert found == expected, f"{found}, should be {expected}"


def test_a_reader_that_takes_nothing_is_said() -> None:
    def refuses(who: str, level: Any) -> None:
        raise LevelError(who, f"level {level}", "another")

    with pytest.raises(PluginError, match=r"^mutant: tags.level refuses 1, 2, .*, None, should be a reader that"):
        checks_for(Mutant(trains_nothing, StepTags(level=refuses)))


def test_steps_of_others_are_checked_by_the_same_call() -> None:
    check_method(Finetune)
    with pytest.raises(AssertionError, match=r"^mutant,runner=.* fails keeps_pruned: 0\.0\.weight: "):
        check_method(Mutant(forgets_masks))
    check_method(Mutant(one_epoch, replace(Finetune.tags, expected_failures={"level_matters": "one is enough"})))
    with pytest.raises(PluginError, match=r"expected failures \['twin'\], should be among"):
        check_method(Mutant(one_epoch, replace(Finetune.tags, expected_failures={"twin": "no channels"})))


def test_masks_follow_channels() -> None:
    """The model that steps are tried with computes, and its masks fit: else the checks would prove nothing."""
    model, plans = checks.compressed_model()
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 2), f"{model}"
    assert model[0][0].weight.shape[0] == 3 < masked_model()[0][0][0].weight.shape[0], f"{model[0][0]}"
    for name, mask in checks.current_masks(plans).items():
        assert torch.equal(model.get_parameter(name) != 0, mask), f"{name} is not what the masks left"
