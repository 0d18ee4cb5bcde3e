"""Vectors: what is packed comes back, and damage is loud."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_bench.errors import RecordError
from pruning_bench.judging.vectors import flips, pack, pack_classes, unpack, unpack_classes

BITS = st.lists(st.booleans(), max_size=70)


def check_round_trip(pack, unpack, bits):
    back = unpack(pack(bits)).tolist()
    assert back == list(bits), f"{back=}, should be {bits}"


@given(bits=BITS)
def test_round_trip(bits):
    check_round_trip(pack, unpack, bits)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(lambda text: np.unpackbits(unpack(text).astype(np.uint8)), id="bytes for bits"),
        pytest.param(lambda text: np.pad(unpack(text), (0, -len(unpack(text)) % 8)), id="padding kept"),
        pytest.param(lambda text: unpack(text)[::-1], id="reversed"),
        pytest.param(lambda text: ~unpack(text), id="inverted"),
    ],
)
def test_round_trip_bites(mutant):
    with pytest.raises(AssertionError):
        check_round_trip(pack, mutant, [True, False, False])


def test_text_of_ten_thousand_is_short():
    right = np.random.default_rng(0).random(10_000) < 0.93
    assert len(pack(right)) < 1000, f"{len(pack(right))} characters"


@pytest.mark.parametrize(
    "right",
    [
        pytest.param([[True]], id="matrix"),
        pytest.param([0, 2], id="counts"),
        pytest.param([0.5], id="shares"),
        pytest.param(np.array([np.nan]), id="nan"),
    ],
)
def test_what_is_no_vector_of_bits_is_refused(right):
    with pytest.raises(RecordError, match="vector: "):
        pack(right)


GOOD = pack([True, False, True] * 9)


def _packed(count, raw, tail=b""):
    return f"{count}:{base64.b85encode(zlib.compress(raw) + tail).decode()}"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("27", id="no colon"),
        pytest.param("x:" + GOOD.partition(":")[2], id="no count"),
        pytest.param("-1:" + GOOD.partition(":")[2], id="negative"),
        pytest.param("99" + GOOD, id="count too large"),
        pytest.param("9:" + GOOD.partition(":")[2], id="count too small"),
        pytest.param("26:" + GOOD.partition(":")[2], id="a bit beyond the end"),
        pytest.param(GOOD[:-5], id="truncated"),
        pytest.param(GOOD + '"', id="foreign character"),
        pytest.param(_packed(8, b"a", b"tail"), id="tail"),
        pytest.param(_packed(8, b"a" * 10_000_000), id="bomb"),
    ],
)
def test_damage_is_loud_and_says_where(text):
    with pytest.raises(RecordError, match=r"file:3"):
        unpack(text, "file:3")


@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_flips_are_the_examples_that_changed(pairs):
    then = np.array([a for a, _ in pairs], bool)
    now = np.array([b for _, b in pairs], bool)
    lost, gained = flips(then, now)
    assert set(lost) == {i for i, pair in enumerate(pairs) if pair == (True, False)}, f"{lost=} of {pairs}"
    assert set(gained) == {i for i, pair in enumerate(pairs) if pair == (False, True)}, f"{gained=} of {pairs}"


def test_flips_of_other_examples_are_refused():
    with pytest.raises(RecordError, match="2 examples, should be 3"):
        flips(np.zeros(3, bool), np.zeros(2, bool))


@given(classes=st.lists(st.integers(-1, 2**31 - 1) | st.integers(-1, 12), max_size=40))
def test_classes_come_back(classes):
    check_round_trip(pack_classes, unpack_classes, classes)


@pytest.mark.parametrize("width", [1, 2])
def test_classes_come_back_bites(width):
    def mutant(text):
        """Mutant: one width for all."""
        return unpack_classes(text).astype(f"<i{width}")

    with pytest.raises(AssertionError):
        check_round_trip(pack_classes, mutant, [0, 1 << (8 * width)])


def test_classes_of_ten_thousand_are_short():
    classes = np.random.default_rng(0).integers(0, 10, 10_000)
    assert len(pack_classes(classes)) < 7000, f"{len(pack_classes(classes))} characters"


@pytest.mark.parametrize(
    "classes",
    [
        pytest.param([[1]], id="matrix"),
        pytest.param([-2], id="below"),
        pytest.param([0.5], id="shares"),
        pytest.param([2**31], id="above"),
    ],
)
def test_what_is_no_vector_of_classes_is_refused(classes):
    with pytest.raises(RecordError, match="classes: "):
        pack_classes(classes)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("3", id="no colon"),
        pytest.param(pack_classes([1, 2, 3])[:-3], id="truncated"),
        pytest.param(_packed(2, b"abc"), id="no whole number of bytes"),
        pytest.param(_packed(1, b"abc"), id="three bytes"),
        pytest.param(_packed(1, b"\xfe"), id="below"),
        pytest.param(_packed(0, b"a"), id="more than none"),
        pytest.param(_packed(8, b"a" * 10_000_000), id="bomb"),
        pytest.param("9" * 30 + ":" + GOOD.partition(":")[2], id="a count beyond memory"),
    ],
)
def test_damaged_classes_are_loud_and_say_where(text):
    with pytest.raises(RecordError, match=r"file:3"):
        unpack_classes(text, "file:3")
