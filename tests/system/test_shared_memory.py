"""Tensors in shared memory: where they lie, who may still read them, and when they come back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zmq
from support.server import BROKER, WORKER, Server, callable_path, model_table
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import Client
from batchyard.clients.errors import Internal, ResourceExhausted
from batchyard.wire import protocol
from batchyard.wire.protocol import InputHeader, MessageType, Target

ARENA_MB = 8
MIB = 1 << 20
# Between the size from which replies are not copied and the arena's.
LARGE = 5 * MIB // 4

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One worker and a small arena, so that its memory is used over and over."""
    names = ["echo", "place", "grow", "fails"]
    # What lies in clients' regions does not come here: see test_regions.py.
    config = "[broker]\nregion_mb = 0\n"
    config += "".join(model_table(name, callable_path(name)) for name in names)
    # Each request is a batch of its own.
    config += model_table("keep", callable_path("keep"), max_batch_size=1000)
    with Server("--arena-mb", str(ARENA_MB), config=config) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client
    server.wait_until_idle()


def used_bytes(server: Server) -> int:
    used: int = server.stats()["arena"]["used_bytes"]
    return used


def descriptors(server: Server) -> list[int]:
    """How many the broker and the worker have open."""
    pids = server.processes(BROKER) + server.processes(WORKER)
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_inputs_are_views_of_the_arena_and_aligned(client: Client, rows: int) -> None:
    # Sizes that leave what comes after them misaligned, if nobody cares.
    inputs = {
        "a": np.ones((rows, 3), np.uint8),
        "b": np.ones((rows, 5), np.float64),
        "c": np.ones((rows, 1), np.complex128),
    }
    outputs = client.predict("place", inputs)
    assert outputs["inside"].tolist() == [True] * rows
    assert outputs["misaligned"].tolist() == [0] * rows


def test_every_process_has_the_same_arena_and_no_name_for_it(server: Server) -> None:
    links = set()
    for pid in [server.pid, *server.processes(WORKER), *server.processes(BROKER)]:
        with open(f"/proc/{pid}/maps") as maps, os.scandir(f"/proc/{pid}/fd") as fds:
            mapped = {line.split()[4] for line in maps if "memfd:batchyard-arena" in line}
            opened = {
                str(os.stat(fd.path).st_ino)
                for fd in fds
                if "memfd:batchyard-arena" in os.readlink(fd.path)
            }
        links.add(frozenset(mapped | opened))
    assert len(links) == 1
    assert len(links.pop()) == 1


def kept_value(slot: int) -> dict[str, npt.NDArray[Any]]:
    x = np.full(500, abs(slot), np.int64)
    return {"x": x, "slot": np.full(500, slot)}


def test_what_a_model_keeps_is_not_written_over(server: Server, client: Client) -> None:
    for slot in (1, 2, 3):
        assert client.predict("keep", kept_value(slot))["kept"][0] == slot
    held = used_bytes(server)
    assert held >= 3 * kept_value(1)["x"].nbytes
    # Enough to pass through all of the arena, were nothing in use.
    for fill in range(30):
        x = np.full((1, MIB // 8), fill, np.int64)
        assert (client.predict("echo", {"x": x})["x"] == fill).all()
    outputs = client.predict("keep", kept_value(0))
    assert outputs["whole"].all()
    assert outputs["kept"][0] == 3
    wait_until(lambda: used_bytes(server) == held, "what others used came back")
    # One after the other, in another order.
    for left, slot in ((2, 2), (1, 1), (0, 3)):
        outputs = client.predict("keep", kept_value(-slot))
        assert outputs["whole"].all()
        assert outputs["kept"][0] == left
    server.wait_until_idle()


def test_inputs_kept_until_the_answer_is_sent_come_back() -> None:
    config = model_table("keep_a_moment", callable_path("keep_a_moment"))
    with Server(config=config) as server, server.client() as client:
        for _ in range(100):
            client.predict("keep_a_moment", {"x": np.zeros((1, 100))})
        server.wait_until_idle(timeout_s=2.0)


def test_a_batch_that_raises_gives_its_memory_back(server: Server, client: Client) -> None:
    with pytest.raises(Internal):
        client.predict("fails", {"x": np.full(1000, -1.0)})
    server.wait_until_idle()


@pytest.mark.parametrize("widths", [[1, 10, 100_000, 3], [300_000], [MIB], [3 * MIB]])
def test_outputs_larger_than_expected_are_right(
    server: Server, client: Client, widths: list[int]
) -> None:
    # The last is larger than the arena: nothing that is learned makes room for it.
    for width in widths:
        value = np.arange(3, dtype=np.float32)
        y = client.predict("grow", {"value": value, "width": np.full(3, width)})["y"]
        assert y.shape == (3, width)
        assert (y == value[:, None]).all()
    server.wait_until_idle()


def test_memory_of_large_outputs_is_closed(server: Server, client: Client) -> None:
    def run() -> None:
        # 36 MiB: in a memfd of its own each time, as the arena is smaller.
        y = client.predict("grow", {"value": np.ones(3), "width": np.full(3, 3 * MIB // 2)})["y"]
        assert y.nbytes > ARENA_MB * MIB

    run()
    before = descriptors(server)
    for _ in range(5):
        run()
    server.wait_until_idle()
    wait_until(lambda: descriptors(server) == before, lambda: f"{descriptors(server)} = {before}")
    (broker,) = server.processes(BROKER)
    maps = Path(f"/proc/{broker}/maps")
    wait_until(lambda: "batchyard-outputs" not in maps.read_text(), "all are unmapped")


def check_large_replies(client: Client, submit: Callable[[Floats], Any]) -> None:
    """Many large replies at a time, each looked at only once all are there."""
    sent = [np.full(LARGE // 4, i, np.float32) for i in range(40)]
    futures = [submit(x) for x in sent]
    received = [future.result(DEADLINE_S) for future in futures]
    for i, outputs in enumerate(received):
        (y,) = outputs.values()
        assert y.ravel()[0] == i
        assert (y == i).all()


def test_large_replies_stay_right_while_many_are_on_their_way(client: Client) -> None:
    # Two of these and their outputs are more than half of the arena: replies of both kinds.
    check_large_replies(client, lambda x: client.submit("echo", {"x": x[None]}))


def test_large_replies_with_outputs_of_their_own_memory_stay_right(client: Client) -> None:
    def submit(x: Floats) -> Any:
        return client.submit("grow", {"value": x[:1], "width": np.array([x.size])})

    check_large_replies(client, submit)


def test_large_replies_by_ipc_stay_right(client: Client) -> None:
    config = model_table("echo", callable_path("echo"))
    with Server("--arena-mb", str(ARENA_MB), config=config, bind=(), ipc=True) as server:
        with server.client() as by_ipc:
            check_large_replies(by_ipc, lambda x: by_ipc.submit("echo", {"x": x[None]}))
        server.wait_until_idle()


def test_results_can_be_kept_and_written_to(client: Client) -> None:
    kept = []
    for i in range(20):
        y = client.predict("echo", {"x": np.full((1, LARGE // 4), i, np.float32)})["x"]
        y += 100
        kept.append(y)
    assert all((y == i + 100).all() for i, y in enumerate(kept))


def test_requests_wait_while_the_arena_is_full(server: Server, client: Client) -> None:
    # Rows of different shapes cannot share a batch, and two batches are all that fits.
    futures = []
    for i in range(20):
        x = np.full((1, LARGE // 2 + i), i, np.float32)
        futures.append(client.submit("echo", {"x": x}))
    for i, future in enumerate(futures):
        assert (future.result(DEADLINE_S)["x"] == i).all()


def test_a_row_larger_than_the_arena_is_refused(client: Client) -> None:
    with pytest.raises(ResourceExhausted, match="raise arena_mb"):
        client.predict("echo", {"x": np.zeros((1, ARENA_MB * MIB), np.uint8)})
    x = np.arange(4 * ARENA_MB, dtype=np.float32)[:, None] + np.zeros(MIB // 4, np.float32)
    # Many rows that are too large together are run a few at a time.
    np.testing.assert_array_equal(client.predict("echo", {"x": x})["x"], x)


@pytest.mark.parametrize("reads_at_last", [True, False])
def test_a_client_that_reads_nothing_does_not_hold_the_arena(
    server: Server, client: Client, reads_at_last: bool
) -> None:
    requests = 60
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVHWM, 1)
        dealer.connect(server.endpoint)
        before = server.model_stats("grow")["requests"]
        for message_id in range(requests):
            dealer.send_multipart(ask_to_grow(message_id, LARGE // 4))

        def all_ran() -> bool:
            stats = server.model_stats("grow")
            return stats["requests"] == before + requests and not stats["queue_rows"]

        wait_until(all_ran, "all of its requests ran")
        # Others are served meanwhile.
        check_large_replies(client, lambda x: client.submit("echo", {"x": x[None]}))
        rows = 0
        while reads_at_last and rows < requests:
            assert dealer.poll(int(DEADLINE_S * 1000))
            rows += check_grown(dealer.recv_multipart())
    server.wait_until_idle()


def ask_to_grow(value: int, width: int) -> list[bytes]:
    """A PREDICT message whose id is the value that its answer is to be full of."""
    inputs = (InputHeader("value", "float32", (None,)), InputHeader("width", "int64", (None,)))
    target = Target("grow", None, None, "serving_default", 0, inputs).encode()
    header = protocol.encode_predict(value, target, 1, None)
    return [header, np.array([value], np.float32).tobytes(), np.array([width]).tobytes()]


def check_grown(message: list[bytes]) -> int:
    """How many answers a message has; all are right."""
    header, frame = message
    type_, body = protocol.decode(header)
    assert type_ is MessageType.RESULT
    result = protocol.decode_result(body)
    y = np.frombuffer(frame, np.float32).reshape(result.outputs[0][2])
    values = [value for value, _, count in result.segments for _ in range(count)]
    assert (y == np.array(values)[:, None]).all()
    return len(y)
