"""JAX's networks as ``python`` models: ``batchyard.benchmarks.gpu.models.jax_served:NAME``.

With device_arrays they get arrays on the card and leave their answer there; else they copy both
themselves, as any function would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from batchyard.benchmarks.gpu.models.jax_networks import build
from batchyard.benchmarks.gpu.subjects import network_of

Function = Callable[[dict[str, Any]], dict[str, Any]]


def __getattr__(name: str) -> Function:
    """``resnet50_float16`` and the others, built when they are asked for: a worker has few."""
    return _function(*network_of(name))


def _function(network: str, precision: str) -> Function:
    call = build(network, precision)

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        x = inputs["x"]
        if isinstance(x, np.ndarray):
            return {"y": np.asarray(call(x))}
        return {"y": call(jax.dlpack.from_dlpack(x))}

    return run
