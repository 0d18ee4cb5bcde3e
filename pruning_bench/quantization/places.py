"""Where a graph keeps the modules that stand for its operators and values: under one flat attribute for each name.

Readable names are no paths of attributes: "add.inner.linear" would lead through what stands at "add", and every module
has an attribute "to".

Example:
    >>> path_of(QUANTIZED, "stages.0.conv_1.conv2d")
    '_quantized.at_stages_d0_dconv__1_dconv2d'
    >>> layer_at("_quantized.at_stages_d0_dconv__1_dconv2d.codes")
    'stages.0.conv_1'
"""

from __future__ import annotations

import re

QUANTIZED, POINTS = "_quantized", "_points"  # of operators, of values
_MARK = "at_"
_ESCAPES = {"__": "_", "_d": "."}


def path_of(container: str, name: str) -> str:
    """The path of what stands at a readable name."""
    return f"{container}.{_MARK}{name.replace('_', '__').replace('.', '_d')}"


def name_at(path: str, container: str) -> str | None:
    """The readable name that `path_of` made a path of, or one inside it; None for every other path."""
    prefix = f"{container}.{_MARK}"
    if not path.startswith(prefix):
        return None
    return re.sub("_[_d]", lambda found: _ESCAPES[found.group()], path.removeprefix(prefix).partition(".")[0])


def layer_at(path: str) -> str | None:
    """The layer or module of what stands at the path: its name without the operator; None for every other path."""
    found = name_at(path, QUANTIZED) or name_at(path, POINTS)
    return None if found is None else found.rpartition(".")[0]


def layer_of_weight(name: str) -> str:
    """What a layer goes by in listings: its module, or the weight itself where that has another name than `weight`.

    Example:
        >>> layer_of_weight("encoder.fc.weight"), layer_of_weight("encoder.attention.in_proj_weight")
        ('encoder.fc', 'encoder.attention.in_proj_weight')
    """
    return name.removesuffix(".weight")
