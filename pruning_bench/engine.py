"""Runs a recipe on a model: the only place that builds a changed model."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import CellType, FunctionType
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pruning_bench import recipe as grammar
from pruning_bench.contracts import Context, Past
from pruning_bench.datasets.contract import Examples, check_examples
from pruning_bench.discover import discover
from pruning_bench.errors import ModelError, PluginError, PruningBenchError, RecipeError, describe
from pruning_bench.foreign import call_step
from pruning_bench.pruning import shrink
from pruning_bench.pruning.contract import ChannelPlan, MaskPlan, PruningTags
from pruning_bench.pruning.masks import apply_masks, current_masks
from pruning_bench.quantization.contract import QuantizationTags, QuantPlan
from pruning_bench.quantization.simulation import simulate
from pruning_bench.runtimes.contract import check_tensors

Plan: TypeAlias = MaskPlan | ChannelPlan | QuantPlan
Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Compressed:
    """A model that a recipe was run on; not to be changed, for runtimes keep what they made of it.

    Args:
        float_model: the model just before quantization; all of it when the recipe does not quantize.
        recipe: what was run.
        plans: what the methods decided, in order.
        quant_plan: how the runtimes quantize `float_model`, or None.
        example_inputs: positional arguments of the forward.
        dense: the model that came in, for the masked twin; None when this was loaded from a file.
    """

    float_model: nn.Module
    recipe: grammar.Recipe
    plans: tuple[Plan, ...] = ()
    quant_plan: QuantPlan | None = None
    example_inputs: tuple[Tensor, ...] = ()
    dense: nn.Module | None = None

    @functools.cached_property
    def model(self) -> nn.Module:
        """The compressed model, a plain `nn.Module`; for a recipe that quantizes, its simulation in float."""
        if self.quant_plan is None:
            return self.float_model
        return simulate(self.quant_plan, self.float_model, self.example_inputs)

    @functools.cached_property
    def masked_twin(self) -> nn.Module:
        """The weights of `float_model` in the dense model's names and shapes, zero where the plans removed.

        Raises:
            ModelError: loaded from a file, so that the dense model is not known.
        """
        if self.dense is None:
            raise ModelError("masked_twin", "no dense model", "the result of compress(), not of load()")
        return shrink.expand(self.float_model, self.dense, self.plans)


def compress(
    model: nn.Module,
    recipe: str | grammar.Recipe,
    *,
    example_inputs: tuple[Tensor, ...],
    calibration: Iterable[Sequence[Tensor]] | None = None,
    train: Examples | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Compressed:
    """Runs `recipe` on a copy of `model`.

    A model that an earlier call pruned is one like all others: its zeros are weights, which count as pruned where they
    are the smallest, and which training moves. Steps that are to know of earlier ones stand in one recipe.

    Args:
        model: never changed.
        recipe: text of the grammar in `pruning_bench.recipe`, or a parsed recipe.
        example_inputs: positional arguments of the forward, batch first.
        calibration: batches of inputs for methods that look at activations, each a tuple of positional arguments; what
            stands behind as many as there are example inputs, such as labels, is left out.
        train: labelled examples for steps that train, `Split` or `Tensors` of `pruning_bench.datasets.contract`.
        seed: of everything random, in [0, 2**53).
        progress: called as `progress(message, done, total)`.
    Raises:
        RecipeError, UnknownNameError, LevelError: the recipe.
        ModelError: non-finite weights, nothing prunable, a model that cannot be exported, inputs that are no tensors,
            weights of other types than float32 to quantize ...
        DataError: training data that are no examples, or do not fit the model.
    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> compressed = compress(net, "magnitude:0.5", example_inputs=(torch.zeros(1, 8),))
        >>> int((compressed.model[0].weight == 0).sum())
        32
    """
    stages = last_stages(
        1,
        model,
        recipe,
        example_inputs=example_inputs,
        calibration=calibration,
        train=train,
        seed=seed,
        progress=progress,
    )
    return stages[0]


@torch.inference_mode(False)  # training needs gradients, whatever is switched off around it
def last_stages(
    count: int,
    model: nn.Module,
    recipe: str | grammar.Recipe,
    *,
    example_inputs: tuple[Tensor, ...],
    calibration: Iterable[Sequence[Tensor]] | None = None,
    train: Examples | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Compressed]:
    """What `compress` has after each of the last steps, `dense` included; the last one is its result.

    Args:
        count: how many, at most one more than there are steps. A step that trains goes on with the model of the stage
            before it and changes that.
    Other arguments and errors: see `compress`.
    """
    discover()
    check_seed(seed)
    _check_inputs(model, example_inputs)
    batches = _batches(calibration, len(example_inputs))
    if train is not None:
        check_examples(train, "compress")
    parsed = grammar.parse(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(parsed, grammar.Recipe):
        raise RecipeError("compress", f"a recipe of type {type(recipe).__name__}", "text or a parsed recipe")
    steps = list(parsed.steps())
    _check_types(model, steps)
    dense = _copied(model).eval()
    state = _State(copy.deepcopy(dense))
    past = [state.past()] if (keeps_past := any(_needs_past(step) for step in steps)) else []

    def stage(done: int) -> Compressed:
        run = parsed if done == len(steps) else grammar.Recipe(tuple(steps[:done]))
        return Compressed(state.model.eval(), run, tuple(state.plans), state.quant_plan, example_inputs, dense)

    stages = deque([stage(0)], maxlen=count)
    for index, step in enumerate(steps):
        if progress:
            progress(str(step), index, len(steps))
        if state.quant_plan is not None:
            raise ModelError("compress", f"{step} after quantization", "quantization as the last step", str(parsed))
        generator = torch.Generator().manual_seed(_seed_of(seed, index))
        earlier = current_masks(state.plans)
        watched = {"progress": progress} if progress else {}
        context = Context(
            example_inputs, generator, batches, train, earlier, seed, past=tuple(past), dense=dense, **watched
        )
        state.run(step, context)
        if keeps_past:
            past.append(state.past())
        stages.append(stage(index + 1))
    return list(stages)


def _seed_of(seed: int, index: int) -> int:
    """What a step draws from: never the numbers that `torch.manual_seed(seed)` made the weights of, or any other's."""
    return int.from_bytes(hashlib.sha256(f"step {index} of seed {seed}".encode()).digest()[:8], "big") >> 1


def _copied(model: nn.Module) -> nn.Module:
    """A copy that computes with its own weights."""
    for path, module in model.named_modules():
        if any(
            isinstance(getattr(value, "__self__", value), nn.Module) for value in _held(vars(module).get("forward"))
        ):
            found = "a forward put on the module, which holds a module: copies would run the original"
            raise ModelError("compress", found, "forward of the class, or a hook", path or type(model).__name__)
    try:
        return copy.deepcopy(model)
    except Exception as problem:
        found = f"a model that cannot be copied ({describe(problem)})"
        what = "one for copy.deepcopy, after torch.nn.utils.prune.remove or remove_weight_norm, say"
        raise ModelError("compress", found, what, type(model).__name__) from problem


def _held(function: object) -> list[object]:
    """What a function took with it when it was made."""
    if not isinstance(function, FunctionType):
        return []
    closed = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]  # else it is empty
    return [*closed, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


class _State:
    """The model on its way through a recipe."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.plans: list[Plan] = []
        self.quant_plan: QuantPlan | None = None

    def run(self, step: grammar.Step, context: Context) -> None:
        method, model, level = step.method(), self.model, step.level
        who = (type(method).__module__, method.name)
        if isinstance(method.tags, (PruningTags, QuantizationTags)):
            self._keep(call_step(*who, "plan", lambda: method.plan(model, level, context), "a plan"), method.name)
            return
        earlier = tuple(self.plans)
        made = call_step(*who, "run", lambda: list(method.run(model, level, earlier, context) or ()), "plans or None")
        model.eval()
        for plan in made:
            self._keep(plan, method.name)

    def _keep(self, plan: Plan, who: str) -> None:
        self.model = apply_plan(self.model, plan, who)
        self.plans.append(plan)
        if isinstance(plan, QuantPlan):
            self.quant_plan = plan

    def past(self) -> Past:
        """A copy of how it is now."""
        state = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        return Past(state, len(self.plans))


def _needs_past(step: grammar.Step) -> bool:
    return bool(getattr(step.method().tags, "needs_past", False))


def apply_plan(model: nn.Module, plan: object, who: str) -> nn.Module:
    """A copy of `model` as the plan leaves it; `model` itself for a `QuantPlan`, which the runtimes lower.

    Raises:
        PluginError: no plan of these types; names `who` decided it.
    """
    if isinstance(plan, MaskPlan):
        return apply_masks(model, plan)
    if isinstance(plan, ChannelPlan):
        return shrink.apply_channels(model, plan)
    if isinstance(plan, QuantPlan):
        return model
    raise PluginError(who, f"a plan of type {type(plan).__name__}", "MaskPlan, ChannelPlan or QuantPlan")


def check_seed(seed: int) -> None:
    """Raises `PruningBenchError` for a seed that the generators of a recipe's steps cannot be made from."""
    if not isinstance(seed, int) or not 0 <= seed < 2**53:
        raise PruningBenchError("compress", f"seed {seed!r}", "a whole number in [0, 2**53)")


def _check_inputs(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ModelError("compress", f"a model of type {type(model).__name__}", "a torch.nn.Module, as it was written")
    if not isinstance(example_inputs, tuple) or not example_inputs:
        found = f"example_inputs of type {type(example_inputs).__name__}"
        raise ModelError("compress", found, "a non-empty tuple of positional arguments, such as (x,)")
    check_tensors(example_inputs, "compress", "example_inputs")
    check_weights(model, "compress")


def _check_types(model: nn.Module, steps: Iterable[grammar.Step]) -> None:
    """Raises `ModelError` where a step quantizes weights of another floating-point type than float32."""
    quantizing = [step for step in steps if _quantizes(step)]
    for name, parameter in model.named_parameters() if quantizing else ():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            found = f"weights of {str(parameter.dtype).removeprefix('torch.')}"
            raise ModelError("compress", found, f"float32 for {quantizing[0]}, as model.float() gives", name)


def _quantizes(step: grammar.Step) -> bool:
    tags = step.method().tags
    return isinstance(tags, QuantizationTags) or bool(getattr(tags, "quantizes", False))


def _batches(calibration: object, count: int) -> list[tuple[Tensor, ...]] | None:
    """The calibration batches, each the first `count` positional arguments."""
    if calibration is None:
        return None
    if isinstance(calibration, Tensor) or not isinstance(calibration, Iterable):
        found = f"calibration of type {type(calibration).__name__}"
        raise ModelError("compress", found, "batches of positional arguments, such as [(x,)]")
    batches = list(calibration)
    for number, batch in enumerate(batches):
        if not isinstance(batch, (list, tuple)):
            found, expected = f"a batch of type {type(batch).__name__}", "a tuple of positional arguments, such as (x,)"
            raise ModelError("compress", found, expected, f"calibration batch {number}")
        if len(batch) < count:
            found, expected = f"a batch of {len(batch)} arguments", f"at least {count}, like example_inputs"
            raise ModelError("compress", found, expected, f"calibration batch {number}")
        check_tensors(batch[:count], "compress", f"calibration batch {number}")
    return [tuple(batch[:count]) for batch in batches]


def check_weights(model: nn.Module, who: str) -> None:
    """Raises `ModelError` for parameters or buffers without values, or with some that are not finite."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ModelError(who, "a weight without a shape", "a model that has run once", name)
        if tensor.is_inference() and isinstance(tensor, nn.Parameter):
            raise ModelError(who, "weights made under inference_mode", "clones of them, made outside of it", name)
        if tensor.is_meta:
            raise ModelError(who, "weights on the device meta", "tensors with values", name)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(who, f"{bad} non-finite values", "finite weights", name)
