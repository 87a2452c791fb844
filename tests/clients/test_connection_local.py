"""The connection's short way to a broker on its machine: when it is taken, and when it is not."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zmq
from support.descriptors import no_descriptors_leak
from support.fake_broker import REGION_NBYTES, FakeBroker, Received, has_ended, receive_near
from support.waiting import wait_until

from batchyard.clients.connection import Connection
from batchyard.clients.session import Via
from batchyard.wire import protocol
from batchyard.wire.local import INLINE_NBYTES, LocalSocket
from batchyard.wire.protocol import MessageType

Context = zmq.Context[zmq.Socket[bytes]]
CANCEL = protocol.encode(MessageType.CANCEL, [[1, 0, 0]])


@pytest.fixture
def context() -> Iterator[Context]:
    made: Context = zmq.Context()
    yield made
    # Its term would wait for a socket that was left open.
    made.destroy(linger=0)


@pytest.fixture
def broker(context: Context) -> Iterator[FakeBroker]:
    broker = FakeBroker(context)
    yield broker
    broker.close()


@pytest.fixture
def connection(context: Context, broker: FakeBroker) -> Iterator[Connection]:
    """Greeted by the broker; it has not looked for the short way yet."""
    connection = Connection(context, broker.endpoint)
    hear(connection, broker)
    yield connection
    connection.close()


def hear(connection: Connection, broker: FakeBroker) -> None:
    """Drives a connection until the broker has its HELLO."""

    def greeted() -> bool:
        connection.look_again()
        if True in connection.changes():
            connection.hello()
        message = broker.receive()
        return message is not None and message[0] is MessageType.HELLO

    wait_until(greeted, "the broker is greeted")


def look(connection: Connection) -> tuple[Any, list[Any]] | None:
    connection.look_again()
    return connection.receive()


def settle(connection: Connection) -> None:
    def settled() -> bool:
        assert look(connection) is None
        return connection.is_settled

    wait_until(settled, "it is known whether there is a short way")


def far(broker: FakeBroker) -> Received:
    return wait_until(broker.receive, "it comes by ZeroMQ")


def join(connection: Connection, broker: FakeBroker, *more: Any) -> LocalSocket:
    """The broker's end of the short way, which is there now."""
    connection.join(broker.welcome(*more))
    client = wait_until(broker.accept, "it knocks")
    before = connection.is_settled, connection.is_near
    assert before == (False, False)
    broker.give_region(client)
    settle(connection)
    assert connection.is_near
    return client


def lose(connection: Connection) -> None:
    """Waits until a connection tells that it is lost, and connects anew."""

    def is_lost() -> bool:
        look(connection)
        return False in connection.changes()

    wait_until(is_lost, "it is lost")
    assert connection.has_input()
    assert not connection.is_near
    connection.reset()
    assert connection.region is None
    assert not connection.has_ended


def assert_far_only(connection: Connection, broker: FakeBroker) -> None:
    assert connection.is_settled
    assert not connection.is_near
    assert connection.region is None
    assert connection.local_fileno() == -1
    for via in (Via.ANY, Via.BOTH):
        assert connection.send(CANCEL, [], via)
        assert far(broker)[0] is MessageType.CANCEL


def test_a_region_comes_with_the_welcome(connection: Connection, broker: FakeBroker) -> None:
    broker.listen()
    join(connection, broker)
    assert connection.region is not None
    array = connection.region.empty((REGION_NBYTES,), np.dtype(np.uint8))
    assert array is not None
    assert not array.any()


def test_small_messages_take_the_short_way_and_large_ones_do_not(
    connection: Connection, broker: FakeBroker
) -> None:
    broker.listen()
    client = join(connection, broker)
    room = INLINE_NBYTES - len(CANCEL)
    for nbytes in (0, 1, room):
        assert connection.send(CANCEL, [bytes(nbytes)])
        type_, _, frames = receive_near(client)
        assert (type_, [len(frame) for frame in frames]) == (MessageType.CANCEL, [nbytes])
    for large in ([bytes(room + 1)], [bytes(room), b"1"]):
        assert connection.send(CANCEL, list(large))
        assert far(broker)[2] == large
    assert client.receive() is None


def test_messages_for_both_ways_take_both(connection: Connection, broker: FakeBroker) -> None:
    broker.listen()
    client = join(connection, broker)
    assert connection.send(CANCEL, [], Via.BOTH)
    assert receive_near(client)[0] is MessageType.CANCEL
    assert far(broker)[0] is MessageType.CANCEL
    assert connection.send(CANCEL, [], Via.LOCAL)
    assert receive_near(client)[0] is MessageType.CANCEL
    assert broker.receive() is None


def test_answers_come_by_both_ways(connection: Connection, broker: FakeBroker) -> None:
    broker.listen()
    client = join(connection, broker)
    for i in range(4):
        answer = protocol.encode(MessageType.ANSWER, [i, 0, "", None])
        if i % 2:
            assert client.send(answer, [])
        else:
            broker.send(answer)
        header, _ = wait_until(lambda: look(connection), "the answer comes")
        assert protocol.decode(header)[1][0] == i


def test_a_socket_that_is_full_takes_more_later(connection: Connection, broker: FakeBroker) -> None:
    broker.listen()
    client = join(connection, broker)
    sent = 0
    while connection.send(CANCEL, [sent.to_bytes(4, "little") + bytes(50_000)]):
        sent += 1
        assert sent < 1000
    was_full = connection.wants_to_send
    assert was_full
    assert not connection.has_ended
    for i in range(sent):
        assert int.from_bytes(receive_near(client)[2][0][:4], "little") == i
    assert connection.send(CANCEL, [])
    assert not connection.wants_to_send
    assert receive_near(client)[2] == []


def test_an_abstract_name_is_found_by_the_welcome(context: Context, broker: FakeBroker) -> None:
    name = f"batchyard-test-{secrets.token_hex(8)}"
    broker.listen(f"\0{name}")
    # As by TCP, where no path says where the short way would be.
    with contextlib.closing(Connection(context, broker.endpoint)) as connection:
        hear(connection, broker)
        join(connection, broker, name)


def test_no_short_way_without_a_listener(connection: Connection, broker: FakeBroker) -> None:
    connection.join(broker.welcome())
    assert_far_only(connection, broker)


def test_a_name_that_is_none_is_no_short_way(connection: Connection, broker: FakeBroker) -> None:
    for name in ("batchyard-nobody", "x" * 500, "", 7, None, "é"):
        connection.join(broker.welcome(name))
        assert_far_only(connection, broker)


def test_the_short_way_of_another_broker_is_not_taken(
    connection: Connection, broker: FakeBroker
) -> None:
    broker.listen()
    connection.join(broker.welcome())
    client = wait_until(broker.accept, "it knocks")
    with no_descriptors_leak():
        broker.give_region(client, broker.welcome(epoch=2))
        settle(connection)
        assert_far_only(connection, broker)
    assert has_ended(client)


def test_a_short_way_that_ends_before_its_welcome(
    connection: Connection, broker: FakeBroker
) -> None:
    broker.listen()
    connection.join(broker.welcome())
    wait_until(broker.accept, "it knocks").close()
    settle(connection)
    assert connection.changes() == []
    assert_far_only(connection, broker)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"x", id="no_header"),
        pytest.param(b"BY\x02\x02\x90", id="version"),
        pytest.param(protocol.encode(MessageType.RESULT, []), id="type"),
        pytest.param(protocol.encode(MessageType.WELCOME, []), id="no_fields"),
    ],
)
def test_what_does_not_begin_with_a_welcome_is_not_taken(
    connection: Connection, broker: FakeBroker, header: bytes
) -> None:
    broker.listen()
    connection.join(broker.welcome())
    client = wait_until(broker.accept, "it knocks")
    with no_descriptors_leak():
        broker.give_region(client, header)
        settle(connection)
        assert_far_only(connection, broker)


def test_a_welcome_without_a_region_is_a_short_way_all_the_same(
    connection: Connection, broker: FakeBroker
) -> None:
    broker.listen()
    connection.join(broker.welcome())
    client = wait_until(broker.accept, "it knocks")
    client.send(broker.welcome(), [])
    settle(connection)
    assert connection.is_near
    assert connection.region is None
    assert connection.send(CANCEL, [])
    assert receive_near(client)[0] is MessageType.CANCEL


@pytest.mark.parametrize("notices", ["receiving", "sending"])
def test_losing_the_short_way_is_losing_the_connection(
    connection: Connection, broker: FakeBroker, notices: str
) -> None:
    broker.listen()
    join(connection, broker).close()
    if notices == "sending":
        # Taken, as what was sent before will not be answered either.
        assert connection.send(CANCEL, [])
        assert connection.has_ended
    lose(connection)
    # The same broker is still there.
    hear(connection, broker)
    broker.send(broker.welcome())
    header, _ = wait_until(lambda: look(connection), "it says WELCOME")
    assert protocol.decode(header)[0] is MessageType.WELCOME
    broker.give_region(wait_until(broker.accept, "it knocks again"))
    settle(connection)
    assert connection.is_near
    assert connection.region is not None


def test_another_broker_gives_another_region(connection: Connection, broker: FakeBroker) -> None:
    broker.listen()
    client = join(connection, broker)
    before = connection.region
    client.close()
    broker.unbind()
    lose(connection)
    broker.epoch = 2
    broker.bind()
    broker.listen()
    hear(connection, broker)
    broker.send(broker.welcome())
    wait_until(lambda: look(connection), "it says WELCOME")
    broker.give_region(wait_until(broker.accept, "it knocks"))
    settle(connection)
    assert connection.region is not None
    assert connection.region is not before


def test_what_speaks_of_a_region_that_is_gone_is_not_sent(
    connection: Connection, broker: FakeBroker
) -> None:
    connection.join(broker.welcome())
    assert connection.send(CANCEL, [], Via.LOCAL)
    assert connection.send(CANCEL, [b"next"])
    assert far(broker)[2] == [b"next"]


def test_answers_before_a_loss_count(connection: Connection, broker: FakeBroker) -> None:
    broker.listen()
    client = join(connection, broker)
    for i in range(3):
        assert client.send(protocol.encode(MessageType.ANSWER, [i, 0, "", None]), [])
    client.close()
    for i in range(3):
        received = look(connection)
        assert received is not None
        assert protocol.decode(received[0])[1][0] == i
    lose(connection)


def test_closing_ends_the_short_way(context: Context, broker: FakeBroker) -> None:
    broker.listen()
    connection = Connection(context, broker.endpoint)
    hear(connection, broker)
    client = join(connection, broker)
    connection.close()
    wait_until(lambda: has_ended(client), "its end is seen")
    assert connection.local_fileno() == -1
    assert connection.region is None
