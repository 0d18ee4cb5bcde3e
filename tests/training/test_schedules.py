"""Steps that shape a schedule: gradual pruning, rewinding, sparsity in training, and recipes made of them."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pruning_bench import compress
from pruning_bench.conformance.training_checks import context, masked_model, split_of, state, tiny_model
from pruning_bench.contracts import Past
from pruning_bench.errors import LevelError, ModelError, PruningBenchError
from pruning_bench.levels import Number
from pruning_bench.pruning.contract import ChannelPlan, MaskPlan
from pruning_bench.pruning.masks import current_masks, prunable, pruned_count
from pruning_bench.recipe import parse
from pruning_bench.training.loop import TrainConfig, learning_rate
from pruning_bench.training.steps.agp import Agp, cubic
from pruning_bench.training.steps.finetune import Finetune
from pruning_bench.training.steps.lr_rewind import LrRewind
from pruning_bench.training.steps.reinit import Reinit
from pruning_bench.training.steps.rewind import Rewind
from pruning_bench.training.steps.slim import Slim
from pruning_bench.training.tuning import Tuning

GROWS = Agp(epochs=2, batch=8, every=2)


def zeros(model: nn.Module, names: Any) -> list[int]:
    return [int((model.get_parameter(name) == 0).sum()) for name in names]


def check_gradual(run: Callable[[nn.Module, Any], Any]) -> None:
    """Sparsity rises along the cubic curve, what was pruned never comes back, and the plan tells all of it."""
    model = tiny_model()
    weights = prunable(model, (torch.zeros(1, 1, 8, 8),))
    sizes = {name: weight.numel() for name, weight in weights.items()}
    seen: list[dict[str, torch.Tensor]] = []

    def look(module: nn.Module, inputs: Any) -> None:
        if module.training:  # and not traced
            seen.append({name: weight.detach() != 0 for name, weight in weights.items()})

    model.register_forward_pre_hook(look)
    plan = run(model, context())[0]
    total, last = sum(sizes.values()), 12  # of 16 steps, the share 0.75
    for step, alive in enumerate(seen):
        done = step if step >= last else step - step % 2
        expected = pruned_count(total, cubic(done, last, 0.5))
        found = total - sum(int(mask.sum()) for mask in alive.values())
        assert found == expected, f"{found} of {total} zero before step {step}, should be {expected}"
        for name in alive if step else ():
            back = int((alive[name] & ~seen[step - 1][name]).sum())
            assert not back, f"{back} weights of {name} came back in step {step}, should be none"
    for name, mask in plan.masks.items():
        assert torch.equal(mask, weights[name] != 0), f"the mask of {name} is not what is pruned, should be"


def prunes_at_once(model: nn.Module, given: Any) -> Any:
    return dataclasses.replace(GROWS, ramp=1e-9).run(model, 0.5, (), given)


def prunes_linearly(model: nn.Module, given: Any) -> Any:
    from pruning_bench.training.steps import agp

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agp, "cubic", lambda step, last, final: final * min(step / last, 1))
        return GROWS.run(model, 0.5, (), given)


def tells_half(model: nn.Module, given: Any) -> Any:
    plan = GROWS.run(model, 0.5, (), given)[0]
    return [MaskPlan({name: torch.ones_like(mask) for name, mask in plan.masks.items()})]


def test_gradual_pruning_follows_the_cubic_curve() -> None:
    check_gradual(lambda model, given: GROWS.run(model, 0.5, (), given))


@pytest.mark.parametrize("mutant", [prunes_at_once, prunes_linearly, tells_half])
def test_check_gradual_rejects(mutant: Any) -> None:
    with pytest.raises(AssertionError, match="should be"):
        check_gradual(mutant)


def images(count: int = 1) -> torch.Tensor:
    return split_of(count).inputs()


def made(recipe: str, seed: int = 0, model: nn.Module | None = None) -> Any:
    return compress(model or tiny_model(), recipe, example_inputs=(images(),), train=split_of(), seed=seed)


@pytest.mark.parametrize(
    "recipe",
    [
        "agp:0.5,batch=16,every=1",
        "magnitude:0.5+agp:0.5,batch=16,every=1",
        "l1_filter:0.5+agp:0.5,batch=16,every=1,scope=layer",
        "repeat(2,agp:0.5,batch=16,epochs=1,every=1)",
        "finetune:1+repeat(2,finetune:1+magnitude:0.5+rewind:1)+finetune:1",
        "magnitude:0.5+finetune:1+l1_filter:0.5+rewind",
        "slim:1+bn_scale:0.5,scope=layer+lr_rewind:1,of=3",
        "l1_filter:0.5+reinit+finetune:1",
    ],
)
def test_recipes_keep_plans_and_twin_right(recipe: str) -> None:
    model = tiny_model()
    before = copy.deepcopy(model)
    one, other = made(recipe, model=model), made(recipe)
    assert torch.equal(state(one.model), state(other.model)), f"{recipe} differs between two runs of one seed"
    assert torch.equal(state(model), state(before)), f"{recipe} changed the model that came in"
    masks = current_masks(one.plans)
    for name, mask in masks.items():
        alive = int((one.model.get_parameter(name)[~mask] != 0).sum())
        assert not alive, f"{recipe}: {alive} weights of {name} alive where the plans pruned, should be none"
    with torch.no_grad():
        found, twin = one.model(images(16)), one.masked_twin(images(16))
    error = float((found - twin).abs().max() / (twin[0] - twin[1]).abs().max())
    assert error < 1e-4, f"{recipe}: the twin differs by {error} of the signal, should be below 1e-4"


def test_levels_of_gradual_pruning_compound() -> None:
    plans = made("magnitude:0.5+agp:0.5,batch=16,every=1,epochs=1").plans
    total = sum(mask.numel() for mask in plans[0].masks.values())
    left = sum(int(mask.sum()) for mask in current_masks(plans).values())
    assert left == total / 4, f"{left} of {total} weights left, should be a quarter"


def check_rewinds(run: Callable[..., Any]) -> None:
    """Back to the values of the step named, in the shapes and under the masks of now; statistics too."""
    start, kept = tiny_model(), torch.tensor([0, 2, 3])
    later, plan = masked_model()
    with torch.no_grad():
        for tensor in later.state_dict().values():
            tensor.add_(1)
    model = nn.Sequential(*later)
    past = [Past(dict(start.state_dict()), 0), Past({n: t + 5 for n, t in start.state_dict().items()}, 1)]
    for at, shift in ((0, 0), (1, 5)):
        run(model, Number(at), (plan,), dataclasses.replace(context(), past=past))
        for name, tensor in model.state_dict().items():
            expected = start.state_dict()[name] + shift
            if name in plan.masks:
                expected = expected * plan.masks[name]
            assert torch.equal(tensor, expected), f"{name} after rewind:{at}, should be the earlier values, masked"
    small = nn.Linear(3, 2)
    cut = ChannelPlan({"weight": {1: kept}})
    dense = nn.Linear(4, 2)
    run(small, None, (plan, cut), dataclasses.replace(context(), past=[Past(dense.state_dict(), 1)]))
    assert torch.equal(small.weight, dense.weight[:, kept]), f"{small.weight}, should be the columns kept"


def forgets_masks(model: nn.Module, level: Any, plans: Any, given: Any) -> None:
    Rewind().run(model, level, [plan for plan in plans if isinstance(plan, ChannelPlan)], given)


def rewinds_to_the_start(model: nn.Module, level: Any, plans: Any, given: Any) -> None:
    Rewind().run(model, None, plans, given)


def rewinds_parameters_alone(model: nn.Module, level: Any, plans: Any, given: Any) -> None:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    Rewind().run(model, level, plans, given)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def takes_the_first_columns(model: nn.Module, level: Any, plans: Any, given: Any) -> None:
    if isinstance(model, nn.Linear):
        plans = [ChannelPlan({"weight": {1: torch.arange(3)}})]
        given = dataclasses.replace(given, past=[Past(given.past[0].state, 0)])
    Rewind().run(model, level, plans, given)


def without_masks_of_other_models(model: nn.Module, level: Any, plans: Any, given: Any) -> None:
    Rewind().run(model, level, plans, given)


def test_rewind_goes_back_under_the_present_masks() -> None:
    check_rewinds(without_masks_of_other_models)


@pytest.mark.parametrize(
    "mutant", [forgets_masks, rewinds_to_the_start, rewinds_parameters_alone, takes_the_first_columns]
)
def test_check_rewinds_rejects(mutant: Any) -> None:
    with pytest.raises(AssertionError, match="should be"):
        check_rewinds(mutant)


def test_the_engine_remembers_the_state_after_each_step() -> None:
    """rewind:1 undoes the second training, not the first; rewind:0 undoes both."""
    first = made("finetune:1").model
    back = made("finetune:1+finetune:1+rewind:1").model
    assert torch.equal(state(back), state(first)), "rewind:1, should be the model after the first step"
    origin = made("finetune:1+rewind").model
    assert torch.equal(state(origin), state(tiny_model())), "rewind, should be the model that came in"


def rates_of(run: Callable[[Any], Any]) -> list[float]:
    rates: list[float] = []
    original = Tuning.__init__

    def spying(self: Any, *args: Any) -> None:
        original(self, *args)
        self.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tuning, "__init__", spying)
        run(tiny_model())
    return rates


def test_learning_rates_are_those_of_the_last_epochs() -> None:
    step = LrRewind(lr=0.05, of=5, batch=16)
    found = rates_of(lambda model: step.run(model, 2, (), context()))
    expected = [learning_rate(at, 20, TrainConfig(epochs=5, lr=0.05)) for at in range(12, 20)]
    assert found == expected, f"rates {found}, should be {expected}, the last two of five epochs"
    fresh = rates_of(lambda model: Finetune(lr=0.05, batch=16).run(model, 2, (), context()))
    assert fresh != expected, "a fine-tuning of two epochs has the same rates: the case proves nothing"


def slimmed(penalty: float, epochs: int = 1) -> nn.Module:
    model = tiny_model()
    Slim(penalty=penalty, momentum=0.0, batch=64).run(model, epochs, (), context())
    return model


def test_slim_adds_the_subgradient_of_the_scales() -> None:
    """One step of plain SGD: the scales, all 1, move by rate * penalty more than without, and nothing else does."""
    rate = learning_rate(0, 1, TrainConfig(epochs=1, lr=0.01))
    with_penalty, without = slimmed(0.1).state_dict(), slimmed(0.0).state_dict()
    for name, tensor in with_penalty.items():
        moved = float((without[name] - tensor).double().mean())
        expected = rate * 0.1 if name in ("0.1.weight", "1.1.weight") else 0.0
        assert moved == pytest.approx(expected, abs=1e-7), f"{name} moves by {moved}, should be {expected}"


def test_slim_pulls_negative_scales_up() -> None:
    model = tiny_model()
    with torch.no_grad():
        model[0][1].weight.fill_(-0.01)
    before = model[0][1].weight.clone()
    Slim(penalty=100.0, momentum=0.0, batch=64, lr=1e-6).run(model, 1, (), context())
    assert bool((model[0][1].weight > before).all()), f"{model[0][1].weight}, should be nearer to zero than {before}"


def test_reinit_draws_all_weights_anew_and_keeps_zeros() -> None:
    model, plan = masked_model()
    model[0][1].running_mean.fill_(3.0)
    before = copy.deepcopy(model.state_dict())
    Reinit().run(model, None, (plan,), context())
    for name, mask in plan.masks.items():
        weight = model.get_parameter(name)
        assert not weight[~mask].any(), f"{name} has weights where it was pruned, should be zero"
        assert not (weight == before[name])[mask].any(), f"{name} kept some weights, should be new"
    assert not model[0][1].running_mean.any(), f"statistics {model[0][1].running_mean}, should be fresh"


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


def test_reinit_lets_a_module_draw_for_those_inside_it() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    nn.init.constant_(model[0].out_proj.bias, 3.0)
    Reinit().run(model, None, (), context())
    assert not model[0].out_proj.bias.any(), "drawn by the layer, should be zero as attention makes it"
    model[0].out_proj.reset_parameters()  # the mutant: children last
    assert model[0].out_proj.bias.any(), "both would be zero: nothing is shown"


@pytest.mark.parametrize(
    ("run", "error", "says"),
    [
        (lambda m: Rewind().run(m, 1, (), context()), LevelError, "rewind: level 1, should be at most -1"),
        (lambda m: LrRewind(of=2).run(m, 3, (), context()), LevelError, "lr_rewind: level 3, should be at most 2"),
        (lambda m: Agp().run(m, 1, (), context()), LevelError, r"agp: sparsity 1, should be in \[0, 1\)"),
        (lambda m: Slim().run(nn.Linear(2, 2), 1, (), context()), ModelError, "slim: no batch norm, should be"),
        (lambda m: Reinit().run(m, 1, (), context()), LevelError, "reinit: level 1, should be no level"),
        (lambda m: Reinit().run(Own(), None, (), context()), ModelError, r"\[model \(Own\)\]"),
    ],
)
def test_bad_levels_and_models_are_one_clear_error(run: Any, error: type[PruningBenchError], says: str) -> None:
    model = tiny_model()
    with pytest.raises(error, match=says):
        run(model)
    assert torch.equal(state(model), state(tiny_model())), "the model changed, should be left as it was"


@pytest.mark.parametrize("text", ["agp:0.9,epochs=2", "lr_rewind:4", "rewind:2", "reinit", "slim:3,penalty=0.001"])
def test_recipes_are_canonical(text: str) -> None:
    assert str(parse(text)) == text, f"{parse(text)}, should be {text}"
