"""A gateway's port opens when what the server serves can be had."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from batchyard.clients.async_client import AsyncClient
from batchyard.clients.errors import Unavailable
from batchyard.clients.gateways import availability

Look = dict[str, str] | Exception


class _Client:
    """Tells one state of models after the other: ``NAME:VERSION`` and its state."""

    def __init__(self, *looks: Look) -> None:
        self.looks = list(looks)

    async def models(self) -> list[dict[str, Any]]:
        look = self.looks.pop(0)
        if isinstance(look, Exception):
            raise look
        return [{"name": key.partition(":")[0], "state": state} for key, state in look.items()]


def _looks_left(*looks: Look, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(availability, "_LOOK_S", 0)
    client = _Client(*looks)
    asyncio.run(availability.models_available(cast(AsyncClient, client)))
    return len(client.looks)


_OTHER = {"a:1": "AVAILABLE"}


@pytest.mark.parametrize(
    "look",
    [
        {"a:1": "AVAILABLE", "b:1": "AVAILABLE"},
        # The next version may take its time.
        {"a:1": "AVAILABLE", "a:2": "LOADING"},
        # This one never comes.
        {"a:1": "AVAILABLE", "b:1": "END"},
    ],
)
def test_it_opens(look: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert _looks_left(look, _OTHER, monkeypatch=monkeypatch) == 1


@pytest.mark.parametrize(
    "look",
    [
        {"a:1": "AVAILABLE", "b:1": "LOADING"},
        {"a:1": "START"},
        {"a:1": "LOADING", "a:2": "LOADING"},
        Unavailable("the broker is being replaced"),
    ],
)
def test_it_waits(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _looks_left(look, look, _OTHER, _OTHER, monkeypatch=monkeypatch) == 1
