"""Who is taken for a web site that made its name this machine's."""

from __future__ import annotations

import pytest

from batchyard.clients.gateways.rest.rebinding import is_rebound


@pytest.mark.parametrize("host", [b"evil.example:8501", b"EVIL.example.:8501", b"1.2.3.evil:8501"])
def test_a_site_of_the_world_at_this_port(host: bytes) -> None:
    assert is_rebound(host, 8501)


@pytest.mark.parametrize(
    "host",
    [
        None,
        b"",
        b"127.0.0.1:8501",
        b"[::1]:8501",
        b"localhost:8501",
        b"app.localhost:8501",
        b"serving:8501",  # a name of this network, or of /etc/hosts
        b"models.example.com",  # a proxy that hands on its own name
        b"models.example.com:443",
        b"models.example.com:",
        b"10.1.2.3:8501",
    ],
)
def test_everybody_else(host: bytes | None) -> None:
    assert not is_rebound(host, 8501)
