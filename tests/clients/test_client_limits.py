"""Clients with few descriptors, answers that cannot be read, and sockets that come and go."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support.regions import made_region
from support.server import Server, callable_path, model_table
from support.sessions import error_of, flush, make_call, outputs_of, promise_of

from batchyard.clients import AsyncClient, calls
from batchyard.clients.calls import Call
from batchyard.clients.placement import Placement
from batchyard.clients.region import ClientRegion
from batchyard.clients.session import Session
from batchyard.wire import protocol
from batchyard.wire.errors import Internal
from batchyard.wire.protocol import Result


@pytest.fixture(scope="module")
def tight_server() -> Iterator[Server]:
    """Its regions have room for two answers."""
    config = "[broker]\nregion_mb = 1\n" + model_table("grow", callable_path("grow"))
    with Server(config=config) as server:
        yield server


_PREAMBLE = """
import contextlib, os, resource, sys, time
import numpy as np
from batchyard.clients import Client, errors
client = Client(sys.argv[1])
def grow(value, width=100_000):
    inputs = {"value": np.array([value], np.float32), "width": np.array([width])}
    return client.predict("grow", inputs, timeout=10)["y"]
grow(1)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
"""
_KEPT = """
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
kept = [grow(i) for i in range(300)]
assert all((y == i).all() for i, y in enumerate(kept))
print(sum(y.flags.writeable for y in kept))
client.close()
"""
_LOST = """
# Whatever number is free is beyond it.
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
client._io._connection.give_up()
client._io._wake()
lost = 0
while lost < 5:
    try:
        grow(2)
    except errors.Unavailable:
        lost += 1
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
until = time.monotonic() + 8
while time.monotonic() < until:
    with contextlib.suppress(errors.Unavailable):
        print(grow(3)[0, 0])
        break
client.close()
"""


_LOST_ASYNC = """
import asyncio
from batchyard.clients import AsyncClient
client.close()

async def ask():
    async with AsyncClient(sys.argv[1]) as client:
        inputs = {"value": np.ones(1, np.float32), "width": np.ones(1, int)}
        await client.predict("grow", inputs)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        client._io._connection.give_up()
        client._io._readable()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        until = time.monotonic() + 3
        while time.monotonic() < until:
            with contextlib.suppress(errors.Unavailable):
                return (await client.predict("grow", inputs))["y"][0, 0]
            await asyncio.sleep(0.05)

print(asyncio.run(ask()))
"""


def run(server: Server, script: str) -> str:
    """What a process prints that was given the endpoint."""
    command = [sys.executable, "-c", _PREAMBLE + script, server.endpoint]
    ended = subprocess.run(command, timeout=30, check=False, capture_output=True, text=True)
    return ended.stdout.strip() or ended.stderr


def test_answers_may_be_kept_by_the_hundred(tight_server: Server) -> None:
    """Those that find no room in the region come in shared memory of their own."""
    assert run(tight_server, _KEPT) == "300"


def test_a_connection_is_made_anew_once_there_are_descriptors(tight_server: Server) -> None:
    assert run(tight_server, _LOST) == "3.0"


def test_an_async_connection_is_made_anew_once_there_are_descriptors(tight_server: Server) -> None:
    assert run(tight_server, _LOST_ASYNC) == "1.0"


def test_an_async_client_forgets_a_socket_that_is_closed(tight_server: Server) -> None:
    """Whatever has its number next can be watched."""

    async def watch() -> bytes:
        async with AsyncClient(tight_server.endpoint) as client:
            connection = client._io._connection
            assert connection is not None
            fd = connection.local_fileno()
            assert fd >= 0
            connection._leave_local()
            client._io._watch_local(connection)
            pair = socket.socketpair()
            near = next(end for end in pair if end.fileno() == fd)
            far = next(end for end in pair if end is not near)
            read: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().add_reader(fd, lambda: read.set_result(near.recv(9)))
            far.send(b"hello")
            try:
                return await asyncio.wait_for(read, 5)
            finally:
                asyncio.get_running_loop().remove_reader(fd)
                for end in pair:
                    end.close()

    assert asyncio.run(watch()) == b"hello"


# Answers that cannot be read


@pytest.fixture
def region(session: Session) -> Iterator[ClientRegion]:
    with made_region(1 << 16) as region:
        session.region = region
        yield region


def placed(region: ClientRegion, value: float, reply_nbytes: int) -> Call:
    """A call whose outputs are to lie in the region."""
    space = region.empty((reply_nbytes,), np.dtype(np.uint8))
    assert space is not None
    offset = region.offset_of(space)
    assert offset is not None
    space.view(np.float32)[:] = value
    return make_call([value], placement=Placement(region, [None], False, space, offset))


def in_region(sent: Any, count: int) -> bytes:
    """All requests of a message are answered in the region: 10 numbers each."""
    outputs: list[protocol.OutputHeader] = [("y", "float32", (count, 10))]
    return protocol.encode_result(Result([(sent.id, 0, count)], 1, outputs, True))


def test_outputs_that_do_not_fit_fail_their_own_call(
    session: Session, region: ClientRegion
) -> None:
    """A server that is out of order says that it wrote more than there is room for."""
    each = [placed(region, 1, 64), placed(region, 2, 16), placed(region, 3, 64)]
    (sent,) = flush(session, *each)
    session.receive(in_region(sent, 3), [])
    assert [outputs_of(call) for call in (each[0], each[2])] == [{"y": [[i] * 10]} for i in (1, 3)]
    assert isinstance(error_of(each[1]), Internal)
    assert "the outputs cannot be read" in error_of(each[1]).message
    assert session.is_idle


def test_outputs_of_a_dtype_that_is_missing_fail_their_own_message(
    session: Session, region: ClientRegion
) -> None:
    (unread,) = flush(session, first := placed(region, 1, 64))
    (other,) = flush(session, second := placed(region, 2, 64))
    missing = ImportError("dtype bfloat16 needs the package ml_dtypes")
    with mock.patch.object(calls, "to_numpy", side_effect=missing):
        session.receive(in_region(unread, 1), [])
    assert "needs the package ml_dtypes" in error_of(first).message
    assert not promise_of(second).done()
    session.receive(in_region(other, 1), [])
    assert outputs_of(second) == {"y": [[2] * 10]}
    assert session.is_idle
