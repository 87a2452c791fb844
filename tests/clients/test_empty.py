"""``empty``: arrays that are built where the server reads them."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from support.regions import far_client, offset_in_region
from support.server import Server
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import AsyncClient, Client

Array = npt.NDArray[Any]
LARGE = 100_000


def where(client: Client, x: Array) -> int:
    """Where a worker sees an input, in the client's region; -1 for elsewhere."""
    outputs = client.predict("located", {"x": x})
    assert np.array_equal(outputs["x"], x)
    assert len(set(outputs["offset"].tolist())) == 1
    offset: int = outputs["offset"][0]
    return offset


def test_worker_reads_the_array_where_it_was_built(client: Client) -> None:
    x = client.empty((3, LARGE))
    x[:] = np.arange(3)[:, None]
    assert x.shape == (3, LARGE)
    assert x.dtype == np.float32
    offset = offset_in_region(x)
    assert offset is not None
    assert where(client, x) == offset
    # Again and again, whatever was written to it since.
    x += 1
    assert where(client, x) == offset
    # And a part of it, where that begins at a multiple of 64 bytes.
    assert where(client, x[1:]) == offset + x.strides[0]
    assert where(client, x[:, 1:]) != offset + 4


def test_integers_are_copied_before_the_model_sees_them(client: Client) -> None:
    """An index that changes after it was checked would take its reader anywhere."""
    for dtype in (np.int64, np.uint16, np.int8):
        assert where(client, np.ones_like(client.empty((2, LARGE), dtype))) == -1
        x = client.empty((2, LARGE), dtype)
        x[:] = 3
        assert where(client, x) == -1


def test_outputs_are_in_the_region_and_apart_from_inputs(client: Client) -> None:
    x = client.empty((1, LARGE))
    x[:] = 1
    for _ in range(2):
        # The first tells how large outputs are.
        y = client.predict("located", {"x": x})["x"]
    assert offset_in_region(y) is not None
    y += 5
    assert (x == 1).all()
    assert not np.shares_memory(x, y)


def test_the_same_memory_serves_again(client: Client) -> None:
    gc.collect()
    places = set()
    for i in range(20):
        x = client.empty((1, LARGE), np.float64)
        x[:] = i
        places.add(where(client, x))
        del x
    # A few, so that the next may be filled while this one is read.
    assert len(places) < 5


def test_result_may_be_the_next_input(client: Client) -> None:
    x = client.empty((2, LARGE))
    x[:] = 2
    client.predict("located", {"x": x})
    y = client.predict("located", {"x": x})["x"]
    del x
    offset = offset_in_region(y)
    assert offset is not None
    assert where(client, y) == offset


def test_where_there_is_no_room_it_is_an_ordinary_array(client: Client) -> None:
    x = client.empty((1 << 20, 1 << 10), np.uint8)
    assert x.nbytes == 1 << 30
    assert offset_in_region(x) is None
    assert offset_in_region(client.empty(0)) is None
    assert client.empty((0, 3), np.int64).shape == (0, 3)


def test_without_a_region_it_is_an_ordinary_array(server: Server) -> None:
    with far_client(server) as client:
        x = client.empty((1, LARGE))
        x[:] = 1
        assert offset_in_region(x) is None
        assert where(client, x) == -1


def test_memory_comes_back_to_be_used_by_predict(server: Server) -> None:
    with server.client() as client:
        held = [client.empty(1 << 20, np.uint8) for _ in range(300)]
        assert offset_in_region(held[-1]) is None
        x = np.ones((1, 2 * LARGE), np.float32)
        assert where(client, x) == -1
        held.clear()
        assert where(client, x) >= 0


def test_async_client_has_it_too(server: Server) -> None:
    async def main() -> None:
        async with AsyncClient(server.endpoint) as client:
            x = client.empty((2, LARGE))
            x[:] = 7
            for _ in range(2):
                outputs = await client.predict("located", {"x": x})
                assert outputs["offset"].tolist() == [offset_in_region(x)] * 2
            assert (outputs["x"] == 7).all()
            assert offset_in_region(outputs["x"]) is not None

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def test_async_client_that_is_not_connected_has_ordinary_arrays(server: Server) -> None:
    client = AsyncClient(server.endpoint)
    assert offset_in_region(client.empty(10)) is None


_KEEP = """
import sys
import numpy as np
from batchyard.clients import Client
client = Client(sys.argv[1])
x = client.empty((2, 100_000))
x[:] = 3
client.predict("echo", {"x": x})
y = client.predict("echo", {"x": x})["x"]
client.close()
assert (x == 3).all() and (y == 3).all()
x += 1
y += 1
assert client.empty((3, 2)).shape == (3, 2)
"""


def test_arrays_are_kept_after_the_client_is_closed(server: Server) -> None:
    # In a process of its own: memory that is unmapped kills who reads it.
    script = [sys.executable, "-c", _KEEP, server.endpoint]
    ended = subprocess.run(script, check=False, timeout=DEADLINE_S, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_region_is_unmapped_when_its_last_array_is_gone(server: Server) -> None:
    def mapped() -> int:
        with open("/proc/self/maps") as maps:
            return maps.read().count("memfd:batchyard-region")

    gc.collect()
    before = mapped()
    with server.client() as client:
        assert mapped() == before + 1
        x = client.empty((1, LARGE))
        del x
    del client
    gc.collect()
    wait_until(lambda: mapped() == before, "it is unmapped")
