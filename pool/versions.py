"""Which versions of a model lie under a path, and which of them a policy wants."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from batchyard.pool.batching_files import version_batching
from batchyard.pool.config_models import Batching, Model
from batchyard.wire.errors import ConfigurationError

_SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
# The version of what lies in no numeric folder.
UNVERSIONED = 1


@dataclass(frozen=True, slots=True)
class Version:
    """A version that is there: what a worker loads, and what its files look like.

    ``fingerprint`` is another when a file came, went or changed. ``batching`` is the version's own,
    if it has one. ``refusal`` says why it cannot be served whatever a worker would make of it.
    """

    path: str
    fingerprint: int
    batching: Batching | None = None
    refusal: str = ""


# By number.
Versions = Mapping[int, Version]
# By the model's name.
Found = Mapping[str, Versions]


def find_all(models: Iterable[Model]) -> dict[str, dict[int, Version]]:
    """The versions of each model. Raises ConfigurationError for one that has none."""
    return {model.name: find_versions(model) for model in models}


def find_versions(model: Model) -> dict[int, Version]:
    """The versions of a model that are there.

    A SavedModel's ``path`` is its folder (its version is its name when that is a number, else 1),
    or a folder of numeric folders, as in TensorFlow Serving. One without saved_model.pb is not
    there yet: it is being copied. Raises ConfigurationError when there is none, or when the path
    cannot be read.
    """
    try:
        return _find_versions(model)
    except OSError as error:
        raise ConfigurationError(f"model {model.name!r}: {model.path}: {error.strerror}") from error


def _find_versions(model: Model) -> dict[int, Version]:
    if model.runtime == "python":
        return {UNVERSIONED: _find_callable(model)}
    folder = Path(model.path).absolute()
    if not folder.is_dir():
        raise ConfigurationError(
            f"model {model.name!r}: {model.path} is no folder{_python_hint(model.path)}"
        )
    if _is_saved_model(folder):
        number = _number(folder.name)
        return {UNVERSIONED if number is None else number: _version(folder, model)}
    numbered = {
        number: child
        for child in folder.iterdir()
        if (number := _number(child.name)) is not None and child.is_dir()
    }
    if not numbered:
        raise ConfigurationError(
            f"model {model.name!r}: {model.path} holds neither saved_model.pb nor numeric version "
            "folders"
        )
    complete = {
        number: _version(child, model)
        for number, child in numbered.items()
        if _is_saved_model(child)
    }
    if not complete:
        raise ConfigurationError(
            f"model {model.name!r}: {numbered[max(numbered)]} holds no saved_model.pb; is it still "
            "being copied?"
        )
    return complete


def choose(policy: str | Mapping[str, int | list[int]], numbers: Iterable[int]) -> list[int]:
    """Those of the versions that a ``version_policy`` wants, increasing."""
    there = sorted(numbers)
    if policy == "all":
        return there
    match policy:
        case {"specific": list(wanted)}:
            return [number for number in there if number in wanted]
        case {"latest": int(count)}:
            return there[-count:]
    return there[-1:]


def settled(before: Found, now: Found, known: Found) -> dict[str, dict[int, Version]]:
    """What is there after a look, without what is still being copied.

    ``before`` is what the look before saw, ``known`` what came out of this then. A version counts
    once two looks in a row see the same files; until then it stays what it was.
    """
    result: dict[str, dict[int, Version]] = {}
    for name, versions in now.items():
        result[name] = {}
        for number, version in versions.items():
            if before.get(name, {}).get(number) == version:
                result[name][number] = version
            elif (old := known.get(name, {}).get(number)) is not None:
                result[name][number] = old
    return result


def _python_hint(path: str) -> str:
    """What to write if a Python function was meant."""
    if path.endswith(".py"):
        return f'; a Python function is {path}:FUNCTION, with runtime = "python"'
    if ":" in path:
        return '; for a Python function add runtime = "python"'
    return ""


def _find_callable(model: Model) -> Version:
    file = Path(model.path.rpartition(":")[0])
    if file.suffix != ".py":
        return Version(model.path, 0)
    try:
        status = file.stat()
    except (OSError, ValueError):
        # ValueError of a name with a zero in it.
        raise ConfigurationError(f"model {model.name!r}: {file} is no file") from None
    return Version(model.path, hash((status.st_size, status.st_mtime_ns, status.st_ino)))


def _version(folder: Path, model: Model) -> Version:
    fingerprint = _fingerprint(folder)
    if not model.batching_params_file:
        return Version(str(folder), fingerprint)
    try:
        return Version(str(folder), fingerprint, version_batching(folder, model.batching))
    except ConfigurationError as error:
        return Version(str(folder), fingerprint, refusal=str(error))


def _fingerprint(folder: Path) -> int:
    files = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            try:
                status = os.stat(path)
            except OSError:
                # It went away meanwhile, or points nowhere: its name is all there is.
                files.append((path, 0, 0, 0))
            else:
                files.append((path, status.st_size, status.st_mtime_ns, status.st_ino))
    return hash(tuple(sorted(files)))


def _is_saved_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in _SAVED_MODEL_FILES)


def _number(name: str) -> int | None:
    # A version has 63 bits, as in TensorFlow Serving.
    return int(name) if name.isascii() and name.isdecimal() and int(name) < 1 << 63 else None
