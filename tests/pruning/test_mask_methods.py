"""The mask methods pass every check, and each gives the masks that its formula gives by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench import compress
from pruning_bench.conformance.runner import parametrize_with_checks
from pruning_bench.contracts import Context
from pruning_bench.datasets.contract import Tensors
from pruning_bench.errors import LevelError, ModelError
from pruning_bench.levels import NofM
from pruning_bench.pruning import patterns
from pruning_bench.pruning.inputs import unfold, watch_inputs
from pruning_bench.pruning.masks import pruned_count
from pruning_bench.pruning.methods import synflow
from pruning_bench.pruning.methods.lamp import Lamp, lamp_scores
from pruning_bench.pruning.methods.magnitude import Magnitude
from pruning_bench.pruning.methods.snip import Snip
from pruning_bench.pruning.methods.sparsegpt import SparseGPT
from pruning_bench.pruning.methods.synflow import Synflow
from pruning_bench.pruning.methods.wanda import Wanda

few = settings(max_examples=30, deadline=None)


@parametrize_with_checks([Magnitude(scope="erk"), Magnitude(block=4), Lamp(), Snip(), Synflow(rounds=2), Wanda()])
def test_mask_methods(method: Any, check: Any) -> None:
    check(method)


def same(found: Tensor, expected: Tensor, what: str) -> None:
    assert torch.allclose(found.double(), expected.double(), rtol=1e-9), f"{what}: {found}, should be {expected}"


# LAMP


def lamp_by_hand(weight: Tensor) -> Tensor:
    squares = weight.double().square()
    return squares / torch.stack([squares[squares >= square].sum() for square in squares.reshape(-1)]).view_as(squares)


def plain_squares(weight: Tensor) -> Tensor:
    return weight.double().square()


def over_the_smaller(weight: Tensor) -> Tensor:
    squares = weight.double().square()
    return squares / torch.stack([squares[squares <= square].sum() for square in squares.reshape(-1)]).view_as(squares)


def test_lamp_divides_by_what_is_no_smaller() -> None:
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    same(lamp_scores(weight), lamp_by_hand(weight), "LAMP scores")


@pytest.mark.parametrize("mutant", [plain_squares, over_the_smaller])
def test_the_comparison_of_lamp_rejects(mutant: Callable[[Tensor], Tensor]) -> None:
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError, match="LAMP scores"):
        same(mutant(weight), lamp_by_hand(weight), "LAMP scores")


def test_lamp_spares_a_layer_of_small_weights_that_magnitude_empties() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    model[0].weight.data = torch.arange(1.0, 17).view(4, 4)
    model[1].weight.data = torch.arange(1.0, 17).view(4, 4) / 1000
    context = Context((torch.zeros(2, 4),), torch.Generator())
    left = {n: int(m.sum()) for n, m in Lamp().plan(model, 0.5, context).masks.items()}
    assert left == {"0.weight": 8, "1.weight": 8}, f"LAMP leaves {left}: scores do not change with a layer's scale"
    by_size = {n: int(m.sum()) for n, m in Magnitude().plan(model, 0.5, context).masks.items()}
    assert by_size == {"0.weight": 16, "1.weight": 0}, f"magnitude leaves {by_size}"


# SNIP


def test_snip_weighs_weights_by_their_gradients() -> None:
    # logits x * [a, b], one example x = 1 of class 0: dL/da = p0 - 1, dL/db = p1; after a first layer w = [2, 1]
    # dL/dw_j = (-p1 * v_0j + p1 * v_1j) * x_j, so the scores are p1 * |w_j x_j (v_1j - v_0j)|: 2 * 1 * 0.1, 1 * 1 * 3
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    model[1].weight.data = torch.tensor([[1.0, 1.0], [1.1, 4.0]])
    train = Tensors((torch.ones(1, 2),), torch.tensor([0]))
    context = Context((torch.zeros(2, 2),), torch.Generator(), train=train)
    found = Snip().plan(model, 0.75, context).masks["0.weight"]
    assert found.tolist() == [[False, False], [False, True]], f"SNIP keeps {found}, should keep the second alone"
    other = Magnitude().plan(model, 0.75, context).masks["0.weight"]  # the mutant: the weight without its gradient
    assert not torch.equal(other, found), "the example does not tell SNIP from magnitude"


# SynFlow


def convolutional() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(20, 3)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(7.0)
            module.running_var.copy_(torch.arange(1.0, 1 + len(module.running_var)))
            module.bias.data.fill_(-3.0)
            module.weight.data[0] = -2.0
    return model


IMAGES = (torch.ones(1, 1, 6, 6, dtype=torch.float64),)
WEIGHTS = ["0.weight", "3.weight", "7.weight"]


def conservation(twin: nn.Module) -> None:
    """The paper's law: every layer's flow sums to the same, the output."""
    flow = synflow.synaptic_flow(twin, IMAGES, WEIGHTS)
    sums = [float(values.sum()) for values in flow.values()]
    output = float(twin(*IMAGES).detach().sum())
    assert max(abs(one - output) for one in sums) < 1e-9 * abs(output), f"layers carry {sums}, should all be {output}"


def test_synaptic_flow_is_conserved_from_layer_to_layer() -> None:
    conservation(synflow.positive_twin(convolutional()))


def with_biases(model: nn.Module) -> nn.Module:
    twin = synflow.positive_twin(model)
    twin[0].bias.data.fill_(1.0)
    return twin


def with_means(model: nn.Module) -> nn.Module:
    twin = synflow.positive_twin(model)
    twin[1].running_mean.fill_(-1.0)
    return twin


def with_signs(model: nn.Module) -> nn.Module:
    twin = synflow.positive_twin(model)
    twin[3].weight.data.copy_(model[3].weight)
    twin[4].bias.data.fill_(0.5)
    return twin


@pytest.mark.parametrize("mutant", [with_biases, with_means, with_signs])
def test_conservation_rejects(mutant: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(AssertionError, match="layers carry"):
        conservation(mutant(convolutional()))


def test_synflow_keeps_every_layer_alive_where_one_round_would_not() -> None:
    def left(rounds: int) -> list[int]:
        model = convolutional()
        plan = Synflow(rounds=rounds).plan(model, 0.97, Context((torch.zeros(1, 1, 6, 6),), torch.Generator()))
        return [int(mask.sum()) for mask in plan.masks.values()]

    assert min(left(30)) >= 1, f"30 rounds leave {left(30)}: a layer is empty"
    assert left(30) != left(1), "the number of rounds changes nothing"


class Silent(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class Overwriting(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).exp().mul_(2)  # exp needs its own output to go back


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Silent, r"outputs that have no gradient, .* \[Silent\]"),
        (Overwriting, r"gradients that fail .* \[Overwriting\]"),
    ],
)
def test_synflow_says_that_a_model_lets_no_gradient_pass(kind: type[nn.Module], found: str) -> None:
    model, given = kind(nn.Linear(4, 4), nn.Linear(4, 2)), Context((torch.zeros(2, 4),), torch.Generator())
    with pytest.raises(ModelError, match=f"^synflow: {found}"):
        Synflow().plan(model, 0.5, given)


def test_synflow_does_not_overflow_where_float32_would() -> None:
    layers = [nn.Linear(32, 32, bias=False) for _ in range(24)]
    for layer in layers:
        layer.weight.data = torch.full((32, 32), 10.0)  # 320 ** 24 is 1e60
    plan = Synflow(rounds=2).plan(nn.Sequential(*layers), 0.5, Context((torch.zeros(2, 32),), torch.Generator()))
    assert plan.sparsity == 0.5, f"sparsity {plan.sparsity}"
    twin = synflow.positive_twin(nn.Sequential(*layers)).float()  # the mutant
    assert not torch.isfinite(twin(torch.ones(1, 32))).all(), "float32 does not overflow here either"


def test_synflow_leaves_no_bias_and_takes_a_norm_without_statistics_as_its_gain() -> None:
    attention, norm = nn.MultiheadAttention(4, 2, add_bias_kv=True), nn.BatchNorm1d(3, track_running_stats=False)
    twin = synflow.positive_twin(nn.ModuleList([nn.LSTM(3, 2), attention, norm]))
    left = [n for n, p in twin.named_parameters() if "bias" in n.rpartition(".")[2] and p.any()]
    assert not left, f"{left} are not zero"
    gain = twin[2](torch.ones(1, 3, dtype=torch.float64))
    same(gain, torch.full((1, 3), (1 + norm.eps) ** -0.5), "what the norm makes of ones")


# Inputs and Wanda

CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2), groups=2),
    nn.Conv2d(4, 4, 3, groups=4, padding=(2, 0)),
    nn.Conv1d(4, 2, 3, stride=2, padding=1),
    nn.Conv3d(4, 2, 2, padding=1),
    nn.ConvTranspose1d(4, 6, 3, stride=3, padding=2, output_padding=1, groups=2),
    nn.ConvTranspose2d(4, 6, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1), groups=2),
    nn.ConvTranspose2d(4, 4, (2, 3), stride=3, padding=(3, 0), output_padding=(0, 2), groups=4),
    nn.ConvTranspose3d(4, 2, 2, stride=2),
]


def patches_law(layer: nn.Module, spoil: Callable[[Tensor], Tensor] = lambda patches: patches) -> None:
    """The patches times the weight are the convolution."""
    dims = layer.weight.dim() - 2
    images = torch.randn(3, 4, *(7, 8, 6)[:dims], generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    with torch.no_grad():
        expected = (layer(images) - layer.bias.view(-1, *(1,) * dims)).flatten(2)
    watch_inputs(nn.Sequential(layer), [(images,)], ["0.weight"], lambda _, patches: seen.append(patches), "test")
    patches = spoil(torch.cat(seen, 1))
    weight = patterns.inputs_second(layer.weight.detach(), layer.groups if layer.transposed else None)
    weight = weight.reshape(layer.groups, -1, patches.shape[2])
    product = torch.einsum("gnc,goc->gon", patches, weight).reshape(layer.out_channels, 3, -1).transpose(0, 1)
    error = float((product - expected).abs().max())
    assert error < 1e-5, f"patches times the weight are off by {error}"


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_unfolded_patches_times_the_weight_are_the_convolution(layer: nn.Module) -> None:
    patches_law(layer)


@pytest.mark.parametrize("layer", [CONVOLUTIONS[1], nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)], ids=str)
@pytest.mark.parametrize("dim", [0, 1, 2], ids=["groups", "places", "columns"])
def test_the_law_of_patches_rejects_a_wrong_order_of(dim: int, layer: nn.Module) -> None:
    with pytest.raises(AssertionError, match="off by"):
        patches_law(layer, lambda patches: patches.flip(dim))


def test_patches_are_made_some_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning_bench.pruning.inputs._CHUNK", 1)
    images, weight = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 2, 3)
    parts = list(unfold(images, weight, [1], [0], [1], 1))
    assert [part.shape for part in parts] == [(1, 3, 6)] * 3, f"{[part.shape for part in parts]}"


class SelfAttention(nn.Module):
    def __init__(self, cross: bool) -> None:
        super().__init__()
        self.attention, self.head, self.cross = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2), cross

    def forward(self, inputs: Tensor) -> Tensor:
        other = inputs + 1 if self.cross else inputs
        return self.head(self.attention(inputs, other, other, need_weights=False)[0])


def attended(cross: bool) -> Any:
    batch = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    context = Context((batch,), torch.Generator(), [(batch,)])
    return SelfAttention(cross).eval(), batch, context


def test_packed_projections_are_weighed_by_their_input() -> None:
    model, batch, context = attended(False)
    found = Wanda().plan(model, 0.5, context).masks["attention.in_proj_weight"]
    scores = model.attention.in_proj_weight.detach().abs() * batch.reshape(-1, 4).norm(dim=0)
    expected = scores >= scores.sort(dim=1).values[:, 2:3]
    assert torch.equal(found, expected), f"{found}, should be {expected}"


def test_a_projection_of_two_inputs_is_refused_by_name() -> None:
    model, _, context = attended(True)
    with pytest.raises(ModelError, match=r"^wanda: .*parts.*\[attention.in_proj_weight\]"):
        Wanda().plan(model, 0.5, context)


class Transposed(nn.Module):
    """A square weight that is used both ways: along the rows its columns are other inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(nn.functional.linear(self.inner(inputs), self.inner.weight.t()))
        return logits


def test_a_square_weight_used_transposed_is_refused_by_name() -> None:
    batch = (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),)
    with pytest.raises(ModelError, match=r"^wanda: .*\[inner.weight\]"):
        Wanda().plan(Transposed(), 0.5, Context(batch, torch.Generator(), [batch]))


def test_wanda_compares_within_rows_by_weight_times_norm() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    model[0].weight.data = torch.tensor([[1.0, -4.0], [300.0, 200.0]])
    calibration = [(torch.tensor([[3.0, 0.0], [4.0, 1.0]]),)]  # norms 5 and 1: scores [5, 4], [1500, 200]
    context = Context((torch.zeros(2, 2),), torch.Generator(), calibration)
    found = Wanda().plan(model, 0.5, context).masks["0.weight"].tolist()
    assert found == [[True, False], [True, False]], f"Wanda keeps {found}"
    for other in (Magnitude(scope="layer"), Magnitude()):  # the mutants: no norms, no rows
        assert other.plan(model, 0.5, context).masks["0.weight"].tolist() != found, f"{other} does the same"


def test_wanda_needs_calibration() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    inputs = (torch.zeros(2, 3),)
    for calibration in (None, []):
        with pytest.raises(ModelError, match=r"^wanda: no calibration data"):
            Wanda().plan(model, 0.5, Context(inputs, torch.Generator(), calibration))


class Tied(nn.Module):
    """One weight, of a convolution and of a transposed one."""

    def __init__(self, first: str) -> None:
        super().__init__()
        layers = {"down": nn.Conv1d(4, 4, 3), "up": nn.ConvTranspose1d(4, 4, 3)}
        layers["up"].weight = layers["down"].weight
        for name in sorted(layers, key=lambda name: name != first):
            self.add_module(name, layers[name])
        self.head = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.up(self.down(inputs)))
        return logits


@pytest.mark.parametrize("method", [Wanda(), SparseGPT()])
@pytest.mark.parametrize("first", ["down", "up"])
def test_a_weight_whose_inputs_are_rows_here_and_columns_there_is_refused_by_name(first: str, method: Any) -> None:
    images = (torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)),)
    with pytest.raises(
        ModelError, match=rf"^{method.name}: a \w+ convolution of 1 groups that shares.*\[{first}.weight\]"
    ):
        method.plan(Tied(first), 0.5, Context(images, torch.Generator(), [images]))


# Rows, N of M, ERK


@few
@given(st.integers(1, 5), st.integers(1, 9), st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_rows_keep_equal_shares_to_within_one(rows: int, columns: int, level: float, seed: int) -> None:
    scores = torch.randint(0, 4, (rows, columns), generator=torch.Generator().manual_seed(seed)).double()
    mask = patterns.choose_masks({"a": patterns.row_shares(scores)}, level, "layer", {})["a"]
    counts = mask.sum(1).tolist()
    assert max(counts) - min(counts) <= 1, f"rows keep {counts}"
    assert int((~mask).sum()) == pruned_count(scores.numel(), level), f"{int((~mask).sum())} gone at {level}"
    for row, kept in zip(scores, mask, strict=True):
        if kept.any() and not kept.all():
            assert row[kept].min() >= row[~kept].max(), f"row {row.tolist()} keeps {kept.tolist()}"


def n_of_m_law(mask: Tensor, scores: Tensor, level: NofM) -> None:
    """Every group of M inputs, at every place of the kernel, keeps its N largest."""
    groups = mask.movedim(1, -1).reshape(-1, level.group)
    assert groups.sum(1).eq(level.kept).all(), f"groups keep {groups.sum(1).tolist()}, should keep {level.kept}"
    values = scores.movedim(1, -1).reshape(-1, level.group)
    low = values.masked_fill(~groups, float("inf")).min(1).values
    high = values.masked_fill(groups, -float("inf")).max(1).values
    assert (low >= high).all(), f"{values.tolist()} keeps {groups.tolist()}"


@few
@given(st.sampled_from([(2, 4), (1, 4), (3, 4), (4, 8), (1, 2), (4, 4)]), st.booleans(), st.integers(0, 99))
def test_every_group_keeps_its_largest(n_of_m: tuple[int, int], ties: bool, seed: int) -> None:
    scores = torch.rand(3, 8, 2, 2, generator=torch.Generator().manual_seed(seed))
    scores = (4 * scores).round() if ties else scores
    n_of_m_law(patterns.keep_n_of_m(scores, NofM(*n_of_m)), scores, NofM(*n_of_m))


def along_the_kernel(scores: Tensor, level: NofM) -> Tensor:
    return patterns.keep_n_of_m(scores.reshape(scores.shape[0], -1), level).view(scores.shape)


def along_the_outputs(scores: Tensor, level: NofM) -> Tensor:
    return patterns.keep_n_of_m(scores.transpose(0, 1), level).transpose(0, 1)


def keeps_the_smallest(scores: Tensor, level: NofM) -> Tensor:
    return patterns.keep_n_of_m(-scores, level)


@pytest.mark.parametrize("mutant", [along_the_kernel, along_the_outputs, keeps_the_smallest])
def test_the_law_of_groups_rejects(mutant: Callable[[Tensor, NofM], Tensor]) -> None:
    scores = torch.rand(4, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError, match="keep"):
        n_of_m_law(mutant(scores, NofM(2, 4)), scores, NofM(2, 4))


def mixed() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize("method", [Magnitude(), Wanda(), Snip()])
def test_weights_that_n_of_m_does_not_fit_stay_whole_and_the_plan_says_so(method: Any) -> None:
    images = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    context = Context((images,), torch.Generator(), [(images,)], Tensors((images,), torch.tensor([0, 1])))
    plan = method.plan(mixed(), "2of4", context)
    assert plan.untouched == {"0.weight": "1 inputs are no multiple of 4"}, f"{plan.untouched}"
    assert plan.masks["0.weight"].all(), "a tensor that does not fit was pruned"
    groups = plan.masks["2.weight"].movedim(1, -1).reshape(-1, 4).sum(1)
    assert groups.eq(2).all(), f"groups keep {groups.tolist()}"
    with pytest.raises(ModelError, match=r"^3of5: no weight whose inputs 5 divides"):
        method.plan(mixed(), "3of5", context)


@few
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_a_transposed_weight_with_its_inputs_second_is_that_of_a_plain_convolution(
    groups: int, inputs: int, outputs: int, seed: int
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups * inputs, outputs, 3, 2, generator=drawn, dtype=torch.float64)
    images = torch.randn(2, groups * inputs, 4, 5, generator=drawn, dtype=torch.float64)
    plain = patterns.inputs_second(weight, groups)
    found = nn.functional.conv2d(images, plain.flip(2, 3), padding=(2, 1), groups=groups)
    same(found, nn.functional.conv_transpose2d(images, weight, groups=groups), "the plain convolution")
    assert torch.equal(patterns.inputs_first(plain, groups), weight), "the way back leads elsewhere"


METHODS_ALONG_INPUTS = [Magnitude(), Snip(), Wanda(), SparseGPT()]


def check_inputs_of_transposed_convolutions(method: Any) -> None:
    model = nn.Sequential(nn.ConvTranspose2d(16, 6, 2, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    images = torch.randn(2, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    context = Context((images,), torch.Generator(), [(images,)], Tensors((images,), torch.zeros(2, 4, 4).long()))
    mask = method.plan(model, "2of4", context).masks["0.weight"]
    groups = mask.view(2, 2, 4, 3, 2, 2).sum(2)  # 8 inputs a group, 4 of them in a row
    assert groups.eq(2).all(), f"of 4 inputs in a row {groups.unique().tolist()} stay"


@pytest.mark.parametrize("method", METHODS_ALONG_INPUTS)
def test_n_of_m_runs_along_the_inputs_of_transposed_convolutions(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check_inputs_of_transposed_convolutions(method)
    monkeypatch.setattr(f"{type(method).__module__}.transposed", lambda model: {})  # the mutant
    with pytest.raises((AssertionError, ModelError, RuntimeError)):
        check_inputs_of_transposed_convolutions(method)


class Apart(nn.Module):
    """The zeros that a transposed convolution of this stride puts between its inputs."""

    def forward(self, images: Tensor) -> Tensor:
        spread = images.new_zeros(*images.shape[:2], 2 * images.shape[2] - 1)
        spread[..., ::2] = images
        return spread


@pytest.mark.parametrize("level", [0.5, "2of4"])
@pytest.mark.parametrize("method", [Wanda(), SparseGPT()])
def test_a_transposed_convolution_is_pruned_as_the_plain_one_that_it_is(method: Any, level: Any) -> None:
    torch.manual_seed(0)
    turned, plain = nn.ConvTranspose1d(8, 6, 1, stride=2, groups=2), nn.Conv1d(8, 6, 1, groups=2)
    plain.weight.data = patterns.inputs_second(turned.weight.data, 2)
    plain.bias.data = turned.bias.data.clone()
    last = nn.Conv1d(6, 2, 1)
    images = (torch.randn(4, 8, 5),)
    earlier = torch.rand(6, 4, 1) > (0.2 if level == 0.5 else -1)
    plans = [
        method.plan(nn.Sequential(layer, last), level, Context(images, torch.Generator(), [images], earlier=masks))
        for layer, masks in (
            (turned, {"0.weight": patterns.inputs_first(earlier, 2)}),
            (nn.Sequential(Apart(), plain), {"0.1.weight": earlier}),
        )
    ]
    found = patterns.inputs_second(plans[0].masks["0.weight"], 2)
    assert torch.equal(found, plans[1].masks["0.1.weight"]), "another mask than the plain convolution's"
    assert not torch.equal(found, earlier), "nothing was pruned"
    if method.name == "sparsegpt":
        same(patterns.inputs_second(plans[0].writes["0.weight"], 2), plans[1].writes["0.1.weight"], "the new values")


def test_n_of_m_goes_on_from_earlier_masks() -> None:
    earlier = torch.tensor([[False, True, False, False, True, True, True, True]])
    scores = {"a": torch.tensor([[9.0, 1.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0]])}
    found = patterns.plan_masks(scores, NofM(2, 4), "global", {"a": earlier}).masks["a"].tolist()
    assert found == [[False, True, False, False, False, False, True, True]], f"{found}"


def test_erk_densities_are_in_proportion_to_the_sums_of_dimensions() -> None:
    model = nn.Sequential(nn.Linear(20, 40, bias=False), nn.Linear(40, 80, bias=False), nn.Linear(80, 2))
    plan = Magnitude(scope="erk").plan(model, 0.9, Context((torch.zeros(2, 20),), torch.Generator()))
    left = {name: int(mask.sum()) for name, mask in plan.masks.items()}
    # 4,000 weights, 400 stay, in proportion to 20 + 40 and 40 + 80
    assert left == {"0.weight": 133, "1.weight": 267}, f"ERK leaves {left}"


def test_erk_caps_densities_at_one() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 50, bias=False), nn.Linear(50, 2))
    plan = Magnitude(scope="erk").plan(model, 0.2, Context((torch.zeros(2, 2),), torch.Generator()))
    left = {name: int(mask.sum()) for name, mask in plan.masks.items()}
    assert left == {"0.weight": 4, "1.weight": 79}, f"ERK leaves {left}, should fill the first layer"


@pytest.mark.parametrize("level", [1, -0.5, "w8a8", "bf16", None])
@pytest.mark.parametrize("method", [Magnitude(), Lamp(), Snip(), Synflow(), Wanda()])
def test_levels_that_fit_no_mask_are_refused_by_the_methods_name(method: Any, level: Any) -> None:
    with pytest.raises(LevelError, match=f"^{method.name}: "):
        method.plan(convolutional(), level, Context((torch.zeros(1, 1, 6, 6),), torch.Generator()))


@pytest.mark.parametrize("method", [Lamp(), Synflow()])
def test_n_of_m_is_refused_where_scores_are_for_all_layers_together(method: Any) -> None:
    with pytest.raises(LevelError, match=f"^{method.name}: level 2of4"):
        method.plan(convolutional(), "2of4", Context((torch.zeros(1, 1, 6, 6),), torch.Generator()))


# Blocks


def block_law(mask: Tensor, scores: Tensor, block: int, level: float) -> None:
    """Blocks of inputs are whole or gone, exactly so many are gone, none that stays is smaller than one that goes."""
    rows = scores.movedim(1, -1).reshape(-1, scores.shape[1]).tolist()
    bits = mask.movedim(1, -1).reshape(-1, scores.shape[1]).tolist()
    found = []
    for row, kept in zip(rows, bits, strict=True):
        for at in range(0, len(row), block):
            part, states = row[at : at + block], set(kept[at : at + block])
            assert len(states) == 1, f"the block {part} at {at} is torn: {kept[at : at + block]}"
            found.append(((sum(x * x for x in part) / len(part)) ** 0.5, states.pop()))
    gone = sum(not stays for _, stays in found)
    assert gone == pruned_count(len(found), level), f"{gone} of {len(found)} blocks gone at {level}"
    low = min((norm for norm, stays in found if stays), default=float("inf"))
    high = max((norm for norm, stays in found if not stays), default=0.0)
    assert low >= high * (1 - 1e-6), f"keeps a block of norm {low}, removes one of {high}"


def blocks_of(scores: Tensor, block: int, level: float) -> Tensor:
    return patterns.plan_masks({"a": scores}, level, "layer", {}, block).masks["a"]


@few
@given(st.integers(1, 9), st.integers(2, 5), st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_blocks_of_smallest_norm_go_as_a_whole(inputs: int, block: int, level: float, seed: int) -> None:
    scores = torch.rand(3, inputs, 2, 1, generator=torch.Generator().manual_seed(seed))
    block_law(blocks_of(scores, block, level), scores, block, level)


def test_a_block_may_be_longer_than_all_inputs() -> None:
    scores = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blocks_of(scores, 10**9, 0.5), blocks_of(scores, 5, 0.5)), "rows of one block each differ"


def single_weights(scores: Tensor, block: int, level: float) -> Tensor:
    return blocks_of(scores, 1, level)


def blocks_along_the_outputs(scores: Tensor, block: int, level: float) -> Tensor:
    return blocks_of(scores.transpose(0, 1), block, level).transpose(0, 1)


def by_the_sum(scores: Tensor, block: int, level: float) -> Tensor:
    """A short last block counts for less."""
    padded = nn.functional.pad(scores, (0, 0, 0, 0, 0, -scores.shape[1] % block))
    return blocks_of(padded, block, level)[:, : scores.shape[1]]


def largest_blocks(scores: Tensor, block: int, level: float) -> Tensor:
    return blocks_of(1 / scores, block, level)


@pytest.mark.parametrize("mutant", [single_weights, blocks_along_the_outputs, by_the_sum, largest_blocks])
def test_the_law_of_blocks_rejects(mutant: Callable[[Tensor, int, float], Tensor]) -> None:
    scores = 1 + 0.1 * torch.rand(5, 5, 2, 1, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError, match=r"torn|keeps a block|blocks gone"):
        block_law(mutant(scores, 2, 0.5), scores, 2, 0.5)


def test_blocks_go_on_from_earlier_masks() -> None:
    earlier = {"a": torch.tensor([[False, False, False, True, True, True]])}
    found = patterns.plan_masks({"a": torch.tensor([[9.0, 9, 0, 1, 2, 3]])}, 0.5, "global", earlier, 2).masks["a"]
    assert found.tolist() == [[False] * 4 + [True] * 2], f"{found.tolist()}: of two blocks left the smaller should go"


def test_blocks_are_in_the_model_that_the_recipe_makes() -> None:
    made = compress(mixed(), "magnitude:0.5,block=4", example_inputs=(torch.zeros(1, 1, 6, 6),))
    assert str(made.recipe) == "magnitude:0.5,block=4", f"recipe {made.recipe}"
    blocks = (made.model[2].weight.movedim(1, -1).reshape(-1, 4) == 0).sum(1).tolist()
    assert set(blocks) == {0, 4}, f"zeros in blocks: {blocks}"


@pytest.mark.parametrize(("method", "level"), [(Magnitude(block=4), "2of4"), (Magnitude("erk", 4), 0.5)])
def test_blocks_are_refused_where_single_weights_are_counted(method: Any, level: Any) -> None:
    with pytest.raises(LevelError, match=r"block 4 with (2of4|erk), should be blocks with a share"):
        method.plan(mixed(), level, Context((torch.zeros(1, 1, 6, 6),), torch.Generator()))
