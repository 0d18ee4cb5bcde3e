"""Files of the build cache: what comes out is what went in, bit for bit; what a file cannot tell is refused."""

from __future__ import annotations

import cmath
import collections
import copy
import dataclasses
import functools
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruning_bench import build_entries, compress
from pruning_bench.build_entries import UNFIT, attributes_of, decode, digest_object, encode, structure_of
from pruning_bench.datasets.contract import Split
from pruning_bench.discover import discover
from pruning_bench.engine import Compressed
from pruning_bench.models.contract import build_model
from pruning_bench.pruning.contract import ChannelPlan, MaskPlan

RECIPES = [
    "dense",
    "magnitude:0.9",
    "random:0.5+magnitude:0.5,scope=layer",
    "l1_filter:0.5",
    "static:w8a8",
    "static:w8a8,granularity=per_tensor",
    "fp8:w8a8",
    "l1_filter:0.5+magnitude:0.5+finetune:1+static:w8a8",
    "magnitude:0.5+bn_recalibrate:1+l1_filter:0.25+l1_filter:0.25",
]


@pytest.fixture(scope="module")
def train() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 1, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (16,), generator=generator), torch.tensor([0.5]), torch.tensor([0.25]))


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    discover()
    torch.manual_seed(0)
    return build_model("resnet20", num_classes=10, in_channels=1)


def made(dense: nn.Module, recipe: str, train: Split) -> Compressed:
    inputs = (train.inputs(slice(0, 1)),)
    return compress(dense, recipe, example_inputs=inputs, calibration=[(train.inputs(),)], train=train)


@pytest.fixture(scope="module")
def quantized(dense: nn.Module, train: Split) -> Callable[[str], Compressed]:
    """Makes each recipe once; nobody changes what it gives."""
    return functools.cache(lambda recipe: made(dense, recipe, train))


def again(compressed: Compressed, dense: nn.Module) -> Compressed:
    """The model written and read."""
    return decode(encode(compressed, {}), dense, compressed.recipe, compressed.example_inputs)[0]


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two compressed models, or parts of them, are not the same to the last bit."""
    if type(one) is not type(other):
        yield f"{where}: {type(one).__name__} and {type(other).__name__}"
    elif isinstance(one, Tensor):
        alike = (one.dtype, one.shape, one.stride(), one.requires_grad)
        if alike != (other.dtype, other.shape, other.stride(), other.requires_grad):
            yield f"{where}: {alike} and {other.dtype, other.shape, other.stride(), other.requires_grad}"
        elif one.detach().contiguous().numpy().tobytes() != other.detach().contiguous().numpy().tobytes():
            yield f"{where}: other values"
    elif isinstance(one, nn.Module):
        names = [name for name, _ in one.named_modules()]
        if names != [name for name, _ in other.named_modules()]:
            yield f"{where}: other modules"
            return
        for name, module, second in zip(names, one.modules(), other.modules(), strict=True):
            yield from differences(described(module), described(second), f"{where}.{name}")
        yield from differences(one.state_dict(keep_vars=True), other.state_dict(keep_vars=True), where)
        yield from differences(dict(one.named_buffers()), dict(other.named_buffers()), where)
    elif dataclasses.is_dataclass(one) and not isinstance(one, type):
        for f in dataclasses.fields(one):
            yield from differences(getattr(one, f.name), getattr(other, f.name), f"{where}.{f.name}")
    elif isinstance(one, Mapping):
        if list(one) != list(other):
            yield f"{where}: keys {list(one)} and {list(other)}"
            return
        for name in one:
            yield from differences(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, (list, tuple)):
        if len(one) != len(other):
            yield f"{where}: {len(one)} and {len(other)} items"
            return
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from differences(left, right, f"{where}[{index}]")
    elif one != other:
        yield f"{where}: {one} and {other}"


def described(module: nn.Module) -> list[Any]:
    return [type(module).__name__, module.extra_repr(), module.training, len(module._forward_hooks)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_read_is_what_was_written(recipe: str, dense: nn.Module, train: Split) -> None:
    one = made(dense, recipe, train)
    other = again(one, dense)
    assert not (found := list(differences(one, other))), found
    assert (other.quant_plan is None) or other.quant_plan is other.plans[-1], "the plan of the runtimes is another"
    assert not (found := list(differences(one.masked_twin, other.masked_twin, "twin"))), found
    with torch.no_grad():
        assert torch.equal(one.model(train.inputs()), other.model(train.inputs())), "it computes something else"


def test_what_is_read_shares_nothing_with_the_dense_model(dense: nn.Module, train: Split) -> None:
    before = copy.deepcopy(dense)
    other = again(made(dense, "magnitude:0.5", train), dense)
    with torch.no_grad():
        for model in (other.float_model, other.dense):
            for parameter in model.parameters():
                parameter.add_(1)
    assert not (found := list(differences(before, dense))), found


def flipped(model: nn.Module, bit: int) -> nn.Module:
    """A copy with one bit of one weight turned."""
    changed = copy.deepcopy(model)
    weight = next(changed.parameters()).data.view(-1)
    weight[0] = (weight[:1].view(torch.int32) ^ (1 << bit)).view(torch.float32)[0]
    return changed


def moved(plans: Any) -> Any:
    """The plans with one mask turned or one channel exchanged."""
    first = plans[0]
    if isinstance(first, MaskPlan):
        name = next(iter(first.masks))
        return (replace(first, masks={**first.masks, name: ~first.masks[name]}), *plans[1:])
    return (replace(first, exact=False), *plans[1:])


WRONG: dict[str, Callable[[Compressed], Compressed]] = {
    "the lowest bit of a weight": lambda c: replace(c, float_model=flipped(c.float_model, 0)),
    "the sign of a weight": lambda c: replace(c, float_model=flipped(c.float_model, 31)),
    "training mode": lambda c: replace(c, float_model=copy.deepcopy(c.float_model).train()),
    "no dense model": lambda c: replace(c, dense=None),
    "no plans": lambda c: replace(c, plans=()),
    "another plan": lambda c: replace(c, plans=moved(c.plans)),
    "not quantized": lambda c: replace(c, quant_plan=None),
    "other example inputs": lambda c: replace(c, example_inputs=tuple(x + 1 for x in c.example_inputs)),
    "a frozen weight": lambda c: replace(c, float_model=copy.deepcopy(c.float_model).requires_grad_(False)),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("recipe", ["magnitude:0.5+static:w8a8", "l1_filter:0.5+static:w8a8"])
def test_the_comparison_bites(recipe: str, wrong: str, quantized: Callable[[str], Compressed]) -> None:
    one = quantized(recipe)
    assert list(differences(one, WRONG[wrong](one))), f"{wrong} is not seen"


class Odd(nn.Module):
    """What a `state_dict` does not hold, and ties."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4, 4)
        self.outer.weight = self.inner.weight
        self.register_buffer("scale", torch.rand(4), persistent=False)
        self.register_buffer("empty", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("small", torch.rand(3).bfloat16())
        self.factor = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x)) * self.scale * self.factor


def changed(model: nn.Module, change: Callable[[Any], object]) -> nn.Module:
    other = copy.deepcopy(model)
    change(other)
    return other


def test_buffers_outside_the_state_and_ties_are_kept() -> None:
    dense = Odd().eval()
    model = changed(dense, lambda m: (m.scale.add_(1), m.small.add_(1), m.inner.weight.data.add_(1)))
    found = again(Compressed(model, made_of_nothing, (), None, (torch.zeros(1, 4),), dense), dense).float_model
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, dict(found.named_buffers())[name]), f"{name} is not what it was"
    assert found.outer.weight is found.inner.weight, "tied weights came apart"


discover()
made_of_nothing = build_entries.Recipe()
REBUILT: dict[str, Callable[[Any], object]] = {
    "another layer": lambda m: setattr(m, "outer", nn.Linear(4, 4, bias=False)),
    "another class": lambda m: setattr(m, "inner", nn.Sequential(m.inner)),
    "another attribute": lambda m: setattr(m, "factor", 3.0),
    "another type": lambda m: m.small.data.double() is None or setattr(m, "small", m.small.double()),
    "other strides": lambda m: setattr(m.outer, "weight", nn.Parameter(m.outer.weight.detach().t())),
    "untied": lambda m: setattr(m.outer, "weight", nn.Parameter(m.outer.weight.detach().clone())),
    "a hook": lambda m: m.register_forward_hook(lambda *_: None),
    "frozen": lambda m: m.requires_grad_(False),
    "no device": lambda m: m.to("meta"),
}


@pytest.mark.parametrize("rebuilt", REBUILT)
def test_a_model_that_its_plans_do_not_explain_is_refused(rebuilt: str) -> None:
    dense = Odd().eval()
    model = changed(dense, REBUILT[rebuilt])
    with pytest.raises(UNFIT):
        again(Compressed(model, made_of_nothing, (), None, (torch.zeros(1, 4),), dense), dense)


def test_the_structure_of_a_copy_is_the_same() -> None:
    model = Odd()
    assert structure_of(copy.deepcopy(model)) == structure_of(model), "copies differ"
    assert structure_of(copy.deepcopy(model).eval()) != structure_of(model), "modes are not seen"


@dataclasses.dataclass
class Settings:
    width: int = 4
    inner: Any = None


class Slotted:
    __slots__ = ("width",)

    def __init__(self, width: int) -> None:
        self.width = width


class OneSlot(Slotted):
    __slots__ = "height"


def test_attributes_in_slots_are_found_however_the_slots_are_named() -> None:
    value = OneSlot(4)
    value.height = 7
    assert attributes_of(value) == {"height": 7, "width": 4}, attributes_of(value)


def times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: factor * x


def looped(width: int) -> SimpleNamespace:
    made = SimpleNamespace(width=width, parts=[])
    made.parts += [made, {"back": made}]
    return made


def of_another_file(text: str) -> Any:
    """What a file gives that defines `made`."""
    scope: dict[str, Any] = {}
    exec(text, scope)
    return scope["made"]


def a_class(text: str) -> Callable[[int], Any]:
    """A class with this in it, NN being a number."""
    return lambda n: of_another_file(f"import functools, torch\nclass made:\n    {text.replace('NN', str(n))}")


def around(value: int) -> type:
    class Scale:
        def __call__(self, x: Tensor) -> Tensor:
            return x * value

    return Scale


CLASSES: dict[str, Callable[[int], Any]] = {
    "method": a_class("def f(self): return NN"),
    "static method": a_class("@staticmethod\n    def f(): return NN"),
    "class method": a_class("@classmethod\n    def f(cls): return NN"),
    "property": a_class("f = property(lambda self: NN)"),
    "setter": a_class("f = property(None, lambda self, value: NN)"),
    "cached property": a_class("@functools.cached_property\n    def f(self): return NN"),
    "cached method": a_class("@functools.lru_cache\n    def f(self): return NN"),
    "partial method": a_class("f = functools.partialmethod(print, NN)"),
    "decorated method": a_class("@torch.no_grad()\n    def f(self): return NN"),
    "wrapped by no name": a_class("f = (lambda g: lambda self: g())(lambda: NN)"),
    "special method": a_class("def __call__(self, x): return x * NN"),
    "special method that is cached": a_class("@functools.lru_cache\n    def __call__(self, x): return x * NN"),
    "default": a_class("def f(self, x=NN): return x"),
    "default by keyword": a_class("def f(self, *, x=NN): return x"),
    "value": a_class("scale = NN"),
    "hidden value": a_class("__scale = NN"),
    "base": lambda n: type("Derived", (a_class("scale = NN")(n),), {}),
    "class around a value": around,
    "name": lambda n: type(f"Made{n}", (), {}),
}
HELD: dict[str, Callable[[int], Any]] = {
    **{f"class: {name}": made for name, made in CLASSES.items()},
    "object of a class around a value": lambda n: around(n)(),
    "pattern": lambda n: re.compile(f"a{{{n}}}"),
    "lambda": lambda n: {4: lambda x: x, 7: lambda x: x.relu()}[n],
    "constant of a lambda": lambda n: {4: lambda x: x * 4, 7: lambda x: x * 7}[n],
    "function of another file": lambda n: of_another_file(f"def made(x):\n    return x * {n}"),
    "class of another file": lambda n: of_another_file(f"class made:\n    def width(self):\n        return {n}"),
    "object of another file": lambda n: of_another_file(f"class made:\n    def width(self):\n        return {n}")(),
    "default": lambda n: of_another_file(f"def made(x, *, width={n}):\n    return x"),
    "module": lambda n: {4: math, 7: cmath}[n],
    "namespace": lambda n: SimpleNamespace(width=n),
    "dataclass": lambda n: Settings(n),
    "deep": lambda n: Settings(4, [{"a": (SimpleNamespace(width=n),)}]),
    "slots": Slotted,
    "partial": lambda n: functools.partial(torch.nn.functional.leaky_relu, negative_slope=n / 10),
    "arguments of a partial": lambda n: functools.partial(torch.add, n),
    "function of a partial": lambda n: functools.partial([torch.add, torch.mul][n % 2], 1),
    "closure": lambda n: times(n),
    "method": lambda n: Settings(n).__eq__,
    "array": lambda n: np.full(3, n),
    "ordered": lambda n: collections.OrderedDict(a=Settings(n)),
    "hidden module": lambda n: [nn.Dropout(n / 10)],
    "cycle": looped,
    "a second mention": lambda n: [(same := Settings(4)), same, Settings(n)],
    "set": lambda n: {Slotted, n},
}


@pytest.mark.parametrize("name", HELD)
def test_the_structure_sees_into_objects(name: str) -> None:
    """Mutant: an object counts by its class alone, so that a changed configuration is served stale."""

    def structure(width: int) -> str:
        model = Odd()
        model.held = HELD[name](width)  # type: ignore[assignment]
        return structure_of(model)

    assert structure(4) == structure(4), "equal ones differ, nothing would ever be served"
    assert structure(4) != structure(7), "a change is not seen"


@pytest.mark.parametrize("name", CLASSES)
def test_the_structure_sees_into_the_classes_of_modules(name: str) -> None:
    """Mutant: the class of a module counts by its name."""

    def structure(width: int) -> str:
        part = CLASSES[name](width)
        model = Odd()
        model.part = type("Part", (part, nn.Module), {})()
        return structure_of(model)

    assert structure(4) == structure(4), "equal ones differ, nothing would ever be served"
    assert structure(4) != structure(7), "a change is not seen"


def logged(function: Any) -> Any:
    times: list[int] = []

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        times.append(1)
        return function(*arguments)

    return call


class Busy(nn.Module):
    """A model whose class changes while it runs, and holds what nobody can copy."""

    lock, cache, operator = threading.Lock(), {}, torch.ops.aten.relu  # type: ignore[var-annotated]
    kinds: ClassVar[set[type]] = {nn.Linear, nn.Conv2d, nn.ReLU, nn.LSTM}

    @torch.autocast("cpu")
    def autocast(self, x: Tensor) -> Tensor:
        return self.relu(x)

    @torch.profiler.record_function("here")
    def recorded(self, x: Tensor) -> Tensor:
        return x

    @functools.singledispatchmethod
    def of_type(self, x: Any) -> Any:
        return x

    @torch.compile(backend="eager")
    def compiled(self, x: Tensor) -> Tensor:
        return x + 1

    @logged
    def timed(self, x: Tensor) -> Tensor:
        return x

    def relu(self, x: Tensor) -> Tensor:
        self.cache[tuple(x.shape)] = self.operator(x)
        return self.cache[tuple(x.shape)]  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        for call in (self.autocast, self.recorded, self.of_type, self.compiled, self.timed):
            x = call(x)
        return x


def test_a_class_that_changes_while_its_model_runs_is_the_same() -> None:
    model = Busy()
    before = structure_of(model)
    model(torch.ones(2, 3))
    assert Busy.cache, "nothing changed"
    assert structure_of(model) == before, "nothing would ever be kept"


def test_models_whose_layers_torch_has_given_other_weights_have_a_structure() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    assert structure_of(model) == structure_of(model)


PUT_IN: dict[str, Callable[[float], Any]] = {
    "function": lambda n: eval(f"lambda self, x: x * {n}"),
    "partial method": lambda n: functools.partialmethod(lambda self, x, y: x * y, n),
    "decorated by torch": lambda n: torch.no_grad()(eval(f"lambda self, x, y={n}: x * y")),
    "not compiled by torch": lambda n: torch.compiler.disable(eval(f"lambda self, x, y={n}: x * y")),
}


@pytest.mark.parametrize("name", PUT_IN)
def test_what_a_user_puts_into_a_class_of_torch_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [structure_of(nn.Linear(2, 2))]
    for number in (1.0, 2.0):
        monkeypatch.setattr(nn.Linear, "forward", PUT_IN[name](number))
        found.append(structure_of(nn.Linear(2, 2)))
    assert len(set(found)) == 3, "a change is not seen"


class Layer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def by_torch(self: nn.Module) -> None: ...


by_torch.__code__ = by_torch.__code__.replace(co_filename=nn.Module.__init__.__code__.co_filename)


@pytest.mark.parametrize("cls", [nn.LayerNorm, Layer])
def test_a_class_is_the_same_after_torch_has_patched_its_own(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_object(cls)
    monkeypatch.setattr(nn.Module, "__init__", by_torch)  # torch.compile does, when it is first used
    monkeypatch.setattr(nn.Module, "patched", False, raising=False)
    assert digest_object(cls) == before, "a model that holds a class has another key once anything was compiled"
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, x: -x)
    assert (digest_object(cls) == before) is (cls is Layer), "what a user put into torch's class is not seen"
    monkeypatch.setattr(Layer, "forward", lambda self, x: -x)
    assert digest_object(cls) != before, "a function of a user's own is not seen"


def test_classes_of_torch_that_share_a_name_differ() -> None:
    assert nn.MultiheadAttention.__name__ == torch.ao.nn.quantizable.MultiheadAttention.__name__
    same = digest_object(nn.MultiheadAttention) == digest_object(torch.ao.nn.quantizable.MultiheadAttention)
    assert not same, "torch has several classes of that name"


@pytest.mark.parametrize("module", ["torch", "torch.nn.modules.linear", "torch_layers", "builtins"])
def test_a_class_of_a_user_counts_by_its_code_whatever_its_module_is_called(module: str) -> None:
    one, other = (type("Linear", (nn.Module,), {"f": eval(f"lambda: {n}"), "__module__": module}) for n in (1, 2))
    assert digest_object(one) != digest_object(other), "taken for what is installed"


def test_a_model_that_was_compiled_is_the_same() -> None:
    model = Odd()
    before = structure_of(model)
    torch.compile(model, backend="eager")
    assert structure_of(model) == before, "what torch.compile writes on it counts"


@pytest.mark.parametrize("name", ["lambda", "constant of a lambda", "function of another file"])
def test_functions_that_count_by_their_names_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_entries, "digest_code", lambda code: "")
    with pytest.raises(AssertionError, match="a change is not seen"):
        test_the_structure_sees_into_objects(name)


def test_copies_of_usual_models_have_one_structure() -> None:
    model = nn.ModuleList([nn.LSTM(3, 4, 2), nn.TransformerEncoderLayer(4, 2, 8, activation="gelu"), nn.GELU()])
    model.config = Settings(3, looped(1))  # type: ignore[assignment]
    assert structure_of(copy.deepcopy(model)) == structure_of(model), "copies differ"


@pytest.mark.parametrize("value", [threading.Lock(), [(n for n in range(3))]], ids=["lock", "generator"])
def test_what_has_no_spelling_is_never_taken_for_unchanged(value: Any) -> None:
    model = Odd()
    model.held = Settings(4, value)  # type: ignore[assignment]
    with pytest.raises(TypeError, match="has no spelling"):
        structure_of(model)


@pytest.mark.parametrize("value", [object, {1.5: 2}, [1, 2], torch.zeros(2).to_sparse(), {"a": {1, 2}}], ids=repr)
def test_a_plan_that_has_no_spelling_is_refused(value: Any, dense: nn.Module) -> None:
    plan = ChannelPlan({}, untouched={"here": value})
    with pytest.raises(UNFIT):
        encode(Compressed(dense, made_of_nothing, (plan,), None, (), dense), {})


def test_no_pickle_is_read(dense: nn.Module, tmp_path: Path) -> None:
    torch.save(dense.state_dict(), tmp_path / "pickle")
    with pytest.raises(UNFIT):
        decode((tmp_path / "pickle").read_bytes(), dense, made_of_nothing, ())


def test_the_same_model_is_the_same_file(dense: nn.Module, train: Split) -> None:
    one = made(dense, "magnitude:0.5", train)
    files = {encode(one, {"name": "a", "key": {"b": 1}}) for _ in range(20)}
    assert len(files) == 1, f"{len(files)} files of one model, so that what is kept cannot be checked"
