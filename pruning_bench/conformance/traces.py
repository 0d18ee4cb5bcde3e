"""What a step leaves behind besides its result: copies of all that it was given, to compare before and after.

with leaves_no_trace("magnitude.plan", lambda: held({"model": model, "context": context})):
    method.plan(model, level, context)
"""

from __future__ import annotations

import random
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning_bench.contracts import Context

PLAIN = (bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Size, range, slice)
TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
MOST = 5  # changes that a message lists


class Itself:
    """Stands for an object that cannot be looked into, and keeps it alive: equal to itself alone."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)

    def __repr__(self) -> str:
        return f"{type(self.thing).__name__} at {id(self.thing):x}"


@dataclass(frozen=True)
class HeldTensor:
    """A tensor as it was; `value` and `itself` are None where they may change."""

    value: Tensor | None
    itself: Itself | None
    kind: tuple[type, torch.dtype, torch.device, torch.Size, tuple[int, ...]]
    requires_grad: bool
    grad: Tensor | None
    hooks: Mapping[str, Any]
    attributes: Mapping[str, Any]


def held(thing: object, of_module: Callable[[nn.Module], object] | None = None) -> Any:
    """A copy of a thing to compare later, by `differences`: of modules, tensors, dataclasses and containers all the way
    down. Other objects stand for themselves.

    Args:
        of_module: how modules are copied; None: by `held_model`.
    """
    if thing is None or isinstance(thing, PLAIN):
        return thing
    if isinstance(thing, Tensor):
        return _held_tensor(thing)
    if isinstance(thing, np.ndarray):
        return thing.copy()
    if isinstance(thing, nn.Module):
        return (of_module or held_model)(thing)
    if isinstance(thing, Mapping):
        return {key: held(value, of_module) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [held(value, of_module) for value in thing]
    if isinstance(thing, (set, frozenset)):
        return frozenset(thing)
    if is_dataclass(thing) and not isinstance(thing, type):
        return {part.name: held(getattr(thing, part.name), of_module) for part in fields(thing)}
    return Itself(thing)


def held_model(model: nn.Module) -> dict[str, Any]:
    """Tensor name -> it, and module path -> all else that the module holds: hooks, flags, children, attributes."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        attributes = dict(vars(module))
        for name, tensor in [*attributes.pop("_parameters").items(), *attributes.pop("_buffers").items()]:
            found[f"{path}.{name}".lstrip(".")] = held(tensor)
        found[path] = {"type": type(module), **{name: held(value, Itself) for name, value in attributes.items()}}
    return found


def held_frame(model: nn.Module) -> dict[str, Any]:
    """`held_model` without the values of its tensors, which training changes."""
    parts = held_model(model)
    return {
        name: replace(part, value=None, itself=None) if isinstance(part, HeldTensor) else part
        for name, part in parts.items()
    }


def _held_tensor(tensor: Tensor) -> HeldTensor:
    grad = None if tensor.grad is None else tensor.grad.detach().clone()
    kind = (type(tensor), tensor.dtype, tensor.device, tensor.shape, tensor.stride())
    hooks = {name: held(getattr(tensor, name, None) or {}) for name in TENSOR_HOOKS}
    attributes = {name: held(value) for name, value in vars(tensor).items() if not name.startswith("_")}  # torch's own
    return HeldTensor(tensor.detach().clone(), Itself(tensor), kind, tensor.requires_grad, grad, hooks, attributes)


def held_process() -> dict[str, Any]:
    """The global generators and settings that a step may use and has to leave as they are."""
    return {
        "torch's generator": torch.get_rng_state(),
        "numpy's generator": held(np.random.get_state()),
        "Python's generator": held(random.getstate()),
        "the gradient mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "the number of threads": torch.get_num_threads(),
        "the default type": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the flushing of denormals": float(torch.tensor(1e-310, dtype=torch.float64) * 1) == 0,
    }


@contextmanager
def leaves_no_trace(who: str, take: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Raises `AssertionError` unless what `take` gives, and the process, are as before once the body has run."""
    with _generators_moved_on():
        before = {**take(), **held_process()}
        yield
        changed = differences(before, {**take(), **held_process()})
    told = [f"{name} from {_short(old)} to {_short(new)}" for name, (old, new) in list(changed.items())[:MOST]]
    assert not changed, f"{who} changes {'; '.join(told)}; should leave it as it was"


@contextmanager
def _generators_moved_on() -> Iterator[None]:
    """The global generators where none that was seeded before can be; afterwards they are as they were."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.rand(()), np.random.random(), random.random()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def plan_without_trace(method: Any, model: nn.Module, level: Any, context: Context) -> None:
    """Raises `AssertionError` unless a method's `plan` changes nothing at all and holds no memory of the model's."""
    with leaves_no_trace(f"{method.name}.plan", lambda: held({"model": model, "context": context})):
        plan = method.plan(model, level, context)
    check_own_memory(method.name, plan, {"model": model})


def check_own_memory(who: str, plan: object, given: Any) -> None:
    """No tensor of the plan lies in the memory of what it was made from: training would change the plan.

    Args:
        given: the model, and whatever else the plan must not hold; as for `held`.
    """
    theirs = {place: name for name, place in _places(held(given), "").items()}
    shared = [f"{name} ({theirs[place]})" for name, place in _places(held(plan), "").items() if place in theirs]
    assert not shared, f"{who}: the plan's {', '.join(shared[:MOST])} lies in memory it was given, should be a copy"


def _places(part: Any, where: str) -> dict[str, int]:
    """Name of a tensor -> where its memory begins."""
    if isinstance(part, HeldTensor):
        assert part.itself is not None
        place = part.itself.thing.untyped_storage().data_ptr()  # type: ignore[attr-defined]
        return {where: place} if place else {}
    found: dict[str, int] = {}
    for name, inner in (_parts(part) or {}).items():
        found |= _places(inner, f"{where} {name}".strip())
    return found


def differences(first: object, second: object, where: str = "") -> dict[str, tuple[object, object]]:
    """Name of what differs between two plans or two copies -> both; fields and keys joined by spaces.

    Example:
        >>> differences({"a": [1, 2], "b": 3}, {"a": [1, 4]})
        {'a 1': (2, 4), 'b': (3, 'absent')}
    """
    if first is second:
        return {}
    parts = _parts(first), _parts(second)
    if parts[0] is None or parts[1] is None:
        return {} if _equal(first, second) else {where: (first, second)}
    found: dict[str, tuple[object, object]] = {}
    for name in [*parts[0], *(name for name in parts[1] if name not in parts[0])]:
        pair = parts[0].get(name, "absent"), parts[1].get(name, "absent")
        found |= differences(*pair, f"{where} {name}".strip())
    return found


def _parts(thing: object) -> Mapping[Any, Any] | None:
    if isinstance(thing, Mapping):
        return thing
    if isinstance(thing, (list, tuple)):
        return dict(enumerate(thing))
    if is_dataclass(thing) and not isinstance(thing, type):
        return {part.name: getattr(thing, part.name) for part in fields(thing)}
    return None


def _equal(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.array_equal(first, second)
    return type(first) is type(second) and bool(first == second)


def _short(thing: object) -> str:
    return " ".join(reprlib.repr(thing).split())
