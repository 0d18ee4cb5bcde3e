import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from pruning_bench.datasets.contract import Split
from pruning_bench.errors import ModelError
from pruning_bench.training.evaluation import evaluate
from pruning_bench.training.loop import TrainConfig, augment, learning_rate, make_optimizer, train_epoch

FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
CONFIG = TrainConfig(epochs=2, batch=8, lr=0.05)


def split_of(count: int = 40, seed: int = 0) -> Split:
    """Images of 8 x 8 that are brighter above (class 0) or below (class 1)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    images = torch.randint(0, 60, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        images[index, :, 4 * label : 4 * label + 4] += 150
    return Split(images, labels, torch.tensor([0.4]), torch.tensor([0.3]))


def tiny_model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        convolution = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        return nn.Sequential(convolution, nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 2))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in model.state_dict().values()])


def check_schedule(rate) -> None:
    @FEW
    @given(
        st.integers(1, 60),
        st.floats(0, 0.9),
        st.floats(1e-4, 10),
        st.sampled_from(["cosine", "linear", "constant"]),
    )
    def holds(steps, warmup, lr, schedule):
        config = TrainConfig(lr=lr, warmup=warmup, schedule=schedule)
        rates = [rate(step, steps, config) for step in range(steps)]
        rising = round(warmup * steps)
        told = f"{schedule}, {steps} steps, warm-up {rising}, lr {lr}: {rates}"
        assert all(0 < r <= lr * (1 + 1e-9) for r in rates), f"{told}, should lie in (0, lr]"
        assert all(a < b for a, b in itertools.pairwise(rates[:rising])), f"{told}, should rise while warming up"
        after = rates[rising:]
        assert all(a >= b for a, b in itertools.pairwise(after)), f"{told}, should not rise afterwards"
        assert not after or math.isclose(after[0], lr), f"{told}, should be lr after the warm-up"
        if schedule == "constant":
            assert set(after) <= {lr}, f"{told}, should stay"
        elif len(after) > 20:
            assert after[-1] < 0.06 * lr, f"{told}, should end near zero"

    holds()


def mutant_no_warmup(step, steps, config):
    return learning_rate(step, steps, TrainConfig(lr=config.lr, warmup=0.0, schedule=config.schedule))


def mutant_zero_at_first(step, steps, config):
    rising = round(config.warmup * steps)
    return config.lr * step / rising if step < rising else learning_rate(step, steps, config)


def mutant_never_falls(step, steps, config):
    return learning_rate(step, steps, TrainConfig(lr=config.lr, warmup=config.warmup, schedule="constant"))


def mutant_restarts(step, steps, config):
    return learning_rate(step % max(steps // 2, 1), steps, config)


def test_schedule():
    check_schedule(learning_rate)


@pytest.mark.parametrize("mutant", [mutant_no_warmup, mutant_zero_at_first, mutant_never_falls, mutant_restarts])
def test_check_schedule_rejects(mutant):
    with pytest.raises(AssertionError, match="should"):
        check_schedule(mutant)


def test_cosine_is_the_formula():
    config = TrainConfig(lr=2.0, warmup=0.0)
    found = [learning_rate(step, 4, config) for step in range(4)]
    expected = [1 + math.cos(math.pi * step / 4) for step in range(4)]
    assert found == pytest.approx(expected), f"{found}, should be {expected}"


def check_decay(make) -> None:
    for name in ("sgd", "adamw"):
        model = tiny_model()
        optimizer = make(model, TrainConfig(optimizer=name, weight_decay=0.3))
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        for parameter_name, parameter in model.named_parameters():
            expected = 0.3 if parameter.dim() > 1 else 0.0
            found = decays.get(id(parameter))
            assert found == expected, f"{name}: {parameter_name} decays by {found}, should by {expected}"


def mutant_decays_all(model, config):
    return torch.optim.SGD(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


def mutant_forgets_biases(model, config):
    weights = [p for p in model.parameters() if p.dim() > 1]
    return torch.optim.SGD(weights, lr=config.lr, weight_decay=config.weight_decay)


def test_decay():
    check_decay(make_optimizer)


@pytest.mark.parametrize("mutant", [mutant_decays_all, mutant_forgets_biases])
def test_check_decay_rejects(mutant):
    with pytest.raises(AssertionError, match="should by"):
        check_decay(mutant)


def test_frozen_parameters_are_left_out():
    model = tiny_model()
    model[0].requires_grad_(False)
    optimizer = make_optimizer(model, CONFIG)
    found = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert found == 514, f"{found} parameters, should be the 514 of the last layer"
    with pytest.raises(ModelError, match="no trainable parameter"):
        make_optimizer(model.requires_grad_(False), CONFIG)


def numbered(count: int, height: int, width: int) -> torch.Tensor:
    """Images [count, 2, H, W] in which every pixel differs from all others of its image and none is zero."""
    pixels = torch.arange(1, 2 * height * width + 1).view(1, 2, height, width)
    return (pixels + 1000 * torch.arange(count).view(-1, 1, 1, 1)).int()


def all_views(image: torch.Tensor, shift: int, flip: bool) -> dict[bytes, tuple[int, int, bool]]:
    """Every view of one image [C, H, W], by brute force, as bytes."""
    _, height, width = image.shape
    views = {}
    for down, right, mirrored in itertools.product(range(-shift, shift + 1), range(-shift, shift + 1), (False, True)):
        if mirrored and not flip:
            continue
        view = torch.zeros_like(image)
        for row, column in itertools.product(range(height), range(width)):
            if 0 <= row + down < height and 0 <= column + right < width:
                view[:, row, column] = image[:, row + down, column + right]
        view = view.flip(-1) if mirrored else view
        views[view.contiguous().numpy().tobytes()] = (down, right, mirrored)
    return views


def check_augmentation(change) -> None:
    for shift, flip in ((0, False), (0, True), (1, False), (2, True)):
        images = numbered(100 + 250 * shift, 3, 4)
        found = change(images.clone(), torch.Generator().manual_seed(0), shift, flip)
        told = f"shift {shift}, flip {flip}"
        assert found.shape == images.shape, f"{told}: {tuple(found.shape)}, should be {tuple(images.shape)}"
        seen = set()
        for before, after in zip(images, found, strict=True):
            views = all_views(before, shift, flip)
            key = after.contiguous().numpy().tobytes()
            assert key in views, f"{told}: {after.tolist()}, should be a view of {before.tolist()}"
            seen.add(views[key])
        expected = (2 * shift + 1) ** 2 * (2 if flip else 1)
        assert len(seen) == expected, f"{told}: {len(seen)} different views, should be all {expected}"


def mutant_wraps_around(images, generator, shift, flip):
    moved = augment(images, generator, 0, flip)
    return torch.roll(moved, int(torch.randint(-shift, shift + 1, (), generator=generator)), -1) if shift else moved


def mutant_one_shift_for_all(images, generator, shift, flip):
    down = int(torch.randint(0, 2 * shift + 1, (), generator=generator))
    height = images.shape[2]
    padded = nn.functional.pad(images, (0, 0, shift, shift))
    return augment(padded[:, :, down : down + height], generator, 0, flip)


def mutant_never_flips(images, generator, shift, flip):
    return augment(images, generator, shift, False)


def mutant_upside_down(images, generator, shift, flip):
    moved = augment(images, generator, shift, False)
    return moved.flip(-2) if flip else moved


def mutant_mixes_channels(images, generator, shift, flip):
    return augment(images, generator, shift, flip).flip(1)


def test_augmentation():
    check_augmentation(augment)


def moved_in_a_large_frame(images, generator, shift):
    count, _, height, width = images.shape
    offsets = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator)[:, :, 0].tolist()
    frame = nn.functional.pad(images, (shift,) * 4)
    views = [x[:, top : top + height, left : left + width] for x, top, left in zip(frame, *offsets, strict=True)]
    return torch.stack(views)


def check_large_shifts(change) -> None:
    """What moves farther than its own size is gone, and nothing is made as large as the shift."""
    images = numbered(200, 3, 4)
    for shift in (2, 3, 4, 7):
        found = change(images, torch.Generator().manual_seed(0), shift, False)
        expected = moved_in_a_large_frame(images, torch.Generator().manual_seed(0), shift)
        assert torch.equal(found, expected), f"shift {shift}: should be cut out of a frame of that width"
    assert not change(images, torch.Generator().manual_seed(0), 10**9, False).any(), "should be all zero"


def mutant_clamps_the_shift(images, generator, shift, flip):
    return augment(images, generator, min(shift, *images.shape[2:]), flip)


def test_large_shifts():
    check_large_shifts(augment)


def test_check_large_shifts_rejects_mutant_clamps_the_shift():
    with pytest.raises(AssertionError, match="should be"):
        check_large_shifts(mutant_clamps_the_shift)


@pytest.mark.parametrize(
    "mutant",
    [mutant_wraps_around, mutant_one_shift_for_all, mutant_never_flips, mutant_upside_down, mutant_mixes_channels],
)
def test_check_augmentation_rejects(mutant):
    with pytest.raises(AssertionError, match="should be"):
        check_augmentation(mutant)


def run_epochs(epoch=train_epoch, config=CONFIG, seed=0) -> nn.Module:
    model = tiny_model()
    optimizer = make_optimizer(model, config)
    for index in range(config.epochs):
        epoch(model, split_of(seed=seed), optimizer, config, index)
    return model


def check_deterministic(epoch) -> None:
    first = weights(run_epochs(epoch))
    torch.rand(7)  # the global generator moves on, and must not matter
    second = weights(run_epochs(epoch))
    assert torch.equal(first, second), f"weights differ by {(first - second).abs().max()}, should be equal"
    other = weights(run_epochs(epoch, TrainConfig(epochs=2, batch=8, lr=0.05, seed=1)))
    assert not torch.equal(first, other), "seeds 0 and 1 give equal weights, should differ"


def check_leaves_global_generator(epoch) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run_epochs(epoch)
    assert torch.equal(before, torch.get_rng_state()), "the global generator moved, should be as before"


def mutant_global_randomness(model, split, optimizer, config, epoch):
    model.train()
    for chosen in torch.randperm(len(split)).split(config.batch):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(split.inputs(chosen)), split.labels[chosen]).backward()
        optimizer.step()


def mutant_ignores_the_seed(model, split, optimizer, config, epoch):
    train_epoch(model, split, optimizer, TrainConfig(epochs=config.epochs, batch=8, lr=0.05), epoch)


def test_deterministic():
    check_deterministic(train_epoch)


@pytest.mark.parametrize("mutant", [mutant_global_randomness, mutant_ignores_the_seed])
def test_check_deterministic_rejects(mutant):
    with pytest.raises(AssertionError, match="should"):
        check_deterministic(mutant)


def test_leaves_global_generator():
    check_leaves_global_generator(train_epoch)


def test_check_leaves_global_generator_rejects_mutant_global_randomness():
    with pytest.raises(AssertionError, match="should be as before"):
        check_leaves_global_generator(mutant_global_randomness)


class Recorder(nn.Module):
    """A linear model that notes the images it sees, by their first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.seen: list[list[int]] = []

    def forward(self, images):
        assert self.training, "evaluation mode, should train in training mode"
        self.seen.append([round(value) for value in (images[:, 0, 0, 0] * 255).tolist()])
        return self.linear(images.flatten(1))


def check_sees_everything_once(epoch) -> None:
    images = torch.arange(21, dtype=torch.uint8).view(21, 1, 1, 1).expand(21, 1, 2, 2).contiguous()
    split = Split(images, torch.arange(21) % 2, torch.zeros(1), torch.ones(1))
    config = TrainConfig(epochs=2, batch=8, lr=0.01, shift=0, flip=False)
    model = Recorder().eval()
    optimizer = make_optimizer(model, config)
    for index in range(2):
        epoch(model, split, optimizer, config, index)
    sizes = [len(batch) for batch in model.seen]
    assert sizes == [8, 8, 5] * 2, f"batches of {sizes}, should be 8, 8, 5 in each epoch"
    orders = [list(itertools.chain(*model.seen[:3])), list(itertools.chain(*model.seen[3:]))]
    for order in orders:
        assert sorted(order) == list(range(21)), f"saw {sorted(order)}, should see every example once"
    assert orders[0] != orders[1] != list(range(21)), f"orders {orders}, should be new in every epoch"


def mutant_drops_the_last_batch(model, split, optimizer, config, epoch):
    whole = len(split) // config.batch * config.batch
    part = Split(split.images[:whole], split.labels[:whole], split.mean, split.std)
    train_epoch(model, part, optimizer, config, epoch)


def mutant_same_order_each_epoch(model, split, optimizer, config, epoch):
    train_epoch(model, split, optimizer, config, 0)


def test_sees_everything_once():
    check_sees_everything_once(train_epoch)


@pytest.mark.parametrize("mutant", [mutant_drops_the_last_batch, mutant_same_order_each_epoch])
def test_check_sees_everything_rejects(mutant):
    with pytest.raises(AssertionError, match="should"):
        check_sees_everything_once(mutant)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("amp", [False, True])
def test_learns(optimizer, amp):
    lr = 0.05 if optimizer == "sgd" else 0.01
    config = TrainConfig(epochs=4, batch=8, lr=lr, shift=0, amp=amp, optimizer=optimizer)
    before = evaluate(tiny_model(), split_of(seed=9)).top1
    model = tiny_model()
    optimizers = make_optimizer(model, config)
    losses = [train_epoch(model, split_of(80), optimizers, config, index) for index in range(4)]
    after = evaluate(model, split_of(seed=9)).top1
    assert losses[-1] < losses[0], f"training losses {losses}, should fall"
    assert after > 0.9 > before, f"top-1 on unseen images {before} before and {after} after, should pass 0.9"
    kinds = {tensor.dtype for tensor in model.parameters()}
    assert kinds == {torch.float32}, f"parameters of {kinds}, should stay float32"


def test_reports_progress_and_mean_loss():
    told = []
    split, model = split_of(20), tiny_model()
    config = TrainConfig(epochs=3, batch=8, lr=1e-12, shift=0, flip=False, label_smoothing=0.0)
    model[2].p = 0.0
    loss = train_epoch(model, split, make_optimizer(model, config), config, 1, lambda *args: told.append(args))
    expected = [("epoch 2/3", 1, 3), ("epoch 2/3", 2, 3), ("epoch 2/3", 3, 3)]
    assert told == expected, f"progress {told}, should be {expected}"
    assert 0.1 < loss < 3, f"loss {loss}, should be some nats an example"


def test_diverging_is_said():
    model, config = tiny_model(), TrainConfig(epochs=1, batch=8, lr=1e30, warmup=0.0, momentum=0.0)
    with pytest.raises(ModelError, match=r"in epoch 1, should be finite; a rate below 1e\+30 may help"):
        train_epoch(model, split_of(), make_optimizer(model, config), config, 0)
