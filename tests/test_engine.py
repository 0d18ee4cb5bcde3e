"""The engine: what compress() promises whatever the recipe."""

import copy
import re
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from pruning_bench import compress, foreign
from pruning_bench.contracts import Context
from pruning_bench.datasets.contract import Split, Tensors
from pruning_bench.discover import discover
from pruning_bench.engine import last_stages
from pruning_bench.errors import (
    DataError,
    LevelError,
    ModelError,
    PluginError,
    PruningBenchError,
    RecipeError,
    UnknownNameError,
)
from pruning_bench.levels import as_level
from pruning_bench.pruning.contract import MaskPlan, PruningTags
from pruning_bench.pruning.masks import current_masks
from pruning_bench.recipe import parse
from pruning_bench.registry import STEPS, Registry
from pruning_bench.training.contract import StepTags

RECIPES = [
    "dense",
    "magnitude:0.5",
    "magnitude:0.5,scope=layer",
    "l1_filter:0.5",
    "l1_filter:0.5+magnitude:0.5",
    "magnitude:0.5+l1_filter:0.5",
    "l1_filter:0.25+l1_filter:0.25",
    "static:w8a8",
    "l1_filter:0.5+static:w8a8",
    "magnitude:0.5+finetune:1",
    "magnitude:0.5+l1_filter:0.5+finetune:1+static:w8a8",
    "repeat(2,magnitude:0.5+finetune:1)",
    "l1_filter:0.5+bn_recalibrate:2",
]


class Block(nn.Module):
    """Convolution, batch norm, a residual add and a linear layer: what couples channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.relu(self.bn1(self.conv1(x)))
        b = self.relu(self.bn2(self.conv2(a)) + a)
        return self.fc(b.mean((2, 3)))


@pytest.fixture
def block() -> nn.Module:
    torch.manual_seed(0)
    model = Block()
    with torch.no_grad():
        model.train()(torch.randn(64, 1, 8, 8))
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.add_(0.1 * torch.rand_like(tensor))
    return model.eval()


@pytest.fixture(scope="module")
def train() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 3, (64,), generator=generator), torch.tensor([0.5]), torch.tensor([0.25]))


def make(model: nn.Module, recipe: str, train: Split, seed: int = 0) -> Any:
    inputs = (train.inputs(slice(0, 1)),)
    return compress(model, recipe, example_inputs=inputs, calibration=[(train.inputs(),)], train=train, seed=seed)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_model_that_came_in_is_unchanged(block: nn.Module, train: Split, recipe: str) -> None:
    before = copy.deepcopy(block)
    make(block, recipe, train)
    assert same_state(before, block), f"{recipe} changed the input model"
    assert not block.training, f"{recipe} switched the input model to training"


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_seed_gives_the_same_model(block: nn.Module, train: Split, recipe: str) -> None:
    one, other = (make(block, recipe, train, seed=3) for _ in range(2))
    assert same_state(one.model, other.model), f"{recipe} differs between two runs with one seed"


class InPlace(nn.Sequential):
    """Changes its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5))


class Kept(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - 0.5)


@pytest.mark.parametrize("recipe", ["sparsegpt:0.5", "wanda:0.3+wanda:0.5", "gptq:w4"])
def test_a_model_that_works_in_place_is_pruned_like_one_that_does_not(recipe: str) -> None:
    torch.manual_seed(3)
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)]
    inputs = torch.randn(20, 8)
    before = inputs.clone()
    one, other = (
        compress(kind(*layers), recipe, example_inputs=(inputs[:1].clone(),), calibration=[(inputs,)])
        for kind in (InPlace, Kept)
    )
    assert torch.equal(inputs, before), f"{recipe} changed the caller's inputs"
    assert same_state(one.model, other.model), f"{recipe} saw inputs that an earlier run had changed"


@pytest.mark.parametrize("recipe", ["wanda:0.5", "sparsegpt:0.5", "gptq:w4", "static:w8a8"])
def test_a_calibration_batch_without_examples_is_refused(block: nn.Module, recipe: str) -> None:
    batches = [(torch.ones(2, 1, 8, 8),), (torch.ones(0, 1, 8, 8),)]
    with pytest.raises(ModelError, match=r"an empty batch of shape \[0, 1, 8, 8\], should be at least one example"):
        compress(block, recipe, example_inputs=(torch.zeros(1, 1, 8, 8),), calibration=batches)


def test_what_steps_draw_has_nothing_to_do_with_what_weights_were_drawn_from() -> None:
    """`torch.manual_seed(0)` before the model is made, and seed 0 of its random pruning, that is."""
    gone = []
    for seed in range(2):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(400, 100), nn.Linear(100, 2))
        mask = compress(net, "random:0.5", example_inputs=(torch.zeros(1, 400),), seed=seed).plans[0].masks["0.weight"]
        gone.append(float((~mask)[net[0].weight < 0].double().mean()))
    assert all(abs(share - 0.5) < 0.02 for share in gone), f"of the negative weights {gone} went, should be a half"
    torch.manual_seed(0)
    weight, drawn = nn.Linear(400, 100).weight, torch.rand(100, 400, generator=torch.Generator().manual_seed(0))
    assert abs(float((drawn < 0.5)[weight < 0].double().mean()) - 0.5) > 0.2, "the mutant, one stream for both, passes"


def test_stages_are_what_shorter_recipes_give(block: nn.Module, train: Split) -> None:
    inputs = (train.inputs(slice(0, 1)),)
    given = {"example_inputs": inputs, "calibration": [(train.inputs(),)], "train": train, "seed": 5}
    last = last_stages(3, block, "random:0.3+random:0.5+wanda:0.5", **given)
    recipes = ["random:0.3", "random:0.3+random:0.5", "random:0.3+random:0.5+wanda:0.5"]
    for stage, recipe in zip(last, recipes, strict=True):
        assert str(stage.recipe) == recipe, f"{stage.recipe}"
        assert same_state(stage.model, compress(block, recipe, **given).model), f"{recipe} gives another model alone"


def test_another_seed_gives_another_fine_tuned_model(block: nn.Module, train: Split) -> None:
    one, other = (make(block, "magnitude:0.5+finetune:1", train, seed=seed) for seed in (0, 1))
    assert not same_state(one.model, other.model), "the seed has no effect on training"


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "dense"])
def test_the_masked_twin_computes_what_the_float_model_computes(block: nn.Module, train: Split, recipe: str) -> None:
    made = make(block, recipe, train)
    x = train.inputs()
    with torch.no_grad():
        got, twin = made.float_model(x), made.masked_twin(x)
    error = ((got - twin).abs().max() / (twin[0] - twin[1]).abs().max()).item()
    assert error < 1e-4, f"{recipe}: masked twin differs by {error:.2e}"
    shapes = {k: v.shape for k, v in block.state_dict().items()}
    twins = {k: v.shape for k, v in made.masked_twin.state_dict().items()}
    assert twins == shapes, f"{recipe}: the twin has not the dense model's names and shapes"


def test_repeated_masks_compound(block: nn.Module, train: Split) -> None:
    made = make(block, "repeat(3,magnitude:0.5)", train)
    left = sum(int(mask.sum()) for mask in current_masks(made.plans).values())
    total = sum(mask.numel() for mask in made.plans[0].masks.values())
    assert left == total / 8, f"{left} of {total} weights left after halving three times"


def test_the_finished_masked_model_is_plain(block: nn.Module, train: Split) -> None:
    made = make(block, "magnitude:0.5+finetune:1", train)
    fresh = Block()
    fresh.load_state_dict(made.model.state_dict())
    x = train.inputs()
    assert torch.equal(fresh.eval()(x), copy.deepcopy(made.model)(x)), "loaded or copied model computes something else"
    zeros = sum(int((p == 0).sum()) for n, p in made.model.named_parameters() if n in made.plans[0].masks)
    expected = sum(int((~mask).sum()) for mask in made.plans[0].masks.values())
    assert zeros >= expected, f"{zeros} zeros after fine-tuning, the plan removed {expected}"


def test_quantization_comes_last(block: nn.Module, train: Split) -> None:
    with pytest.raises(ModelError, match="after quantization"):
        make(block, "static:w8a8+magnitude:0.5", train)


@pytest.mark.parametrize(
    ("recipe", "error", "says"),
    [
        ("magnitud:0.5", UnknownNameError, "'magnitude'"),
        ("magnitude:1.0", LevelError, r"in \[0, 1\)"),
        ("magnitude:-1", RecipeError, r"\^"),
        ("magnitude", LevelError, "sparsity"),
        ("magnitude:0.5+", RecipeError, "method name"),
        ("magnitude:0.5,scop=layer", RecipeError, "scope"),
        ("static:w8", LevelError, "a8|activations"),
        ("finetune:0.5", LevelError, "whole number"),
        ("finetune", LevelError, "no level, should be a whole number"),  # one spelling: an epoch is finetune:1
    ],
)
def test_a_bad_recipe_is_one_clear_error(
    block: nn.Module, train: Split, recipe: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make(block, recipe, train)


@pytest.mark.parametrize("level", ["", ":1.2", ":0.5", ":2", ":2of4", ":w4", ":w8a8", ":w9", ":bf16", ":fp32"])
def test_a_level_that_a_step_never_takes_does_not_parse(block: nn.Module, train: Split, level: str) -> None:
    """And the step says the same of it; the mutant is a tag that refuses what its step takes."""
    discover()
    inputs, read = (torch.zeros(2, 1, 8, 8),), as_level(level[1:] or None)
    shipped = [name for name in STEPS if STEPS[name].__module__.startswith("pruning_bench.")]
    refused = []
    for name in shipped:
        try:
            parse(name + level)
        except LevelError as problem:
            refused.append(name)
            step, context = STEPS[name](), Context(inputs, torch.Generator(), [inputs], train)
            with pytest.raises(LevelError, match=f"^{re.escape(str(problem))}$"):
                step.run(block, read, (), context) if hasattr(step, "run") else step.plan(block, read, context)
    if level in (":1.2", ":w9", ":fp32"):
        assert refused == shipped, f"taken by {set(shipped) - set(refused)}"


def test_a_step_without_a_reader_of_levels_parses_with_any() -> None:
    methods: Registry[Any] = Registry("method")
    methods.add("own", dataclass(frozen=True)(type("Own", (), {"tags": PruningTags("element")})))
    assert str(parse("own:1.2", methods)) == "own:1.2"


def test_nan_weights_are_named(block: nn.Module, train: Split) -> None:
    with torch.no_grad():
        block.conv2.weight[0, 0] = float("nan")  # type: ignore[union-attr,operator,index]
    with pytest.raises(ModelError, match=r"9 non-finite values.*conv2\.weight"):
        make(block, "magnitude:0.5", train)


@pytest.mark.parametrize("recipe", ["magnitude:0.5", "random:0.5", "l1_filter:0.5", "static:w8a8"])
def test_a_model_without_prunable_layers_is_an_error(recipe: str) -> None:
    inputs = (torch.zeros(1, 4),)
    with pytest.raises(ModelError, match="should be") as caught:
        compress(nn.Sequential(nn.ReLU()), recipe, example_inputs=inputs, calibration=[inputs])
    assert "\n" not in str(caught.value), f"{caught.value}, should be one line"


@pytest.mark.parametrize("seed", [-1, 2**53, 10**30, 0.5, "1"])
def test_a_seed_out_of_range_is_an_error(block: nn.Module, train: Split, seed: int) -> None:
    with pytest.raises(PruningBenchError, match=rf"seed {seed!r}, should be a whole number in \[0, 2\*\*53\)"):
        make(block, "magnitude:0.5+finetune:1", train, seed=seed)
    make(block, "magnitude:0.5", train, seed=2**53 - 1)


@pytest.mark.parametrize("recipe", [None, 0.5, ["magnitude:0.5"]])
def test_a_recipe_of_the_wrong_type_is_an_error(block: nn.Module, train: Split, recipe: Any) -> None:
    with pytest.raises(RecipeError, match="should be text or a parsed recipe"):
        make(block, recipe, train)


@pytest.mark.parametrize("model", [None, "resnet20", nn.Linear])
def test_a_model_of_the_wrong_type_is_an_error(model: Any) -> None:
    with pytest.raises(ModelError, match=r"should be a torch\.nn\.Module"):
        compress(model, "dense", example_inputs=(torch.zeros(1, 8),))


@pytest.mark.parametrize("inputs", [(), torch.zeros(1, 1, 8, 8)])
def test_example_inputs_must_be_a_tuple(block: nn.Module, inputs: Any) -> None:
    with pytest.raises(ModelError, match="tuple"):
        compress(block, "dense", example_inputs=inputs)


def test_missing_data_is_named(block: nn.Module) -> None:
    inputs = (torch.zeros(1, 1, 8, 8),)
    with pytest.raises(ModelError, match="no calibration data"):
        compress(block, "static:w8a8", example_inputs=inputs)
    with pytest.raises(ModelError, match="no training data"):
        compress(block, "finetune:1", example_inputs=inputs)


@dataclass(frozen=True)
class NoPlan:
    """A method that breaks its contract."""

    name: ClassVar[str] = "no_plan"
    tags: ClassVar[PruningTags] = PruningTags(structure="element")

    def plan(self, model: nn.Module, level: Any, context: Context) -> Any:
        return {"masks": MaskPlan({})}


@pytest.fixture
def no_plan() -> Iterator[None]:
    discover()
    with STEPS.temporarily("no_plan", NoPlan):
        yield


@pytest.mark.usefixtures("no_plan")
def test_a_method_that_returns_no_plan_is_named(block: nn.Module, train: Split) -> None:
    with pytest.raises(PluginError, match="no_plan: a plan of type dict"):
        make(block, "no_plan:0.5", train)


@dataclass(frozen=True)
class Failing:
    """A user's step that raises."""

    name: ClassVar[str] = "failing"
    tags: ClassVar[PruningTags] = PruningTags(structure="element")
    problem: ClassVar[BaseException]

    def plan(self, model: nn.Module, level: Any, context: Context) -> Any:
        return self.fail()

    def fail(self) -> Any:
        return self.future().result()  # which raises inside of Python's own library

    def future(self) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(self.problem)
        return future


@dataclass(frozen=True)
class FailingRun(Failing):
    tags: ClassVar[Any] = StepTags()

    def run(self, model: nn.Module, level: Any, plans: Any, context: Context) -> Any:
        yield self.fail()  # only where its plans are read


def failing(problem: BaseException, base: type = Failing, module: str = "my_methods") -> type:
    return type("Mine", (base,), {"problem": problem, "__module__": module})


def check_what_a_step_raises(block: nn.Module, train: Split) -> None:
    place = Failing.fail.__code__
    line = rf"{re.escape(place.co_filename)}:{place.co_firstlineno + 1}"
    for base, call in ((Failing, r"plan\(\) raises {}, should be a plan"), (FailingRun, r"run\(\) raises {}, .* None")):
        for problem, says in (
            (KeyError("x"), "KeyError: 'x'"),
            (ValueError("two\nlines"), "ValueError: two lines"),
            (MemoryError(), "MemoryError"),
            (torch.OutOfMemoryError("CUDA out of memory."), "OutOfMemoryError: CUDA out of memory."),
        ):
            with STEPS.temporarily("failing", failing(problem, base)):
                with pytest.raises(PluginError, match=rf"^failing: {call.format(says)} \[{line}\]$") as caught:
                    make(block, "failing:0.5" if base is Failing else "failing", train)
                assert caught.value.__cause__ is problem, f"{caught.value.__cause__!r}"


def test_what_a_users_step_raises_is_one_line_with_its_place(block: nn.Module, train: Split) -> None:
    discover()
    check_what_a_step_raises(block, train)


@pytest.mark.parametrize("mutant", ["no line", "the innermost"])
def test_what_a_users_step_raises_bites(
    mutant: str, block: nn.Module, train: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    discover()
    monkeypatch.setattr(foreign, "_is_loose", lambda file: mutant == "the innermost")
    with pytest.raises(AssertionError):
        check_what_a_step_raises(block, train)


@pytest.mark.parametrize(
    ("problem", "module"),
    [
        (KeyError("x"), "pruning_bench.pruning.methods.magnitude"),
        (KeyboardInterrupt(), "my_methods"),
        (ModelError("mine", "a", "b"), "my_methods"),
    ],
)
def test_bugs_of_the_package_interrupts_and_errors_of_the_suite_stay_as_they_are(
    problem: BaseException, module: str, block: nn.Module, train: Split
) -> None:
    discover()
    with STEPS.temporarily("failing", failing(problem, module=module)), pytest.raises(type(problem)) as caught:
        make(block, "failing:0.5", train)
    assert caught.value is problem, f"{caught.value!r}"


def spoilt_model(kind: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    if kind == "torch.nn.utils.prune":
        prune.l1_unstructured(model[0], "weight", 0.5)
        model(torch.ones(1, 4))
    elif kind == "a stored activation":
        model.last = model(torch.ones(1, 4))
    elif kind == "a closure":
        original = model.forward
        model.forward = lambda x: original(x)  # type: ignore[method-assign]
    elif kind == "a default":
        model[0].forward = lambda x, original=model[0].forward: original(x)  # type: ignore[method-assign,misc]
    return model


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("torch.nn.utils.prune", r"a model that cannot be copied .*torch.nn.utils.prune.remove.* \[Sequential\]"),
        ("a stored activation", r"a model that cannot be copied .*should be one for copy.deepcopy"),
        ("a closure", r"a forward put on the module, which holds a module: .* \[Sequential\]"),
        ("a default", r"a forward put on the module, which holds a module: .* \[0\]"),
    ],
)
@pytest.mark.parametrize("recipe", ["magnitude:0.5", "l1_filter:0.5"])
def test_models_whose_copies_would_not_be_theirs_are_refused(kind: str, message: str, recipe: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        compress(spoilt_model(kind), recipe, example_inputs=(torch.ones(1, 4),))
    assert "\n" not in str(caught.value), str(caught.value)


@pytest.mark.parametrize("recipe", ["wanda:0.5", "sparsegpt:0.5", "static:w8a8", "mixed:w4"])
@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (torch.ones(8, 4), "calibration of type Tensor, should be batches of positional arguments"),
        (3, "calibration of type int, should be batches of positional arguments"),
        ([torch.ones(8, 4)], r"a batch of type Tensor, should be a tuple .* \[calibration batch 0\]"),
        ([(torch.ones(8, 4),), (torch.ones(8, 5),)], r"a batch that does not run .* \[calibration batch 1\]"),
        ([()], r"a batch of 0 arguments, should be at least 1, like example_inputs \[calibration batch 0\]"),
        ([(None,)], r"an argument of type NoneType, should be a torch.Tensor; .* \[calibration batch 0, number 0\]"),
        ([(np.ones((8, 4)),)], "an argument of type ndarray, should be a torch.Tensor"),
        ([(torch.ones(8, 4, device="meta"),)], "an argument on the device meta, should be a tensor with values"),
    ],
)
def test_calibration_that_is_none_of_the_models_inputs_is_refused(recipe: str, calibration: Any, message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ModelError, match=message) as caught:
        compress(model, recipe, example_inputs=(torch.ones(1, 4),), calibration=calibration)
    assert "\n" not in str(caught.value), str(caught.value)


X, Y = torch.ones(8, 4), torch.zeros(8, dtype=torch.int64)


@pytest.mark.parametrize("recipe", ["magnitude:0.5", "snip:0.5", "bn_recalibrate", "finetune:1"])
@pytest.mark.parametrize("train", [(X, Y), [(X, Y)], X, "x", DataLoader(TensorDataset(X, Y)), TensorDataset(X, Y)])
def test_training_data_that_are_no_examples_are_refused(recipe: str, train: Any) -> None:
    model, kind = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), type(train).__name__
    with pytest.raises(DataError, match=f"compress: training data of type {kind}, should be examples: Split or"):
        compress(model, recipe, example_inputs=(X,), train=train)


def test_no_examples_are_enough_where_none_are_needed() -> None:
    model, none = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), Tensors((X[:0],), Y[:0])
    compress(model, "magnitude:0.5", example_inputs=(X,), train=none)
    for recipe in ("snip:0.5", "bn_recalibrate", "finetune:1"):
        with pytest.raises(DataError, match="training data with no examples, should be at least one"):
            compress(model, recipe, example_inputs=(X,), train=none)


def test_functions_that_hold_no_module_may_stand_for_a_forward() -> None:
    def made() -> Any:
        def forward(x: Tensor) -> Tensor:
            return x if factor else never(x)

        factor = 2.0
        if not factor:
            never = nn.Identity()
        return forward

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[1].forward = made()
    assert int((compress(model, "magnitude:0.5", example_inputs=(torch.ones(1, 4),)).model[0].weight == 0).sum()) == 16


def test_a_loader_may_calibrate() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(8, 4)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=4)
    found, expected = (
        compress(model, "wanda:0.5", example_inputs=(x[:1],), calibration=calibration).model[0].weight
        for calibration in (loader, [(x[:4],), (x[4:],)])
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("recipe", ["wanda:0.5", "sparsegpt:0.5", "static:w8a8", "mixed:w4", "gptq:w4"])
def test_labels_behind_the_inputs_are_left_out(recipe: str) -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(8, 4)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(8)), batch_size=4)
    found, expected = (
        compress(model, recipe, example_inputs=(x[:1],), calibration=calibration).model(x)
        for calibration in (loader, [(x[:4],), (x[4:],)])
    )
    assert torch.equal(found, expected), f"{recipe}: labels change the model"


@pytest.mark.parametrize("recipe", ["dense", "rtn:w4", "static:w8a8", "l1_filter:0.5"])
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (None, r"an argument of type NoneType, should be a torch.Tensor; .* \[example_inputs, number 1\]"),
        (3, "an argument of type int, should be"),
        (np.ones(2), "an argument of type ndarray, should be"),
        (torch.ones(1, device="meta"), "an argument on the device meta, should be a tensor with values"),
    ],
)
def test_example_inputs_are_tensors_with_values(recipe: str, extra: object, message: str) -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, factor: object = None) -> Tensor:
            return self.last(self.first(x))

    x = torch.ones(1, 4)
    with pytest.raises(ModelError, match=message) as caught:
        compress(Optional(), recipe, example_inputs=(x, extra), calibration=[(x, extra)])  # type: ignore[arg-type]
    assert "\n" not in str(caught.value), str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("recipe", ["rtn:w4", "static:w8a8", "cast:bf16", "magnitude:0.5+qat:w8a8"])
def test_only_float32_is_quantized(recipe: str, dtype: torch.dtype) -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype), torch.ones(1, 4, dtype=dtype)
    message = rf"weights of {dtype}, should be float32 for \w*:\w*, as model.float\(\) gives \[0.weight\]"
    with pytest.raises(ModelError, match=message.replace("torch.", "")):
        compress(model, recipe, example_inputs=(x,), calibration=[(x,)])
    made = compress(model, "magnitude:0.5", example_inputs=(x,))
    assert made.model[0].weight.dtype == dtype, "pruning keeps the type"


def test_weights_that_are_not_there_yet_or_not_to_be_changed_are_refused() -> None:
    with torch.inference_mode():
        inferred = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    lazy = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2))
    with pytest.warns():
        scripted = torch.jit.script(nn.Linear(4, 2))
    for model, message in (
        (inferred, r"weights made under inference_mode, should be clones .* \[0.weight\]"),
        (lazy, r"a weight without a shape, should be a model that has run once \[0.weight\]"),
        (scripted, "a model of type RecursiveScriptModule, should be a torch.nn.Module, as it was written"),
    ):
        with pytest.raises(ModelError, match=message):
            compress(model, "magnitude:0.5", example_inputs=(torch.ones(1, 4),))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.ones(1, 5),), r"a model that fails on inputs \[2, 5\], .*RuntimeError: .* batch first \[0 \(Linear\)"),
        ((torch.ones(1, 4), torch.ones(1, 4)), r"a model that fails on inputs \[2, 4\], \[2, 4\], .*TypeError: "),
    ],
)
def test_inputs_that_the_model_does_not_take_are_said_to_be_so(inputs: Any, message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    for recipe in ("l1_filter:0.5", "magnitude:0.5"):
        with pytest.raises(ModelError, match=message) as caught:
            compress(model, recipe, example_inputs=inputs)
        assert "\n" not in str(caught.value), str(caught.value)
