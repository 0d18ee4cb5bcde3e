"""Files of compressed models: safetensors beside a JSON card, written by `save` and read by `load`; never pickles.

Quantized weights are stored as their integer codes, or as indices into the table of values that they share, in as many
bits as these need (`models.narrowing`); tables and the scales of weights and activations stand beside them, zero points
where there are any. Tensors of many zeros, codes too, are packed
(`models.packing`). 8-bit floats are stored as such, beside their scales. A shipped dense checkpoint is read the same
way.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping, Set
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from pruning_bench import __version__, recipe
from pruning_bench.discover import discover
from pruning_bench.engine import Compressed
from pruning_bench.errors import CheckpointError, ModelError, PruningBenchError
from pruning_bench.models.checkpoints import FORMAT, model_of, read_card, read_tensors, write_checkpoint
from pruning_bench.models.narrowing import NARROW, narrow, widen
from pruning_bench.models.packing import KEY, VALUES, pack, unpack
from pruning_bench.pruning.contract import MaskPlan
from pruning_bench.pruning.masks import current_masks
from pruning_bench.pruning.shrink import resize_to
from pruning_bench.quantization.affine import dequantize, quantize
from pruning_bench.quantization.cast import cast
from pruning_bench.quantization.codebook import nearest
from pruning_bench.quantization.contract import FLOATS, FLOATS8, Affine, Coding, Float8, QuantPlan
from pruning_bench.quantization.fold import fold_batch_norms
from pruning_bench.quantization.lower import write_values

MASKED = "masked"
_NOT_ALWAYS = frozenset({"codebooks", "dynamic", "dtype", MASKED, KEY, NARROW, "sha256"})  # entries of some cards
_ACTIVATION, _SCALE, _ZERO, _TABLE = "activation:", ":scale", ":zero_point", ":table"


def save(
    compressed: Compressed,
    path: str | Path,
    *,
    model: str = "",
    dataset: str = "",
    options: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `path` (safetensors) and its card (the same name ending in .json), each whole or not at all.

    Of the plans, masks are kept, but for those of a model with integer codes.

    Args:
        path: a name ending in .safetensors.
        model, options: registered name and builder arguments, so that `load` can build the model by itself.
        dataset: what the model was trained on.
        about: further entries of the card, of other names than its own.
    Returns:
        The card: model, options, recipe, example inputs, ranges of codes, shapes of packed tensors, versions, sha256 of
        the file.
    Raises:
        CheckpointError: another name, a state that is no tensor, an entry of `about` that the card has already or that
            is no JSON, a file that cannot be written. Files of this name that were there stay as they are then.
    """
    stored, entries = _packed(compressed)
    card = {
        "format": FORMAT,
        "model": model,
        "dataset": dataset,
        "options": dict(options or {}),
        "recipe": str(compressed.recipe),
        "inputs": [[list(x.shape), str(x.dtype).removeprefix("torch.")] for x in compressed.example_inputs],
        "ranges": {name: _range(coding) for name, coding in _codings(compressed.quant_plan).items()},
        **({"codebooks": sorted(tables)} if (tables := _tables(compressed)) else {}),
        **({"dynamic": True} if (plan := compressed.quant_plan) and plan.dynamic else {}),
        **({"dtype": plan.dtype} if plan and plan.dtype else {}),
        **({MASKED: sorted(masks)} if (masks := current_masks(compressed.plans)) and not _has_codes(plan) else {}),
        **entries,
        "versions": {"pruning_bench": __version__, "torch": torch.__version__},
    }
    if own := sorted({*card, *_NOT_ALWAYS} & set(about or {})):
        raise CheckpointError("save", f"about with {', '.join(own)}", "names that the card has no entry of", str(path))
    return write_checkpoint(stored, {**card, **(about or {})}, Path(path))


def load(path: str | Path, *, model: nn.Module | None = None) -> Compressed:
    """Reads what `save` wrote, channel-pruned shapes included; `.model` of the result is the compressed model.

    Masks come back in one plan, which keeps the weights that are not zero, so that `keep_pruned` holds the others.

    Args:
        model: a dense model of the right class, for a file whose card names none; never changed.
    Raises:
        CheckpointError: missing, of the wrong digest, not of this model, or no safetensors file (never a pickle).
        ModelError: `model` is none.
    """
    discover()
    _check_model(model)
    path = Path(path)
    card = read_card(path)
    tensors = unpack(widen(read_tensors(path, card["sha256"]), card, path), card, path)
    built = copy.deepcopy(model).eval() if model is not None else model_of(card, path)
    made, inputs, plan = _read(card, tensors, path)
    state = {name: tensor for name, tensor in tensors.items() if not name.endswith((_SCALE, _ZERO, _TABLE))}
    try:
        if plan is not None and plan.dtype is None:
            built = fold_batch_norms(built, inputs)
            state.update({name: dequantize(state[name], coding) for name, coding in plan.weights.items()})
            state.update({name: _values_of(state[name], table) for name, table in plan.codebooks.items()})
            state.update(_float_twins(built, state, {*plan.weights, *plan.codebooks}))
        built = resize_to(built, {name: tuple(tensor.shape) for name, tensor in state.items()})
        built.load_state_dict(state)
    except (PruningBenchError, RuntimeError, KeyError, ValueError, IndexError, TypeError) as problem:
        found = f"other tensors ({' '.join(str(problem).split())})"
        raise CheckpointError("load", found, f"those of {card['model'] or 'the model'}", str(path)) from None
    return Compressed(built.eval(), made, _masks(card, built, path), plan, inputs)


def _check_model(model: object) -> None:
    if not isinstance(model, (nn.Module, NoneType)):
        where = getattr(model, "__name__", None)
        raise ModelError("load", f"a model of type {type(model).__name__}", "a torch.nn.Module, as it was built", where)


def _masks(card: Mapping[str, Any], model: nn.Module, path: Path) -> tuple[MaskPlan, ...]:
    """The plan of the masks that the card names, if any."""
    names, parameters = card.get(MASKED, []), dict(model.named_parameters(remove_duplicate=False))
    if not isinstance(names, list) or not all(isinstance(name, str) and name in parameters for name in names):
        where = str(path.with_suffix(".json"))
        raise CheckpointError("load", f"{MASKED} {names!r:.40}", "names of the model's parameters", where)
    return (MaskPlan({name: parameters[name].detach() != 0 for name in names}),) if names else ()


def _has_codes(plan: QuantPlan | None) -> bool:
    return plan is not None and plan.dtype is None


def file_size(compressed: Compressed) -> int:
    """Bytes of the safetensors file that `save` writes."""
    return len(to_bytes(_packed(compressed)[0]))


def file_sizes(compressed: Compressed) -> tuple[int, int]:
    """Bytes of the safetensors file that `save` writes: as it is, and zipped (zlib, level 6)."""
    data = to_bytes(_packed(compressed)[0])
    return len(data), len(zlib.compress(data, 6))


def tensors_of(compressed: Compressed) -> dict[str, Tensor]:
    """What is stored, before packing: the state of the float model, in its type if cast; if quantized, the folded state
    with codes and scales.
    """
    plan = compressed.quant_plan
    if plan is None or plan.dtype is not None:
        model = compressed.float_model
        if plan is not None and plan.dtype is not None:
            model = cast(model, plan.dtype).model
        return _state_of(model)
    folded = fold_batch_norms(compressed.float_model, compressed.example_inputs)
    write_values(folded, plan.writes)
    state = _state_of(folded)
    for name, coding in plan.weights.items():
        state[name] = quantize(state[name], coding).to(_stored_type(coding)).contiguous()
    for name, table in plan.codebooks.items():
        state[name] = _codes_of(state[name], table)
        state[name + _TABLE] = table.detach().clone()
    for name, coding in _codings(plan).items():
        state[name + _SCALE] = coding.scale.detach().clone()
        if isinstance(coding, Affine) and not _is_symmetric(coding.low, coding.high):
            state[name + _ZERO] = coding.zero_point.detach().clone()
    return state


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the tensors of its state."""
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            found = f"a state of type {type(value).__name__}, by get_extra_state"
            raise CheckpointError("save", found, "tensors; torch.save keeps others", name)
    return {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}


def _packed(compressed: Compressed) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors as they stand in the file, and what its card says of them."""
    weights = compressed.quant_plan.weights if compressed.quant_plan else {}
    codes = {name: (coding.low, coding.high) for name, coding in weights.items() if isinstance(coding, Affine)}
    codes |= {name: (0, max(len(table) - 1, 1)) for name, table in _tables(compressed).items()}
    stored, sparse = pack(
        tensors_of(compressed), {name: (high - low).bit_length() for name, (low, high) in codes.items()}
    )
    stored, narrowed = narrow(stored, {name + VALUES * (name in sparse): ends for name, ends in codes.items()})
    return stored, {key: value for key, value in ((KEY, sparse), (NARROW, narrowed)) if value}


def _tables(compressed: Compressed) -> Mapping[str, Tensor]:
    return compressed.quant_plan.codebooks if compressed.quant_plan else {}


def _float_twins(model: nn.Module, state: Mapping[str, Tensor], quantized: Set[str]) -> dict[str, Tensor]:
    """Of quantized weights that are one tensor with a parameter in float, such as an embedding: the values of that."""
    named = list(model.named_parameters(remove_duplicate=False))
    floats = {id(tensor): state[name] for name, tensor in named if name not in quantized and name in state}
    return {name: floats[id(tensor)] for name, tensor in named if name in quantized and id(tensor) in floats}


def _codes_of(values: Tensor, table: Tensor) -> Tensor:
    """Indices into the table, uint8, counted from the entry that is zero and on from the last to the first."""
    return ((nearest(values, table) - _zero_of(table)) % len(table)).to(torch.uint8)


def _values_of(codes: Tensor, table: Tensor) -> Tensor:
    return table[(codes.long() + _zero_of(table)) % len(table)]


def _zero_of(table: Tensor) -> int:
    return int(table.abs().argmin())


def _is_symmetric(low: int, high: int) -> bool:
    """Is the zero point 0 by the range of the codes alone?"""
    return low + high == 0


def _stored_type(coding: Coding) -> torch.dtype:
    if isinstance(coding, Float8):
        return coding.dtype
    return torch.int8 if coding.low < 0 else torch.uint8


def _codings(plan: QuantPlan | None) -> dict[str, Coding]:
    if plan is None:
        return {}
    return {**plan.weights, **{_ACTIVATION + point: coding for point, coding in plan.activations.items()}}


def _range(coding: Coding) -> list[int | str | None]:
    """What the card says: lowest and highest code, axis, and the size of groups if any; of floats format and axis."""
    if isinstance(coding, Float8):
        return [coding.format, coding.axis]
    return [coding.low, coding.high, coding.axis, *([] if coding.group is None else [coding.group])]


def _read(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path
) -> tuple[recipe.Recipe, tuple[Tensor, ...], QuantPlan | None]:
    """Recipe, example inputs and quantization of a card; a dense checkpoint's has none of them."""
    try:
        inputs = tuple(torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in card.get("inputs", ()))
        return recipe.parse(card.get("recipe", "dense")), inputs, _plan_from(tensors, card)
    except KeyError as problem:
        raise CheckpointError("load", f"no tensor {problem}", "scales for every range of the card", str(path)) from None
    except (PruningBenchError, TypeError, ValueError, AttributeError, RuntimeError) as problem:
        found = f"a damaged card ({' '.join(str(problem).split())})"
        where = str(path.with_suffix(".json"))
        raise CheckpointError("load", found, "recipe, inputs and ranges as save() writes them", where) from None


def _plan_from(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> QuantPlan | None:
    for ending, key in ((_SCALE, "ranges"), (_TABLE, "codebooks")):
        stored = {name.removesuffix(ending) for name in tensors if name.endswith(ending)}
        if lost := sorted(stored - {*card.get(key, ())}):
            raise ValueError(f"{key} without {lost[0]}")
    if "dtype" in card:
        if card["dtype"] not in FLOATS:
            raise ValueError(f"dtype {card['dtype']!r}")
        return QuantPlan({}, dtype=card["dtype"])
    ranges: Mapping[str, Any] = card.get("ranges", {})
    tables = {name: tensors[name + _TABLE] for name in card.get("codebooks", {})}
    if not ranges and not tables:
        return None
    codings = {name: _coding(tensors, name, *entry) for name, entry in ranges.items()}
    return QuantPlan(
        weights={name: a for name, a in codings.items() if not name.startswith(_ACTIVATION)},
        activations={n.removeprefix(_ACTIVATION): a for n, a in codings.items() if n.startswith(_ACTIVATION)},
        codebooks=tables,
        dynamic=card.get("dynamic") is True,
    )


def _coding(tensors: Mapping[str, Tensor], name: str, first: Any, *rest: Any) -> Coding:
    """The coding of an entry of the card, as `_range` spells it."""
    scale = tensors[name + _SCALE]
    if not isinstance(first, str):
        high, axis, *group = rest
        zero = _zero_point(tensors, name, first, high)
        for held in (zero, *([tensors[name]] if name in tensors else [])):
            if held.numel() and not first <= held.min() <= held.max() <= high:
                raise ValueError(f"{name} from {first} to {high}, codes from {held.min()} to {held.max()}")
        return Affine(scale, zero, first, high, axis, *group)
    (axis,) = rest
    if first not in FLOATS8:
        raise ValueError(f"format {first!r} of {name}")
    if name in tensors and tensors[name].dtype != FLOATS8[first]:
        raise ValueError(f"{name} in {tensors[name].dtype}, not in {first}")
    return Float8(scale, first, axis)


def _zero_point(tensors: Mapping[str, Tensor], name: str, low: int, high: int) -> Tensor:
    if name + _ZERO not in tensors and _is_symmetric(low, high):
        return torch.zeros_like(tensors[name + _SCALE], dtype=torch.int32)
    return tensors[name + _ZERO]
