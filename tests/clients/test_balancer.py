"""Which server a call goes to, from what is known of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from batchyard.clients.balancer import Balancer


@dataclass(frozen=True)
class Result:
    queued_rows: int


@dataclass(eq=False)
class Server:
    takes_calls: bool = True
    is_awaited: bool = False
    last_result: Result | None = None


def choices(balancer: Balancer, servers: list[tuple[Server, int]], now: float = 0.0) -> list[int]:
    return [balancer.choose(servers, now) for _ in range(12)]


def test_ties_take_turns() -> None:
    counts = Counter(choices(Balancer(), [(Server(), 3) for _ in range(3)]))
    assert counts == {0: 4, 1: 4, 2: 4}


def test_the_least_under_way_is_chosen() -> None:
    assert set(choices(Balancer(), [(Server(), 3), (Server(), 1), (Server(), 2)])) == {1}


def test_what_a_server_said_of_its_queue_counts_for_a_while() -> None:
    balancer = Balancer()
    busy, idle = Server(last_result=Result(5)), Server(last_result=Result(0))
    servers = [(busy, 0), (idle, 4)]
    assert set(choices(balancer, servers, 10.0)) == {1}
    assert set(choices(balancer, servers, 10.05)) == {1}
    assert set(choices(balancer, servers, 10.2)) == {0}
    # The same, said again.
    busy.last_result = Result(5)
    assert set(choices(balancer, servers, 10.3)) == {1}


def test_one_that_is_gone_is_waited_for_rather_than_asked_in_vain() -> None:
    gone = Server(takes_calls=False)
    awaited = Server(takes_calls=False, is_awaited=True)
    assert set(choices(Balancer(), [(gone, 0), (awaited, 9)])) == {1}
    assert set(choices(Balancer(), [(gone, 0), (gone, 9)])) == {0}
    assert set(choices(Balancer(), [(gone, 0), (awaited, 0), (Server(), 9)])) == {2}


STANDINGS = st.tuples(
    st.builds(
        Server, st.booleans(), st.booleans(), st.none() | st.builds(Result, st.integers(0, 50))
    ),
    st.integers(0, 50),
)


@given(st.lists(STANDINGS, min_size=1, max_size=5), st.lists(st.floats(0, 1), max_size=5))
def test_nothing_better_is_left_out(servers: list[tuple[Server, int]], pauses: list[float]) -> None:
    balancer = Balancer()
    now = 0.0
    for pause in [0.0, *pauses]:
        now += pause
        chosen, under_way = servers[balancer.choose(servers, now)]
        for server, others in servers:
            assert chosen.takes_calls or not server.takes_calls
            if chosen.takes_calls:
                if server.takes_calls:
                    most = others + (server.last_result.queued_rows if server.last_result else 0)
                    assert under_way <= most
            else:
                assert chosen.is_awaited or not server.is_awaited
