import hashlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pruning_bench.datasets.contract import Split
from pruning_bench.datasets.splits import as_split, choose_balanced, digest, others
from pruning_bench.errors import DataError

FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@st.composite
def labelled(draw):
    counts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5), label="examples of each class")
    labels = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    order = draw(st.permutations(range(len(labels))), label="order")
    return labels[order], draw(st.integers(0, min(counts)), label="per class")


def check_choice(choose) -> None:
    @FEW
    @given(labelled(), st.integers(0, 2**32))
    def holds(case, seed):
        labels, per_class = case
        chosen = choose(labels, per_class, seed)
        found = np.bincount(labels[chosen], minlength=labels.max() + 1).tolist()
        assert set(found) <= {per_class}, f"{found} of each class, should be {per_class}"
        assert np.all(np.diff(chosen) > 0), f"{chosen}, should be sorted and without repetition"
        again = choose(labels, per_class, seed)
        assert np.array_equal(chosen, again), f"{again} the second time, should be {chosen}"

    holds()


def check_seed_matters(choose) -> None:
    labels = np.zeros(50, np.uint8)
    first, second = choose(labels, 10, 0), choose(labels, 10, 1)
    assert not np.array_equal(first, second), f"seeds 0 and 1 both give {first}, should differ"


def check_pinned(choose) -> None:
    chosen = choose(np.arange(1000, dtype=np.uint8) % 10, 20, 2017)
    found = hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest()[:16]
    assert found == PINNED, f"digest {found} of the indices, should be {PINNED} for ever"


PINNED = "5c74d9323bdc8089"


def mutant_whole_population(labels, per_class, seed):
    count = per_class * len(np.unique(labels))
    return np.sort(np.random.Generator(np.random.Philox(seed)).permutation(len(labels))[:count])


def mutant_with_replacement(labels, per_class, seed):
    draws = np.random.Generator(np.random.Philox(seed))
    each = [draws.choice(np.flatnonzero(labels == c), per_class) for c in np.unique(labels)]
    return np.sort(np.concatenate(each))


def mutant_unseeded(labels, per_class, seed):
    return choose_balanced(labels, per_class, int(np.random.SeedSequence().entropy) % 2**32)


def mutant_first_examples(labels, per_class, seed):
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in np.unique(labels)]))


def test_choice():
    check_choice(choose_balanced)
    check_seed_matters(choose_balanced)
    check_pinned(choose_balanced)


@pytest.mark.parametrize(
    ("check", "mutant"),
    [
        (check_choice, mutant_whole_population),
        (check_choice, mutant_with_replacement),
        (check_choice, mutant_unseeded),
        (check_seed_matters, mutant_first_examples),
        (check_pinned, mutant_with_replacement),
    ],
)
def test_choice_checks_reject(check, mutant):
    with pytest.raises(AssertionError, match="should"):
        check(mutant)


def test_class_that_is_too_small_is_refused():
    with pytest.raises(DataError, match="2 examples of class 1, should be at least 3"):
        choose_balanced(np.array([0, 0, 0, 1, 1], np.uint8), 3, seed=0)


@FEW
@given(st.integers(0, 30), st.data())
def test_others_complete_without_overlap(count, data):
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, max(count - 1, 0))), label="chosen")), np.int64)
    chosen = chosen[chosen < count]
    rest = others(count, chosen)
    both = sorted([*chosen, *rest])
    assert both == list(range(count)), f"together {both}, should be 0..{count - 1}, each once"


def parts() -> list[Split]:
    rng = np.random.Generator(np.random.Philox(0))
    return [
        as_split(rng.integers(0, 256, (4, 1, 2, 2), np.uint8), rng.integers(0, 3, 4).astype(np.uint8), (0.5,), (0.2,))
        for _ in range(3)
    ]


def check_digest_sees_everything(make) -> None:
    before = make(parts())
    assert make(parts()) == before, "equal splits give different digests, should be equal"
    for index in range(3):
        changed = parts()
        changed[index].images[3, 0, 1, 1] ^= 1
        assert make(changed) != before, f"a pixel of split {index} changed, the digest should"
        changed = parts()
        changed[index].labels[3] += 1
        assert make(changed) != before, f"a label of split {index} changed, the digest should"
    moved = [parts()[1], parts()[0], parts()[2]]
    assert make(moved) != before, "two splits changed places, the digest should change"
    first, second, third = parts()
    joint = Split(torch.cat([first.images, second.images[:1]]), torch.cat([first.labels, second.labels[:1]]), *STATS)
    rest = Split(second.images[1:], second.labels[1:], *STATS)
    assert make([joint, rest, third]) != before, "an example changed its split, the digest should change"


STATS = (torch.tensor([0.5]), torch.tensor([0.2]))


def mutant_images_only(splits):
    return hashlib.sha256(b"".join(split.images.numpy().tobytes() for split in splits)).hexdigest()


def mutant_without_test(splits):
    return digest(splits[:2])


def mutant_order_free(splits):
    return "".join(sorted(digest([split]) for split in splits))


def mutant_grouped_by_kind(splits):
    sha = hashlib.sha256(b"".join(split.images.numpy().tobytes() for split in splits))
    sha.update(b"".join(split.labels.numpy().tobytes() for split in splits))
    return sha.hexdigest()


def test_digest_sees_everything():
    check_digest_sees_everything(digest)


@pytest.mark.parametrize("mutant", [mutant_images_only, mutant_without_test, mutant_order_free, mutant_grouped_by_kind])
def test_check_digest_rejects(mutant):
    with pytest.raises(AssertionError, match="should"):
        check_digest_sees_everything(mutant)


def test_padding_is_a_frame_of_zeros():
    split = as_split(np.full((2, 1, 3, 3), 7, np.uint8), np.array([0, 1], np.uint8), (0.5,), (0.25,), pad=2)
    assert tuple(split.images.shape) == (2, 1, 7, 7), f"{tuple(split.images.shape)}, should be (2, 1, 7, 7)"
    inner = split.images[:, :, 2:5, 2:5]
    assert bool((inner == 7).all()), f"{inner.unique()}, should be the image"
    total = int(split.images.sum())
    assert total == 2 * 9 * 7, f"sum {total}, should be {2 * 9 * 7}: the frame is zero"
    value = float(split.inputs()[0, 0, 0, 0])
    assert value == -2.0, f"a zero pixel becomes {value}, should be (0 - 0.5) / 0.25"
