"""The state of an interrupted training: one safetensors file, replaced atomically after every epoch; no pickle."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning_bench.errors import CheckpointError


@dataclass(frozen=True)
class Progressed:
    """What is known of a training beside tensors: what it trains, epochs done, a row of figures for each."""

    identity: dict[str, Any]
    epochs_done: int
    history: list[dict[str, float]]


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progressed: Progressed) -> None:
    """Writes model, optimizer and progress to `path`, which is whole at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": _plain(value) for name, value in model.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{slot}"] = _plain(value)
    metadata = {"progress": json.dumps(vars(progressed))}
    partial = path.with_name(f"{path.name}.partial")
    save_file(tensors, partial, metadata)
    os.replace(partial, path)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]) -> Progressed:
    """Restores model and optimizer in place from what `save_state` wrote.

    Raises:
        CheckpointError: missing, corrupt, of another model, or of another training than `identity`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            progressed = Progressed(**json.loads((file.metadata() or {})["progress"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError("resume", f"unreadable ({error})", "a state saved by this command", str(path)) from None
    for key in sorted({*identity, *progressed.identity}):
        then, now = progressed.identity.get(key), identity.get(key)
        if then != now:
            raise CheckpointError("resume", f"{key} {now}", f"{then}, as when it was interrupted", str(path))
    try:
        model.load_state_dict(_under(tensors, "model."))
    except RuntimeError as error:
        raise CheckpointError("resume", " ".join(str(error).split()), "the same model", str(path)) from None
    state = optimizer.state_dict()
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(tensors, "optimizer.").items():
        index, slot = name.split(".", 1)
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({**state, "state": slots})
    return progressed


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().clone()


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
