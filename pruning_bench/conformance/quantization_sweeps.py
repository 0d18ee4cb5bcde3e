"""What must hold for a quantization method over several bits, granularities and data, and for a pruned model.

Each check is called with the method, asserts with the values, and returns nothing; those that its
tags ask for are in `sweeps_for_quantization`.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pruning_bench.conformance.quantization_checks import Check, example, example_images
from pruning_bench.contracts import Context
from pruning_bench.errors import ModelError
from pruning_bench.levels import Bits
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.contract import QuantizationMethod
from pruning_bench.quantization.fold import fold_batch_norms
from pruning_bench.quantization.simulation import simulate

SWEPT = (2, 4, 8)  # bits of weights; activations have 8
GROUP = 4  # columns, against a whole channel
SLACK_DB = 1.0  # by how much a finer step may be worse: errors of layers can cancel


def sqnr_db(method: QuantizationMethod, level: Any) -> float:
    """Signal over noise of the simulated example, 10 log10(variance over inputs / mean squared error), at a level."""
    model, _, context = example(method)
    x = example_images(64, torch.Generator().manual_seed(11))
    with torch.no_grad():
        expected = model(x)
        noise = simulate(method.plan(model, level, context), model, context.example_inputs)(x) - expected
    return 10 * math.log10(float(expected.var(0).mean()) / max(float(noise.square().mean()), 1e-30))


def check_sqnr_bars(method: QuantizationMethod) -> None:
    """At the bits that the method's tag names the signal over noise is at least what it promises."""
    for bits, bar in sorted(method.tags.sqnr_db.items()):
        found = sqnr_db(method, _level(method, bits))
        assert found >= bar, f"{method.name}: {found:.1f} dB at {_level(method, bits)}, should be at least {bar:.1f} dB"


def check_monotone_in_bits(method: QuantizationMethod) -> None:
    """More bits of the weights are never worse, to `SLACK_DB`."""
    found = [(level, sqnr_db(method, level)) for level in (_level(method, bits) for bits in _swept(method, SWEPT))]
    for (few, less), (many, more) in pairwise(found):
        words = f"{more:.1f} dB at {many}, should be at least the {less:.1f} of {few}"
        assert more >= less - SLACK_DB, f"{method.name}: {words}"


def check_monotone_in_granularity(method: QuantizationMethod) -> None:
    """Scales for smaller parts of a weight are never worse, to `SLACK_DB`; at 4 bits, by the options of the method."""
    level = _level(method, 4)
    for coarse, fine in _granularities(method):
        less, more = (sqnr_db(dataclasses.replace(method, **options), level) for options in (coarse, fine))  # type: ignore[type-var]
        assert more >= less - SLACK_DB, (
            f"{method.name}: {more:.1f} dB with {_spelt(fine)}, should be at least the {less:.1f} with {_spelt(coarse)}"
        )


def check_pruned_stay_zero(method: QuantizationMethod) -> None:
    """Weights that a mask has made zero are exactly zero after quantization to few bits, and to 8."""
    model, _, context = example(method)
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            masks[name] = parameter.detach().abs() >= parameter.detach().abs().median()
            parameter.data.mul_(masks[name])
    parameters = dict(fold_batch_norms(model, context.example_inputs).named_parameters())
    for bits in _swept(method, (3, 8)):
        plan = method.plan(model, _level(method, bits), dataclasses.replace(context, earlier=masks))
        for name, coding in plan.weights.items():
            values = fake_quantize(plan.writes.get(name, parameters[name]).detach(), coding)
            _require_zeros(method, name, values, masks[name])
        for name in plan.codebooks:
            _require_zeros(method, name, plan.writes.get(name, parameters[name]).detach(), masks[name])


def _require_zeros(method: QuantizationMethod, name: str, values: Tensor, mask: Tensor) -> None:
    alive = int((values[~mask] != 0).sum())
    assert not alive, f"{method.name}: {alive} of {int((~mask).sum())} pruned weights of {name} alive"


def check_weights_alone(method: QuantizationMethod) -> None:
    """The plan of a method for weights quantizes nothing that is computed."""
    plan = method.plan(*example(method))
    besides = [*plan.activations, *(["inputs at run time"] if plan.dynamic else [])]
    assert not besides, f"{method.name}: quantizes {', '.join(besides)} too, should leave activations in float"


def check_bad_calibration(method: QuantizationMethod) -> None:
    """Data that is missing, empty or not finite is refused by a `ModelError` of one line."""
    model, level, context = example(method)
    spoilt = torch.ones(2, 3, 8, 8).index_fill(0, torch.tensor([1]), math.nan)
    for what, batches in {"no": None, "no batches of": [], "empty": [(spoilt[:0],)], "non-finite": [(spoilt,)]}.items():
        error = _refusal(method, model, level, dataclasses.replace(context, calibration=batches))
        assert error, f"{method.name}: plans from {what} calibration data, should refuse it"
        assert "\n" not in error, f"{method.name}: the error for {what} calibration data has several lines: {error}"


def sweeps_for_quantization(method: QuantizationMethod) -> list[tuple[str, Check]]:
    """(name, check) of every law of this module that the method's tags ask for; each is called with the method."""
    tags = method.tags
    checks: list[Check] = [*([check_bad_calibration] if tags.needs_calibration else [])]
    if tags.weights and not tags.casts:
        checks += [check_pruned_stay_zero, *([check_monotone_in_bits] if len(_swept(method, SWEPT)) > 1 else [])]
        checks += [check_monotone_in_granularity] if _granularities(method) else []
        checks += [] if tags.activations else [check_weights_alone]
        checks += [check_sqnr_bars] if tags.sqnr_db else []
    return [(check.__name__.removeprefix("check_"), check) for check in checks]


def _refusal(method: QuantizationMethod, model: nn.Module, level: Any, context: Context) -> str:
    try:
        method.plan(model, level, context)
    except ModelError as error:
        return str(error)
    return ""


def _swept(method: QuantizationMethod, bits: Sequence[int]) -> list[int]:
    """Those of the bits that the method has levels of."""
    return [number for number in bits if number in method.tags.bits]


def _level(method: QuantizationMethod, bits: int) -> Bits:
    return Bits(bits, 8 if method.tags.activations else None)


def _granularities(method: QuantizationMethod) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of options, the coarser first, that the method takes."""
    kinds = typing.get_type_hints(type(method))
    choices = typing.get_args(kinds.get("granularity"))
    whole = [({"granularity": "per_tensor"}, {"granularity": "per_channel"})] if "per_tensor" in choices else []
    return whole + ([({"group": 0}, {"group": GROUP})] if kinds.get("group") is int else [])


def _spelt(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())
