"""Which of several servers that answer a client takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import zmq
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import search as search_module
from batchyard.clients.search import Search
from batchyard.wire import protocol
from batchyard.wire.protocol import MessageType

# So far apart that ``wait_s`` tells whether an answer was seen.
TIMEOUT_S, PREFERENCE_S = 4 * DEADLINE_S, 2 * DEADLINE_S


class Greeter:
    """Listens as a broker does; says WELCOME when it is told to."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], limit: int) -> None:
        self.welcome = protocol.encode(MessageType.WELCOME, [1, limit])
        self._socket = context.socket(zmq.ROUTER)
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self._client: bytes | None = None

    def was_asked(self) -> bool:
        """Whether HELLO has come."""
        with contextlib.suppress(zmq.Again):
            self._client, header = self._socket.recv_multipart(zmq.NOBLOCK)
            assert protocol.decode(header)[0] is MessageType.HELLO
        return self._client is not None

    def answer(self) -> None:
        """Says WELCOME."""
        assert self._client is not None
        self._socket.send_multipart([self._client, self.welcome])

    def close(self) -> None:
        """Ends at once."""
        self._socket.close(0)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    # Its term would wait for a socket that was left open.
    made.destroy(linger=0)


@pytest.fixture
def greeters(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[list[Greeter]]:
    """Two of them, told apart by what they say."""
    made = [Greeter(context, limit) for limit in (1000, 2000)]
    yield made
    for greeter in made:
        greeter.close()


def test_the_first_in_order_is_taken_though_the_second_answers_first(
    context: zmq.Context[zmq.Socket[bytes]],
    greeters: list[Greeter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search_module, "PREFERENCE_S", PREFERENCE_S)
    first, second = greeters
    search = Search(context, [first.endpoint, second.endpoint], TIMEOUT_S)

    def all_asked() -> bool:
        assert search.step() is None
        return all(greeter.was_asked() for greeter in greeters)

    def second_heard() -> bool:
        assert search.step() is None
        return search.wait_s() <= PREFERENCE_S

    try:
        wait_until(all_asked, "both are asked")
        second.answer()
        wait_until(second_heard, "the second's answer is seen")
        first.answer()
        found = wait_until(search.step, "one is taken")
        assert found is not None
        assert (found.endpoint, search.welcome) == (first.endpoint, first.welcome)
        found.close()
    finally:
        search.close()
