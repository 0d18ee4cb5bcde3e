import dataclasses

import pytest
import torch
from torch import nn

from pruning_bench.conformance.runner import parametrize_with_checks
from pruning_bench.conformance.training_checks import context, masked_model, split_of, state, tiny_model
from pruning_bench.contracts import Context
from pruning_bench.errors import DataError, LevelError, ModelError
from pruning_bench.levels import Bits, Number
from pruning_bench.recipe import parse
from pruning_bench.training.loop import TrainConfig, make_optimizer, train_epoch
from pruning_bench.training.steps.agp import Agp
from pruning_bench.training.steps.bn_recalibrate import BnRecalibrate, recalibrate
from pruning_bench.training.steps.distill import Distill
from pruning_bench.training.steps.finetune import Finetune
from pruning_bench.training.steps.lr_rewind import LrRewind
from pruning_bench.training.steps.reinit import Reinit
from pruning_bench.training.steps.rewind import Rewind
from pruning_bench.training.steps.slim import Slim


@parametrize_with_checks(
    [
        Finetune(),
        Distill(),
        Slim(),
        LrRewind(of=4),
        Agp(epochs=2, batch=8, every=2),
        Reinit(),
        Rewind(),
        BnRecalibrate(batch=16),
    ]
)
def test_shipped_steps(method, check):
    check(method)


def test_random_batches_follow_the_generator():
    states = []
    for seed in (0, 1):
        model = tiny_model()
        BnRecalibrate(batch=16).run(model, Number(1), (), context(seed))
        states.append(state(model))
    assert not torch.equal(*states), "generators 0 and 1 give equal results, should differ"


def test_finetune_level_is_the_number_of_epochs():
    for level, expected in ((Number(1), 1), (Number(3), 3)):
        told = []
        given = dataclasses.replace(context(), progress=lambda message, done, total, told=told: told.append(message))
        Finetune(batch=64).run(tiny_model(), level, (), given)
        assert told == [f"epoch {n}/{expected}" for n in range(1, expected + 1)], f"{told}, should be {expected} epochs"


@pytest.mark.parametrize(
    ("step", "level", "said"),
    [
        (Finetune(), Number(0.5), "finetune: level 0.5, should be a whole number >= 1"),
        (Finetune(), Number(0), "finetune: level 0, should be a whole number >= 1"),
        (Finetune(), None, "finetune: no level, should be a whole number >= 1"),
        (Finetune(), Bits(8), "finetune: level w8, should be a whole number >= 1"),
        (BnRecalibrate(), Number(0), "bn_recalibrate: level 0, should be a whole number >= 1"),
    ],
)
def test_levels_out_of_range(step, level, said):
    model = tiny_model()
    before = state(model)
    with pytest.raises(LevelError, match=said):
        step.run(model, level, (), context())
    assert torch.equal(state(model), before), "the model changed, should be left as it was"


@pytest.mark.parametrize("step", [Finetune(), BnRecalibrate()], ids=lambda step: step.name)
def test_without_data_is_said(step):
    given = Context((torch.zeros(1, 1, 8, 8),), torch.Generator())
    with pytest.raises(ModelError, match=f"{step.name}: no training data"):
        step.run(tiny_model(), Number(1), (), given)


@pytest.mark.parametrize(
    "text", ["finetune:2", "finetune:2,lr=0.1,flip=true", "bn_recalibrate", "bn_recalibrate:4,batch=64"]
)
def test_recipes_are_canonical(text):
    assert str(parse(text)) == text, f"{parse(text)}, should be {text}"


def test_tags_say_what_trains():
    assert Finetune.tags.trains_weights is True, "finetune should be said to train weights"
    assert BnRecalibrate.tags.trains_weights is False, "bn_recalibrate should be said to leave weights"


def by_hand(model: nn.Module, batches: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean over batches of each norm's input's batch mean and unbiased variance, from the formulas."""
    totals = [[0, 0], [0, 0]]
    with torch.no_grad():
        for batch in batches:
            x = batch
            for index in (0, 1):
                convolution, norm, activation = model[index]
                x = convolution(x)
                variance, mean = torch.var_mean(x, (0, 2, 3), correction=1)
                totals[index][0] += mean / len(batches)
                totals[index][1] += variance / len(batches)
                biased = torch.var(x, (0, 2, 3), correction=0)
                shape = (1, -1, 1, 1)
                x = (x - mean.view(shape)) / torch.sqrt(biased + norm.eps).view(shape)
                x = activation(x * norm.weight.view(shape) + norm.bias.view(shape))
    return [tuple(total) for total in totals]


def check_statistics(run) -> None:
    model = tiny_model()
    model[1].eval()
    with torch.no_grad():
        for index in (0, 1):
            model[index][1].running_mean.fill_(50)
            model[index][1].running_var.fill_(9)
    parameters = {name: value.clone() for name, value in model.named_parameters()}
    batches = [split_of().inputs(slice(start, start + 16)) for start in range(0, 64, 16)]
    run(model, [(batch,) for batch in batches])
    for index, (mean, variance) in enumerate(by_hand(model, batches)):
        norm = model[index][1]
        for what, found, expected in (("mean", norm.running_mean, mean), ("variance", norm.running_var, variance)):
            difference = float((found - expected).abs().max())
            assert difference < 1e-4, f"layer {index}: {what} differs by {difference}, should be the batches' average"
        assert norm.momentum == 0.1, f"layer {index}: momentum {norm.momentum}, should be 0.1 as before"
    for name, value in model.named_parameters():
        assert torch.equal(value, parameters[name]), f"{name} changed, should stay"
    modes = {module.training for module in model.modules()}
    assert modes == {False}, f"training is {modes}, should be as before"


def mutant_moving_average(model, batches):
    model.train()
    for inputs in batches:
        model(*inputs)
    model.eval()


def mutant_does_not_reset(model, batches):
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.num_batches_tracked.fill_(4)
        norm.train()
    with torch.no_grad():
        for inputs in batches:
            model(*inputs)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


def mutant_first_batch_only(model, batches):
    recalibrate(model, batches[:1])


def mutant_leaves_momentum(model, batches):
    recalibrate(model, batches)
    model[0][1].momentum = None


def mutant_leaves_norms_training(model, batches):
    recalibrate(model, batches)
    model[1][1].train()


def mutant_learns_a_little(model, batches):
    recalibrate(model, batches)
    with torch.no_grad():
        model[0][1].weight.mul_(1.0001)


def test_statistics_are_the_average_of_the_batches():
    check_statistics(recalibrate)


@pytest.mark.parametrize(
    "mutant",
    [
        mutant_moving_average,
        mutant_does_not_reset,
        mutant_first_batch_only,
        mutant_leaves_momentum,
        mutant_leaves_norms_training,
        mutant_learns_a_little,
    ],
)
def test_check_statistics_rejects(mutant):
    with pytest.raises(AssertionError, match="should"):
        check_statistics(mutant)


@pytest.mark.parametrize(("level", "expected"), [(None, 4), (Number(3), 3), (Number(99), 4)])
def test_bn_recalibrate_level_is_the_number_of_batches(level, expected):
    model, sizes = tiny_model(), []
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    BnRecalibrate(batch=16).run(model, level, (), context(train=split_of(70)))
    assert sizes == [16] * expected, f"batches of {sizes}, should be {expected} of 16"
    tracked = int(model[0][1].num_batches_tracked)
    assert tracked == expected, f"{tracked} batches tracked, should be {expected}"


def test_bn_recalibrate_draws_without_replacement():
    seen = []
    model = tiny_model()
    model.register_forward_pre_hook(lambda module, inputs: seen.extend(image.numpy().tobytes() for image in inputs[0]))
    BnRecalibrate(batch=16).run(model, None, (), context())
    assert len(set(seen)) == len(seen) == 64, f"{len(set(seen))} different of {len(seen)}, should be all 64 once"


def test_a_model_without_batch_norm_stays_as_it_is():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.BatchNorm1d(2, track_running_stats=False))
    before = state(model)
    BnRecalibrate().run(model, None, (), context())
    assert torch.equal(state(model), before), "the model changed, should stay"


def test_a_model_that_fails_keeps_its_momenta_and_modes():
    model = tiny_model()
    with pytest.raises(ModelError, match=r"inputs \[4, 3, 8, 8\] that do not run \(RuntimeError"):
        recalibrate(model, [(torch.zeros(4, 3, 8, 8),)])
    found = (model[0][1].momentum, model[0][1].training)
    assert found == (0.1, False), f"momentum and training {found}, should be (0.1, False) as before"


def test_bn_recalibrate_of_one_example_is_refused_where_it_has_no_variance():
    BnRecalibrate().run(tiny_model(), None, (), context(train=split_of(1)))  # 64 places of an image have one
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 2))
    with pytest.raises(DataError, match=r"bn_recalibrate: one example, .* should be at least 2, over which"):
        BnRecalibrate().run(model, None, (), context(train=split_of(1)))


def test_keep_pruned_is_let_go():
    """After a step nothing holds the masks: the user may train the model densely again."""
    model, plan = masked_model()
    Finetune().run(model, Number(1), (plan,), context())
    config = TrainConfig(epochs=1, batch=16, lr=0.1)
    train_epoch(model, split_of(), make_optimizer(model, config), config, 0)
    revived = sum(int(model.get_parameter(name)[~mask].count_nonzero()) for name, mask in plan.masks.items())
    assert revived > 0, f"{revived} weights revived, should be some: the step is over"
