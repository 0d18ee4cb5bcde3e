"""Checkpoints: weights as safetensors beside a card in JSON. Pickles are refused before anything reads them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pruning_bench.errors import CheckpointError, PruningBenchError, one_line
from pruning_bench.models.contract import build_model
from pruning_bench.models.packing import unpack

SHIPPED = Path(__file__).parent / "checkpoints"
WHO = "checkpoint"
ENDING = ".safetensors"
FORMAT = 1  # of the card, where it tells one
_PICKLE_ENDS = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b")
_HEADER = b"{"  # the ninth byte of a safetensors file, behind the length of its header
_NO_PICKLES = "safetensors; pickles can run code and are never read"
_NEEDED = {"model": str, "dataset": str, "options": dict, "sha256": str}
_KINDS = {str: "text", dict: "an object"}


def checkpoint_path(model: str, dataset: str, folder: Path = SHIPPED) -> Path:
    """Where the weights of `model` trained on `dataset` lie; the card lies beside it, ending in `.json`.

    Example:
        >>> checkpoint_path("resnet20", "fashion_mnist").name
        'resnet20-fashion_mnist.safetensors'
    """
    return folder / f"{model}-{dataset}.safetensors"


def shipped_path(model: str, dataset: str) -> Path:
    """Where the shipped weights of `model` trained on `dataset` lie; raises `CheckpointError` if none are shipped."""
    path = checkpoint_path(model, dataset)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.safetensors"))) or "none"
        raise CheckpointError(WHO, f"no checkpoint {path.stem}", f"a shipped one ({known})", str(path))
    return path


def save_checkpoint(model: nn.Module, card: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Writes the weights to `path` and the card beside it; each file is whole at every moment.

    Returns:
        The card with the sha256 of the weights' file.
    """
    return write_checkpoint({name: value.detach().cpu() for name, value in model.state_dict().items()}, card, path)


def write_checkpoint(tensors: Mapping[str, Tensor], card: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Writes named tensors to `path` and the card beside it; returns the card with the sha256 of the tensors' file.

    Raises:
        CheckpointError: another name, a card that is no JSON, or files that cannot be written; older ones stay then.
    """
    _refuse_pickle(path)
    with _writing(path):
        _refuse_folder(path)
    if path.suffix != ENDING:
        expected = f"a name ending in {ENDING}, beside which the card ends in .json"
        raise CheckpointError(WHO, f"a file {path.name}", expected, str(path))
    place = path.with_suffix(".json")
    content = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
    full = {**card, "sha256": hashlib.sha256(content).hexdigest()}
    text = _text_of(full, place)
    with _writing(path):
        _refuse_folder(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace({path: content, place: text})
    return full


def _text_of(card: Mapping[str, Any], place: Path) -> bytes:
    """The card as JSON; raises `CheckpointError` that names the first entry that is none, or that no card has so."""
    _check_kinds(card, place)
    for name, value in card.items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError, RecursionError) as error:
            found = f"an entry {name!r:.40} ({one_line(error)})"
            raise CheckpointError(WHO, found, "what JSON holds: texts, numbers, lists, objects", str(place)) from error
    return (json.dumps(card, indent=1) + "\n").encode()


def _check_kinds(card: Mapping[str, Any], place: Path) -> None:
    for key, kind in _NEEDED.items():
        if key in card and not isinstance(card[key], kind):
            raise CheckpointError(WHO, f"card whose {key} is {card[key]!r:.40}", _KINDS[kind], str(place))


def read_card(path: Path) -> dict[str, Any]:
    """The card of the weights at `path`; raises `CheckpointError` if either is missing or it is no card."""
    _refuse_pickle(path)
    _require_file(path)
    place = path.with_suffix(".json")
    try:
        card = json.loads(place.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(WHO, "no card", "a card beside the weights", str(place)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(WHO, f"unreadable card ({error})", "JSON", str(place)) from None
    missing = [key for key in _NEEDED if key not in card] if isinstance(card, dict) else list(_NEEDED)
    if missing:
        raise CheckpointError(WHO, f"card without {', '.join(missing)}", "a whole card", str(place))
    _check_kinds(card, place)
    if card.get("format", FORMAT) != FORMAT:
        found, expected = f"a card of format {card['format']!r:.40}", f"{FORMAT}, all that this pruning_bench reads"
        raise CheckpointError(WHO, found, expected, str(place))
    return dict(card)


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Args:
        sha256: the digest that the file must have; None does not check.
    Raises:
        CheckpointError: missing, a pickle (never unpickled), of another digest, truncated or foreign.
    """
    _refuse_pickle(path)
    _require_file(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(WHO, error.strerror or str(error), "a safetensors file", str(path)) from None
    if content.startswith(_PICKLE_STARTS) and content[8:9] != _HEADER:  # a header's length may begin like a pickle
        raise CheckpointError(WHO, "a pickle or archive", _NO_PICKLES, str(path))
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise CheckpointError(WHO, f"sha256 {found[:16]}...", f"{sha256[:16]}... as on its card", str(path))
    try:
        return load_tensors(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(WHO, f"unreadable ({error})", "a whole safetensors file", str(path)) from None


def load_checkpoint(path: Path) -> nn.Module:
    """The model of the card beside `path`, with its weights, in evaluation mode.

    Raises:
        CheckpointError: see `read_card` and `read_tensors`; or the tensors do not fit the model.
    """
    card = read_card(path)
    tensors = unpack(read_tensors(path, card["sha256"]), card, path)
    model = model_of(card, path)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(WHO, " ".join(str(error).split()), f"the tensors of {card['model']}", str(path)) from None
    return model.eval()


def model_of(card: Mapping[str, Any], path: Path) -> nn.Module:
    """The model that the card of the file at `path` names, with random weights.

    Raises:
        CheckpointError: not a registered model, or options that it does not take.
    """
    if not card["model"]:
        raise CheckpointError(WHO, "a card that names no model", "load(path, model=...)", str(path))
    try:
        return build_model(card["model"], **card["options"])
    except (PruningBenchError, TypeError, ValueError, RuntimeError) as error:
        found = f"card of {card['model']!r} with options {card['options']} ({' '.join(str(error).split())})"
        raise CheckpointError(WHO, found, "a registered model and its options", str(path)) from None


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in _PICKLE_ENDS:
        raise CheckpointError(WHO, f"a {path.suffix} file", _NO_PICKLES, str(path))


def _require_file(path: Path) -> None:
    if not path.is_file():
        found = "a directory" if path.is_dir() else "No such file"
        raise CheckpointError(WHO, found, "a safetensors file", str(path))


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(WHO, "a directory", "the name of a file", str(path))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the operating system says against files at `path` is a `CheckpointError`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(WHO, error.strerror or str(error), "a file that can be written", str(path)) from error


def _replace(contents: Mapping[Path, bytes]) -> None:
    """Writes files beside each other, all of them before the first one takes its place."""
    partials = {path: path.with_name(f"{path.name}.partial") for path in contents}
    try:
        for path, partial in partials.items():
            partial.write_bytes(contents[path])
        for path, partial in partials.items():
            os.replace(partial, path)
    except OSError:
        for partial in partials.values():
            with suppress(OSError):
                partial.unlink()
        raise
