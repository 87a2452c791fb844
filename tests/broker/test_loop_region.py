"""The broker's loop with clients on their local sockets, their regions, and workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq
from support.broker_builders import ROW_NBYTES, make_rows, make_target
from support.broker_loop import REGION_NBYTES, LocalEnd, LoopInThread, WorkerEnd, broker_loop
from support.descriptors import no_descriptors_leak
from support.waiting import DEADLINE_S, wait_until

from batchyard.broker import local_front
from batchyard.wire import control, errors, protocol, work
from batchyard.wire.local import INLINE_NBYTES, LocalClosed
from batchyard.wire.protocol import MessageType, RegionPlaces

TARGET = make_target()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[LoopInThread]:
    with no_descriptors_leak(), broker_loop(tmp_path) as made:
        yield made


def predict(
    message_id: int,
    *offsets: int,
    replies: list[tuple[int, int]] | None = None,
    rows: int | list[int] | None = None,
) -> bytes:
    """A PREDICT of one-row requests that lie in the region."""
    places = RegionPlaces([list(offsets)], replies)
    return protocol.encode_predict(message_id, TARGET, rows or len(offsets), None, places)


def framed(message_id: int) -> tuple[bytes, bytes]:
    return protocol.encode_predict(message_id, TARGET, 1, None), make_rows(1, message_id)


def written(execute: work.Execute, client: LocalEnd, worker: WorkerEnd) -> None:
    """Has the worker write the number of its row to each request's reply space."""
    for region, offset, nbytes, first, rows in execute.replies:
        assert nbytes >= rows * ROW_NBYTES
        data = make_rows(rows, first + 1)
        worker.regions[region].memory[offset : offset + len(data)] = data
    assert client.region is not None


def error_of(client: LocalEnd) -> protocol.Failure:
    type_, body, frames = client.receive()
    assert (type_, frames) == (MessageType.ERROR, [])
    return protocol.decode_error(body)


def result_of(client: LocalEnd) -> protocol.Result:
    type_, body, _ = client.receive()
    assert type_ is MessageType.RESULT, body
    return protocol.decode_result(body)


Y = [("y", "float32", (1, 16), None, 0)]


@pytest.mark.parametrize("by_name", [False, True])
def test_a_tensor_goes_to_the_worker_and_its_output_back_through_the_region(
    loop: LoopInThread, by_name: bool
) -> None:
    worker, client = loop.worker(), loop.client(by_name)
    client.memory[640 : 640 + ROW_NBYTES] = make_rows(1, 7)
    client.send(predict(1, 640, replies=[(1024, 64)]))
    kind, region = worker.receive()
    assert kind == work.Kind.ATTACH
    execute = worker.execute()
    assert execute.inputs == [("x", "float32", (1, 16), region, 640, ROW_NBYTES)]
    assert (execute.copies, execute.replies) == ([], [(region, 1024, 64, 0, 1)])
    assert (execute.rows, execute.padded_rows, execute.alone) == (1, 1, True)
    assert bytes(worker.regions[region].memory[640:704]) == make_rows(1, 7)
    written(execute, client, worker)
    worker.done(execute, Y, replied=True)
    result = result_of(client)
    assert result == protocol.Result([(1, 0, 1)], 1, [("y", "float32", (1, 16))], True)
    assert bytes(client.memory[1024:1088]) == make_rows(1, 1)


def test_a_region_is_attached_once_to_each_worker(loop: LoopInThread) -> None:
    first, second = loop.worker(0), loop.worker(1)
    client = loop.client()
    client.send(predict(1, 0))
    assert first.receive()[0] == work.Kind.ATTACH
    one = first.execute()
    client.send(predict(2, 64))
    assert second.receive()[0] == work.Kind.ATTACH
    two = second.execute()
    first.done(one, Y)
    second.done(two, Y)
    client.send(predict(3, 0))
    first.done(first.execute(), Y)
    assert {result_of(client).segments[0][0] for _ in range(3)} == {1, 2, 3}
    client.close()
    for worker in (first, second):
        assert worker.receive()[0] == work.Kind.DETACH
        assert worker.regions == {}


def test_rows_of_regions_and_frames_meet_in_a_batch(loop: LoopInThread) -> None:
    worker, one, two = loop.worker(), loop.client(), loop.client()
    # One batch runs, so that the others gather.
    one.send(*framed(1))
    running = worker.execute()
    one.memory[128:192] = make_rows(1, 2)
    one.send(predict(2, 128, replies=[(1024, 64)]))
    two.send(*framed(3))
    answered(two)
    worker.done(running, [("y", "float32", (1, 16), running.output_offset, ROW_NBYTES)])
    assert worker.receive()[0] == work.Kind.ATTACH
    execute = worker.execute()
    assert (execute.rows, execute.alone) == (2, False)
    ((_, _, shape, which, start, nbytes),) = execute.inputs
    assert (shape, which, nbytes) == ((2, 16), work.ARENA, 2 * ROW_NBYTES)
    ((region, offset, target, size),) = execute.copies
    assert (offset, size) == (128, ROW_NBYTES)
    loop.arena.memory[target : target + size] = worker.regions[region].memory[128:192]
    rows = np.frombuffer(loop.arena.memory, np.float32, 32, start).reshape(2, 16)
    assert sorted(rows[:, 0]) == [2, 3]
    # Only the first has reply space; the other's row lies in the block.
    out = execute.output_offset
    loop.arena.memory[out : out + nbytes] = make_rows(2, 9)
    worker.done(execute, [("y", "float32", (2, 16), out, nbytes)], replied=True)
    assert result_of(one).segments == [(1, 0, 1)]
    assert result_of(one).in_region
    type_, body, frames = two.receive()
    assert (type_, protocol.decode_result(body).in_region) == (MessageType.RESULT, False)
    assert bytes(frames[0]) == make_rows(1, 9)


def answered(client: LocalEnd) -> None:
    """Waits until the broker has read all that the client sent."""
    client.send(protocol.encode(MessageType.HELLO, []))
    assert client.receive()[0] is MessageType.WELCOME


def test_a_cancelled_request_is_answered_when_its_worker_is_done(loop: LoopInThread) -> None:
    worker, client = loop.worker(), loop.client()
    client.send(predict(1, 0, replies=[(1024, 64)]))
    worker.receive()
    execute = worker.execute()
    client.send(protocol.encode(MessageType.CANCEL, [(1, 0, 0)]))
    answered(client)
    assert client.hears_nothing()
    worker.done(execute, Y, replied=True)
    assert error_of(client).number == errors.Cancelled.number


def test_a_client_that_dies_while_its_batch_runs_hurts_nobody(loop: LoopInThread) -> None:
    worker, client, other = loop.worker(), loop.client(), loop.client()
    client.send(predict(1, 0, replies=[(1024, 64)]))
    _, region = worker.receive()
    execute = worker.execute()
    client.close()
    assert worker.receive() == [work.Kind.DETACH, region]
    worker.done(execute, Y, replied=True)
    other.send(*framed(5))
    running = worker.execute()
    worker.done(running, [("y", "float32", (1, 16), running.output_offset, ROW_NBYTES)])
    assert result_of(other).segments == [(5, 0, 1)]
    assert loop.loop.state.is_idle


def test_a_client_may_go_after_a_worker_died_that_had_its_region(loop: LoopInThread) -> None:
    worker, client = loop.worker(), loop.client()
    client.send(predict(1, 0))
    worker.receive()
    worker.done(worker.execute(), Y)
    result_of(client)
    (key,) = loop.local_front._clients
    worker.close()
    wait_until(lambda: not loop.loop.state.workers, "the broker has noticed")
    client.close()
    wait_until(
        lambda: not (loop.is_running and loop.local_front.knows(key)), "the broker has noticed"
    )
    assert loop.is_running
    other = loop.worker(1)
    again = loop.client()
    again.send(predict(1, 0))
    assert other.receive()[0] == work.Kind.ATTACH


def test_what_waits_for_a_client_that_dies_never_runs(loop: LoopInThread) -> None:
    worker, client, other = loop.worker(), loop.client(), loop.client()
    other.send(*framed(1))
    running = worker.execute()
    client.send(predict(2, 0))
    client.close()
    answered(other)
    wait_until(lambda: loop.loop.state.queue_nbytes == 0, "the broker has noticed")
    other.send(*framed(3))
    worker.done(running, [("y", "float32", (1, 16), running.output_offset, ROW_NBYTES)])
    # Nothing of the one that went was attached.
    execute = worker.execute()
    assert (execute.rows, execute.copies) == (1, [])


@pytest.mark.parametrize(
    "lie",
    [
        predict(9, REGION_NBYTES - 63),
        predict(9, 1 << 40),
        predict(9, 0, replies=[(REGION_NBYTES, 64)]),
        predict(9, 0, replies=[(8, 64)]),
        predict(9, 0, rows=[2000]),
        protocol.encode_predict(9, TARGET, 1, None, RegionPlaces([], None)),
        protocol.encode_predict(9, TARGET, 1, None, RegionPlaces([None], None)),
        protocol.encode(MessageType.PREDICT, [9, TARGET, 1, None, [[[-64]], None]]),
        protocol.encode(MessageType.PREDICT, [9, TARGET, 1, None, [[["0"]], None]]),
    ],
)
def test_a_client_that_lies_is_told_and_goes_on(loop: LoopInThread, lie: bytes) -> None:
    worker, client = loop.worker(), loop.client()
    client.send(lie)
    failure = error_of(client)
    assert (failure.segments, failure.number) == ([(9, 0, 0)], errors.InvalidArgument.number)
    client.send(predict(10, REGION_NBYTES - 64))
    worker.receive()
    worker.done(worker.execute(), Y)
    assert result_of(client).segments == [(10, 0, 1)]


@pytest.mark.parametrize("packet", [b"x", b"\xff" * 100, b""])
def test_a_client_that_sends_no_packet_is_let_go(loop: LoopInThread, packet: bytes) -> None:
    client, other = loop.client(), loop.client()
    client.socket._socket.send(packet)
    with pytest.raises(LocalClosed):
        client.receive()
    answered(other)


def test_what_is_no_message_is_answered(loop: LoopInThread) -> None:
    client = loop.client()
    client.send(b"nothing")
    assert error_of(client).segments == []
    client.send(protocol.encode(MessageType.WELCOME, []))
    assert error_of(client).number == errors.InvalidArgument.number
    client.send(protocol.encode(MessageType.QUERY, [4, "models", {}]))
    type_, body, _ = client.receive()
    assert (type_, body[:3]) == (MessageType.ANSWER, [4, 0, ""])


def test_who_comes_by_zeromq_has_no_region(loop: LoopInThread) -> None:
    loop.worker()
    loop.client()
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(loop.endpoint)
        dealer.send(predict(3, 0))
        assert dealer.poll(int(DEADLINE_S * 1000))
        type_, body = protocol.decode(dealer.recv())
        assert type_ is MessageType.ERROR
        failure = protocol.decode_error(body)
        assert "the client has none" in failure.message
        dealer.send(protocol.encode(MessageType.HELLO, []))
        assert dealer.poll(int(DEADLINE_S * 1000))
        assert protocol.decode(dealer.recv())[1][2] == loop.local_front.name


@pytest.mark.parametrize("cut", ["first", "last"])
def test_nobody_speaks_for_a_local_client(loop: LoopInThread, cut: str) -> None:
    """Clients of ZeroMQ choose their routing ids: one that is as near as can be to its key."""
    worker, client = loop.worker(), loop.client()
    client.send(*framed(1))
    execute = worker.execute()
    (key,) = loop.local_front._clients
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.ROUTING_ID, key[:255] if cut == "first" else key[-255:])
        dealer.connect(loop.endpoint)
        dealer.send(protocol.encode(MessageType.CANCEL, [(1, 0, 0)]))
        dealer.send(protocol.encode(MessageType.HELLO, []))
        assert dealer.poll(int(DEADLINE_S * 1000)), "the broker has read them"
    assert client.hears_nothing()
    worker.done(execute, [("y", "float32", (1, 16), execute.output_offset, ROW_NBYTES)])
    assert result_of(client).segments == [(1, 0, 1)]


def test_a_large_answer_comes_in_a_memfd(loop: LoopInThread) -> None:
    worker, client = loop.worker(), loop.client()
    client.send(*framed(1))
    execute = worker.execute()
    nbytes = 4 * INLINE_NBYTES
    memory = loop.arena.memory
    memory[-nbytes:] = b"\7" * nbytes
    worker.done(execute, [("y", "uint8", (1, nbytes), len(memory) - nbytes, nbytes)])
    type_, _, frames = client.receive()
    assert type_ is MessageType.RESULT
    assert bytes(frames[0]) == b"\7" * nbytes


def test_a_client_that_does_not_read_has_to_go(
    loop: LoopInThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_front, "HIGH_WATER_MARK", 20)
    worker, client, other = loop.worker(), loop.client(), loop.client()
    client.send(predict(1, 0, replies=[(1024, 64)]))
    _, region = worker.receive()
    execute = worker.execute()
    hello = protocol.encode(MessageType.HELLO, [])
    with contextlib.suppress(LocalClosed):
        # Until the broker has enough of answers that nobody reads.
        while True:
            client.socket.send(hello, [])
    assert worker.receive() == [work.Kind.DETACH, region]
    worker.done(execute, Y, replied=True)
    answered(other)
    assert loop.loop.state.is_idle


def test_the_loop_ends_with_clients_and_batches_still_there(tmp_path: Path) -> None:
    with no_descriptors_leak():
        with broker_loop(tmp_path) as loop:
            worker, client = loop.worker(), loop.client()
            client.send(predict(1, 0, replies=[(1024, 64)]))
            worker.receive()
            worker.execute()
            client.send(predict(2, 0))
        assert list(tmp_path.glob("*.local")) == []


def test_a_drained_loop_has_said_all(loop: LoopInThread) -> None:
    worker, client = loop.worker(), loop.client()
    client.send(predict(1, 0, replies=[(1024, 64)]))
    worker.receive()
    execute = worker.execute()
    loop.supervisor.send([control.Kind.DRAIN])
    wait_until(lambda: loop.loop.state.draining, "the broker drains")
    # All clients are told, and again who sends something all the same.
    client.send(predict(2, 0))
    assert [client.receive()[0] for _ in range(2)] == [MessageType.DRAINING] * 2
    assert error_of(client).number == errors.Unavailable.number
    written(execute, client, worker)
    worker.done(execute, Y, replied=True)
    assert result_of(client).in_region
    assert loop.told() == [control.Kind.DRAINED]
