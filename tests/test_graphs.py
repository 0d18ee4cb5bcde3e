import pytest
import torch
from torch import Tensor, nn

from pruning_bench import graphs
from pruning_bench.errors import ModelError


class TwoInputs(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right.relu()


class FixedBatch(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.view(2, -1)


class WrongView(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.view(inputs.shape[0], 77)


class Branching(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if inputs.sum() > 0 else -inputs


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_is_dynamic_whatever_the_example(batch: int) -> None:
    program = graphs.export(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), (torch.zeros(batch, 1, 4, 4),))
    sizes = [node.meta["val"].shape[0] for node in graphs.input_nodes(program)]
    assert all(isinstance(size, torch.SymInt) for size in sizes), f"batch exported as {sizes}, should be symbolic"


def test_several_inputs_and_outputs_are_listed_in_order() -> None:
    program = graphs.export(TwoInputs(), (torch.zeros(1, 3), torch.zeros(1, 3)))
    names = [node.name for node in graphs.input_nodes(program)]
    assert names == ["left", "right"], f"inputs {names}, should be ['left', 'right']"
    assert [graphs.operator(node) for node in graphs.output_nodes(program)] == ["aten.add"], "output is no add"


def test_the_model_is_as_before() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
    model[0].eval()
    flags = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    fused = torch.backends.mha.get_fastpath_enabled()
    program = graphs.export(model, (torch.randn(1, 3),))
    assert [module.training for module in model.modules()] == flags, f"training flags changed from {flags}"
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), f"{name} changed from {state[name]} to {value}"
    assert torch.backends.mha.get_fastpath_enabled() == fused, "the fused attention path was left switched"
    modes = [node.args[5] for node in program.graph.nodes if graphs.operator(node) == "aten.batch_norm"]
    assert modes == [False], f"batch norm exported with training={modes}, should be eval mode"


def test_flags_come_back_after_a_failure() -> None:
    model = nn.Sequential(nn.Linear(3, 3), WrongView()).train()
    with pytest.raises(ModelError):
        graphs.export(model, (torch.zeros(2, 3),))
    assert all(module.training for module in model.modules()), "training flags lost when the export failed"


@pytest.mark.parametrize(
    ("module", "parts"),
    [
        (FixedBatch(), ["batch size"]),
        (WrongView(), ["1 (WrongView)", "inputs.view(inputs.shape[0], 77)"]),
        (Branching(), ["1 (Branching)", "inputs.sum() > 0"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_exported_is_named_in_one_line(
    module: nn.Module, parts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError) as raised:
        graphs.export(nn.Sequential(nn.Linear(3, 3), module), (torch.zeros(1, 3),))
    message = str(raised.value)
    assert "\n" not in message, f"more than one line: {message!r}"
    for part in parts:
        assert part in message, f"{message!r} should name {part!r}"
    printed = capfd.readouterr()
    assert not printed.err, f"torch's own dump came through: {printed.err[:200]!r}"


def test_readable_names_are_unique_and_follow_the_modules() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Sequential(nn.Tanh()))
    program = graphs.export(model, (torch.zeros(2, 4),))
    names = graphs.readable_names(program)
    called = [names[node] for node in program.graph.nodes if node.op == "call_function"]
    assert called == ["0.linear", "1.relu", "2.linear", "3.0.tanh"], f"names {called}"
    assert len(set(names.values())) == len(names), f"names repeat: {sorted(names.values())}"
