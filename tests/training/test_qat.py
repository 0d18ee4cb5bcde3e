"""The step `qat`: what it trained is what the plan quantizes to; what was pruned stays zero."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench import compress, load, save
from pruning_bench.cases import Case
from pruning_bench.conformance.runner import parametrize_with_checks
from pruning_bench.conformance.training_checks import context, masked_model, split_of, state, tiny_model
from pruning_bench.discover import discover
from pruning_bench.engine import Compressed
from pruning_bench.errors import LevelError, ModelError
from pruning_bench.measuring import simulates
from pruning_bench.quantization.affine import quantize
from pruning_bench.quantization.contract import QuantPlan
from pruning_bench.quantization.learned import Trainable
from pruning_bench.quantization.simulation import simulate
from pruning_bench.recipe import parse
from pruning_bench.training.steps import qat
from pruning_bench.training.steps.qat import Qat

QUICK = Qat(epochs=1, batch=32, lr=0.01)


def ran(step: Qat = QUICK, level: str = "w4a4", model: nn.Module | None = None, *plans: Any) -> QuantPlan:
    (plan,) = step.run(tiny_model() if model is None else model, level, plans, context())
    return plan


def check_is_what_was_trained(plan: QuantPlan, trained: Trainable, model: nn.Module) -> None:
    x = split_of().inputs()
    with torch.no_grad():
        expected, found = trained(x), simulate(plan, model, (x[:1],), frozenset())(x)
    assert torch.equal(found, expected), f"off by {(found - expected).abs().max()} of {expected.abs().max()}"


@pytest.mark.parametrize("step", [QUICK, replace(QUICK, learn_scales=False), replace(QUICK, granularity="per_tensor")])
def test_the_plan_is_what_was_trained(step: Qat, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Trainable] = []
    real = qat.plan_of
    monkeypatch.setattr(qat, "plan_of", lambda trained, prepared: (kept.append(trained), real(trained, prepared))[1])
    model = tiny_model()
    plan = ran(step, "w4a4", model)
    check_is_what_was_trained(plan, kept[0].eval(), model)
    for mutant in (replace(plan, writes={}), replace(plan, activations=ran(replace(step, lr=1e-9)).activations)):
        if step.learn_scales or not mutant.writes:  # without the trained weights, or with the scales of the beginning
            with pytest.raises(AssertionError, match="off by"):
                check_is_what_was_trained(mutant, kept[0].eval(), model)


def test_training_pays_and_leaves_the_model_alone() -> None:
    model, split = tiny_model(), split_of()
    before = state(model)
    trained, untrained = (
        ran(Qat(epochs=4, batch=16, lr=0.01), "w3a3", model),
        ran(Qat(lr=1e-9, epochs=1), "w3a3", model),
    )
    assert torch.equal(state(model), before), "qat changed the model, should give writes"
    assert [p.grad for p in model.parameters()] == [None] * len(list(model.parameters())), "gradients left"
    losses = []
    for plan in (trained, untrained):
        with torch.no_grad():
            logits = simulate(plan, model, (split.inputs()[:1],))(split.inputs())
        losses.append(float(nn.functional.cross_entropy(logits, split.labels)))
    assert losses[0] < losses[1] / 2, f"loss {losses[0]} trained, {losses[1]} untrained"


def zeros(plan: QuantPlan, masks: dict[str, Tensor]) -> int:
    """How many pruned weights have a code that is not zero's."""
    codes = {
        name: quantize(plan.writes[name], plan.weights[name]) - plan.weights[name].zero_point.view(-1)[0]
        for name in masks
    }
    return sum(int(codes[name][~mask].count_nonzero()) for name, mask in masks.items())


def test_what_was_pruned_stays_zero_and_the_rest_trains() -> None:
    model, plan = masked_model()
    made = ran(QUICK, "w4a4", model, plan)
    assert zeros(made, plan.masks) == 0, f"{zeros(made, plan.masks)} pruned weights revived"
    moved = {name: int((made.writes[name] != model.get_parameter(name)).sum()) for name in ("4.weight",)}
    assert moved["4.weight"] > 0, "no kept weight trained"
    forgetful = ran(QUICK, "w4a4", model)
    assert zeros(forgetful, plan.masks) > 0, "without the plans nothing revives: the test shows nothing"


@parametrize_with_checks([QUICK])
def test_the_step_holds_every_law(method: Any, check: Any) -> None:
    check(method)


def test_the_ends_have_more_bits_and_the_scales_learn_only_when_asked() -> None:
    plan = ran()
    widths = {name: affine.high for name, affine in plan.weights.items()}
    assert widths == {"0.0.weight": 127, "1.0.weight": 7, "4.weight": 127}, f"{widths}"
    points = {name: affine.high for name, affine in plan.activations.items()}
    assert points == {"input": 255, "0.0.conv2d": 15, "1.0.conv2d": 255}, f"{points}"
    even = {affine.high for affine in ran(replace(QUICK, ends=2)).weights.values()}
    assert even == {7}, f"{even}, should be 4 bits everywhere"
    fixed = [ran(replace(QUICK, learn_scales=False, lr=lr)).activations["0.0.conv2d"].scale for lr in (0.01, 0.1)]
    learned = [ran(replace(QUICK, lr=lr)).activations["0.0.conv2d"].scale for lr in (0.01, 0.1)]
    assert torch.equal(*fixed), f"scales {fixed} moved, should stay calibrated"
    assert not torch.equal(*learned), f"scales {learned} did not learn"


@pytest.mark.parametrize("recipe", ["magnitude:0.8+qat:w8a8,epochs=1", "l1_filter:0.5+qat:w4a8,epochs=1"])
def test_after_pruning_it_runs_saves_and_loads(recipe: str, tmp_path: Path) -> None:
    split, model = split_of(), tiny_model()
    made: Compressed = compress(
        model, recipe, example_inputs=(split.inputs()[:1],), calibration=[(split.inputs(),)], train=split
    )
    assert made.quant_plan is not None
    save(made, tmp_path / "made.safetensors")
    loaded = load(tmp_path / "made.safetensors", model=model)
    with torch.no_grad():
        found, expected = loaded.model(split.inputs()), made.model(split.inputs())
    assert torch.equal(found, expected), f"off by {(found - expected).abs().max()} after loading"
    for name in made.quant_plan.weights:
        before, after = made.float_model.get_parameter(name), made.quant_plan.writes[name]
        revived = int(after[before == 0].count_nonzero())
        assert revived == 0, f"{name}: {revived} pruned weights revived by {recipe}"
    with pytest.raises(ModelError, match="after quantization"):
        compress(
            model,
            f"{recipe}+magnitude:0.1",
            example_inputs=made.example_inputs,
            calibration=[(split.inputs(),)],
            train=split,
        )


@pytest.mark.parametrize(
    ("step", "level", "said"),
    [
        (Qat(), "w4", "qat: level w4 without activations, should be bits of both"),
        (Qat(), "w9a8", "qat: 9 bits in w9a8, should be 2 to 8 bits"),
        (Qat(), 2, "qat: level 2, should be bits such as w8a8"),
    ],
)
def test_levels_out_of_range(step: Qat, level: Any, said: str) -> None:
    with pytest.raises(LevelError, match=said):
        step.run(tiny_model(), level, (), context())


def test_missing_data_is_said() -> None:
    with pytest.raises(ModelError, match="qat: no training data"):
        QUICK.run(tiny_model(), "w4a4", (), replace(context(), train=None))
    with pytest.raises(ModelError, match="qat: no calibration data"):
        QUICK.run(tiny_model(), "w4a4", (), replace(context(), calibration=None))


def test_a_loss_that_is_not_finite_is_said_and_the_model_left_alone() -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=r"loss (nan|inf).*should be finite"):
        Qat(epochs=2, lr=1e38).run(model, "w4a4", (), context())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()), "the model changed"


def test_eager_only_simulates_it_so_that_no_time_is_taken() -> None:
    discover()
    seen = {recipe: simulates(Case("m", "d", recipe, "eager")) for recipe in ("qat:w8a8", "finetune:1")}
    assert seen == {"qat:w8a8": True, "finetune:1": False}, f"{seen}"


def test_the_recipe_is_canonical() -> None:
    for text in ("qat:w8a8", "qat:w4a4,epochs=4,learn_scales=false", "qat:w4a4,ends=4,lr=0.05"):
        assert set(str(parse(text)).split(",")) == set(text.split(",")), f"{parse(text)}, should be {text}"
