"""Addresses of servers that speak TensorFlow Serving's interfaces."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from batchyard.wire.errors import ConfigurationError


class Address(NamedTuple):
    """Where a server is; ``at`` is host and port as they stand in addresses and headers."""

    host: str
    port: int
    at: str
    path: str


def read_address(text: str, scheme: str, default_port: int) -> Address:
    """``SCHEME://HOST:PORT/PATH``. Raises ConfigurationError for anything else."""
    try:
        parts = urlsplit(text)
        port = parts.port or default_port
    except ValueError as error:
        raise ConfigurationError(f"{text}: {error}") from None
    if parts.scheme != scheme or not parts.hostname:
        raise ConfigurationError(f"{text} is not {scheme}://HOST:PORT")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Address(parts.hostname, port, f"{host}:{port}", parts.path.rstrip("/"))
