"""When callers may come: once what the server serves can be had.

A port that opens before that would have load balancers send requests that are refused: TensorFlow
Serving's ports open when its models are loaded, and probes go by that.
"""

from __future__ import annotations

import asyncio
import contextlib

from batchyard.clients.async_client import AsyncClient
from batchyard.clients.errors import BatchyardError

_LOOK_S = 0.05
_AVAILABLE = "AVAILABLE"
_COMING = {"START", "LOADING"}


async def models_available(client: AsyncClient) -> None:
    """Returns when each model has a version that is served, or none that is still to come."""
    while True:
        # The broker may be replaced meanwhile.
        with contextlib.suppress(BatchyardError):
            states = [(model["name"], model["state"]) for model in await client.models()]
            available = {name for name, state in states if state == _AVAILABLE}
            if not {name for name, state in states if state in _COMING} - available:
                return
        await asyncio.sleep(_LOOK_S)
