"""Compressed models, and what they are exported to, kept on disk between runs under the digest of all they come from.

Not kept is what a file cannot tell (a model that a step rebuilt) and what cannot be told to be unchanged (a method
whose source is not found). Methods and models are taken for what they promise to be, functions of their arguments:
files and variables that they read when they run are not seen.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import pruning_bench
from pruning_bench.build_entries import (
    UNFIT,
    attributes_of,
    decode,
    decode_bytes,
    digest_object,
    digest_tensors,
    encode,
    encode_bytes,
    read_card,
    structure_of,
    tensors_of,
)
from pruning_bench.datasets.contract import Dataset
from pruning_bench.engine import Compressed
from pruning_bench.environment import current
from pruning_bench.errors import PruningBenchError, describe
from pruning_bench.models.contract import fresh
from pruning_bench.recipe import Recipe
from pruning_bench.records import digest_of, write_atomically
from pruning_bench.sources import UnknownSourceError, package_digest, sources_of

T = TypeVar("T")

FORMAT = 1
FOLDER_VARIABLE, MIB_VARIABLE = "PRUNING_BENCH_CACHE", "PRUNING_BENCH_CACHE_MIB"
DEFAULT_MIB = 2048
ABANDONED_SECONDS = 3600.0  # a partial file of that age was left by a process that died
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors\Z")
_PARTIAL = re.compile(r"\.[0-9a-f]{64}\.safetensors\.")
_PROCESSOR = ("arch", "os", "cpu", "instructions")
_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
)
# Torch's own, of the process that compresses.
_SWITCHES: Mapping[str, Callable[[], object]] = {
    "kernels": torch.backends.cpu.get_cpu_capability,
    "mkldnn": lambda: torch.backends.mkldnn.enabled,
    "mkldnn deterministic": lambda: torch.backends.mkldnn.deterministic,
    "mkldnn precision": lambda: _precisions(torch.backends.mkldnn, "matmul", "conv", "rnn"),
    "cudnn": lambda: [torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
    "cudnn precision": lambda: _precisions(torch.backends.cudnn, "conv", "rnn"),
    "cuda precision": lambda: _precisions(torch.backends.cuda, "matmul"),
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "default type": torch.get_default_dtype,
    "autocast": lambda: torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
    "fused transformer layers": torch.backends.mha.get_fastpath_enabled,
    "fused attention": torch.backends.cuda.flash_sdp_enabled,  # the CPU's too
    "denormals": lambda: bool(torch.full((1,), 1e-39, dtype=torch.float32, device="cpu").mul(0.5)),
}


@dataclass(frozen=True, eq=False)
class Order:
    """What a compressed model is to be made from.

    Args:
        name: of the model and its data set, to be shown.
        recipe: what is run.
        dense: never changed.
        builder: what built it, with the options of the card.
        card: of the file that its weights were read from.
        dataset: its train split calibrates and trains.
        full: whether that is the full one.
        calibration: how many examples, how many a batch.
        seed: of everything random.
        threads: that compute.
    """

    name: str
    recipe: Recipe
    dense: nn.Module
    builder: Callable[..., nn.Module]
    card: Mapping[str, Any]
    dataset: Dataset
    full: bool
    calibration: tuple[int, int]
    seed: int
    threads: int


@dataclass(frozen=True)
class Entry:
    """One kept model.

    Args:
        recipe, name, seed: of its order; "unreadable" and empty where the file is damaged.
        size: bytes.
        used: seconds since the epoch.
    """

    recipe: str
    name: str
    seed: str
    size: int
    used: float


@dataclass(frozen=True)
class BuildCache:
    """A folder of compressed models; safe with several processes at once, as a file is only ever replaced as a whole.

    Args:
        folder: made when there is something to keep; files of other names in it are left alone.
        limit: bytes of all entries; beyond it the least recently used go. 0 keeps and serves nothing.
    """

    folder: Path
    limit: int = DEFAULT_MIB << 20

    def serve(self, order: Order, make: Callable[[], Compressed]) -> Compressed:
        """The model of an order as `make` gives it: from the folder, or made and kept there."""
        key = key_of(order) if order.recipe.items and self.limit else None  # dense is not worth a file
        if key is None:
            return make()
        path = self.folder / f"{name_of(key)}.safetensors"
        if (served := self._read(path, lambda content: _decoded(content, order, path))) is not None:
            return served
        made = make()
        if self._still(key, order):
            self._keep(path, made, key, order)
        return made

    def serve_export(
        self, order: Order, made_from: Mapping[str, Any] | None, kind: str, make: Callable[[], bytes]
    ) -> bytes:
        """The bytes that `make` gives for the model of an order: from the folder, or made and kept there.

        Args:
            made_from: `key_of(order)` before the model was made; what changed since then keeps nothing.
            kind: all that the bytes depend on besides the order, such as the versions of exporters.
        """
        if made_from is None or not self.limit:
            return make()
        key = {**made_from, "export": kind}
        path = self.folder / f"{name_of(key)}.safetensors"
        if (served := self._read(path, lambda content: _decoded_bytes(content, path))) is not None:
            return served
        made = make()
        if self._still(made_from, order):
            self._write(path, encode_bytes(made, {"key": key, "name": order.name}))
        return made

    def entries(self) -> list[Entry]:
        """What is kept, the last used first."""
        found = []
        for path, size, used in self._listed():
            with suppress(OSError):
                found.append(Entry(*_described(path), size, used))
        return found[::-1]

    def clear(self) -> int:
        """Deletes every entry; returns how many there were."""
        files = self._files(_ENTRY)
        for path in [*files, *self._files(_PARTIAL)]:
            path.unlink(missing_ok=True)
        return len(files)

    def _files(self, pattern: re.Pattern[str]) -> list[Path]:
        try:
            return [path for path in self.folder.iterdir() if pattern.match(path.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _listed(self) -> list[tuple[Path, int, float]]:
        """(entry, bytes, time of its last use), the least recently used first."""
        found = []
        for path in self._files(_ENTRY):
            with suppress(OSError):  # another process took it away
                status = path.stat()
                found.append((path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda row: (row[2], row[0].name))

    def _read(self, path: Path, decoded: Callable[[bytes], T]) -> T | None:
        """The entry as `decoded` reads it, if it is there and whole; a damaged one is deleted, with a warning."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        try:
            served = decoded(content)
        except UNFIT as problem:
            with suppress(OSError):
                path.unlink()
            reason = " ".join(str(problem).split())
            warnings.warn(f"build cache: damaged entry ({reason}), dropped and made again [{path}]", stacklevel=2)
            return None
        with suppress(OSError):  # a folder that cannot be written serves all the same
            os.utime(path)
        return served

    def _still(self, key: Mapping[str, Any], order: Order) -> bool:
        """Whether an order still has that key; where a source or a switch was changed meanwhile it warns."""
        try:
            now = _key(order)
            changed = ", ".join(part for part, value in key.items() if now[part] != value)
        except Exception as problem:
            changed = str(problem) if isinstance(problem, UnknownSourceError) else describe(problem)
        if changed:
            reason = f"changed meanwhile: {changed}"
            warnings.warn(f"build cache: not kept ({reason}) [{order.name}/{order.recipe}]", stacklevel=3)
        return not changed

    def _keep(self, path: Path, made: Compressed, key: Mapping[str, Any], order: Order) -> None:
        about = {"key": key, "name": order.name}
        try:
            content = encode(made, about)
            if encode(_decoded(content, order, path), about) != content:
                return
        except UNFIT:  # it is more than a file can tell
            return
        self._write(path, content)

    def _write(self, path: Path, content: bytes) -> None:
        if len(content) > self.limit:
            return
        try:
            write_atomically(path, content)
            self._evict()
        except OSError as problem:
            reason = problem.strerror or str(problem)
            warnings.warn(f"build cache: nothing is kept ({reason}) [{self.folder}]", stacklevel=2)

    def _evict(self) -> None:
        for partial in self._files(_PARTIAL):
            with suppress(OSError):
                if partial.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                    partial.unlink()
        listed = self._listed()
        total = sum(size for _, size, _ in listed)
        for path, size, _ in listed:
            if total > self.limit:
                path.unlink(missing_ok=True)
                total -= size


def usual_cache() -> BuildCache | None:
    """The cache of this user, as the environment says; None where there is no home to keep it in.

    Raises:
        PruningBenchError: a size that is no whole number.
    """
    text = os.environ.get(MIB_VARIABLE) or str(DEFAULT_MIB)
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise PruningBenchError(MIB_VARIABLE, repr(text), "a whole number of MiB; 0 keeps nothing")
    folder = _usual_folder()
    return BuildCache(folder, int(text) << 20) if folder else None


def _usual_folder() -> Path | None:
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # any other is to be ignored
        return Path(base) / "pruning_bench"
    try:
        return Path.home() / ".cache" / "pruning_bench"
    except RuntimeError:
        return None


def key_of(order: Order) -> dict[str, Any] | None:
    """All that the model of an order depends on; None where it cannot be told."""
    try:
        return _key(order)
    except Exception:  # of what a user's objects are made, nobody knows, nor what they raise when they are looked into
        return None


def _key(order: Order) -> dict[str, Any]:
    """`key_of`; raises an exception that tells the reason."""
    methods = [step.method() for step in order.recipe.steps()]
    others = [order.builder, *map(type, order.dense.modules()), type(order.dataset.train)]
    train = attributes_of(order.dataset.train)
    tensors = {str(at): value for at, value in enumerate(tree_leaves(train)) if isinstance(value, Tensor)}
    constants = {name: value for name, value in train.items() if isinstance(value, (bool, int, float, str))}
    return {
        "format": FORMAT,
        "recipe": str(order.recipe),
        # With the defaults, which the recipe leaves out.
        "methods": [[method.name, digest_object(attributes_of(method))] for method in methods],
        "package": package_digest(),
        "sources": sources_of(map(type, methods), others),
        "dense": [
            order.card["sha256"],
            order.card["options"],
            structure_of(order.dense),
            digest_tensors(tensors_of(order.dense)),
        ],
        "data": [order.dataset.digest, digest_tensors(tensors), constants],
        "full": order.full,
        "calibration": list(order.calibration),
        "seed": order.seed,
        "threads": order.threads,
        "versions": _versions(),
        "machine": _machine(),
    }


def name_of(key: Mapping[str, Any]) -> str:
    """The name of an entry: the digest of its key."""
    return digest_of(dict(key))


def _versions() -> dict[str, str]:
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scipy": metadata.version("scipy"),
        "pruning_bench": pruning_bench.__version__,
    }


def _machine() -> dict[str, str]:
    """What decides how numbers are rounded besides versions and the number of threads."""
    facts = {name: _environment()[name] for name in _PROCESSOR}
    chosen = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    return {**facts, **chosen, **{name: str(read()) for name, read in _SWITCHES.items()}}


def _precisions(backend: Any, *operations: str) -> list[str]:
    """In what float32 is multiplied; `torch.set_float32_matmul_precision` sets some of them."""
    return [getattr(backend, operation).fp32_precision for operation in operations]


@functools.cache
def _environment() -> Mapping[str, str]:
    return current().must_match


def _decoded(content: bytes, order: Order, path: Path) -> Compressed:
    """The model of the entry at `path`; raises one of `UNFIT` unless the file is whole and of that name."""
    inputs = fresh(order.dataset.train.arguments(slice(0, 1)))
    served, card = decode(content, order.dense, order.recipe, inputs)
    if name_of(card["key"]) != path.stem:
        raise ValueError("another key than its name says")
    return served


def _decoded_bytes(content: bytes, path: Path) -> bytes:
    """The bytes of the entry at `path`; raises one of `UNFIT` unless the file is whole and of that name."""
    served, card = decode_bytes(content)
    if name_of(card["key"]) != path.stem:
        raise ValueError("another key than its name says")
    return served


def _described(path: Path) -> tuple[str, str, str]:
    """Recipe, model and seed of an entry, for a list."""
    try:
        with path.open("rb") as stream:
            card = read_card(stream)
        exported = " exported" if "export" in card["key"] else ""
        return str(card["key"]["recipe"]) + exported, str(card["name"]), str(card["key"]["seed"])
    except UNFIT:
        return "unreadable", "", ""
