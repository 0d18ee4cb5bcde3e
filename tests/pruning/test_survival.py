"""What was pruned stays pruned: through every optimizer of torch.optim, moves, copies and the export to ONNX."""

import copy
import inspect
import io

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.optim import Optimizer

from pruning_bench import compress
from pruning_bench.contracts import Context
from pruning_bench.pruning.contract import MaskPlan
from pruning_bench.pruning.masks import apply_masks, keep_pruned
from pruning_bench.pruning.methods.magnitude import Magnitude
from pruning_bench.runtimes.onnx_export import export_onnx

SPARSE = {"SparseAdam"}  # takes sparse gradients, which no layer with a mask has
MATRICES = {"Muon"}  # takes matrices alone
FOUND = {name: found for name, found in vars(torch.optim).items() if inspect.isclass(found)}
OPTIMIZERS = sorted(n for n, o in FOUND.items() if issubclass(o, Optimizer) and o is not Optimizer and n not in SPARSE)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def images() -> Tensor:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(1))


def plan_of(model: nn.Module) -> MaskPlan:
    return Magnitude().plan(model, 0.5, Context((images()[:1],), torch.Generator()))


def optimizer_of(name: str, model: nn.Module) -> Optimizer:
    parameters = [p for p in model.parameters() if name not in MATRICES or p.dim() == 2]
    optimizer: Optimizer = FOUND[name](parameters, lr=0.05)
    return optimizer


def step(model: nn.Module, optimizer: Optimizer) -> None:
    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (model(images()) - 1).square().mean()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]


def check_stays_pruned(model: nn.Module, plan: MaskPlan) -> None:
    assert plan.masks, "nothing is pruned"
    for name, mask in plan.masks.items():
        values = model.get_parameter(name)[~mask]
        assert values.numel(), f"nothing of {name} is pruned"
        assert not values.any(), f"{int(values.count_nonzero())} of {values.numel()} pruned weights of {name} alive"


def test_the_optimizers_are_those_of_torch() -> None:
    assert {"SGD", "Adam", "AdamW", "LBFGS", "Rprop", "RMSprop"} <= {*OPTIMIZERS}
    assert ("Muon" in OPTIMIZERS) == hasattr(torch.optim, "Muon")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_through_training_with_older_state(name: str) -> None:
    model = network()
    optimizer = optimizer_of(name, model)
    for _ in range(2):
        step(model, optimizer)
    revived, plan = copy.deepcopy(model), plan_of(model)
    with keep_pruned(model, [plan], optimizer):
        before = {name: model.get_parameter(name).detach().clone() for name in plan.masks}
        for _ in range(3):
            step(model, optimizer)
            check_stays_pruned(model, plan)
    assert any(not torch.equal(model.get_parameter(name), values) for name, values in before.items()), "nothing moved"
    revived = apply_masks(revived, plan)
    unkept = optimizer_of(name, revived)
    unkept.load_state_dict(optimizer.state_dict())
    step(revived, unkept)
    with pytest.raises(AssertionError, match="alive"):
        check_stays_pruned(revived, plan)


@pytest.mark.parametrize("move", ["float64", "copy", "state", "whole"])
def test_through_moves_and_copies(move: str) -> None:
    model = network()
    plan = plan_of(model)
    pruned = apply_masks(model, plan)
    if move == "float64":
        pruned = pruned.to(torch.float64).to(torch.float32)
    elif move == "copy":
        pruned = copy.deepcopy(pruned)
    elif move == "state":
        fresh = network()
        fresh.load_state_dict(pruned.state_dict())
        pruned = fresh
    else:
        stored = io.BytesIO()
        torch.save(pruned, stored)
        stored.seek(0)
        pruned = torch.load(stored, weights_only=False)
    check_stays_pruned(pruned, plan)
    assert torch.equal(pruned(images()), apply_masks(model, plan)(images()))
    optimizer = optimizer_of("SGD", pruned)
    with keep_pruned(pruned, [copy.deepcopy(plan)], optimizer):
        step(pruned, optimizer)
    check_stays_pruned(pruned, plan)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_through_a_move_to_a_gpu() -> None:
    model = network()
    plan = plan_of(model)
    pruned = apply_masks(model, plan).cuda()
    optimizer = optimizer_of("SGD", pruned)
    with keep_pruned(pruned, [plan], optimizer):
        pruned(images().cuda()).sum().backward()
        optimizer.step()
    check_stays_pruned(pruned.cpu(), plan)


def test_through_the_export_to_onnx() -> None:
    made = compress(network(), "magnitude:0.5", example_inputs=(images()[:1],))
    graph = onnx.load_from_string(export_onnx(made, made.example_inputs)).graph
    exported = [numpy_helper.to_array(value) for value in graph.initializer]
    zeros = sum(int((values == 0).sum()) for values in exported if values.ndim == 2)
    (plan,) = made.plans
    assert isinstance(plan, MaskPlan)
    expected = sum(int((~mask).sum()) for mask in plan.masks.values())
    assert zeros == expected > 0, f"{zeros} zeros in the file, {expected} weights are pruned"
