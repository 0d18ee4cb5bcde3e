"""Activation functions by name, for reference models that let one choose."""

from __future__ import annotations

from torch import nn

from pruning_bench.errors import UnknownNameError, closest

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}


def make_activation(name: str) -> nn.Module:
    """A fresh activation module; raises `UnknownNameError`.

    Example:
        >>> make_activation("relu")
        ReLU()
    """
    if name not in ACTIVATIONS:
        raise UnknownNameError("activation", repr(name), closest(name, ACTIVATIONS))
    return ACTIVATIONS[name]()
