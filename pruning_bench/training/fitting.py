"""How labelled images go to a model that is trained on them, and whether they fit it at all."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pruning_bench.datasets.contract import Split, check_classes
from pruning_bench.errors import DataError, ModelError
from pruning_bench.graphs import evaluating
from pruning_bench.models.running import logits_of, run

if TYPE_CHECKING:
    from pruning_bench.training.loop import TrainConfig

WHO = "train"


@dataclass(frozen=True)
class Feed:
    """How batches go to a model.

    Args:
        dtype: of the images.
        memory_format: of the images; in channels_last convolutions are faster.
        alone: a batch may be of one example.
    """

    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.channels_last
    alone: bool = True

    def images(self, images: Tensor, device: torch.device) -> Tensor:
        """Normalised images [N, C, H, W] as the model takes them."""
        return images.to(device, self.dtype, memory_format=self.memory_format)

    def batches(self, order: Tensor, size: int) -> list[Tensor]:
        """Indices in batches of `size`; the last has fewer, or one more where it is not to be of one example.

        Example:
            >>> [len(batch) for batch in Feed(alone=False).batches(torch.arange(9), 4)]
            [4, 5]
        """
        batches = list(torch.split(order, size))
        if not self.alone and len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches


def fit(
    model: nn.Module,
    split: Split,
    config: TrainConfig,
    dtype: torch.dtype | None = None,
    also: Sequence[nn.Module] = (),
) -> Feed:
    """How the images of `split` go to the model, which runs on two of them in eval mode: nothing about it changes.

    In channels_last where it runs on that (`view` may not), else contiguous. A last batch of one example joins the one
    before where the model does not run on it in training mode: batch norm needs two values. All else stays as it is.

    Args:
        dtype: of the images; None: float32.
        also: models that are shown the same images.
    Raises:
        ModelError: a model that does not run on the images, or returns no logits; torch.inference_mode().
        DataError: a label that is none of its classes; a single example, or batches of one, that it cannot train on.
    """
    if torch.is_inference_mode_enabled():
        raise ModelError(WHO, "torch.inference_mode()", "left for training, as by torch.inference_mode(False)")
    feed = Feed(dtype or torch.float32)
    with _unseen(model, config.amp):
        for one in (model, *also):
            feed = _layout(one, split, feed)
        if 1 in (config.batch, len(split) % config.batch) and not _trains_alone(model, split, feed):
            feed = replace(feed, alone=False)
    if not feed.alone and 1 in (config.batch, len(split)):
        found = "one training example" if len(split) == 1 else "batches of one example"
        raise DataError(WHO, found, "at least 2 in each batch, as batch norm needs in training", type(model).__name__)
    return feed


def _layout(model: nn.Module, split: Split, feed: Feed) -> Feed:
    """The feed, or the contiguous one where the model does not run on its memory format."""
    inputs, labels = _first(split, 2, model, feed)
    with evaluating(model):
        try:
            logits = logits_of(model, inputs, labels, WHO)
        except ModelError:
            if feed.memory_format == torch.contiguous_format:
                raise
            return _layout(model, split, replace(feed, memory_format=torch.contiguous_format))
    check_classes(split.labels, logits.shape[1], WHO)
    return feed


def _trains_alone(model: nn.Module, split: Split, feed: Feed) -> bool:
    """Does the model run on one example in training mode? A copy of it tries."""
    try:
        run(copy.deepcopy(model).train(), _first(split, 1, model, feed)[0], WHO)
    except ModelError:
        return False
    return True


def _first(split: Split, count: int, model: nn.Module, feed: Feed) -> tuple[tuple[Tensor], Tensor]:
    """The first examples as the model takes them, and their labels."""
    device = next(model.parameters()).device
    return (feed.images(split.inputs(slice(count)), device),), split.labels[:count].to(device)


@contextmanager
def _unseen(model: nn.Module, amp: bool) -> Iterator[None]:
    """As in training, but without gradients, and with the global random numbers afterwards as before."""
    device = next(model.parameters()).device
    forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with forked, torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
        yield
