"""Clients of the local socket that do what they should not, one beside a good one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support.hostility import Witness, config, connect, mappings, open_files
from support.local_clients import LocalClient
from support.regions import regions_mapped
from support.server import WORKER, Server
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import Client


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Two workers: one may be held up while the other serves."""
    with Server("--arena-mb", "16", config=config(workers=2), ipc=True) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[Client]:
    """A client that does nothing wrong, and has a region of its own."""
    with Client(server.endpoints[-1]) as client:
        yield client


@pytest.fixture(autouse=True)
def _the_others_are_unhurt(server: Server, client: Client) -> Iterator[None]:
    """A good client is answered throughout; then nothing is left of the bad one."""
    wait_until(lambda: _is_known_to_all(server, client), "each worker has its region mapped")
    server.wait_until_idle()
    files, regions = open_files(server), mappings(server)
    with Witness(client):
        yield
    server.wait_until_idle()
    assert sorted(open_files(server)) == sorted(files), "no process was replaced"
    wait_until(lambda: mappings(server) == regions, "its regions are gone")
    wait_until(
        lambda: all(open_files(server)[pid] <= files[pid] for pid in files),
        lambda: f"{open_files(server)} are no more than {files}",
    )
    assert "Traceback" not in server.log


def _is_known_to_all(server: Server, client: Client) -> bool:
    if all(regions_mapped(pid) for pid in server.processes(WORKER)):
        return True
    # Rows of different shapes are no batch: the workers share them.
    rows = [np.zeros((1, 50_000 + i), np.float32) for i in range(8)]
    for future in [client.submit("echo", {"x": x}) for x in rows]:
        future.result(DEADLINE_S)
    return False


@pytest.fixture
def bad(server: Server) -> Iterator[LocalClient]:
    with connect(server) as bad:
        yield bad
