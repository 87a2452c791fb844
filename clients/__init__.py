"""The SDK: numpy arrays in, numpy arrays out, over ZeroMQ.

``import batchyard.clients`` loads neither TensorFlow nor anything else that a server needs, and
asyncio only once ``AsyncClient`` is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchyard.clients import errors
from batchyard.clients.client import Client
from batchyard.wire.version import version

if TYPE_CHECKING:
    from batchyard.clients.async_client import AsyncClient

__all__ = ["AsyncClient", "Client", "__version__", "errors"]
__version__: str


def __getattr__(name: str) -> Any:
    if name == "AsyncClient":
        from batchyard.clients.async_client import AsyncClient

        return AsyncClient
    if name == "__version__":
        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
