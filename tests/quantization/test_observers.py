"""Observers: what they have seen does not depend on how it came, and each gives an affine that keeps the laws."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning_bench.conformance import quantization_checks as checks
from pruning_bench.conformance.quantization_sweeps import sqnr_db
from pruning_bench.errors import ModelError
from pruning_bench.quantization import clipping
from pruning_bench.quantization.affine import LARGEST_VALUE, choose_affine, fake_quantize
from pruning_bench.quantization.clipping import clip_weight
from pruning_bench.quantization.contract import Affine
from pruning_bench.quantization.histogram import MOST_BINS, Histogram
from pruning_bench.quantization.methods.static import Static
from pruning_bench.quantization.observers import OBSERVERS, Clipping, MinMax, MovingAverage, Observer, value_range
from pruning_bench.quantization.plans import choose_weight

BATCHES = st.lists(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=5), min_size=1, max_size=4)


@given(BATCHES)
@settings(max_examples=40, deadline=None)
def test_running_range_is_the_range_of_everything(batches: list[list[float]]) -> None:
    seen = MinMax()
    for batch in batches:
        seen = seen.update(torch.tensor(batch))
    everything = [value for batch in batches for value in batch]
    found = (float(seen.lowest), float(seen.highest))
    assert found == (min(everything), max(everything)), f"{found} over {everything}"


def test_per_channel_range_in_every_dimension() -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    low, high = value_range(x, axis=1)
    assert (low.tolist(), high.tolist()) == ([0, 4, 8], [15, 19, 23]), f"{low}, {high}"
    low, high = value_range(torch.tensor([1.0, -1.0]), axis=0)
    assert low.tolist() == high.tolist() == [1, -1], f"{low}, {high} of a vector, should be its values"


@pytest.mark.parametrize(
    ("batch", "message"),
    [([], "an empty batch"), ([1.0, math.nan], "1 non-finite values"), ([math.inf, -math.inf], "2 non-finite values")],
)
def test_bad_batches_are_refused(batch: list[float], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        MinMax().update(torch.tensor(batch), "static", "input")
    assert str(caught.value).endswith("[input]"), f"{caught.value}, should name the point"


def test_no_batches_are_refused() -> None:
    with pytest.raises(ModelError, match="no calibration batches"):
        MinMax().affine(8, symmetric=False)


# every observer

NAMES = list(OBSERVERS)
FLOATS = st.one_of(
    st.floats(-9, 9, width=32),
    st.floats(-(2.0**120), 2.0**120, width=32),
    st.floats(-(2.0**-100), 2.0**-100, width=32),
    st.sampled_from([0.0, -0.0, 1.0, 3.4e38, -1e-45]),
)
STREAMS = st.lists(st.lists(FLOATS, min_size=1, max_size=6), min_size=1, max_size=3)


def fed(observer: Observer, batches: list[list[float]]) -> Observer:
    for batch in batches:
        observer = observer.update(torch.tensor(batch))
    return observer


@pytest.mark.parametrize("name", NAMES)
@given(batches=STREAMS, bits=st.integers(2, 8), symmetric=st.booleans())
@example(batches=[[0.0], [-1e-45]], bits=2, symmetric=False)  # a tenth of the smallest float32 number
@settings(max_examples=15, deadline=None)
def test_every_observer_gives_a_sound_affine(name: Any, batches: list[list[float]], bits: int, symmetric: bool) -> None:
    affine = fed(OBSERVERS[name], batches).affine(bits, symmetric=symmetric)
    checks.check_scales_finite(lambda *_, **__: affine, torch.zeros(()), torch.zeros(()), bits, symmetric)
    checks.check_zero_exact(fake_quantize, affine)
    wide = fed(MinMax(), batches).affine(bits, symmetric=symmetric)
    assert affine.scale <= wide.scale, f"{name} has the scale {affine.scale}, wider than what was seen: {wide.scale}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-45, 3.4e38])
def test_a_constant_is_kept(name: Any, value: float) -> None:
    affine = OBSERVERS[name].update(torch.full((5,), value)).affine(8, symmetric=False)
    kept = float(fake_quantize(torch.tensor(value), affine))
    close = math.isclose(kept, value, rel_tol=1e-5, abs_tol=2.0**-53) or abs(value) > 2.0**126
    assert close, f"{name}: {value} becomes {kept}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("batch", "message"), [([], "an empty batch"), ([1.0, math.nan], "1 non-finite"), ([math.inf], "1 non-finite")]
)
def test_every_observer_refuses_bad_batches(name: Any, batch: list[float], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        OBSERVERS[name].update(torch.tensor(batch))
    with pytest.raises(ModelError, match="no calibration batches"):
        OBSERVERS[name].affine(8, symmetric=False)
    with pytest.raises(ModelError, match="no calibration batches"):
        OBSERVERS[name].ends()


@pytest.mark.parametrize("name", NAMES)
@given(batches=STREAMS)
@settings(max_examples=15, deadline=None)
def test_the_ends_are_those_of_all_batches_or_their_average(name: Any, batches: list[list[float]]) -> None:
    values = [torch.tensor(batch).clamp(-LARGEST_VALUE, LARGEST_VALUE) for batch in batches]  # histograms saturate
    least, most = (float(end.clamp(-LARGEST_VALUE, LARGEST_VALUE)) for end in fed(OBSERVERS[name], batches).ends())
    lows, highs = ([float(end(batch)) for batch in values] for end in (torch.amin, torch.amax))
    if name != "moving_average":
        assert (least, most) == (min(lows), max(highs)), f"{name}: {least}..{most} of {batches}"
    assert min(lows) <= least <= max(lows), f"{name}: the lowest is {least} of {lows}"
    assert min(highs) <= most <= max(highs), f"{name}: the highest is {most} of {highs}"


def test_a_moving_average_of_huge_values_is_finite() -> None:
    least, most = map(float, fed(MovingAverage(), [[-3e38], [3e38]]).ends())
    assert least == most == pytest.approx(-2.4e38, rel=1e-6), f"{least}..{most}"


def test_a_moving_average_moves_by_a_tenth() -> None:
    seen = fed(MovingAverage(), [[0.0, 1.0], [-1.0, 2.0], [0.0, 1.0]])
    assert isinstance(seen, MovingAverage)
    assert seen.lowest is not None
    assert seen.highest is not None
    found = (float(seen.lowest), float(seen.highest))
    assert found == pytest.approx((-0.09, 1.09)), f"{found}"


# histograms


def parts(seen: Histogram) -> tuple[Any, ...]:
    return seen.width, seen.first, seen.counts.tolist(), float(seen.lowest), float(seen.highest)


def check_order_does_not_matter(
    batches: list[list[float]], merged: Callable[[Histogram, Histogram], Histogram]
) -> None:
    """Batch by batch, forwards or backwards, the counts are those of everything at once."""
    made = [Histogram.of(torch.tensor(batch)) for batch in batches]
    once = Histogram.of(torch.tensor([value for batch in batches for value in batch]))
    for order in (made, made[::-1]):
        seen = order[0]
        for other in order[1:]:
            seen = merged(seen, other)
        assert parts(seen) == parts(once), f"{parts(seen)}, should be {parts(once)}"
        assert torch.allclose(seen.sums, once.sums), f"sums {seen.sums}, should be {once.sums}"
    assert len(once.counts) <= MOST_BINS, f"{len(once.counts)} bins"


@given(STREAMS)
@settings(max_examples=40, deadline=None)
def test_counts_do_not_depend_on_the_batches(batches: list[list[float]]) -> None:
    check_order_does_not_matter(batches, Histogram.merged)


def without_the_other(a: Histogram, b: Histogram) -> Histogram:
    return a


def in_bins_of_the_last(a: Histogram, b: Histogram) -> Histogram:
    wide = a.merged(b)
    return Histogram(2 * wide.width, wide.first, wide.counts, wide.sums, wide.squares, wide.lowest, wide.highest)


@pytest.mark.parametrize("mutant", [without_the_other, in_bins_of_the_last])
def test_the_check_of_counts_bites(mutant: Callable[[Histogram, Histogram], Histogram]) -> None:
    with pytest.raises(AssertionError, match="should be"):
        check_order_does_not_matter([[0.5, 1.0], [3.0, -700.0]], mutant)


# what is cut off


def error_of(values: Tensor, affine: Affine) -> float:
    return float((fake_quantize(values, affine).double() - values.double()).square().sum())


def check_not_worse_than_minmax(rule: Any, values: Tensor, bits: int, symmetric: bool) -> None:
    """The squared error on what was seen is at most that of the whole range, and lies between the bounds."""
    seen = Clipping(rule).update(values)
    found, whole = (o.affine(bits, symmetric=symmetric) for o in (seen, MinMax().update(values)))
    error, most = error_of(values, found), error_of(values, whole)
    assert error <= most * (1 + 1e-4) + 1e-30, f"squared error {error:.6g}, of the whole range {most:.6g}"
    assert seen.seen is not None
    lower, upper = clipping.squared_error(seen.seen, found)
    noise = 1e-4 * error + 1e-9 * float(values.double().square().sum())
    assert lower - noise <= error <= upper + noise, f"squared error {error:.6g}, should be in {lower:.6g}..{upper:.6g}"


@st.composite
def tailed(draw: st.DrawFn) -> Tensor:
    """A bulk with a few values far out, all of one sign or of both."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999), label="seed"))
    values = torch.randn(draw(st.sampled_from([1, 7, 300, 5000]), label="count"), generator=generator)
    values[:: draw(st.sampled_from([1, 3, 100]), label="every")] *= draw(
        st.sampled_from([1.0, 5.0, 1000.0]), label="by"
    )
    return values.relu() if draw(st.booleans(), label="relu") else values


@given(tailed(), st.integers(2, 8), st.booleans())
@settings(max_examples=25, deadline=None)
def test_mse_is_never_worse_than_minmax(values: Tensor, bits: int, symmetric: bool) -> None:
    check_not_worse_than_minmax(clipping.mse_range, values, bits, symmetric)


def half_the_range(seen: Histogram, choose: Any) -> Any:
    return seen.lowest / 2, seen.highest / 2


def test_the_check_of_mse_bites() -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    check_not_worse_than_minmax(clipping.mse_range, values, 8, False)
    with pytest.raises(AssertionError, match="of the whole range"):
        check_not_worse_than_minmax(half_the_range, values, 8, False)


@pytest.mark.parametrize("name", ["percentile", "mse"])
def test_a_lone_outlier_is_cut_off_and_a_flat_range_is_not(name: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    bulk = torch.randn(100_000, generator=generator).abs()
    with_outlier = OBSERVERS[name].update(bulk).update(torch.tensor([50.0])).affine(4, symmetric=False)
    reach = float(with_outlier.scale) * 15
    assert reach < 25, f"{name} at 4 bits reaches to {reach:.3g} for one value of 50 among 100,000 of size 1"
    flat = (
        float(OBSERVERS[name].update(torch.rand(100_000, generator=generator)).affine(8, symmetric=False).scale) * 255
    )
    assert flat == pytest.approx(1, abs=0.02), f"{name} reaches to {flat:.3g}, should be 1"


def test_a_percentile_leaves_the_share_it_names_outside() -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(4))
    low, high = clipping.percentile_range(Histogram.of(values), lambda *_: pytest.fail("needs no affine"))
    outside = int((values < low).sum()), int((values > high).sum())
    assert all(5 <= count <= 10 for count in outside), f"{outside} of 200,000 outside, should be 10 at most at each end"


def check_weight_not_worse(weight: Tensor, found: Affine, whole: Affine) -> None:
    """No scale's squared error is above that of the scale that spans its weights."""
    errors = [(fake_quantize(weight, affine) - weight).double().square().sum(1) for affine in (found, whole)]
    worse = errors[0] > errors[1] * (1 + 1e-6)
    assert not worse.any(), f"channels {worse.nonzero().flatten().tolist()} are worse than with their whole range"


@pytest.mark.parametrize(("granularity", "group"), [("per_tensor", None), ("per_channel", None), ("per_group", 5)])
@pytest.mark.parametrize("bits", [2, 4])
def test_clipped_weights_are_never_worse(granularity: str, group: int | None, bits: int) -> None:
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(5))
    weight[2] = 0.0
    weight[3, 4] = 30.0
    whole = choose_weight(weight, bits, granularity, group)
    found = choose_weight(weight, bits, granularity, group, "mse")
    assert found.scale.shape == whole.scale.shape, f"{found.scale.shape}"
    if granularity != "per_tensor":
        check_weight_not_worse(weight, found, whole)
    total = [error_of(weight, affine) for affine in (found, whole)]
    better = total[0] < total[1] or granularity == "per_tensor"  # one scale for an outlier and all the rest
    assert better, f"squared error {total[0]:.6g}, should be below {total[1]:.6g}"


def test_the_check_of_clipped_weights_bites() -> None:
    weight = torch.linspace(-1, 1, 24).view(2, 12)
    whole = choose_affine(weight.amin(1), weight.amax(1), 8, symmetric=True, axis=0)
    check_weight_not_worse(weight, clip_weight(weight, whole), whole)
    with pytest.raises(AssertionError, match=r"channels \[0, 1\]"):
        check_weight_not_worse(weight, Affine(whole.scale / 3, whole.zero_point, whole.low, whole.high, 0), whole)


@pytest.mark.parametrize("name", NAMES)
def test_static_takes_every_observer(name: Any) -> None:
    found = sqnr_db(Static(observer=name), "w8a8")
    assert found > 15, f"{name}: signal over noise {found:.1f} dB"
