"""How the synchronous client connects, loses its server, finds it again, and leaves."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.server import Server, model_table
from support.waiting import wait_until

from batchyard.clients import Client, errors
from batchyard.wire.errors import ConfigurationError

CALLABLES = Path(__file__).parents[1] / "support" / "callables.py"
WAIT_S = 10.0


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """Takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def dead_endpoint() -> str:
    """Nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("which", ["dead_endpoint", "silent_endpoint"])
def test_no_server_is_unavailable_after_the_connect_timeout(
    which: str, request: pytest.FixtureRequest
) -> None:
    endpoint = request.getfixturevalue(which)
    before = time.monotonic()
    with pytest.raises(errors.Unavailable, match=r"within 0.2 s; is `batchyard serve` running\?"):
        Client(endpoint, connect_timeout=0.2)
    assert 0.2 <= time.monotonic() - before < 5.0


@pytest.mark.parametrize("endpoint", ["127.0.0.1:8600", "tcp://127.0.0.1", "ipc://relative"])
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigurationError):
        Client(endpoint)


def test_first_endpoint_that_answers_is_taken(server: Server, dead_endpoint: str) -> None:
    with Client([dead_endpoint, server.endpoint]) as client:
        assert client.predict("double", [[1, 2]])["y"].tolist() == [[2, 4]]


def test_ipc_server_is_found_by_default(monkeypatch: pytest.MonkeyPatch, models: str) -> None:
    with Server(config=models, ipc=True) as server:
        monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(server.runtime_folder))
        with Client() as client:
            assert client.stats()["broker"]["pid"] in server.processes()
        server.kill()
        server.wait_for_exit()


def stats_when_back(client: Client) -> Any:
    """What ``stats`` says once the server is there again; until then only UNAVAILABLE will do."""

    def attempt() -> Any:
        try:
            return client.stats()
        except errors.Unavailable:
            return None

    return wait_until(attempt, "the client works again")


def test_client_survives_its_server(models: str) -> None:
    with Server(config=models) as first, first.client(reconnect_timeout=0) as client:
        client.predict("double", [[1, 2]])
        held = client.submit("gated", {"gate": np.array([1])})
        first.gates.wait_until_reached(1)
        queued = client.submit("double", [[1, 2]])
        first.kill()
        for future in (held, queued):
            with pytest.raises(errors.Unavailable, match="the connection to the server was lost"):
                future.result(WAIT_S)
        # Nobody waits for a server that is not there.
        with pytest.raises(errors.Unavailable):
            client.predict("double", [[1, 2]])
        with pytest.raises(errors.Unavailable):
            client.stats()
        first.wait_for_exit()
        # What is served now need not be what was served then.
        tensors = {"x": ("float32", [-1, 3])}
        signature = {"inputs": tensors, "outputs": tensors}
        config = model_table("double", f"{CALLABLES}:echo", signature=signature)
        with Server(config=config, bind=(first.endpoint,)) as second:
            assert stats_when_back(client)["broker"]["pid"] in second.processes()
            outputs = client.predict("double", [[1, 2, 3]])
            assert outputs["x"].tolist() == [[1, 2, 3]]


def test_what_was_unavailable_is_not_run_later(models: str) -> None:
    with Server(config=models) as first, first.client(reconnect_timeout=0) as client:
        client.predict("recorded", {"x": np.array([0])})
        first.kill()
        first.wait_for_exit()
        for i in range(3):
            with pytest.raises(errors.Unavailable):
                client.predict("recorded", {"x": np.array([100 + i])})
        with Server(config=models, bind=(first.endpoint,)) as second:
            stats_when_back(client)
            client.predict("recorded", {"x": np.array([1])}, timeout=2)
            assert (second.gates.folder / "seen").read_text().split() == ["[1]"]


def open_descriptors() -> set[str]:
    """What this process has open, with its numbers: sockets by inode, eventfds by number."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def settled(server: Server) -> None:
    """pyzmq keeps a thread and a context of its own once a frame was sent without a copy."""
    with server.client() as client:
        client.predict("echo", {"x": np.zeros((1, 100_000))})


@pytest.mark.usefixtures("settled")
def test_closed_client_leaves_no_thread(server: Server, silent_endpoint: str) -> None:
    before = set(threading.enumerate())
    with server.client() as client:
        client.predict("double", [[1, 2]])
    with pytest.raises(errors.Unavailable):
        Client(silent_endpoint, connect_timeout=0.01)
    wait_until(lambda: not set(threading.enumerate()) - before, "all threads have ended")


@pytest.mark.usefixtures("settled")
def test_client_that_nobody_has_any_more_leaves_no_thread(server: Server) -> None:
    before = set(threading.enumerate())
    client = server.client()
    client.predict("double", [[1, 2]])
    assert set(threading.enumerate()) - before
    gone = weakref.ref(client)
    del client
    gc.collect()
    wait_until(lambda: gone() is None, "nothing holds the client")
    wait_until(lambda: not set(threading.enumerate()) - before, "its thread has ended")


@pytest.mark.usefixtures("settled")
def test_closed_client_leaves_no_descriptor(server: Server) -> None:
    before = open_descriptors()
    with server.client() as client:
        client.predict("double", [[1, 2]])
    assert open_descriptors() <= before


@pytest.mark.usefixtures("settled")
def test_client_that_cannot_connect_leaves_no_descriptor(
    silent_endpoint: str, dead_endpoint: str
) -> None:
    before = open_descriptors()
    with pytest.raises(errors.Unavailable):
        Client([silent_endpoint, dead_endpoint], connect_timeout=0.05)
    assert open_descriptors() <= before
