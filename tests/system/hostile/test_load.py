"""Clients that read nothing, ask for much, or come in crowds."""

from __future__ import annotations

import contextlib
import os
import resource
import socket

import numpy as np
from support.documented_client import floats, ints
from support.hostility import ECHO, HELLO, ROW, config, connect, is_answered
from support.local_clients import LocalClient, target
from support.server import BROKER, Server
from support.waiting import DEADLINE_S, wait_until

from batchyard.wire import protocol
from batchyard.wire.endpoints import HIGH_WATER_MARK
from batchyard.wire.local import INLINE_NBYTES, LocalClosed
from batchyard.wire.protocol import MessageType


def test_who_reads_nothing_is_dropped(server: Server, bad: LocalClient) -> None:
    log = len(server.log)
    sent = 0
    # More than the sockets hold, and than may wait for it.
    with contextlib.suppress(Exception):
        while sent < 10 * HIGH_WATER_MARK:
            bad.send(HELLO)
            sent += 1
    assert HIGH_WATER_MARK < sent < 10 * HIGH_WATER_MARK
    assert bad.was_dropped()
    assert "event=client_dropped" in server.log[log:]


TO_GROW = target("grow", value=("float32", (None,)), width=("int64", (None,)))


def ask_for_answers(server: Server, bad: LocalClient, ids: range, nbytes: int) -> None:
    """An answer of so many bytes for each id, each from a batch of its own."""
    before = server.model_stats("grow")["batches"]

    def ran() -> int:
        batches: int = server.model_stats("grow")["batches"] - before
        return batches

    for sent, message_id in enumerate(ids, 1):
        bad.predict(TO_GROW, 1, floats(message_id), ints(nbytes // 4), message_id=message_id)
        # Not more at once than may wait.
        if not sent % 50 or sent == len(ids):
            wait_until(lambda: ran() == sent, "they ran")  # noqa: B023 - before it changes


def test_large_answers_that_are_read_late(server: Server, bad: LocalClient) -> None:
    # What fits into a packet, and what has memory of its own.
    ask_for_answers(server, bad, range(60), INLINE_NBYTES)
    ask_for_answers(server, bad, range(60, 200), INLINE_NBYTES + 4)
    left = set(range(200))
    while left:
        type_, body, (frame,) = bad.answer()
        assert type_ is MessageType.RESULT
        ((message_id, _, _),) = protocol.decode_result(body).segments
        left.remove(message_id)
        assert (np.frombuffer(frame, np.float32) == message_id).all()
        assert len(frame) == INLINE_NBYTES + 4 * (message_id >= 60)


def test_large_answers_that_nobody_reads() -> None:
    """They have a descriptor each, of which the broker may have so many only."""
    with Server(config=config(workers=1), ipc=True) as server, connect(server) as bad:
        ask_for_answers(server, bad, range(60), INLINE_NBYTES)
        (broker,) = server.processes(BROKER)
        _, most = resource.prlimit(broker, resource.RLIMIT_NOFILE)
        few = len(os.listdir(f"/proc/{broker}/fd")) + 20
        resource.prlimit(broker, resource.RLIMIT_NOFILE, (few, most))
        with contextlib.suppress(LocalClosed):
            for message_id in range(60, 100):
                width = ints(INLINE_NBYTES // 4 + 1)
                bad.predict(TO_GROW, 1, floats(message_id), width, message_id=message_id)
        # Not before does it read: that would make room.
        wait_until(lambda: "event=client_dropped" in server.log, "it is dropped")
        assert bad.was_dropped()
        assert server.processes(BROKER) == [broker]
        with connect(server) as good:
            assert is_answered(good)


def test_more_connections_than_descriptors() -> None:
    """Who finds no room is told so at once, and the broker has peace again."""
    with Server(config=config(workers=1), ipc=True) as server, server.client() as client:
        for _ in range(2):
            client.predict("echo", {"x": [[1]]})
        (broker,) = server.processes(BROKER)
        _, most = resource.prlimit(broker, resource.RLIMIT_NOFILE)
        few = len(os.listdir(f"/proc/{broker}/fd")) + 20
        resource.prlimit(broker, resource.RLIMIT_NOFILE, (few, most))
        with contextlib.ExitStack() as stack:
            answers = []
            for _ in range(30):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                stack.enter_context(sock).settimeout(DEADLINE_S)
                sock.connect(f"{server.ipc_path}.local")
                # A WELCOME, or the end.
                answers.append(bool(sock.recv(1000)))
            assert set(answers) == {True, False}
            for i in range(50):
                x = [[i]]
                assert client.predict("echo", {"x": x}, timeout=DEADLINE_S)["x"].tolist() == x
            assert server.processes(BROKER) == [broker]
            assert server.log.count("\n") < 100
        wait_until(lambda: is_let_in(server), "there is room again")


def is_let_in(server: Server) -> bool:
    with contextlib.suppress(AssertionError), connect(server) as client:
        return is_answered(client)
    return False


def test_two_hundred_connections(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(200)]
        # Some have regions, the rest have none and are served all the same.
        with_region = [client for client in clients if client.region is not None]
        assert 0 < len(with_region) <= 64
        for i, client in enumerate(clients):
            client.predict(ECHO, 1, bytes(ROW), message_id=i)
        for i, client in enumerate(clients):
            assert client.result().segments == [(i, 0, 1)]
    # All at once, and gone before they are let in.
    for _ in range(200):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(f"{server.ipc_path}.local")
        sock.close()
    with connect(server) as late:
        wait_until(lambda: is_answered(late), "the next is served")
