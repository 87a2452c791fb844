"""JAX: a python model that takes as many MiB of the card as its input says."""

from __future__ import annotations

from typing import Any

import jax.dlpack
import jax.numpy as jnp
import numpy as np

_FLOATS_IN_MIB = 1 << 18


def allocate(inputs: dict[str, Any]) -> dict[str, Any]:
    """``mib``, float32 of shape (1, 1), in and out; at least one MiB is taken."""
    asked = inputs["mib"]
    is_on_card = not isinstance(asked, np.ndarray)
    mib = max(1, round((jax.dlpack.from_dlpack(asked) if is_on_card else asked).item()))
    # JAX computes later: what it cannot have is told when somebody waits for it.
    # Of two dimensions: one could be longer than JAX's indices are wide.
    block = jnp.ones((mib, _FLOATS_IN_MIB), jnp.float32).block_until_ready()
    held = block[:1, :1] + (mib - 1)
    return {"mib": held if is_on_card else np.asarray(held)}
