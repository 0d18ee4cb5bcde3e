"""Bits for each layer under a budget: the choice of smallest summed error, a knapsack with one option of each layer.

The errors are measured with one layer quantized alone, and taken to add up.

Dong et al., HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks, NeurIPS 2020, arXiv 1911.03852;
Cai et al., ZeroQ: A Novel Zero Shot Quantization Framework, CVPR 2020, arXiv 2001.00281.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped]
from torch import Tensor
from torch.func import functional_call

from pruning_bench.errors import LevelError, ModelError
from pruning_bench.models.contract import first_tensor, fresh
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.contract import Affine
from pruning_bench.quantization.plans import Prepared

GAP = 1e-4  # how far, as a share, the summed error may be from the smallest there is


def choose_bits(
    errors: Mapping[str, Mapping[int, float]], counts: Mapping[str, int], budget: int, who: str = "bits"
) -> dict[str, int]:
    """The bits of every layer: smallest summed error (to `GAP`) of those choices that the budget allows.

    minimise sum_l error_l(b_l) where sum_l count_l * b_l <= budget

    Args:
        errors: layer -> {bits -> error}, finite and at least 0; at least one option each.
        counts: layer -> how many weights it has.
        budget: bits of all weights together.
    Raises:
        LevelError: the fewest bits that there are take more.
    Example:
        >>> choose_bits({"a": {2: 9.0, 4: 1.0}, "b": {2: 3.0, 4: 2.0}}, {"a": 10, "b": 10}, 60)
        {'a': 4, 'b': 2}
    """
    least = {name: min(options) for name, options in errors.items()}
    if _size(least, counts) > budget:
        raise LevelError(who, f"a budget of {budget} bits", f"at least {_size(least, counts)}")
    pairs = [(name, bits) for name, options in errors.items() for bits in options]
    worst = sum(max(options.values()) for options in errors.values()) or 1.0
    cost = np.array([errors[name][bits] / worst for name, bits in pairs])
    sizes = np.array([float(counts[name] * bits) for name, bits in pairs])
    one_each = np.array([[float(name == own) for own, _ in pairs] for name in errors])
    allowed = budget
    while allowed >= _size(least, counts):
        rows = [LinearConstraint(one_each, 1, 1), LinearConstraint(sizes[None], -np.inf, allowed)]
        found = milp(
            cost, integrality=np.ones(len(pairs)), bounds=Bounds(0, 1), constraints=rows, options={"mip_rel_gap": GAP}
        )
        if found.x is None:
            break
        chosen = {name: bits for (name, bits), taken in zip(pairs, found.x, strict=True) if taken > 0.5}
        over = _size(chosen, counts) - budget
        if over <= 0:
            return chosen
        allowed -= over  # the solver rounds; the budget is exact
    return least


def _size(bits: Mapping[str, int], counts: Mapping[str, int]) -> int:
    return sum(counts[name] * bits[name] for name in bits)


@torch.no_grad()
def output_errors(
    prepared: Prepared,
    candidates: Mapping[str, Mapping[int, Affine]],
    batches: Sequence[tuple[Tensor, ...]],
    who: str,
    progress: Callable[[str, int, int], None],
) -> dict[str, dict[int, float]]:
    """Layer -> {bits -> mean squared change of the model's output when that weight alone is rounded}.

    Args:
        candidates: weight -> {bits -> affine}.
        batches: of the model's inputs.
    Raises:
        ModelError: an output that is no tensor, not finite, or so large that the square of an error is not.
    """
    model, weights = prepared.folded, prepared.weights
    before = [_output(model(*fresh(batch)), who) for batch in batches]
    total = sum(output.numel() for output in before)
    errors: dict[str, dict[int, float]] = {}
    for done, (name, options) in enumerate(candidates.items()):
        progress(f"{who}: {name}", done, len(candidates))
        errors[name] = {}
        for bits, affine in options.items():
            rounded = {name: fake_quantize(weights[name], affine)}
            after = [_output(functional_call(model, rounded, fresh(batch)), who) for batch in batches]
            noise = sum(float((a - b).square().sum(dtype=torch.float64)) for a, b in zip(after, before, strict=True))
            if not math.isfinite(noise):
                raise ModelError(who, f"errors at {bits} bits whose squares are not finite", "smaller outputs", name)
            errors[name][bits] = noise / total
    return errors


def _output(value: object, who: str) -> Tensor:
    found = first_tensor(value)
    if found is None or not torch.isfinite(found).all():
        shown = type(value).__name__ if found is None else "non-finite values"
        raise ModelError(who, f"an output of {shown}", "a tensor of finite values")
    return found
