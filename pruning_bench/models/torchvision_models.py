"""torchvision's classification models by name: `torchvision:resnet50` with random weights, the same every time;
`torchvision:resnet50:imagenet1k_v2` with pretrained ones from the files that torchvision has downloaded.

Their input is 3 x 224 x 224. The auxiliary heads of googlenet and inception_v3, which only training uses, are left out.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning_bench.errors import CheckpointError, UnknownNameError, closest
from pruning_bench.models.contract import ReferenceModel
from pruning_bench.registry import MODELS, Family

PREFIX = "torchvision"
SIZE = 224
SEED = 0
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
# DenseNet's files were written when its layers had other names: norm.1 for norm1.
_OLD_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)\Z")


def names() -> list[str]:
    """The classification models of the torchvision that is installed."""
    import torchvision  # type: ignore[import-untyped]

    return list(torchvision.models.list_models(module=torchvision.models))


def find(name: str) -> ReferenceModel:
    """The definition of `resnet50` or `resnet50:imagenet1k_v2`.

    Raises:
        UnknownNameError: no such model, or no such weights for images of 224 x 224; the message has the closest.
    """
    import torchvision

    model, colon, weights = name.partition(":")
    if model not in (known := names()):
        raise UnknownNameError(f"{PREFIX} model", repr(model), closest(model, known))
    build = torchvision.models.get_model_builder(model)
    options: dict[str, Any] = {"aux_logits": False, "init_weights": False} if model in _AUXILIARY else {}
    if not colon:
        return ReferenceModel(f"{PREFIX}:{name}", build, options, lambda: _random(build, options))
    offered = weights_of(model)
    if weights not in offered:
        raise UnknownNameError(f"weights of {PREFIX}:{model}", repr(weights), closest(weights, offered))
    if model in _AUXILIARY:
        options["transform_input"] = True  # these weights expect another normalisation than the images have

    def ready() -> nn.Module:
        made = _random(build, options)
        load_pretrained(made, name, offered[weights].url, _AUXILIARY.get(model, ()))
        return made

    return ReferenceModel(f"{PREFIX}:{name}", build, options, ready)


def weights_of(model: str) -> dict[str, Any]:
    """Name, in small letters -> torchvision's description, of the pretrained weights that take images of 224 x 224."""
    import torchvision

    described = torchvision.models.get_model_weights(model)
    return {w.name.lower(): w for w in described if max(w.meta["min_size"]) <= SIZE}


def _random(build: Callable[..., nn.Module], options: Mapping[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build(**options).eval()


def load_pretrained(
    model: nn.Module, name: str, url: str, left_out: tuple[str, ...] = (), folder: Path | None = None
) -> None:
    """Gives a model the weights of a file that torchvision has downloaded; nothing is downloaded here.

    The file is a pickle, which is read as tensors alone, and only if its digest is the one that its name ends in.

    Args:
        url: where torchvision has it from; its last part is the name of the file.
        left_out: beginnings of the names of tensors that the model has no place for.
        folder: where it lies; torch's own for downloads if left out.
    Raises:
        CheckpointError: no such file, another digest, or tensors that do not fit.
    """
    who, file = f"{PREFIX}:{name}", url.rpartition("/")[2]
    path = (folder or Path(torch.hub.get_dir()) / "checkpoints") / file
    if not path.is_file():
        raise CheckpointError(who, f"no file {file}", f"downloaded from {url}, into the folder", str(path.parent))
    _check_digest(who, path)
    try:
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        kept = {_OLD_NAME.sub(r"\1\2", n): t for n, t in tensors.items() if not n.startswith(left_out or "\0")}
        model.load_state_dict(kept)
    except (RuntimeError, AttributeError, EOFError, pickle.UnpicklingError) as problem:
        found = f"other content ({' '.join(str(problem).split())[:200]})"
        raise CheckpointError(who, found, "the tensors of the model", str(path)) from None


def _check_digest(who: str, path: Path) -> None:
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        for part in iter(functools.partial(stream.read, 1 << 20), b""):
            sha.update(part)
    expected = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if expected is None or not sha.hexdigest().startswith(expected[1]):
        raise CheckpointError(who, f"sha256 {sha.hexdigest()[:16]}...", "what its file's name ends in", str(path))


MODELS.add_family(
    PREFIX,
    Family(find, names, f"any classification model of torchvision, random weights; {PREFIX}:NAME:WEIGHTS pretrained"),
)
