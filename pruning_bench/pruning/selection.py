"""Which scores stay: how many go, in what order, and how ties fall; at any size without joining the tensors.

Every convention of sparsity lives here: `pruned_count` rounds, `select_global` orders ties. Nobody else multiplies by a
sparsity.

The threshold is found digit by digit: floats are ordered as their bits are, so a histogram of the first 16 bits of all
scores tells in which bin the threshold lies, and a second one of the next 16 bits, of the scores in that bin alone, is
exact for float32 (float64 takes two more). Scores are made tensor by tensor when they are looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from pruning_bench.errors import LevelError, ModelError

WHO = "masks"
_DIGIT = 16  # bits looked at in one pass
_WHOLE = {torch.float32: torch.int32, torch.float64: torch.int64}
_CHUNK = 1 << 18  # elements looked at together: their temporaries stay small


class LazyScores(Mapping[str, Tensor]):
    """Scores that are made anew each time they are looked at, so that only one tensor of them exists at a time.

    Args:
        like: name -> a tensor of the type that its scores have.
        make: the scores of a name.
    Example:
        >>> LazyScores({"a": torch.ones(2)}, lambda name: torch.zeros(2))["a"]
        tensor([0., 0.])
    """

    def __init__(self, like: Mapping[str, Tensor], make: Callable[[str], Tensor]) -> None:
        self.like, self._make = like, make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.like:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch's own threads put away: the work waits for memory, and on a busy machine threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pruned_count(numel: int, sparsity: float) -> int:
    """How many of `numel` weights a sparsity removes: the nearest whole number to `numel * sparsity`, halves to even.

    The product is exact in the decimal digits of the sparsity, so that 0.29 of 100 is 29; it never falls when the
    sparsity rises.

    Raises:
        LevelError: sparsity outside [0, 1).
    Example:
        >>> pruned_count(100, 0.29), pruned_count(5, 0.5), pruned_count(1, 0.9)
        (29, 2, 1)
    """
    if not 0 <= sparsity < 1:
        raise LevelError(WHO, f"sparsity {sparsity}", "in [0, 1)")
    return round(numel * Fraction(repr(float(sparsity))))


def highest_sparsity(numel: int, most: int) -> float:
    """The highest sparsity, in ten-thousandths, at which `pruned_count` removes at most `most` of `numel` weights.

    Args:
        most: in [0, numel).
    Example:
        >>> highest_sparsity(3, 2), pruned_count(3, 0.8333), pruned_count(3, 0.8334)
        (0.8333, 2, 3)
    """
    at = min(10_000 * (2 * most + 1) // (2 * numel), 9_999)
    return (at if pruned_count(numel, at / 10_000) <= most else at - 1) / 10_000


def require_finite(name: str, values: Tensor, what: str = "weights") -> None:
    """Raises `ModelError` naming the tensor if it holds NaN or infinity, or no values at all."""
    if values.is_meta:
        raise ModelError(WHO, f"{what} on the device meta", "tensors with values", name)
    if not values.numel() or not values.is_floating_point():
        return
    with _one_thread():
        low, high = torch.aminmax(values.detach())  # both NaN if anything is
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        bad = int((~torch.isfinite(values)).sum())
        raise ModelError(WHO, f"{bad} of {values.numel()} {what} NaN or infinite", "all finite", name)


def keep_largest(scores: Tensor, sparsity: float) -> Tensor:
    """Keeps all but the `pruned_count` smallest scores; of equal scores, those that stand first go first.

    Args:
        scores: any shape, finite.
        sparsity: in [0, 1).
    Returns:
        bool, shape of `scores`, True = kept.
    Raises:
        ModelError: NaN or infinite scores.
        LevelError: sparsity outside [0, 1).
    Example:
        >>> keep_largest(torch.tensor([0.0, 3.0, 0.0, 0.0]), 0.5)
        tensor([False,  True, False,  True])
    """
    return select_global({"scores": scores}, sparsity)["scores"]


def select_global(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """`keep_largest` over all tensors as if they were one, in the order of the mapping.

    Of |w| these are the masks of `torch.nn.utils.prune.global_unstructured` but for scores equal to the threshold,
    where that one's choice, by `torch.topk`, is left open: of 23 million float32 weights a few are equal there.

    Args:
        scores: name -> any shape, finite, of any floating-point type; `LazyScores` are made one at a time.
    Raises:
        ModelError: NaN or infinite scores; names the tensor.
        LevelError: sparsity outside [0, 1).
    Example:
        >>> select_global({"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([2.0, 3.0])}, 0.5)
        {'a': tensor([False,  True]), 'b': tensor([False,  True])}
    """
    if not scores:
        return {}
    with _one_thread():
        return _select(scores, sparsity)


def _select(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    wide = _wide_type(scores)
    bins = _first_digits(scores, wide)
    count = pruned_count(int(bins.sum()), sparsity)
    if count == 0:
        return {name: torch.ones(values.shape, dtype=torch.bool) for name, values in scores.items()}
    threshold, ties, going = _threshold(scores, wide, bins, count)
    masks = {}
    for name, values in scores.items():
        values = values.detach().cpu().to(wide)
        if going in (0, ties):  # of the scores at the threshold none goes any more, or all do
            masks[name] = values > threshold if going else values >= threshold
            continue
        masks[name] = values >= threshold
        tied = (values == threshold).reshape(-1).nonzero().squeeze(1)
        masks[name].view(-1)[tied[:going]] = False
        ties, going = ties - len(tied), max(0, going - len(tied))
    return masks


def choose_masks(
    scores: Mapping[str, Tensor], sparsity: float, scope: Literal["layer", "global"], earlier: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Keeps all but the `sparsity` smallest scores of those that earlier masks left, together or tensor by tensor.

    Steps compound: five times 0.37 leave 0.63 ** 5, a tenth.

    Args:
        scores: name -> scores, finite where nothing was pruned before; `LazyScores` are made one at a time.
        earlier: name -> bool mask, True = kept so far; names that are missing are whole.
    Returns:
        name -> bool mask on the CPU.
    Example:
        >>> choose_masks({"a": torch.tensor([0.0, 1.0, 2.0])}, 0.5, "global", {"a": torch.tensor([False, True, True])})
        {'a': tensor([False, False,  True])}
    """

    def left(name: str) -> Tensor:
        values = scores[name].detach().cpu()
        return values[earlier[name]] if name in earlier else values

    if scope == "global":
        like = scores.like if isinstance(scores, LazyScores) else scores
        chosen = select_global(LazyScores(like, left), sparsity)
    else:
        chosen = {name: keep_in(name, left(name), sparsity) for name in scores}
    return {
        name: earlier[name].masked_scatter(earlier[name], mask) if name in earlier else mask
        for name, mask in chosen.items()
    }


def keep_in(name: str, scores: Tensor, sparsity: float) -> Tensor:
    """`keep_largest` of a tensor that errors name."""
    return select_global({name: scores}, sparsity)[name]


def _wide_type(scores: Mapping[str, Tensor]) -> torch.dtype:
    """The type that holds all scores exactly and whose bits are counted: float32 or float64."""
    like = scores.like if isinstance(scores, LazyScores) else scores
    joined = functools.reduce(torch.promote_types, (values.dtype for values in like.values()))
    return torch.promote_types(joined, torch.float32) if joined.is_floating_point else torch.float64


def _first_digits(scores: Mapping[str, Tensor], wide: torch.dtype) -> Tensor:
    """How many scores begin with each digit, in the order of floats; int64 [2 ** 16].

    Raises:
        ModelError: NaN or infinite scores; names the tensor.
    """
    shift = torch.finfo(wide).bits - _DIGIT
    bins = torch.zeros(1 << _DIGIT, dtype=torch.int64)
    for values in scores.values():
        for part in _parts(values, wide):
            digits = part.add(0.0).view(_WHOLE[wide]) >> shift & (1 << _DIGIT) - 1  # -0.0 and 0.0 are one
            bins += torch.bincount(digits, minlength=len(bins))
    positive, negative = bins.chunk(2)
    infinite = int(_keys(torch.tensor(float("inf"), dtype=wide)) >> shift)
    if positive[infinite:].any() or negative[infinite:].any():
        for name, values in scores.items():
            require_finite(name, values, "scores")
    return torch.cat([negative.flip(0), positive])


def _threshold(scores: Mapping[str, Tensor], wide: torch.dtype, bins: Tensor, count: int) -> tuple[float, int, int]:
    """The `count`-th smallest score, how many equal it, and how many of these are among the `count` smallest.

    Args:
        bins: from `_first_digits`.
    """
    digit, count = _nth(bins, count)
    prefix = digit - (1 << _DIGIT - 1)  # the keys' first digits, signed
    for shift in range(torch.finfo(wide).bits - 2 * _DIGIT, -1, -_DIGIT):
        bins = _next_digits(scores, wide, prefix, shift)
        digit, count = _nth(bins, count)
        prefix = prefix << _DIGIT | digit
    return _value(prefix, wide), int(bins[digit]), count


def _nth(bins: Tensor, count: int) -> tuple[int, int]:
    """The bin that holds the `count`-th element, and which one it is in there, from 1."""
    up_to = bins.cumsum(0)
    at = int(torch.searchsorted(up_to, count))
    return at, count - int(up_to[at]) + int(bins[at])


def _next_digits(scores: Mapping[str, Tensor], wide: torch.dtype, prefix: int, shift: int) -> Tensor:
    """How often each digit at `shift` follows `prefix` in the scores' keys; int64 [2 ** 16]."""
    above = shift + _DIGIT
    low, high = _value(prefix << above, wide), _value((prefix + 1 << above) - 1, wide)
    bins = torch.zeros(1 << _DIGIT, dtype=torch.int64)
    for values in scores.values():
        for part in _parts(values, wide):
            keys = _keys(part[(part >= low) & (part <= high)])
            keys = keys[keys >> above == prefix]  # 0.0 is not in the bin of -0.0, though within its range
            bins += torch.bincount(keys >> shift & (1 << _DIGIT) - 1, minlength=len(bins))
    return bins


def _parts(values: Tensor, wide: torch.dtype) -> Iterator[Tensor]:
    """The values in order, some at a time, as vectors on the CPU."""
    for part in torch.split(values.detach().reshape(-1), _CHUNK):
        yield part.cpu().to(wide)


def _keys(values: Tensor) -> Tensor:
    """Whole numbers that are ordered as the floats are; -0.0 and 0.0 are one."""
    bits = (values + 0.0).view(_WHOLE[values.dtype])
    largest = torch.iinfo(bits.dtype).max
    return torch.where(bits < 0, bits ^ largest, bits)


def _value(key: int, wide: torch.dtype) -> float:
    """The float of a key."""
    whole = _WHOLE[wide]
    return float(torch.tensor(key if key >= 0 else key ^ torch.iinfo(whole).max, dtype=whole).view(wide))
