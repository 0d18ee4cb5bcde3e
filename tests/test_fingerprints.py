"""Fingerprints of a user's own model: the same wherever the weights lie, another one for another computation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pruning_bench.fingerprints import fingerprint


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.GELU(), nn.Dropout(0.1))
    made.name_or_path = "/home/here/models/net"  # type: ignore[assignment]
    return made


SAME: dict[str, Callable[[nn.Sequential], object]] = {
    "nothing": lambda m: None,
    "another folder": lambda m: setattr(m, "name_or_path", "/mnt/there/net"),
    "other folders": lambda m: setattr(m, "folders", ["/mnt/there", "/mnt/here"]),
    "private": lambda m: setattr(m, "_number", 3),
}
OTHER: dict[str, Callable[[nn.Sequential], object]] = {
    "weight": lambda m: m[0].weight.data.mul_(2),
    "number": lambda m: setattr(m[2], "p", 0.2),
    "flag": lambda m: setattr(m, "flag", True),
    "numbers": lambda m: setattr(m[0], "stride", (2, 2)),
    "padding": lambda m: setattr(m[0], "padding_mode", "circular"),
    "approximation": lambda m: setattr(m[1], "approximate", "tanh"),
    "class": lambda m: m.__setitem__(1, nn.ReLU()),
    "type": lambda m: setattr(m, "kind", torch.float16),
}


@pytest.mark.parametrize("change", SAME)
def test_the_same_model_elsewhere(change: str) -> None:
    other = net()
    SAME[change](other)
    assert fingerprint(other) == fingerprint(net()), f"{change}: the weights and the computation are the same"


@pytest.mark.parametrize("change", OTHER)
def test_another_model(change: str) -> None:
    other = net()
    OTHER[change](other)
    assert fingerprint(other) != fingerprint(net()), f"{change}: it does not show"
