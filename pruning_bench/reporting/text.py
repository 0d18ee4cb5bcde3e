"""Numbers as text; the only place where units are scaled."""

from __future__ import annotations

import math
from collections.abc import Callable

NOTHING = "-"


def seconds(value: float | None) -> str:
    """Four digits in the unit that fits.

    Example:
        >>> seconds(0.00123), seconds(2e-5), seconds(1.5), seconds(None)
        ('1.230 ms', '20.00 us', '1.500 s', '-')
    """
    if value is None:
        return NOTHING
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if abs(value) * factor >= 1:
            return f"{_digits(value * factor)} {unit}"
    return f"{_digits(value * 1e6)} us"


def duration(value: float) -> str:
    """How long somebody will wait.

    Example:
        >>> duration(41.2), duration(700), duration(7530)
        ('41 s', '12 min', '2 h 6 min')
    """
    if value < 90:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def amount(value: float | None, unit: str = "") -> str:
    """A count, bytes or MACs with a decimal prefix.

    Example:
        >>> amount(1_100_000, "B"), amount(40_800_000), amount(999)
        ('1.10 MB', '40.8 M', '999')
    """
    if value is None:
        return NOTHING
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{_digits(value / factor, 3)} {prefix}{unit}"
    return f"{value:g} {unit}".rstrip()


def percent(value: float | None, places: int = 1, sign: bool = False) -> str:
    """A share in per cent.

    Example:
        >>> percent(0.9312, 2), percent(0.05, sign=True)
        ('93.12 %', '+5.0 %')
    """
    return NOTHING if value is None else f"{100 * value:{'+' * sign}.{places}f} %"


def points(value: float | None) -> str:
    """A difference of shares in percentage points.

    Example:
        >>> points(-0.0105)
        '-1.05 pp'
    """
    return NOTHING if value is None else f"{100 * value:+.2f} pp"


def times(value: float | None) -> str:
    """A ratio.

    Example:
        >>> times(1.5), times(12.34)
        ('1.50x', '12.3x')
    """
    return NOTHING if value is None else f"{_digits(value, 3)}x"


def interval(bounds: tuple[float, float], form: Callable[[float], str]) -> str:
    """Two bounds, each written by `form`, their unit once.

    Example:
        >>> interval((-0.01, 0.02), points), interval((1.4, 1.6), times)
        ('[-1.00, +2.00] pp', '[1.40x, 1.60x]')
    """
    low, high = map(form, bounds)
    return f"[{low.split()[0]}, {high.split()[0]}] {''.join(high.split()[1:])}".rstrip()


def score(value: float | None, unit: str = "1", sign: bool = False) -> str:
    """A score in its own unit.

    Example:
        >>> score(0.98765), score(31.4159, "dB"), score(-0.00123, sign=True)
        ('0.98765', '31.416 dB', '-0.00123')
    """
    return NOTHING if value is None else f"{value:{'+' * sign}.5g} {'' if unit == '1' else unit}".rstrip()


def measured(value: float | None, unit: str) -> str:
    """A value in its own unit: what a verdict compares.

    Example:
        >>> measured(0.931, "1"), measured(0.0021, "s"), measured(1000, "B"), measured(None, "s")
        ('0.9310', '2.100 ms', '1000 B', '-')
    """
    if value is None:
        return NOTHING
    if unit == "s":
        return seconds(value)
    return f"{value:.4f}" if unit == "1" else f"{value:.12g} {'' if unit == 'count' else unit}".rstrip()


def _digits(value: float, digits: int = 4) -> str:
    before = max(1, math.floor(math.log10(abs(value))) + 1) if value else 1
    return f"{value:.{max(0, digits - before)}f}"
