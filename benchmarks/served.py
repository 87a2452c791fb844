"""A server for a benchmark: models with their batching, one kind of worker, both endpoints."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchyard.cli.local_server import server_on_tcp_and_ipc

# Of a tensor: its dtype, and its shape with -1 for what is open.
Tensor = tuple[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Model:
    """A SavedModel's folder, or ``module:callable`` with what it takes and gives."""

    name: str
    path: str
    batching: Mapping[str, Any]
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """More keys of ``[[models]]``."""


def serve(
    models: Sequence[Model], *, workers: int = 1, **worker: int
) -> contextlib.AbstractContextManager[tuple[str, str]]:
    """Runs a server with CPU workers; its endpoints by tcp and ipc.

    ``worker`` has more keys of ``[[pool.workers]]``. Raises ServerDidNotStart.
    """
    return _served(configuration(models, workers, worker))


def serve_with_gateways(
    models: Sequence[Model], ports: Mapping[str, int], /, **worker: int
) -> contextlib.AbstractContextManager[tuple[str, str]]:
    """The same with one worker, and with gateways at ``ports``, by their sections' names."""
    gateways = "".join(f"[{name}]\nport = {port}\n" for name, port in ports.items())
    return _served(gateways + configuration(models, 1, worker))


@contextlib.contextmanager
def _served(text: str) -> Iterator[tuple[str, str]]:
    with tempfile.NamedTemporaryFile("w", prefix="batchyard-", suffix=".toml") as file:
        file.write(text)
        file.flush()
        with server_on_tcp_and_ipc([file.name]) as endpoints:
            yield endpoints


def configuration(
    models: Sequence[Model],
    workers: int,
    worker: Mapping[str, Any],
    pool: Mapping[str, Any] | None = None,
) -> str:
    """The TOML of such a server; ``pool`` has keys of ``[pool]``."""
    lines = ["[pool]", *_pairs(pool)] if pool else []
    lines += ["[[pool.workers]]", *_pairs({"device": "cpu", "count": workers, **worker})]
    for model in models:
        lines += ["[[models]]", *_pairs({"name": model.name, "path": model.path})]
        lines += _pairs(model.settings)
        if model.inputs:
            lines.append('runtime = "python"')
        for side, tensors in (("inputs", model.inputs), ("outputs", model.outputs)):
            for name, (dtype, shape) in tensors.items():
                lines.append(f"[models.signature.{side}.{name}]")
                lines += _pairs({"dtype": dtype, "shape": list(shape)})
        lines += ["[models.batching]", *_pairs(model.batching)]
    return "\n".join(lines) + "\n"


def _pairs(values: Mapping[str, Any]) -> list[str]:
    # Strings, numbers and lists of numbers are written in JSON as in TOML.
    return [f"{key} = {json.dumps(value)}" for key, value in values.items()]


def one_thread() -> dict[str, int]:
    """Worker settings by which TensorFlow has the threads of the bare references."""
    return {"tensorflow_intra_op_parallelism": 1, "tensorflow_inter_op_parallelism": 1}
