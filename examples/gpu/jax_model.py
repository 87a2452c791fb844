"""A JAX model: on a GPU without a copy in host memory, on a CPU as it is.

`device_arrays = true` in jax.toml has the worker bring the batch to the card. XLA compiles once for
each of `allowed_batch_sizes`, when the worker warms the model up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _load() -> dict[str, jax.Array]:
    weights = os.environ.get("MODEL_WEIGHTS")
    if weights:
        # The file of numpy.savez(path, w1=…, b1=…, w2=…, b2=…).
        with np.load(weights) as arrays:
            return {name: jnp.asarray(arrays[name]) for name in arrays}
    draw = np.random.default_rng(0)
    return {
        "w1": jnp.asarray(draw.normal(0, 784**-0.5, (784, 512)), jnp.float32),
        "b1": jnp.zeros(512, jnp.float32),
        "w2": jnp.asarray(draw.normal(0, 512**-0.5, (512, 10)), jnp.float32),
        "b2": jnp.zeros(10, jnp.float32),
    }


@jax.jit
def _apply(weights: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(images @ weights["w1"] + weights["b1"])
    return jax.nn.softmax(hidden @ weights["w2"] + weights["b2"])


_weights = _load()


def classify(inputs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """images: float32 (?, 784). scores: float32 (?, 10)."""
    return {"scores": _apply(_weights, jax.dlpack.from_dlpack(inputs["images"]))}
