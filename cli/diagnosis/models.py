"""Whether the server's user can read the models' files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from batchyard.cli.diagnosis.finding import Finding, failure, ok, warning

# A model's folder holds a few files; whoever configures / as one should not wait.
_FILES_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Readability:
    """``refused``: the first path that this user cannot read, ``private``: that others cannot."""

    model: str
    path: str
    files: int
    refused: str = ""
    private: str = ""


def check_model(found: Readability, is_root: bool) -> Finding:
    """What root may read, the service's own user may not."""
    check = f"model {found.model}"
    if found.refused:
        remedy = f"chmod -R a+rX {found.path}, and a+x for the folders above."
        return failure(check, f"{found.refused} cannot be read by this user", remedy)
    if is_root and found.private:
        remedy = f"If the service runs as a user of its own: chmod -R a+rX {found.path}."
        return warning(check, f"only root or its owner can read {found.private}", remedy)
    return ok(check, f"{found.path}, files: {found.files}, all readable")


def look_at_model(model: str, path: Path) -> Readability:
    """Every file of a model, and the folders on the way to it."""
    refused = private = ""
    files = 0
    for item in _items(path):
        try:
            mode = item.stat().st_mode
        except OSError:
            return Readability(model, str(path), files, refused=str(item))
        is_folder = stat.S_ISDIR(mode)
        files += not is_folder
        on_the_way = item != path and item in path.parents
        if not os.access(item, _needed(is_folder, on_the_way)):
            return Readability(model, str(path), files, refused=str(item))
        if not private and not _others_may(mode, is_folder, on_the_way):
            private = str(item)
    return Readability(model, str(path), files, refused, private)


def _items(path: Path) -> Iterator[Path]:
    yield from reversed(path.parents)
    yield path
    if path.is_dir():
        yield from islice(_below(path), _FILES_MAX)


def _below(path: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(path):
        yield from (Path(folder, name) for name in (*folders, *names))


def _needed(is_folder: bool, on_the_way: bool) -> int:
    if not is_folder:
        return os.R_OK
    return os.X_OK if on_the_way else os.R_OK | os.X_OK


def _others_may(mode: int, is_folder: bool, on_the_way: bool) -> bool:
    needed = stat.S_IROTH if not is_folder else stat.S_IXOTH
    if is_folder and not on_the_way:
        needed |= stat.S_IROTH
    return mode & needed == needed
