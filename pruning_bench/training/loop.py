"""A plain training loop: every epoch is a pure function of the seed, its number and the state before it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from pruning_bench.datasets.contract import Split
from pruning_bench.errors import ModelError
from pruning_bench.models.running import differentiating, logits_of
from pruning_bench.options import Amount, BelowOne, Checked, Count, Pixels, Positive, Range
from pruning_bench.training.fitting import WHO, Feed

Progress = Callable[[str, int, int], None]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (inputs, logits, labels) -> mean loss of a batch, in nats


@dataclass(frozen=True)
class TrainConfig(Checked):
    """How to train.

    Args:
        epochs: passes over the data, at least 1.
        batch: examples a step, at least 1.
        lr: the highest learning rate.
        optimizer: SGD with Nesterov momentum, or AdamW.
        momentum: of SGD, in [0, 1).
        weight_decay: on weights; never on biases and norms.
        schedule: see `learning_rate`.
        warmup: share of all steps in which the rate rises from zero, in [0, 1).
        label_smoothing: share of the target spread evenly over the classes, in [0, 1).
        shift: images are moved by up to this many pixels along each axis; what comes in is zero.
        flip: half of the images are mirrored.
        amp: the forward pass in bfloat16 autocast.
        seed: of the order, the augmentation and the dropout.
    Raises:
        OptionError: a value out of its range.
    """

    name: ClassVar[str] = WHO

    epochs: Count = 16
    batch: Count = 128
    lr: Positive = 0.05
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: BelowOne = 0.9
    weight_decay: Amount = 5e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: BelowOne = 0.1
    label_smoothing: BelowOne = 0.1
    shift: Pixels = 2
    flip: bool = True
    amp: bool = False
    seed: Annotated[int, Range("[0, 9223372036854775808)")] = 0


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """The rate of step `step` of `steps`: a linear rise over the share `warmup`, then the schedule.

    With t in [0, 1) the share done of what follows the warm-up: cosine is lr (1 + cos(pi t)) / 2, linear is lr (1 - t).

    Example:
        >>> config = TrainConfig(lr=1.0, warmup=0.5, schedule="linear")
        >>> [learning_rate(step, 8, config) for step in range(8)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    rising = round(config.warmup * steps)
    if step < rising:
        return config.lr * (step + 1) / rising
    done = (step - rising) / (steps - rising)
    shape = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
    return config.lr * shape[config.schedule]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the trainable parameters; those of one dimension or none (biases, norms) do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ModelError(WHO, "no trainable parameter", "at least one parameter that requires a gradient")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def augment(images: Tensor, generator: torch.Generator, shift: int, flip: bool) -> Tensor:
    """Moves every image by up to `shift` pixels along each axis and mirrors half of them.

    Args:
        images: [N, C, H, W]; what comes in at the border is zero.
    Returns:
        The same shape and type.
    """
    count, _, height, width = images.shape
    if shift:
        offsets = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator) - shift
        down, right = min(shift, height), min(shift, width)  # farther on there is nothing either
        rows = (offsets[0].clamp(-down, down) + down + torch.arange(height))[:, :, None]
        columns = (offsets[1].clamp(-right, right) + right + torch.arange(width))[:, None, :]
        padded = nn.functional.pad(images, (right, right, down, down))
        images = padded.movedim(1, -1)[torch.arange(count)[:, None, None], rows, columns].movedim(-1, 1)
    if flip:
        mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
    return images.contiguous()


def cross_entropy(config: TrainConfig) -> Loss:
    """The loss of the labels, smoothed as configured."""
    loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    return lambda inputs, logits, labels: loss(logits, labels)


def train_epoch(
    model: nn.Module,
    split: Split,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    epoch: int,
    progress: Progress | None = None,
    loss_of: Loss | None = None,
    feed: Feed = Feed(),  # noqa: B008  (frozen)
) -> float:
    """Runs epoch `epoch` (0 is the first) of `config.epochs` in training mode, also where gradients are switched off.

    Args:
        loss_of: instead of the cross entropy of the labels.
        feed: how batches go to the model, as `fit` finds it.
    Returns:
        Mean training loss in nats, label smoothing included.
    Raises:
        ModelError: the loss is not finite or has no gradient; the model fails, forward or backward; its weights or
            statistics are not finite at the end, which one batch with a finite loss is enough for.
    """
    device = next(model.parameters()).device
    loss_of = loss_of or cross_entropy(config)
    total, sound = torch.zeros((), device=device), _finite(model)
    model.train()
    with torch.enable_grad(), _randomness(config.seed, epoch, device) as generator:
        batches = feed.batches(torch.randperm(len(split), generator=generator), config.batch)
        count = len(batches)
        for index, chosen in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * count + index, config.epochs * count, config)
            images, labels = _batch(split, chosen, generator, config)
            inputs, labels = feed.images(images, device), labels.to(device)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.amp):
                logits = logits_of(model, (inputs,), labels, WHO)
            loss = loss_of(inputs, logits, labels)
            with differentiating(loss, model, WHO):
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach() * len(chosen)
            if progress is not None:
                progress(f"epoch {epoch + 1}/{config.epochs}", index + 1, count)
    mean = float(total) / len(split)
    if not math.isfinite(mean):
        raise _diverged(f"loss {mean}", epoch, config)
    if spoilt := sorted(sound - _finite(model)):
        raise _diverged(f"non-finite values in {spoilt[0]}", epoch, config)
    return mean


def _finite(model: nn.Module) -> set[str]:
    """The parameters and buffers without NaN and infinity; a mask for attention may hold some from the beginning."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name for name, tensor in tensors if bool(torch.isfinite(tensor).all())}


def _diverged(found: str, epoch: int, config: TrainConfig) -> ModelError:
    return ModelError(WHO, f"{found} in epoch {epoch + 1}", f"finite; a rate below {config.lr} may help")


def _batch(split: Split, chosen: Tensor, generator: torch.Generator, config: TrainConfig) -> tuple[Tensor, Tensor]:
    images = augment(split.images[chosen], generator, config.shift, config.flip)
    part = Split(images, split.labels[chosen], split.mean, split.std)
    return part.inputs(), part.labels


@contextmanager
def _randomness(seed: int, epoch: int, device: torch.device) -> Iterator[torch.Generator]:
    """A generator of this epoch alone; dropout, which takes none, draws from a global one seeded the same way."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8], "big") >> 1
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(number)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield torch.Generator().manual_seed(number)
