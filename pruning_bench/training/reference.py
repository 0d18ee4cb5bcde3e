"""Training of reference models: from names to a checkpoint with its card."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

import pruning_bench
from pruning_bench.datasets.contract import Dataset, labelled_images, load_dataset
from pruning_bench.errors import CheckpointError
from pruning_bench.models.checkpoints import SHIPPED, checkpoint_path, load_checkpoint, read_card, save_checkpoint
from pruning_bench.models.contract import build_model
from pruning_bench.training.evaluation import evaluate
from pruning_bench.training.fitting import fit
from pruning_bench.training.loop import Progress, TrainConfig, make_optimizer, train_epoch
from pruning_bench.training.state import Progressed, load_state, save_state

Report = Callable[[str], None]


def train(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    *,
    identity: dict[str, Any] | None = None,
    state: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    report: Report = lambda line: None,
) -> list[dict[str, float]]:
    """Trains `model` in place; the selection split is evaluated after every epoch, the test split never.

    The weights are those of the last epoch. A training that was interrupted between epochs and resumed ends in the same
    weights, bit for bit, as one that was not.

    Args:
        identity: what must be equal for a state to be resumed, besides `config`.
        state: the file that holds the state after every epoch; None keeps none.
        resume: go on from `state`; a missing file starts at the beginning.
        progress: called as `progress(message, done, total)` after every step.
        report: called with one line after every epoch.
    Returns:
        One row for each epoch: epoch, train_loss, selection_loss, selection_top1.
    Raises:
        CheckpointError: the state does not belong to this training.
        ModelError: the loss or weights are not finite; the model does not fit the images.
        DataError: no images, or labels that are none of the model's classes.
    """
    images, selection = (labelled_images(part, "train") for part in (dataset.train, dataset.selection))
    optimizer = make_optimizer(model, config)
    identity = {**(identity or {}), **dataclasses.asdict(config), "data_digest": dataset.digest}
    done = Progressed(identity, 0, [])
    if resume and state is not None and state.exists():
        done = load_state(state, model, optimizer, identity)
    feed = fit(model, images, config)
    model.to(memory_format=feed.memory_format)
    for epoch in range(done.epochs_done, config.epochs):
        started = time.perf_counter()
        loss = train_epoch(model, images, optimizer, config, epoch, progress, feed=feed)
        chosen = evaluate(model, selection)
        row = {"epoch": epoch + 1, "train_loss": loss, "selection_loss": chosen.loss, "selection_top1": chosen.top1}
        done = Progressed(identity, epoch + 1, [*done.history, row])
        if state is not None:
            save_state(state, model, optimizer, done)
        report(
            f"epoch {epoch + 1}/{config.epochs}: training loss {loss:.4f}, selection loss {chosen.loss:.4f}, "
            f"selection top-1 {chosen.top1:.2%}, {time.perf_counter() - started:.0f} s"
        )
    model.to(memory_format=torch.contiguous_format)
    model.eval()
    return done.history


def train_reference(
    model_name: str,
    dataset_name: str,
    config: TrainConfig | None = None,
    *,
    options: dict[str, Any] | None = None,
    data_dir: Path | None = None,
    full: bool = True,
    init: Path | None = None,
    out_dir: Path = SHIPPED,
    resume: bool = False,
    force: bool = False,
    device: str = "cpu",
    command: str = "",
    progress: Progress | None = None,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Trains a model by name on a data set by name and writes checkpoint and card; the test set is looked at once.

    Args:
        config: how to train; None takes the defaults. The cards of the shipped checkpoints name theirs.
        options: of the model's builder, e.g. `{"activation": "gelu"}`.
        data_dir: where the full data lie; see `load_dataset`.
        full: train on the full training split.
        init: a checkpoint of the same model and options to start from, instead of random weights.
        out_dir: the folder of the checkpoint, of its card, and of the state while it trains.
        resume: go on from the state of an interrupted training.
        force: overwrite a checkpoint and, unless resumed, a state that lie there already.
        command: how to repeat this, for the card.
    Returns:
        The card.
    Raises:
        UnknownNameError, DataError, CheckpointError, ModelError.
    """
    config = config or TrainConfig()
    path = checkpoint_path(model_name, dataset_name, out_dir)
    state = path.with_name(f"{path.stem}.state.safetensors")
    if not force:
        _refuse_to_overwrite(path, None if resume else state)
    dataset = load_dataset(dataset_name, data_dir, full=full)
    shape = {
        "num_classes": len(dataset.classes),
        "in_channels": labelled_images(dataset.train, "train").images.shape[1],
    }
    options = {**shape, **(options or {})}
    model = seeded_model(model_name, options, config.seed)
    start = {} if init is None else {"init": _start_from(model, init, model_name, options)}
    model = model.to(device)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            "train", error.strerror or str(error), "a folder for the checkpoint", str(out_dir)
        ) from None
    history = train(
        model,
        dataset,
        config,
        identity={"model": model_name, "dataset": dataset_name, **options, **start},
        state=state,
        resume=resume,
        progress=progress,
        report=report,
    )
    test = evaluate(model, labelled_images(dataset.test, "train"))
    card = {
        "model": model_name,
        "dataset": dataset_name,
        "options": options,
        "test_top1": test.top1,
        "test_loss": test.loss,
        "selection_top1": history[-1]["selection_top1"],
        "command": command,
        **start,
        "training": dataclasses.asdict(config),
        "seed": config.seed,
        "data_digest": dataset.digest,
        "train_examples": len(dataset.train),
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "history": history,
        "test_confusion": test.confusion.tolist(),
    }
    card = save_checkpoint(model, card, path)
    state.unlink(missing_ok=True)
    report(f"test top-1 {test.top1:.2%}, loss {test.loss:.4f}; written to {path}")
    return card


def _start_from(model: nn.Module, path: Path, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Loads a checkpoint into the model; its digest, command and own start, for the card of what is trained from it."""
    card = read_card(path)
    if (card["model"], card["options"]) != (name, options):
        found, expected = f"{card['model']} with options {card['options']}", f"{name} with options {options}"
        raise CheckpointError("train", found, expected, str(path))
    model.load_state_dict(load_checkpoint(path).state_dict())
    return {name: card[name] for name in ("sha256", "command", "init") if name in card}


def _refuse_to_overwrite(path: Path, state: Path | None) -> None:
    for file in (path, path.with_suffix(".json")):
        if file.exists():
            raise CheckpointError("train", "an existing checkpoint", "another folder, or --force", str(file))
    if state is not None and state.exists():
        expected = "--resume to go on with it, or --force to start anew"
        raise CheckpointError("train", "the state of an interrupted training", expected, str(state))


def seeded_model(name: str, options: dict[str, Any], seed: int) -> nn.Module:
    """A registered model whose random weights depend on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng([]):  # weights are drawn on the CPU
        torch.default_generator.manual_seed(seed)
        return build_model(name, **options)


def _versions() -> dict[str, str]:
    return {
        "pruning_bench": pruning_bench.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
