"""Tensors in clients' own shared memory: the same results as by sockets, and nothing left of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.regions import far_client, offset_in_region, regions_mapped
from support.server import BROKER, WORKER, Server, callable_path, model_table
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import Client
from batchyard.wire import dtypes

MIB = 1 << 20
LARGE = 40_000
Array = npt.NDArray[Any]
# Batches of exactly four rows: the last may come as late as it likes.
FOURS: dict[str, Any] = {"max_batch_size": 4, "batch_timeout_micros": 10_000_000}
NUMBERS = [name for name in dtypes.NAMES if name not in ("bool", "string")]


def tables() -> str:
    located = callable_path("located")
    floats = {"x": ("float32", [-1, LARGE])}
    open_rows = {"x": ("float32", [-1, -1])}
    outputs = {"x": floats["x"], "offset": ("int64", [-1]), "rows": ("int64", [-1])}
    return "".join(
        [
            model_table("echo", callable_path("echo")),
            model_table("located", located),
            model_table("declared", located, signature={"inputs": floats, "outputs": outputs}),
            model_table("fours", located, **FOURS),
            model_table("padded", located, max_batch_size=8, allowed_batch_sizes=[4, 8]),
            model_table(
                "lengths",
                callable_path("echo"),
                signature={"inputs": open_rows, "outputs": open_rows},
                pad_variable_length_inputs=True,
                **FOURS,
            ),
            model_table("alone", located, enable_batching=False),
            model_table("grow", callable_path("grow")),
            model_table("gated", callable_path("gated"), max_batch_size=1),
        ]
    )


@pytest.fixture(scope="module", params=["tcp", "ipc"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One worker. Clients find the short way by its name, or by the path."""
    by_ipc = request.param == "ipc"
    bind = () if by_ipc else ("tcp://127.0.0.1:*",)
    with Server("--arena-mb", "64", config=tables(), bind=bind, ipc=by_ipc) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client
    server.wait_until_idle()


def numbers(dtype: str, rows: int, start: int = 0) -> Array:
    values = np.arange(start, start + rows * LARGE) % 101
    return values.astype(dtypes.to_numpy(dtype)).reshape(rows, LARGE)


def filled(*values: float) -> Array:
    """A row of each value."""
    return np.repeat(np.array(values, np.float32)[:, None], LARGE, axis=1)


def same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_all_dtypes_come_back_as_by_frames(server: Server, client: Client, rows: int) -> None:
    with far_client(server) as far:
        for dtype in NUMBERS:
            # The first time outputs come as frames, then in the region.
            for start in (1, 2):
                x = numbers(dtype, rows, start)[:, : 2 * LARGE // rows]
                near = client.predict("echo", {"x": x})["x"]
                assert same(near, np.ascontiguousarray(x))
            assert same(near, far.predict("echo", {"x": x})["x"])


def test_bools_and_strings_come_back_beside_large_inputs(client: Client) -> None:
    inputs: dict[str, Array] = {
        "x": numbers("float32", 2),
        "b": np.arange(2 * 30_000).reshape(2, -1) % 3 == 0,
        "s": np.array([[b"a", b""], [b"c" * 1000, b"d\0"]], object),
        "i": np.arange(2),
    }
    for _ in range(2):
        outputs = client.predict("echo", inputs)
        assert all(np.array_equal(outputs[name], inputs[name]) for name in inputs)


@pytest.mark.parametrize("kind", ["bools", "strings", "many_small"])
def test_what_cannot_lie_in_the_region_may_be_large(client: Client, kind: str) -> None:
    beside: dict[str, Array] = {
        "bools": {"b": np.ones((1, 500_000), bool)},
        "strings": {"s": np.array([b"s" * 500_000], object)},
        "many_small": {f"b{i}": np.ones((1, 60_000), np.uint8) for i in range(10)},
    }[kind]
    inputs = {"x": numbers("float32", 1), **beside}
    outputs = client.predict("echo", inputs)
    assert all(np.array_equal(outputs[name], inputs[name]) for name in inputs)


@pytest.mark.parametrize("nbytes", [100_000, 3 * MIB])
def test_large_bools_and_strings_alone(client: Client, nbytes: int) -> None:
    for x in (np.ones((3, nbytes), bool), np.array([b"s" * nbytes, b""], object)):
        for _ in range(2):
            assert np.array_equal(client.predict("echo", {"x": x}, timeout=2)["x"], x)


def test_several_inputs_large_and_small(client: Client) -> None:
    inputs = {
        "a": numbers("float64", 3),
        "b": np.arange(3, dtype=np.int8),
        "c": numbers("int32", 3, 5),
        "d": numbers("bfloat16", 3, 7)[:, :10].copy(),
    }
    for _ in range(2):
        outputs = client.predict("echo", inputs)
        assert all(same(outputs[name], inputs[name]) for name in inputs)


def test_views_of_an_array_are_right(client: Client) -> None:
    x = client.empty((6, LARGE))
    x[:] = np.arange(6)[:, None]
    for view in (x[1:4], x[::2], x[:, 1:], x[:, ::2], x[::-1], x.reshape(3, -1)):
        for _ in range(2):
            assert same(client.predict("echo", {"x": view})["x"], np.ascontiguousarray(view))


def wait_for_queue(server: Server, rows: int) -> None:
    """Waits until so many rows wait for others that complete their batch."""
    wait_until(lambda: server.model_stats("fours")["queue_rows"] == rows, f"{rows} rows wait")


def test_clients_near_and_far_share_a_batch(server: Server, client: Client) -> None:
    with server.client() as other, far_client(server) as far:
        for start in (0, 10):
            futures: list[Future[dict[str, Any]]] = []
            for i, each in enumerate((client, far, other)):
                futures.append(each.submit("fours", {"x": filled(start + i)}))
                wait_for_queue(server, i + 1)
            mine = client.empty((1, LARGE))
            mine[:] = start + 3
            futures.append(client.submit("fours", {"x": mine}))
            for i, future in enumerate(futures):
                outputs = future.result(DEADLINE_S)
                assert same(outputs["x"], filled(start + i))
                # From several places, so none was read in place.
                assert (outputs["rows"].tolist(), outputs["offset"].tolist()) == ([4], [-1])


def test_a_batch_of_neighbours_is_read_in_place(server: Server, client: Client) -> None:
    """Requests of one client that lie one after the other need no copy to be together."""
    x = client.empty((4, LARGE))
    x[:] = np.arange(4)[:, None]
    futures = []
    for i in range(4):
        futures.append(client.submit("fours", {"x": x[i : i + 1]}))
        if i < 3:
            wait_for_queue(server, i + 1)
    for i, future in enumerate(futures):
        outputs = future.result(DEADLINE_S)
        assert same(outputs["x"], filled(i))
        assert outputs["offset"].tolist() == [offset_in_region(x)]


@pytest.mark.parametrize("rows", [3, 4, 5, 8])
def test_padded_batches_are_right(client: Client, rows: int) -> None:
    x = client.empty((rows, LARGE))
    x[:] = np.arange(rows)[:, None]
    for _ in range(2):
        outputs = client.predict("padded", {"x": x})
        assert same(outputs["x"], x)
        assert outputs["rows"].tolist() == [4 if rows <= 4 else 8] * rows
        in_place = rows in (4, 8)
        assert outputs["offset"][0] == (offset_in_region(x) if in_place else -1)


@pytest.mark.parametrize("rows", [5, 10, 12])
def test_large_requests_are_split_and_put_together(client: Client, rows: int) -> None:
    x = client.empty((rows, LARGE))
    x[:] = np.arange(rows)[:, None]
    rest = None
    if rows % 4:
        # What is left waits for a batch of four.
        rest = client.submit("fours", {"x": filled(*[9] * (4 - rows % 4))})
    assert same(client.submit("fours", {"x": x}).result(DEADLINE_S)["x"], x)
    if rest is not None:
        assert (rest.result(DEADLINE_S)["x"] == 9).all()


def test_rows_of_different_lengths_are_padded(server: Server, client: Client) -> None:
    lengths = [LARGE, LARGE + 100, 20, LARGE - 7]
    for _ in range(2):
        futures = [
            client.submit("lengths", {"x": np.full((1, n), i, np.float32)})
            for i, n in enumerate(lengths)
        ]
        for i, future in enumerate(futures):
            assert same(future.result(DEADLINE_S)["x"], np.full((1, max(lengths)), i, np.float32))


def test_models_that_are_not_batched(client: Client) -> None:
    x = client.empty((3, LARGE))
    x[:] = 5
    for _ in range(2):
        outputs = client.predict("alone", {"x": x})
        assert same(outputs["x"], x)
        assert outputs["offset"][0] == offset_in_region(x)


def test_declared_outputs_are_in_the_region_at_once(client: Client) -> None:
    y = client.predict("declared", filled(1, 2))["x"]
    assert same(y, filled(1, 2))
    assert offset_in_region(y) is not None


def test_outputs_of_any_size(client: Client) -> None:
    """The signature does not tell; what is learned may be too little, or too much."""
    places = set()
    for width in (10, 100_000, 100_000, 50, 400_000, 1000, 300_000, 3_000_000, 2, 3_000_000):
        value = np.arange(3, dtype=np.float32)
        y = client.predict("grow", {"value": value, "width": np.full(3, width)})["y"]
        assert same(y, np.repeat(value[:, None], width, axis=1))
        places.add(offset_in_region(y) is not None)
    # Not by chance: what is known to be large goes there, what nobody knew of does not.
    assert places == {True, False}


def test_many_at_once(client: Client) -> None:
    sent = [filled(i, i + 1) for i in range(60)]
    futures = [client.submit("located", {"x": x}) for x in sent]
    for x, future in zip(sent, futures, strict=True):
        assert same(future.result(DEADLINE_S)["x"], x)
    results = client.predict_many("located", [{"x": x} for x in sent])
    assert all(same(outputs["x"], x) for outputs, x in zip(results, sent, strict=True))


def test_results_stay_as_they_are(client: Client) -> None:
    kept = [client.predict("echo", {"x": filled(i)})["x"] for i in range(50)]
    for y in kept:
        y += 1
    assert all((y == i + 1).all() for i, y in enumerate(kept))


# Room that is not there


def test_full_region_is_done_without() -> None:
    config = "[broker]\nregion_mb = 1\n" + tables()
    with Server(config=config) as server, server.client() as client:
        held = [client.empty((1, 120_000)) for _ in range(3)]
        assert [offset_in_region(array) is not None for array in held] == [True, True, False]
        for i in range(3):
            for x in (filled(i), np.full((1, MIB), i, np.float32)):
                assert same(client.predict("echo", {"x": x})["x"], x)
        # Many more at once than there is room for.
        held.clear()
        futures = [client.submit("located", {"x": filled(i)}) for i in range(60)]
        results = [future.result(DEADLINE_S) for future in futures]
        assert all(same(outputs["x"], filled(i)) for i, outputs in enumerate(results))


def test_server_without_regions() -> None:
    config = "[broker]\nregion_mb = 0\n" + tables()
    with Server(config=config, ipc=True) as server:
        for endpoint in server.endpoints:
            with Client(endpoint) as client:
                assert offset_in_region(client.empty(100)) is None
                for i in range(3):
                    assert same(client.predict("declared", filled(i))["x"], filled(i))
        (broker,) = server.processes(BROKER)
        assert not regions_mapped(broker)


def test_only_so_many_clients_have_regions() -> None:
    config = "[broker]\nmax_regions = 1\n" + tables()
    with Server(config=config) as server:
        with server.client() as first, server.client() as second:
            assert offset_in_region(first.empty(100)) is not None
            assert offset_in_region(second.empty(100)) is None
            for client in (first, second):
                assert same(client.predict("declared", filled(3))["x"], filled(3))
        (broker,) = server.processes(BROKER)
        wait_until(lambda: not regions_mapped(broker), "the first one's is given up")
        with server.client() as third:
            assert offset_in_region(third.empty(100)) is not None


# Clients and brokers that end

_CLIENT = """
import sys
import numpy as np
from batchyard.clients import Client
client = Client(sys.argv[1])
gates = [int(gate) for gate in sys.argv[2:]]
x = client.empty((len(gates), 1 << 20))
x[:] = 1
for i, gate in enumerate(gates):
    client.submit("gated", {"gate": np.array([gate]), "x": x[i : i + 1]})
sys.stdin.read()
"""


def mappings(server: Server) -> dict[int, int]:
    return {p: regions_mapped(p) for p in server.processes(BROKER) + server.processes(WORKER)}


@pytest.mark.parametrize("waits", [False, True], ids=["running", "running_and_waiting"])
def test_killed_client_gives_its_memory_back(server: Server, waits: bool) -> None:
    gate = 31 + waits
    with server.client() as other:
        assert same(other.predict("echo", {"x": filled(1)})["x"], filled(1))
        # The fixture's own client has a region too, from the first question on.
        server.model_stats("gated")
        before = mappings(server)
        script = [sys.executable, "-c", _CLIENT, server.endpoint, str(gate), *["0"] * 5 * waits]
        with subprocess.Popen(script, stdin=subprocess.PIPE) as child:
            try:
                server.gates.wait_until_reached(gate)
                during = mappings(server)
                assert all(during[pid] == before[pid] + 1 for pid in before)
                if waits:
                    wait_until(lambda: server.model_stats("gated")["queue_rows"], "some wait")
            finally:
                child.kill()
        (broker,) = server.processes(BROKER)
        wait_until(lambda: mappings(server)[broker] == before[broker], "the broker's is gone", 2.0)
        wait_until(lambda: not server.model_stats("gated")["queue_rows"], "nothing of it waits")
        # The worker is held up in the middle of it; others are answered once it is not.
        future = other.submit("echo", {"x": filled(2)})
        server.gates.open(gate)
        assert same(future.result(DEADLINE_S)["x"], filled(2))
        wait_until(lambda: mappings(server) == before, "all of its memory is gone")
    server.wait_until_idle()


def test_closed_clients_leave_nothing(server: Server) -> None:
    before = mappings(server)
    for i in range(20):
        with server.client() as client:
            assert same(client.predict("echo", {"x": filled(i)})["x"], filled(i))
    wait_until(lambda: mappings(server) == before, "all regions are unmapped")


@pytest.mark.parametrize("victim", [BROKER, WORKER])
def test_killed_processes_leave_no_local_socket(victim: str) -> None:
    with Server(config=tables(), ipc=True) as server, Client(server.endpoints[-1]) as client:
        path = server.ipc_path.with_name("broker.local")
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o600
        client.predict("echo", {"x": filled(1)})
        (pid,) = server.processes(victim)
        os.kill(pid, signal.SIGKILL)
        # Another takes its place; then the server is stopped.
        client.predict("echo", {"x": filled(1)})
        assert server.processes(victim) != [pid]
        assert path.is_socket()
    assert not path.exists()


def test_a_server_starts_where_a_killed_one_left_its_sockets() -> None:
    with Server(config=tables(), bind=(), ipc=True) as killed:
        killed.kill()
        # Its broker may have been killed with it, or have had the time to leave nothing.
        left = killed.ipc_path.with_name("broker.local")
        if not left.exists():
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
                stale.bind(str(left))
        bind = (f"ipc://{killed.ipc_path}",)
        with Server(config=tables(), bind=bind) as server, server.client() as client:
            assert offset_in_region(client.empty(100)) is not None
            server.stop()
