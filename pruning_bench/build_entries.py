"""The file of a compressed model in the build cache: it gives back all of it, bit for bit, plans and twin included.

One safetensors file: the tensors of the float model and of the plans and, as metadata, a JSON card that spells out the
plans; never a pickle. The model is made anew from the dense one by its plans and then takes the tensors. The files that
`artifacts` writes are smaller and stand alone; they hold what a user runs, not how it came about.
"""

from __future__ import annotations

import copy
import copyreg
import enum
import functools
import hashlib
import io
import json
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pruning_bench.engine import Compressed, Plan, apply_plan
from pruning_bench.errors import PruningBenchError
from pruning_bench.functions import behind, digest_code, held_by
from pruning_bench.pruning.contract import ChannelPlan, MaskPlan
from pruning_bench.quantization.contract import Affine, Float8, QuantPlan
from pruning_bench.recipe import Recipe
from pruning_bench.records import digest_of
from pruning_bench.sources import code_has_version, has_version

# What reading a damaged file, or spelling what has no spelling, may end in.
UNFIT = (SafetensorError, PruningBenchError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)
_LARGEST_HEADER = 1 << 28
_DIGITS = 64  # of the digest, which stands before the card
_MEMBERS = ("_parameters", "_buffers", "_modules")
_MARKS = ("_is_torch_compile",)  # what torch.compile leaves on the module that it was given
_SPELT = {cls.__name__: cls for cls in (MaskPlan, ChannelPlan, QuantPlan, Affine, Float8)}


def encode(made: Compressed, about: Mapping[str, Any]) -> bytes:
    """The file of a compressed model; raises one of `UNFIT` where a file cannot tell all of it.

    Args:
        about: further entries of the card.
    """
    if made.quant_plan is not _quant_plan(made.plans):
        raise ValueError("quantized by another plan than its own")
    tensors = {f"model:{name}": _plain(tensor) for name, tensor in tensors_of(made.float_model).items()}
    plans = [_packed(plan, tensors) for plan in made.plans]
    text = json.dumps({**about, "plans": plans, "structure": structure_of(made.float_model)})
    return save_tensors(
        tensors, {"card": digest_tensors(tensors, text) + text}
    )  # one entry: several have no fixed order


def decode(
    content: bytes, dense: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]
) -> tuple[Compressed, dict[str, Any]]:
    """What `encode` wrote, and its card; raises one of `UNFIT` unless it is whole.

    Args:
        dense, recipe, inputs: what the model was compressed from, by what, and its example inputs.
    """
    tensors, card = _whole(content)
    plans: tuple[Plan, ...] = tuple(_unpacked(plan, tensors) for plan in card["plans"])
    dense = copy.deepcopy(dense).eval()
    model = copy.deepcopy(dense)
    for plan in plans:
        model = apply_plan(model, plan, "build cache")
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            stored = tensors[f"model:{name}"]
            if stored.shape != tensor.shape:
                raise ValueError(f"{name} of shape {tuple(stored.shape)}, should be {tuple(tensor.shape)}")
            tensor.copy_(stored)
    if structure_of(model.eval()) != card["structure"]:
        raise ValueError("a model that its plans do not explain")
    return Compressed(model, recipe, plans, _quant_plan(plans), inputs, dense), card


def encode_bytes(made: bytes, about: Mapping[str, Any]) -> bytes:
    """The file of what a model was exported to; `about` is its card."""
    tensors, text = {"exported": torch.frombuffer(bytearray(made), dtype=torch.uint8)}, json.dumps(dict(about))
    return save_tensors(tensors, {"card": digest_tensors(tensors, text) + text})


def decode_bytes(content: bytes) -> tuple[bytes, dict[str, Any]]:
    """What `encode_bytes` wrote, and its card; raises one of `UNFIT` unless it is whole."""
    tensors, card = _whole(content)
    return tensors["exported"].numpy().tobytes(), card


def _whole(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the card of a file; raises one of `UNFIT` unless its digest is that of its content."""
    (digest, text), tensors = _card(io.BytesIO(content)), load_tensors(content)
    if digest_tensors(tensors, text) != digest:
        raise ValueError("another content than its digest says")
    card: dict[str, Any] = json.loads(text)
    return tensors, card


def read_card(stream: IO[bytes]) -> dict[str, Any]:
    """The card of a file whose tensors are not read; raises one of `UNFIT`."""
    card: dict[str, Any] = json.loads(_card(stream)[1])
    return card


def _card(stream: IO[bytes]) -> tuple[str, str]:
    """The digest of the file and the text of its card, from the header."""
    size = int.from_bytes(stream.read(8), "little")
    if size > _LARGEST_HEADER:
        raise ValueError(f"a header of {size} bytes")
    card = json.loads(stream.read(size))["__metadata__"]["card"]
    return card[:_DIGITS], card[_DIGITS:]


def _quant_plan(plans: Iterable[Plan]) -> QuantPlan | None:
    found = [plan for plan in plans if isinstance(plan, QuantPlan)]
    return found[-1] if found else None


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all their names, also those that are not in the `state_dict`."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def _plain(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise ValueError(f"a {tensor.layout} tensor on {tensor.device}")
    return tensor.detach().contiguous().clone()


def digest_tensors(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """sha256 over a text and named tensors: names, types, shapes and bytes."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def structure_of(model: nn.Module) -> str:
    """Digest of all about a model but the values of its tensors: classes, attributes, shapes, strides, flags, ties.

    Raises:
        TypeError: an attribute that has no spelling, so that nobody could tell whether it is still the same.
    """
    rows: list[Any] = []
    spell = _Speller().spell
    for path, module in model.named_modules(remove_duplicate=False):
        own = {name: value for name, value in vars(module).items() if name not in (*_MEMBERS, *_MARKS)}
        rows.append([path, spell(type(module)), [[name, spell(value)] for name, value in sorted(own.items())]])
    first: dict[int, str] = {}
    for name, tensor in tensors_of(model).items():
        layout = [str(tensor.dtype), list(tensor.shape), list(tensor.stride()), tensor.requires_grad]
        rows.append([name, type(tensor).__name__, layout, first.setdefault(id(tensor), name)])
    return digest_of(rows)


def digest_object(value: object) -> str:
    """Digest of all that an object is made of; raises `TypeError` for what has no spelling."""
    return digest_of(_Speller().spell(value))


class _Speller:
    """Attributes as JSON, those of objects included: what a copy of them is made of; each object is spelt once."""

    def __init__(self) -> None:
        self._digests: dict[int, str] = {}
        self._kept: list[object] = []  # so that no id is given again
        self._inside: list[int] = []

    def spell(self, value: object) -> Any:
        """Raises `TypeError` for what has no spelling: what cannot be copied, like a lock or an open file."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Tensor):
            return digest_tensors({"": value})
        if isinstance(value, bytes):
            return hashlib.sha256(value).hexdigest()
        if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format, complex, enum.Enum)):
            return str(value)
        if isinstance(value, ModuleType):
            return value.__name__
        if isinstance(value, weakref.ref):  # recurrent layers hold their weights so
            return ["weak", self.spell(value())]
        if type(value) is tuple:
            return [self.spell(item) for item in value]
        if id(value) in self._inside:
            return ["inside", self._inside.index(id(value))]
        if id(value) not in self._digests:
            self._inside.append(id(value))
            self._kept.append(value)
            self._digests[id(value)] = digest_of([_named(type(value)), self._parts(value)])
            self._inside.pop()
        return [_named(type(value)), self._digests[id(value)]]

    def _parts(self, value: object) -> list[Any]:
        if type(value) in (dict, OrderedDict):
            return [[self.spell(name), self.spell(item)] for name, item in value.items()]  # type: ignore[attr-defined]
        if type(value) in (set, frozenset):
            return sorted(json.dumps(self.spell(item)) for item in value)  # type: ignore[attr-defined]
        if type(value) is list:
            return [self.spell(item) for item in value]
        if isinstance(value, type):
            return [_class_part(part) for part in value.__mro__]
        if isinstance(value, FunctionType):
            return [_named(value), digest_code(value.__code__), *map(self.spell, held_by(value))]
        if isinstance(value, BuiltinFunctionType):
            return [_named(value), self.spell(value.__self__)]
        if isinstance(value, MethodType):
            return [self.spell(value.__func__), self.spell(value.__self__)]
        return self._copied(value)

    def _copied(self, value: object) -> list[Any]:
        """An object by what `copy` would make it anew from."""
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            made = reduce(value) if reduce else value.__reduce_ex__(4)
            if isinstance(made, str):
                return [made]
            function, arguments, state, items, pairs = (*made, *[None] * 3)[:5]
            content = [list(items or ()), list(pairs or ())]
        except Exception as problem:
            raise TypeError(f"{type(value).__name__} has no spelling: {problem}") from problem
        return [_named(function), *map(self.spell, (tuple(arguments), state, *content))]


def _class_part(part: type) -> list[Any]:
    """A class without its bases: what it is written with or, where a version tells that, what was put into it.

    `torch.compile` replaces functions of `nn.Module` by others of torch when it is first used.
    """
    rows: list[Any] = []
    known = has_version(part)
    for name, value in sorted(vars(part).items()):
        found = behind(value)
        if known:
            counts = any(not has_version(each if isinstance(each, FunctionType) else type(each)) for each in found)
        else:  # the other names of two underscores are Python's own
            counts = not name.startswith("__") or any(isinstance(each, FunctionType) for each in found)
        if counts:
            rows.append([name, *(_fixed(each, []) for each in found)])
    return [f"{part.__module__}.{part.__qualname__}" if known else part.__qualname__, rows]


def _fixed(value: object, inside: list[object]) -> Any:
    """What stays of a part of a class while it is used: constants and functions with what they hold of such.

    Anything else counts by its type: it may be a cache, a counter's list or a lock. Its text is in the source.
    """
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, enum.Enum, torch.dtype)):
        return [type(value).__name__, str(value)]
    if type(value) is tuple:
        return [_fixed(item, inside) for item in value]
    if not isinstance(value, FunctionType) or value in inside:
        return value.__qualname__ if isinstance(value, (type, FunctionType)) else type(value).__qualname__
    wrapped = getattr(value, "__wrapped__", None)  # of a decorator that has a version: its own state may change
    held = [wrapped] if wrapped and code_has_version(value.__code__) else held_by(value)
    return [_named(value), digest_code(value.__code__), *(_fixed(each, [*inside, value]) for each in held)]


def attributes_of(value: object) -> dict[str, Any]:
    """All attributes of an object, those in slots too, but for what it has computed and keeps."""
    named = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]
    slots = [name for names in named for name in ([names] if isinstance(names, str) else names)]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    return {
        name: item
        for name, item in found.items()
        if not isinstance(getattr(type(value), name, None), functools.cached_property)
    }


def _named(value: object) -> str:
    """Without the name of its module, which may differ."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A plan, or a part of one, as JSON; its tensors are put beside. Raises `TypeError` for what has no spelling."""
    if isinstance(value, Tensor):
        name = f"plan:{len(tensors)}"
        tensors[name] = _plain(value)
        return {"tensor": name}
    if type(value) is _SPELT.get(type(value).__name__):
        return {type(value).__name__: {f.name: _packed(getattr(value, f.name), tensors) for f in fields(value)}}
    if isinstance(value, Mapping) and all(type(name) in (str, int) for name in value):
        return {"items": [[name, _packed(item, tensors)] for name, item in value.items()]}
    if type(value) is tuple:
        return [_packed(item, tensors) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{type(value).__name__} has no spelling in a file")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `_packed` spelt."""
    if isinstance(value, list):
        return tuple(_unpacked(item, tensors) for item in value)
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {name: _unpacked(item, tensors) for name, item in content}
    return _SPELT[kind](**{name: _unpacked(item, tensors) for name, item in content.items()})
