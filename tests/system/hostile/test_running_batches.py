"""What a client may do to a batch of its own while that runs."""

from __future__ import annotations

import itertools
import struct
import threading
from typing import Any

import numpy as np
import pytest
from support.hostility import ECHO, MIB, ROW, SIZE, connect, mappings
from support.local_clients import LocalClient, target
from support.regions import regions_mapped
from support.server import BROKER, Server
from support.waiting import wait_until

from batchyard.wire import protocol
from batchyard.wire.errors import Cancelled, InvalidArgument
from batchyard.wire.protocol import MessageType

_gates = itertools.count(1)


def hold(
    server: Server, bad: LocalClient, dtype: str, *, message_id: int = 1, **places: Any
) -> int:
    """A batch of ``steady`` that reads 4096 bytes at the region's start, before its gate."""
    gate = next(_gates)
    np.frombuffer(bad.array(0, (ROW,), "u1"), np.uint8)[:] = 1
    width = ROW // np.dtype(dtype).itemsize
    # Inputs in another order than their names': the broker sorts that out.
    to = target("steady", x=(dtype, (None, width)), gate=("int64", (None,)))
    bad.predict(to, 1, struct.pack("<q", gate), message_id=message_id, inputs=[[0], None], **places)
    server.gates.wait_until_reached(gate)
    return gate


@pytest.mark.parametrize(
    ("dtype", "sees"),
    [("float32", True), ("uint8", True), ("int32", False), ("int64", False), ("uint16", False)],
)
def test_rewriting_the_region_while_a_batch_runs(
    server: Server, bad: LocalClient, dtype: str, sees: bool
) -> None:
    """Of numbers that may be indices the model has a copy; others change under its eyes."""
    gate = hold(server, bad, dtype)
    bad.array(0, (SIZE,), "u1")[:] = 255
    server.gates.open(gate)
    type_, body, (frame,) = bad.answer()
    assert type_ is MessageType.RESULT
    assert protocol.decode_result(body).outputs[0][0] == "same"
    assert bool(frame[0]) is not sees


def test_rewriting_the_region_all_the_time(bad: LocalClient) -> None:
    ends = threading.Event()

    def rewrite() -> None:
        memory = bad.array(0, (64 * ROW,), "u1")
        values = np.random.default_rng(1)
        while not ends.wait(0.0005):
            memory[:] = values.integers(0, 256, len(memory), np.uint8)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        for i in range(100):
            dtype = ("float32", "int64", "complex64", "uint16")[i % 4]
            to = target("echo", x=(dtype, (None, 16)))
            offsets = [64 * (j * 7 % 50) for j in range(8)]
            bad.predict(to, 8, message_id=i, inputs=[offsets], replies=[(0, 4096)] * 8)
            answered = 0
            while answered < 8:
                answered += sum(count for _, _, count in bad.result().segments)
    finally:
        ends.set()
        thread.join()


def test_outputs_over_inputs(bad: LocalClient) -> None:
    """Places for outputs may be anywhere in its own region, also where others are read."""
    for replies in ([(0, SIZE)] * 3, [(0, 2 * ROW), (64, 2 * ROW), (ROW, 2 * ROW)]):
        bad.predict(ECHO, 3, inputs=[[0, 64, 128]], replies=replies)
        assert bad.result().in_region


@pytest.mark.parametrize("with_replies", [False, True])
def test_closing_in_the_middle_of_a_batch(server: Server, with_replies: bool) -> None:
    bad = connect(server)
    before = mappings(server)
    (broker,) = server.processes(BROKER)
    gate = hold(server, bad, "float32", replies=[(MIB, ROW)] if with_replies else None)
    bad.close()
    wait_until(lambda: regions_mapped(broker) == before[broker] - 1, "the broker's is gone", 2.0)
    server.gates.open(gate)


def test_cancelling_what_runs(server: Server, bad: LocalClient) -> None:
    gate = hold(server, bad, "float32")
    bad.send(protocol.encode(MessageType.CANCEL, [[1, 0, 0]]))
    failure = bad.error()
    assert (failure.segments, failure.number) == ([(1, 0, 1)], Cancelled.number)
    server.gates.open(gate)
    # Neither again nor otherwise.
    server.wait_until_idle()
    assert bad.answers_until_welcome() == []


def test_cancelling_what_has_a_place_is_answered_when_that_is_free(
    server: Server, bad: LocalClient
) -> None:
    gate = hold(server, bad, "float32", replies=[(MIB, ROW)])
    for _ in range(3):
        bad.send(protocol.encode(MessageType.CANCEL, [[1, 0, 0]]))
    assert bad.answers_until_welcome() == []
    server.gates.open(gate)
    failure = bad.error()
    assert (failure.segments, failure.number) == ([(1, 0, 1)], Cancelled.number)
    assert bad.answers_until_welcome() == []


def test_a_message_id_in_use_is_refused(server: Server, bad: LocalClient) -> None:
    gate = hold(server, bad, "float32", message_id=5)
    bad.predict(ECHO, 1, message_id=5, inputs=[[0]])
    failure = bad.error()
    assert failure.number == InvalidArgument.number
    assert "message id 5 is in use" in failure.message
    server.gates.open(gate)
    assert bad.result().segments == [(5, 0, 1)]
    # Answered, it may be used again.
    bad.predict(ECHO, 1, message_id=5, inputs=[[0]])
    assert bad.result().segments == [(5, 0, 1)]


def test_message_ids_and_cancels_are_each_clients_own(server: Server, bad: LocalClient) -> None:
    gate = hold(server, bad, "float32", message_id=5)
    with connect(server) as other:
        other.send(protocol.encode(MessageType.CANCEL, [[5, 0, 0]]))
        other.predict(ECHO, 1, bytes(ROW), message_id=5)
        assert other.result().segments == [(5, 0, 1)]
        other.send(protocol.encode(MessageType.GOODBYE, []))
        assert other.answers_until_welcome() == []
    assert bad.answers_until_welcome() == []
    server.gates.open(gate)
    assert bad.result().segments == [(5, 0, 1)]


def test_goodbye_is_no_end_of_the_connection(server: Server, bad: LocalClient) -> None:
    gate = hold(server, bad, "float32", replies=[(MIB, ROW)])
    bad.send(protocol.encode(MessageType.GOODBYE, []))
    assert bad.answers_until_welcome() == []
    server.gates.open(gate)
    server.wait_until_idle()
    bad.predict(ECHO, 1, message_id=2, inputs=[[0]])
    assert bad.result().segments == [(2, 0, 1)]
