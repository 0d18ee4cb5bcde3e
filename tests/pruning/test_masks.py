"""Counts, ties and nesting of masks; each law has mutants that it rejects."""

import copy
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from pruning_bench.conformance.strategies import levels, score_tensors
from pruning_bench.contracts import Context
from pruning_bench.errors import LevelError, ModelError, PlanError
from pruning_bench.pruning import masks
from pruning_bench.pruning.contract import ChannelPlan, MaskPlan
from pruning_bench.pruning.methods.magnitude import Magnitude
from pruning_bench.pruning.shrink import apply_channels

Keep = Callable[[Tensor, float], Tensor]
Count = Callable[[int, float], int]
few = settings(max_examples=60, deadline=None)


def count_law(count: Count, numel: int, sparsity: float) -> None:
    exact = numel * Fraction(repr(sparsity))
    found = count(numel, sparsity)
    assert abs(found - exact) <= Fraction(1, 2), f"{found} of {numel} at {sparsity}, should be within half of {exact}"


@few
@given(st.integers(0, 10**7), levels())
def test_pruned_count_is_nearest(numel: int, sparsity: float) -> None:
    count_law(masks.pruned_count, numel, sparsity)


@few
@given(st.integers(0, 10**6), levels(), levels())
def test_pruned_count_never_falls_with_the_level(numel: int, one: float, other: float) -> None:
    low, high = (masks.pruned_count(numel, level) for level in sorted((one, other)))
    assert low <= high, f"{low} of {numel} at {min(one, other)}, {high} at {max(one, other)}"


@pytest.mark.parametrize(
    ("numel", "sparsity", "expected"),
    [(100, 0.29, 29), (5, 0.5, 2), (7, 0.5, 4), (1, 0.5, 0), (1, 0.51, 1), (10, 0.0, 0), (0, 0.9, 0), (3, 0.999, 3)],
)
def test_pruned_count_of_awkward_cases(numel: int, sparsity: float, expected: int) -> None:
    found = masks.pruned_count(numel, sparsity)
    assert found == expected, f"{found} of {numel} at {sparsity}, should be {expected}"


def floors(numel: int, sparsity: float) -> int:
    return int(numel * sparsity)


def one_more(numel: int, sparsity: float) -> int:
    return masks.pruned_count(numel, sparsity) + 1


@pytest.mark.parametrize("mutant", [floors, one_more])
def test_the_law_of_counts_rejects(mutant: Count) -> None:
    with pytest.raises(AssertionError, match="within half"):
        count_law(mutant, 100, 0.999)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, float("nan"), 2])
def test_a_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(LevelError, match=r"should be in \[0, 1\)"):
        masks.pruned_count(10, sparsity)


def mask_law(keep: Keep, scores: Tensor, low: float, high: float) -> None:
    """Exact counts, no kept score below a removed one, ties by position, nested."""
    removed: list[set[int]] = []
    for sparsity in sorted((low, high)):
        mask = keep(scores, sparsity)
        assert mask.shape == scores.shape, f"mask {mask.shape} for scores {scores.shape}"
        gone = (~mask).reshape(-1).nonzero().squeeze(1).tolist()
        flat = scores.reshape(-1).tolist()
        wanted = sorted(range(len(flat)), key=lambda at: (flat[at], at))[: masks.pruned_count(len(flat), sparsity)]
        assert len(gone) == len(wanted), f"{len(gone)} of {len(flat)} removed at {sparsity}, should be {len(wanted)}"
        assert set(gone) == set(wanted), f"{gone} removed of {flat} at {sparsity}, should be {sorted(wanted)}"
        removed.append(set(gone))
    assert removed[0] <= removed[1], f"at {low}, {high}: {removed} are not nested"


@few
@given(score_tensors(), levels(), levels())
def test_keep_largest(scores: Tensor, one: float, other: float) -> None:
    mask_law(masks.keep_largest, scores, one, other)


def keeps_ties(scores: Tensor, sparsity: float) -> Tensor:  # a threshold alone: 0 of 10 equal weights go
    count = masks.pruned_count(scores.numel(), sparsity)
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    return scores >= scores.reshape(-1).sort().values[count - 1]


def drops_ties(scores: Tensor, sparsity: float) -> Tensor:  # the other threshold: all of them go
    count = masks.pruned_count(scores.numel(), sparsity)
    return scores > scores.reshape(-1).sort().values[count - 1] if count else torch.ones_like(scores, dtype=torch.bool)


def keeps_the_smallest(scores: Tensor, sparsity: float) -> Tensor:
    return masks.keep_largest(-scores, sparsity)


def last_ties_first(scores: Tensor, sparsity: float) -> Tensor:
    return masks.keep_largest(scores.flip(0), sparsity).flip(0)


@pytest.mark.parametrize("mutant", [keeps_ties, drops_ties, keeps_the_smallest, last_ties_first])
def test_the_law_of_masks_rejects(mutant: Keep) -> None:
    with pytest.raises(AssertionError):
        mask_law(mutant, torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0, 0.0]), 0.29, 0.5)


@few
@given(st.lists(score_tensors(12), min_size=1, max_size=4), levels())
def test_global_selection_is_that_of_one_tensor(parts: list[Tensor], sparsity: float) -> None:
    scores = {f"t{at}": part for at, part in enumerate(parts)}
    found = masks.select_global(scores, sparsity)
    joined = torch.cat([found[name].reshape(-1) for name in scores])
    expected = masks.keep_largest(torch.cat([part.reshape(-1) for part in parts]), sparsity)
    assert torch.equal(joined, expected), f"{joined.tolist()}, should be {expected.tolist()} at {sparsity}"
    assert all(found[name].shape == scores[name].shape for name in scores), "masks changed shapes"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused_by_name(bad: float) -> None:
    with pytest.raises(ModelError, match=r"1 of 2 scores NaN or infinite.*\[layer3\.weight\]"):
        masks.select_global({"a": torch.ones(2), "layer3.weight": torch.tensor([1.0, bad])}, 0.5)


def perceptron(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 11), nn.ReLU(), nn.Linear(11, 3))


def same_as_torch(found: dict[str, Tensor], reference: nn.Sequential) -> None:
    for name, mask in found.items():
        expected = reference[int(name.split(".")[0])].weight_mask.bool()
        assert torch.equal(mask, expected), f"{name}: {int((mask ^ expected).sum())} entries differ from torch's mask"


@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 0.77, 0.9])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_magnitude_gives_the_masks_of_torch_where_nothing_ties(scope: str, level: float) -> None:
    model = perceptron()
    context = Context((torch.zeros(2, 7),), torch.Generator())
    plan = Magnitude(scope=scope).plan(model, level, context)
    reference = copy.deepcopy(model)
    pairs = [(reference[0], "weight"), (reference[2], "weight")]
    if scope == "global":
        torch_prune.global_unstructured(pairs, pruning_method=torch_prune.L1Unstructured, amount=level)
    else:
        for module, name in pairs:
            torch_prune.l1_unstructured(module, name, amount=level)
    same_as_torch(dict(plan.masks), reference)


def test_the_comparison_with_torch_rejects_one_swapped_weight() -> None:
    reference = perceptron()
    torch_prune.l1_unstructured(reference[0], "weight", amount=0.5)
    swapped = reference[0].weight_mask.bool()
    swapped.view(-1)[:2] = ~swapped.view(-1)[:2]
    with pytest.raises(AssertionError, match="2 entries differ"):
        same_as_torch({"0.weight": swapped}, reference)


def differs_in_ties_alone(found: Tensor, torchs: Tensor, scores: Tensor) -> None:
    """As many go, and where the masks differ the score is the threshold, the largest that goes."""
    assert found.sum() == torchs.sum(), f"{int(found.sum())} kept, should be {int(torchs.sum())}, as torch keeps"
    threshold, other = scores[~found].max(), scores[found ^ torchs]
    assert (other == threshold).all(), f"scores {other.tolist()} fall otherwise than torch's, not only {threshold}"


def tied_scores(seed: int) -> Tensor:
    """Weights, flat, of which every value comes some eight times."""
    return torch.randint(-6, 7, (60,), generator=torch.Generator().manual_seed(seed)).abs() / 4 + 0.25


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_masks_differ_from_torchs_in_ties_alone(level: float) -> None:
    """Ours take the ties that stand first; `torch.topk`, by which torch prunes, leaves open which of them it takes."""
    for seed in range(5):
        scores = tied_scores(seed)
        torchs = torch_prune.L1Unstructured(amount=level).compute_mask(scores, torch.ones(60)).bool()
        found = masks.keep_largest(scores, level)
        differs_in_ties_alone(found, torchs, scores)
        at = (scores == scores[~found].max()).nonzero().squeeze(1)
        assert found[at].tolist() == sorted(found[at].tolist()), f"{found[at].tolist()} of the ties kept, in order"


def test_the_comparison_of_ties_rejects_a_mask_that_takes_another_weight() -> None:
    scores = torch.tensor([1.0, 1.0, 1.0, 2.0, 3.0])
    kept = masks.keep_largest(scores, 0.4)
    assert kept.tolist() == [False, False, True, True, True], f"{kept.tolist()}, should lose the first two ties"
    differs_in_ties_alone(kept, torch.tensor([True, False, False, True, True]), scores)
    with pytest.raises(AssertionError, match=r"scores \[1\.0, 2\.0\] fall otherwise"):
        differs_in_ties_alone(kept, torch.tensor([True, False, True, False, True]), scores)
    with pytest.raises(AssertionError, match="3 kept, should be 4"):
        differs_in_ties_alone(kept, torch.tensor([True, False, True, True, True]), scores)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.tied = nn.Linear(4, 5, bias=False)
        self.tied.weight = self.embedding.weight
        self.head = nn.Linear(5, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        inner = self.norm(self.embedding(tokens))
        return self.head(self.tied(self.attention(inner, inner, inner, need_weights=False)[0]))


def test_prunable_are_attention_projections_but_no_embedding_norm_bias_or_output() -> None:
    example = (torch.zeros(2, 3, dtype=torch.int64),)
    found = list(masks.prunable(Attention(), example))
    assert found == ["attention.in_proj_weight", "attention.out_proj.weight"], f"prunable: {found}"
    asked = list(masks.prunable(Attention(), example, output_layer=True))
    assert asked == [*found, "head.weight"], f"prunable with the output layer: {asked}"


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 2), nn.Conv1d(4, 2, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        inner = self.body(inputs).relu()
        return torch.log_softmax(self.left(inner) + self.right(inner.unsqueeze(2)).squeeze(2), 1)


def test_every_layer_that_reaches_the_output_is_an_output_layer() -> None:
    found = masks.output_layers(TwoHeads(), (torch.zeros(2, 3),))
    assert found == {"left.weight", "right.weight"}, f"output layers {found}"


def test_a_model_with_an_output_layer_alone_has_nothing_prunable() -> None:
    with pytest.raises(ModelError, match="nothing prunable"):
        masks.prunable(nn.Linear(3, 2), (torch.zeros(2, 3),))


def test_apply_masks_writes_then_zeroes_a_copy() -> None:
    model = perceptron()
    before = copy.deepcopy(model.state_dict())
    mask = torch.rand(9, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    changed = masks.apply_masks(model, MaskPlan({"0.weight": mask}, {"0.weight": torch.full((9, 7), 3.0)}))
    expected = torch.where(mask, 3.0, 0.0)
    assert torch.equal(changed[0].weight, expected), f"{changed[0].weight}, should be {expected}"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"the given model's {name} changed"
    assert torch.equal(changed[2].weight, model[2].weight), "a weight without a mask changed"


def test_a_mask_removes_even_what_is_not_finite() -> None:
    model = nn.Linear(2, 1)
    model.weight.data[0, 0] = float("inf")
    changed = masks.apply_masks(model, MaskPlan({"weight": torch.tensor([[False, True]])}))
    assert changed.weight[0, 0] == 0, f"{changed.weight[0, 0]} left at a pruned place, should be 0"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (MaskPlan({"9.weight": torch.ones(1, dtype=torch.bool)}), "lacks"),
        (MaskPlan({"0.weight": torch.ones(7, 9, dtype=torch.bool)}), r"\(7, 9\), should be \(9, 7\)"),
        (MaskPlan({}, {"0.weight": torch.ones(3)}), r"writes of shape \(3,\)"),
    ],
)
def test_plans_that_do_not_fit_are_refused(plan: MaskPlan, message: str) -> None:
    model = perceptron()
    with pytest.raises(PlanError, match=message):
        masks.apply_masks(model, plan)
    if plan.masks:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(PlanError, match=message):
            masks.keep_pruned(model, [plan], optimizer)
        assert not optimizer._optimizer_step_post_hooks, "a hook was left behind by a plan that does not fit"


def channel_plan() -> ChannelPlan:
    kept = torch.tensor([0, 2, 3, 8])
    return ChannelPlan({"0.weight": {0: kept}, "0.bias": {0: kept}, "2.weight": {1: kept}})


def test_masks_are_cut_down_by_later_channel_plans_and_join_later_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    early, late = (torch.rand(rows, 7, generator=generator) > 0.5 for rows in (9, 4))
    found = masks.current_masks([MaskPlan({"0.weight": early}), channel_plan(), MaskPlan({"0.weight": late})])
    expected = early[[0, 2, 3, 8]] & late
    assert torch.equal(found["0.weight"], expected), f"{found['0.weight']}, should be {expected}"


def test_masks_of_two_shapes_are_refused() -> None:
    mask = torch.ones(9, 7, dtype=torch.bool)
    with pytest.raises(PlanError, match="as earlier plans left it"):
        masks.current_masks([MaskPlan({"0.weight": mask}), channel_plan(), MaskPlan({"0.weight": mask})])


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (model(torch.ones(2, 7)) - 1).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("plans", [[], [channel_plan()]])
def test_plans_without_a_mask_hold_nothing_and_are_refused(plans: list[ChannelPlan]) -> None:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(PlanError, match=rf"{len(plans)} plans without a mask, should be at least one MaskPlan"):
        masks.keep_pruned(model, plans, optimizer)
    assert not optimizer._optimizer_step_post_hooks, "a hook is left"


def test_masks_hold_in_a_model_that_was_shrunk_since_and_end_with_remove() -> None:
    mask = torch.rand(9, 7, generator=torch.Generator().manual_seed(1)) > 0.5
    plans = [MaskPlan({"0.weight": mask}), channel_plan()]
    model = apply_channels(masks.apply_masks(perceptron(), plans[0]), plans[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    handle = masks.keep_pruned(model, plans, optimizer)
    gone = ~mask[[0, 2, 3, 8]]
    train(model, optimizer)
    assert not model[0].weight[gone].any(), f"{int((model[0].weight[gone] != 0).sum())} pruned weights alive"
    handle.remove()
    train(model, optimizer)
    assert model[0].weight[gone].any(), "weights still held after remove"
    assert not optimizer._optimizer_step_post_hooks, "the hook is still there after remove"
