"""The running range over calibration batches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning_bench.errors import ModelError
from pruning_bench.quantization.observers import MinMax, value_range

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
