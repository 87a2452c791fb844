"""Clients with keys, right and wrong ones: none of them hangs, and each is told why."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from support.keys import Keyring
from support.waiting import DEADLINE_S, wait_until

from batchyard.broker.front import Front
from batchyard.clients import AsyncClient, Client, connection
from batchyard.clients.errors import BatchyardError, Unauthenticated, Unavailable
from batchyard.wire import protocol
from batchyard.wire.access import Access
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.protocol import MessageType


class Doorman:
    """A front that says WELCOME, and answers every query with nothing; on a thread of its own."""

    def __init__(self, ring: Keyring | None, bind: str = "tcp://127.0.0.1:*") -> None:
        pair = None if ring is None else ring.pair("server")
        self._front = Front(1 << 20, pair, "" if ring is None else str(ring.clients))
        (self.endpoint,) = self._front.bind([bind], Access(0o600))
        self._reloads = self._ends = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        gate = self._front.gate
        while not self._ends:
            if gate is not None:
                gate.serve()
                if self._reloads:
                    gate.reload()
                    self._reloads = False
            message = self._front.receive()
            if message is None:
                time.sleep(0.001)
                continue
            client, header, _ = message
            type_, body = protocol.decode(header)
            answer = None
            if type_ is MessageType.HELLO:
                answer = protocol.encode(MessageType.WELCOME, [1, 1 << 20, ""])
            elif type_ is MessageType.QUERY:
                answer = protocol.encode(MessageType.ANSWER, [body[0], 0, "", []])
            with contextlib.suppress(zmq.ZMQError):
                if answer is not None:
                    self._front.send(client, answer, [])

    def reload(self) -> None:
        self._reloads = True
        wait_until(lambda: not self._reloads, "the keys were read again")

    def close(self) -> None:
        self._ends = True
        self._thread.join()
        self._front.close()


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "keys", "alice")


@pytest.fixture
def doorman(ring: Keyring) -> Iterator[Doorman]:
    with contextlib.closing(Doorman(ring)) as doorman:
        yield doorman


@pytest.fixture
def plain() -> Iterator[Doorman]:
    """A server without keys."""
    with contextlib.closing(Doorman(None)) as doorman:
        yield doorman


def ask(endpoints: str | list[str], **options: object) -> BatchyardError | None:
    """Connects both clients, and asks; how it ended, the same with both."""

    async def ask_async() -> None:
        async with AsyncClient(endpoints, **options) as client:  # type: ignore[arg-type]
            assert await client.models() == []

    def ask_sync() -> None:
        with Client(endpoints, **options) as client:  # type: ignore[arg-type]
            assert client.models() == []

    ends: list[BatchyardError | None] = []
    for attempt in (ask_sync, lambda: asyncio.run(ask_async())):
        try:
            attempt()
            ends.append(None)
        except BatchyardError as error:
            ends.append(error)
    assert str(ends[0]) == str(ends[1])
    return ends[0]


def test_with_keys(ring: Keyring, doorman: Doorman) -> None:
    assert ask(doorman.endpoint, **ring.options("alice")) is None
    server_key = ring.public("server").decode()
    alice = {"server_key": server_key, "secret_key_file": str(ring.secret_file("alice"))}
    assert ask(doorman.endpoint, **alice) is None
    assert ask([doorman.endpoint, "tcp://127.0.0.1:9"], **alice) is None


def test_from_the_environment(
    ring: Keyring, doorman: Doorman, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHYARD_SERVER_KEY", ring.server_key)
    monkeypatch.setenv("BATCHYARD_SECRET_KEY_FILE", str(ring.secret_file("alice")))
    assert ask(doorman.endpoint) is None


def test_a_stranger_is_told_at_once(ring: Keyring, doorman: Doorman) -> None:
    for endpoints in (doorman.endpoint, [doorman.endpoint, doorman.endpoint]):
        error = ask(endpoints, connect_timeout=DEADLINE_S, **ring.options("mallory"))
        assert isinstance(error, Unauthenticated)
        assert "does not know this client's key" in str(error)
        assert "batchyard keys allow" in str(error)
        assert ring.pair("mallory").secret.decode() not in repr(error)


def test_keys_where_none_are_asked_for_and_none_where_they_are(
    ring: Keyring, doorman: Doorman, plain: Doorman
) -> None:
    error = ask(doorman.endpoint, connect_timeout=DEADLINE_S)
    assert isinstance(error, Unauthenticated)
    assert "give server_key and secret_key_file" in str(error)
    # Not in the clear to whoever happens to listen there.
    error = ask(plain.endpoint, connect_timeout=DEADLINE_S, **ring.options("alice"))
    assert isinstance(error, Unauthenticated)
    assert "has no keys" in str(error)


def test_the_key_of_another_server(ring: Keyring, doorman: Doorman) -> None:
    """The server cannot even read the question: only time, and a hint, can tell."""
    options = {**ring.options("alice"), "server_key": ring.public("alice").decode()}
    for endpoints in (doorman.endpoint, [doorman.endpoint, "tcp://127.0.0.1:9"]):
        error = ask(endpoints, connect_timeout=0.3, **options)
        assert isinstance(error, Unavailable)
        assert "ended the handshake: is " in str(error)


def test_one_of_several_that_refuses_is_passed_over(
    ring: Keyring, doorman: Doorman, plain: Doorman
) -> None:
    both = [plain.endpoint, doorman.endpoint]
    assert ask(both, connect_timeout=DEADLINE_S, **ring.options("alice")) is None


def test_by_ipc_keys_are_not_used(ring: Keyring, tmp_path: Path) -> None:
    with contextlib.closing(Doorman(ring, f"ipc://{tmp_path}/door")) as doorman:
        assert ask(doorman.endpoint, **ring.options("mallory")) is None


def test_who_is_refused_is_let_in_again_when_the_key_is_allowed(
    ring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that comes back does not know a client; later it does."""
    monkeypatch.setattr("batchyard.clients.io_thread.REFUSED_PAUSE_S", 0.05)
    doorman = Doorman(ring)
    try:
        with Client(doorman.endpoint, reconnect_timeout=60, **ring.options("alice")) as client:
            assert client.models() == []
            doorman.close()
            ring.revoke("alice")
            ring.allow("bob")
            doorman = Doorman(ring, doorman.endpoint)
            with pytest.raises(Unauthenticated, match="does not know this client's key"):
                # It waits for a server, and does not wait for this one.
                client.models()
            ring.allow("alice")
            doorman.reload()

            def is_let_in() -> bool:
                with contextlib.suppress(Unauthenticated):
                    return client.models() == []
                return False

            wait_until(is_let_in, "it is let in")
    finally:
        doorman.close()


def test_async_too(ring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchyard.clients.loop_io.REFUSED_PAUSE_S", 0.05)

    async def run() -> None:
        doorman = Doorman(ring)
        try:
            options = ring.options("alice")
            async with AsyncClient(doorman.endpoint, reconnect_timeout=60, **options) as client:
                assert await client.models() == []
                doorman.close()
                ring.revoke("alice")
                ring.allow("bob")
                doorman = Doorman(ring, doorman.endpoint)
                with pytest.raises(Unauthenticated, match="does not know this client's key"):
                    await client.models()
                ring.allow("alice")
                doorman.reload()
                until = time.monotonic() + DEADLINE_S
                while time.monotonic() < until:
                    with contextlib.suppress(Unauthenticated):
                        assert await client.models() == []
                        return
                    await asyncio.sleep(0.01)
                raise AssertionError("it is never let in")
        finally:
            doorman.close()

    asyncio.run(run())


def test_keys_that_cannot_be_read(ring: Keyring) -> None:
    for options in (
        {**ring.options("alice"), "server_key": str(ring.folder / "nowhere.key")},
        {"server_key": ring.server_key},
        {**ring.options("alice"), "secret_key_file": ring.folder / "alice.key"},
    ):
        for kind in (Client, AsyncClient):
            with pytest.raises(ConfigurationError):
                kind("tcp://127.0.0.1:9", **options)


def test_nothing_shows_a_secret(ring: Keyring, doorman: Doorman) -> None:
    with Client(doorman.endpoint, **ring.options("alice")) as client:
        io = client._io
        assert isinstance(io._connection, connection.Connection)  # type: ignore[union-attr]
        shown = repr(client) + repr(vars(io)) + repr(vars(io._connection))  # type: ignore[union-attr]
        assert ring.pair("alice").secret.decode() not in shown
