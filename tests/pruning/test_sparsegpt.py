"""SparseGPT passes every check, equals a plain recursion of its formulas, and disturbs outputs less than magnitude."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench import compress, load, save
from pruning_bench.build_entries import decode, encode
from pruning_bench.conformance.runner import parametrize_with_checks
from pruning_bench.contracts import Context
from pruning_bench.errors import ModelError
from pruning_bench.levels import NofM
from pruning_bench.pruning.inputs import watch_inputs
from pruning_bench.pruning.inverse_hessians import inverse_root
from pruning_bench.pruning.masks import apply_masks, keep_largest, pruned_count
from pruning_bench.pruning.methods import sparsegpt
from pruning_bench.pruning.methods.magnitude import Magnitude
from pruning_bench.pruning.methods.sparsegpt import SparseGPT, eliminate

few = settings(max_examples=25, deadline=None)
Eliminate = Callable[..., tuple[Tensor, Tensor]]


@parametrize_with_checks([SparseGPT()])
def test_sparsegpt(method: Any, check: Any) -> None:
    check(method)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(columns: int, count: int, seed: int) -> Tensor:
    """Inputs [count, columns] that tell something about each other."""
    return noise(count, columns, seed=seed) @ (torch.eye(columns) + 0.5 * noise(columns, columns, seed=seed + 1))


# The recursion


def recursion(
    rows: Tensor, gram: Tensor, damping: float, left: Tensor, level: float | NofM, block: int
) -> tuple[Tensor, Tensor]:
    """The docstring's formulas, weight by weight: the inverse of H_j anew for each column, no factors, no blocks."""
    rows, kept = rows.clone(), left.clone()
    h = gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    inverses = [torch.linalg.inv(h[j:, j:]) for j in range(len(gram))]
    width = max(1, block // level.group) * level.group if isinstance(level, NofM) else block
    at_a_time = level.group if isinstance(level, NofM) else width
    for j in range(len(gram)):
        if j % width % at_a_time == 0:
            end = min(j + at_a_time, len(gram), (j // width + 1) * width)
            score = {
                (i, k): float(rows[i, k] ** 2 / inverses[k][0, 0]) for i in range(len(rows)) for k in range(j, end)
            }
            if isinstance(level, NofM):
                for i in range(len(rows)):
                    for k in sorted(range(j, end), key=lambda k, i=i: (bool(left[i, k]), score[i, k]))[: -level.kept]:
                        kept[i, k] = False
            else:
                going = pruned_count(int(left[:, :end].sum()), level) - pruned_count(int(left[:, :j].sum()), level)
                for i, k in sorted((at for at in score if left[at]), key=lambda at: score[at])[:going]:
                    kept[i, k] = False
        for i in range(len(rows)):
            if not kept[i, j]:
                rows[i, j:] -= rows[i, j] / inverses[j][0, 0] * inverses[j][0]
                rows[i, j] = 0
    return kept, rows


def equals_the_recursion(
    seed: int, sizes: tuple[int, int], level: float | NofM, block: int, masked: bool, run: Eliminate = eliminate
) -> None:
    rows, inputs = noise(*sizes, seed=seed), correlated(sizes[1], 5 * sizes[1], seed + 1)
    left = noise(*sizes, seed=seed + 2) < 0.5 if masked else torch.ones(sizes, dtype=torch.bool)
    gram = inputs.T @ inputs
    kept, values = recursion(rows, gram, 0.01, left, level, block)
    root, dead = inverse_root(gram[None], 0.01, "w", "test")
    found, made = run(rows[None], root, dead, left[None], level, block)
    assert torch.equal(found[0], kept), f"keeps {found[0].tolist()}, should keep {kept.tolist()}"
    error = float((made[0] - values).abs().max())
    assert error < 1e-10 * float(values.abs().max() + 1), f"values differ by {error}: {made[0]}, should be {values}"


@few
@given(
    st.integers(0, 999),
    st.tuples(st.integers(1, 4), st.sampled_from([4, 8])),
    st.sampled_from([0.0, 0.29, 0.5, 0.9, NofM(2, 4), NofM(1, 4), NofM(1, 2)]),
    st.sampled_from([1, 3, 4, 128]),
    st.booleans(),
)
def test_blocks_and_factors_equal_the_plain_recursion(
    seed: int, sizes: tuple[int, int], level: float | NofM, block: int, masked: bool
) -> None:
    equals_the_recursion(seed, sizes, level, block, masked)


def with_the_other_factor(rows: Tensor, root: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    whole = root.transpose(1, 2) @ root
    return eliminate(rows, torch.linalg.cholesky(whole.flip(1, 2)).flip(1, 2), *rest)


def forgets_the_blocks_behind(rows: Tensor, root: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    blocks, block = torch.zeros_like(root), rest[-1]
    for start in range(0, root.shape[1], block):
        span = slice(start, start + block)
        blocks[:, span, span] = root[:, span, span]
    return eliminate(rows, blocks, *rest)


def changes_nothing(rows: Tensor, root: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    kept, _ = eliminate(rows, root, *rest)
    return kept, rows * kept


def revives(rows: Tensor, root: Tensor, dead: Tensor, left: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return eliminate(rows, root, dead, torch.ones_like(left), *rest)


@pytest.mark.parametrize("mutant", [with_the_other_factor, forgets_the_blocks_behind, changes_nothing, revives])
def test_the_comparison_with_the_recursion_rejects(mutant: Eliminate) -> None:
    with pytest.raises(AssertionError, match=r"keeps|values differ"):
        equals_the_recursion(0, (3, 8), 0.5, 4, True, mutant)


# The aim: W X changes little


def disturbs_less_than_magnitude(seed: int, level: float, run: Eliminate = eliminate) -> None:
    """||W X - W' X|| is at most that of as many weights that magnitude leaves.

    No theorem: it is so for masks chosen a quarter at a time, at levels that leave others to make up for what goes.
    """
    rows, inputs = noise(24, 32, seed=seed), correlated(32, 200, seed + 1)
    root, dead = inverse_root((inputs.T @ inputs)[None], 0.01, "w", "test")
    kept, values = run(rows[None], root, dead, torch.ones(1, 24, 32, dtype=torch.bool), level, 8)
    mask = keep_largest(rows.abs(), level)
    assert int(kept.sum()) == int(mask.sum()), f"{int(kept.sum())} weights stay, of magnitude {int(mask.sum())}"
    found, other = (float(((rows - new) @ inputs.T).norm()) for new in (values[0], rows * mask))
    assert found <= other, f"disturbs outputs by {found}, magnitude by {other} at {level}"


@few
@given(st.integers(0, 9999), st.floats(0.2, 0.6))
def test_outputs_change_less_than_by_magnitude(seed: int, level: float) -> None:
    disturbs_less_than_magnitude(seed, level)


def makes_it_worse(rows: Tensor, root: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    kept, values = eliminate(rows, root, *rest)
    return kept, (2 * rows - values) * kept


def removes_the_most_important(rows: Tensor, root: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    kept, _ = eliminate(1 / rows, root, *rest)
    return kept, rows * kept


@pytest.mark.parametrize("mutant", [makes_it_worse, removes_the_most_important])
def test_the_bound_by_magnitude_rejects(mutant: Eliminate) -> None:
    with pytest.raises(AssertionError, match="disturbs outputs by"):
        disturbs_less_than_magnitude(0, 0.5, mutant)


# The method


def patches_of(model: nn.Module, images: Tensor, name: str) -> Tensor:
    seen: list[Tensor] = []
    watch_inputs(model, [(images,)], [name], lambda _, patches: seen.append(patches), "test")
    return torch.cat(seen, 1).double()


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(4, 8, (3, 2), groups=2, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(140, 3)).eval()


IMAGES = noise(12, 4, 5, 6).float()
CONTEXT = Context((IMAGES[:2],), torch.Generator(), [(IMAGES[:7],), (IMAGES[7:],)])


def convolution_by_hand(level: float | NofM) -> tuple[Tensor, Tensor]:
    """The first layer of `net`, group by group, its columns ordered place by place of the kernel."""
    patches, weight = patches_of(net(), IMAGES, "0.weight"), net()[0].weight.detach().double()
    order = [place + 6 * channel for place in range(6) for channel in range(2)]
    kept, values = torch.zeros(8, 12, dtype=torch.bool), torch.zeros(8, 12, dtype=torch.float64)
    for group in range(2):
        x, rows = patches[group][:, order], weight.flatten(1)[4 * group : 4 * group + 4, order]
        mask, new = recursion(rows, x.T @ x, 0.01, torch.ones(4, 12, dtype=torch.bool), level, 128)
        kept[4 * group : 4 * group + 4, order], values[4 * group : 4 * group + 4, order] = mask, new
    return kept.view(weight.shape), values.view(weight.shape)


def equals(found: Tensor, expected: Tensor, what: str) -> None:
    error = float((found.double() - expected.double()).abs().max())
    assert error < 1e-6, f"{what} differ by {error}"


def test_a_grouped_convolution_is_pruned_by_its_unfolded_inputs() -> None:
    plan = SparseGPT().plan(net(), NofM(1, 2), CONTEXT)
    kept, values = convolution_by_hand(NofM(1, 2))
    equals(plan.masks["0.weight"], kept, "masks")
    equals(plan.writes["0.weight"], values, "values")
    pairs = plan.masks["0.weight"].movedim(1, -1).reshape(-1, 2).sum(1)
    assert pairs.eq(1).all(), f"pairs of inputs keep {pairs.tolist()}, should keep 1"


def test_each_layer_is_given_what_the_pruned_ones_before_it_make() -> None:
    plan = SparseGPT().plan(net(), 0.5, CONTEXT)
    first = {"0.weight": plan.masks["0.weight"]}
    pruned = apply_masks(net(), type(plan)(first, {"0.weight": plan.writes["0.weight"]}))
    rows = net()[2].weight.detach().double().flatten(1)

    def second(model: nn.Module) -> Tensor:
        x = patches_of(model, IMAGES, "2.weight")[0]
        return recursion(rows, x.T @ x, 0.01, torch.ones(rows.shape, dtype=torch.bool), 0.5, 128)[1]

    equals(plan.writes["2.weight"].flatten(1), second(pruned), "values of the second layer")
    with pytest.raises(AssertionError, match="values of the second layer differ"):  # the mutant: the dense inputs
        equals(plan.writes["2.weight"].flatten(1), second(net()), "values of the second layer")


class Backwards(nn.Module):
    """Its first layer is the last that it defines."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.second, self.first = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.second(self.first(inputs).relu()).relu())


def test_layers_are_pruned_in_the_order_of_their_use(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    products = sparsegpt.input_products
    monkeypatch.setattr(sparsegpt, "input_products", lambda *given: order.append(given[2]) or products(*given))
    inputs = noise(6, 4).float()
    plan = SparseGPT().plan(Backwards(), 0.5, Context((inputs,), torch.Generator(), [(inputs,)]))
    assert order == ["first.weight", "second.weight"], f"pruned in the order {order}"
    assert list(plan.masks) == ["second.weight", "first.weight"], f"masks in the order {list(plan.masks)}"


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.attention(inputs, inputs, inputs)[0])


def test_packed_projections_of_attention_are_pruned_as_one_layer() -> None:
    model, inputs = Attention().eval(), noise(20, 3, 8).float()
    plan = SparseGPT().plan(model, "2of4", Context((inputs,), torch.Generator(), [(inputs,)]))
    assert list(plan.masks) == ["attention.in_proj_weight", "attention.out_proj.weight"], f"{list(plan.masks)}"
    for name, mask in plan.masks.items():
        groups = mask.view(-1, 4).sum(1)
        assert groups.eq(2).all(), f"groups of {name} keep {groups.tolist()}, should keep 2"
    flat = inputs.flatten(0, 1)
    weight = model.attention.in_proj_weight.detach()
    magnitude = (
        weight
        * Magnitude().plan(model, "2of4", Context((inputs,), torch.Generator())).masks["attention.in_proj_weight"]
    )
    found, other = (
        float(((weight - new) @ flat.T).norm()) for new in (plan.writes["attention.in_proj_weight"], magnitude)
    )
    assert found < other, f"outputs change by {found}, by magnitude {other}"


def test_what_earlier_masks_removed_stays_zero_and_counts_as_gone() -> None:
    earlier = Magnitude().plan(net(), 0.5, CONTEXT)
    model = apply_masks(net(), earlier)
    context = Context(CONTEXT.example_inputs, torch.Generator(), CONTEXT.calibration, earlier=earlier.masks)
    plan = SparseGPT().plan(model, 0.5, context)
    for name, before in earlier.masks.items():
        left = int(before.sum()) - pruned_count(int(before.sum()), 0.5)
        assert int(plan.masks[name].sum()) == left, f"{name} keeps {int(plan.masks[name].sum())}, should keep {left}"
        revived = int((plan.masks[name] & ~before).sum()) + int(plan.writes[name][~plan.masks[name]].count_nonzero())
        assert not revived, f"{revived} pruned weights of {name} came back"


def test_weights_of_a_dead_input_go_first_and_no_other_hears_of_it() -> None:
    model, inputs = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), noise(30, 4).float()
    inputs[:, 1] = 0
    model[0].weight.data[:, 1] = 100.0
    context = Context((inputs,), torch.Generator(), [(inputs,)])
    for damping in (0.0, 0.01):
        plan = SparseGPT(damping=damping).plan(model, 0.25, context)
        assert not plan.masks["0.weight"][:, 1].any(), f"keeps {plan.masks['0.weight'].tolist()}"
        others = [0, 2, 3]
        equals(plan.writes["0.weight"][:, others], model[0].weight.detach()[:, others], "the other weights")
    silent = Context((inputs,), torch.Generator(), [(inputs * 0,)])  # all inputs are dead
    plan = SparseGPT().plan(model, 0.25, silent)
    assert int(plan.masks["0.weight"].sum()) == 12, f"keeps {int(plan.masks['0.weight'].sum())} of 16"


def test_inputs_that_depend_on_each_other_need_damping() -> None:
    model, inputs = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.ones(30, 4)
    context = Context((inputs,), torch.Generator(), [(inputs,)])
    with pytest.raises(
        ModelError, match=r"^sparsegpt: inputs that depend on each other with damping 0.0.*\[0.weight\]"
    ):
        SparseGPT(damping=0.0).plan(model, 0.5, context)
    assert SparseGPT().plan(model, 0.5, context).sparsity == 0.5, "with damping it should do"


def test_calibration_that_is_missing_or_not_finite_is_said() -> None:
    with pytest.raises(ModelError, match=r"^sparsegpt: no calibration data"):
        SparseGPT().plan(net(), 0.5, Context(CONTEXT.example_inputs, torch.Generator()))
    with pytest.raises(ModelError, match=r"products of inputs NaN or infinite.*\[0.weight\]"):
        SparseGPT().plan(net(), 0.5, Context(CONTEXT.example_inputs, torch.Generator(), [(IMAGES / 0,)]))


# What the plan writes, everywhere


def test_written_values_are_in_the_model_its_twin_its_file_and_the_cache(tmp_path: Path) -> None:
    made = compress(net(), "sparsegpt:0.5", example_inputs=(IMAGES[:2],), calibration=[(IMAGES,)])
    (plan,) = made.plans
    assert plan.writes.keys() == {"0.weight", "2.weight"}, f"writes {list(plan.writes)}"
    save(made, tmp_path / "net.safetensors")
    loaded = load(tmp_path / "net.safetensors", model=net())
    cached, _ = decode(encode(made, {}), net(), made.recipe, made.example_inputs)
    for where, model in {
        "model": made.model,
        "twin": made.masked_twin,
        "file": loaded.model,
        "cache": cached.model,
        "applied again": apply_masks(net(), cached.plans[0]),
    }.items():
        for name, values in plan.writes.items():
            same = torch.equal(model.get_parameter(name), values)
            assert same, f"{where}: {name} is {model.get_parameter(name)}, should be {values}"
