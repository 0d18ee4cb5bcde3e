"""Where full data sets lie: a given folder, the environment variable, the usual places, or a download."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from pruning_bench.errors import DataError

VARIABLE = "PRUNING_BENCH_DATA"


def find_folder(
    who: str,
    folder: Path | None,
    *,
    markers: tuple[str, ...],
    inside: Collection[str],
    usual: Iterable[str] = (),
    download: Callable[[Path], None],
) -> tuple[Path, str]:
    """The folder that holds a data set, and in a word where it came from.

    The first that is given wins, and it must hold the data: `folder`, the environment variable PRUNING_BENCH_DATA.
    Without them the `usual` places are searched, then the user's cache, which is filled by `download` if it is empty.

    Args:
        markers: files any of which shows that the data are there.
        inside: sub-folders in which it may lie as well.
        download: fills a folder; called only when nothing was found.
    Raises:
        DataError: a given folder does not hold the data, or the download failed.
    """
    if (found := look_for(who, folder, markers=markers, inside=inside, usual=usual)) is not None:
        return found
    cache = _cache(who)
    _filled(who, cache, download)
    filled = _containing(cache, ("", *inside), markers)
    if filled is None:
        raise DataError(who, f"no {markers[0]} in the download", "a whole download", str(cache))
    return filled, "download"


def look_for(
    who: str,
    folder: Path | None = None,
    *,
    markers: tuple[str, ...],
    inside: Collection[str],
    usual: Iterable[str] = (),
) -> tuple[Path, str] | None:
    """What `find_folder` finds without a download; None where it would start one. Raises `DataError` as it does."""
    places = ("", *inside)
    variable = os.environ.get(VARIABLE)
    for given, source in ((folder, "folder"), (Path(variable) if variable else None, VARIABLE)):
        if given is not None:
            found = _containing(given, places, markers)
            if found is None:
                raise DataError(who, f"no {' or '.join(markers)}", "in the folder", f"{source} {given}")
            return found, source
    for place in usual:
        if (found := _containing(Path(place), places, markers)) is not None:
            return found, place
    kept = _containing(_cache(who), places, markers)
    return None if kept is None else (kept, "download")


def _cache(who: str) -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pruning_bench" / who


def _containing(root: Path, places: Iterable[str], markers: tuple[str, ...]) -> Path | None:
    for place in places:
        if any((root / place / name).is_file() for name in markers):
            return root / place
    return None


def _filled(who: str, cache: Path, download: Callable[[Path], None]) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        download(cache)
    except (OSError, RuntimeError) as error:  # torchvision raises RuntimeError on a wrong checksum
        hint = f"a working download, or a folder given by option or {VARIABLE}"
        raise DataError(who, f"download failed ({error})", hint, str(cache)) from None
