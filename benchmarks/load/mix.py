"""What requests hold: kinds drawn by weight, and inputs made from a model's signature."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.benchmarks.load.plan import MixEntry
from batchyard.wire import dtypes
from batchyard.wire.errors import ConfigurationError, InvalidArgument
from batchyard.wire.signatures import TensorSpec

Array = npt.NDArray[Any]
# What the seed is used for, beside arrivals.
_KINDS, _INPUTS = 2, 3
# Requests of a kind that differ; fewer of those that are large.
VARIANTS = 8
_VARIANTS_NBYTES = 32 * 2**20
# Indexes into the smallest of vocabularies.
_INTEGERS_BELOW = 10
_MIX_KEYS = {
    *("model", "weight", "rows", "deadline_ms", "version", "label", "signature", "priority"),
    *("inputs", "shape"),
}


def draw(mix: Sequence[MixEntry], count: int, seed: int) -> npt.NDArray[np.uint16]:
    """The kinds of so many requests, each as often as its weight says."""
    if len(mix) == 1:
        return np.zeros(count, np.uint16)
    weights = np.array([entry.weight for entry in mix])
    rng = np.random.default_rng([seed, _KINDS])
    return rng.choice(len(mix), count, p=weights / weights.sum()).astype(np.uint16)


def variants(specs: Sequence[TensorSpec], entry: MixEntry, seed: int) -> Iterator[dict[str, Array]]:
    """A few requests' inputs of one kind, by name; all that are given, if any are.

    Raises InvalidArgument when they cannot be made.
    """
    if entry.inputs is not None:
        yield given_inputs(specs, entry)
        return
    if not specs:
        raise InvalidArgument(
            f"model {entry.model!r} declares no inputs: say what to send (--inputs)"
        )
    rng = np.random.default_rng([seed, _INPUTS])
    first = {spec.name: _made_up(rng, spec, entry) for spec in specs}
    yield first
    nbytes = sum(array.nbytes for array in first.values())
    for _ in range(1, max(min(VARIANTS, _VARIANTS_NBYTES // max(nbytes, 1)), 1)):
        yield {spec.name: _made_up(rng, spec, entry) for spec in specs}


def given_inputs(specs: Sequence[TensorSpec], entry: MixEntry) -> dict[str, Array]:
    """An entry's own inputs as arrays of the signature's dtypes. Raises InvalidArgument."""
    by_name = {spec.name: spec for spec in specs}
    inputs: dict[str, Array] = {}
    for name, value in (entry.inputs or {}).items():
        spec = by_name.get(name)
        try:
            if spec is None:
                inputs[name] = np.asarray(value)
            elif spec.dtype == dtypes.STRING:
                inputs[name] = np.array(value, object)
            else:
                inputs[name] = np.asarray(value, dtypes.to_numpy(spec.dtype))
        except (ValueError, TypeError) as error:
            raise InvalidArgument(f"model {entry.model!r} input {name!r}: {error}") from None
    return inputs


def _made_up(rng: np.random.Generator, spec: TensorSpec, entry: MixEntry) -> Array:
    shape = _shape(spec, entry)
    count = math.prod(shape)
    if spec.dtype == dtypes.STRING:
        strings = np.empty(count, object)
        strings[:] = [b"%08d" % number for number in rng.integers(0, 10**8, count)]
        return strings.reshape(shape)
    dtype = dtypes.to_numpy(spec.dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, shape, dtype)
    if dtype.kind in "iu":
        return rng.integers(0, _INTEGERS_BELOW, shape).astype(dtype)
    return rng.random(shape, np.float32).astype(dtype)


def _shape(spec: TensorSpec, entry: MixEntry) -> tuple[int, ...]:
    """A tensor's shape: the rows, then what is open filled from the entry's, or with 1."""
    if spec.shape is None:
        return entry.rows, *entry.shape
    fill = iter(entry.shape)
    first = [entry.rows if dim is None else dim for dim in spec.shape[:1]]
    return *first, *(next(fill, 1) if dim is None else dim for dim in spec.shape[1:])


def read_mix(path: Path) -> tuple[MixEntry, ...]:
    """The mix of a TOML file: a ``[[requests]]`` table for each kind. Raises ConfigurationError.

    Its keys are those of ``MixEntry``, but ``deadline_ms`` for ``deadline_s``.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the mix {path} cannot be read: {error}") from None
    tables = document.get("requests")
    if set(document) != {"requests"} or not isinstance(tables, list) or not tables:
        raise ConfigurationError(f"the mix {path} needs [[requests]] tables, and nothing else")
    return tuple(_entry(f"{path} request {i}", table) for i, table in enumerate(tables, 1))


def _entry(where: str, table: Mapping[str, Any]) -> MixEntry:
    unknown = sorted(set(table) - _MIX_KEYS)
    if unknown:
        known = ", ".join(sorted(_MIX_KEYS))
        raise ConfigurationError(f"{where}: unknown key {unknown[0]!r}; known are {known}")
    fields = dict(table)
    try:
        if "deadline_ms" in fields:
            fields["deadline_s"] = fields.pop("deadline_ms") / 1e3
        if "shape" in fields:
            fields["shape"] = tuple(int(dim) for dim in fields["shape"])
        return MixEntry(**fields)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    except TypeError as error:
        raise ConfigurationError(f"{where}: a key is missing or of a wrong type: {error}") from None
