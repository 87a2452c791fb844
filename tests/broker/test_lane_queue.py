"""In which order a lane's queue gives what waits: near deadlines first, the others as they came."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.broker_builders import make_group, make_lane, make_model, make_report
from support.virtual_broker import VirtualBroker

from batchyard.broker.lane import Lane
from batchyard.broker.lane_queue import NEAR_S, PATIENCE_S
from batchyard.broker.policy import NEVER
from batchyard.broker.queue import Part, RequestGroup

BATCH_S = 0.02
# What the REST gateway gives requests that name none.
REST_S = 30.0


def filled(lane: Lane, *groups: RequestGroup) -> Lane:
    for group in groups:
        lane.append(group)
    return lane


def deadlines(parts: list[Part]) -> list[float]:
    return [part.earliest_deadline for part in parts]


# Far deadlines


def test_a_far_deadline_goes_by_its_arrival_like_none() -> None:
    lane = make_lane(max_rows=1)
    groups = [
        make_group(lane, 1, deadline=deadline, arrived_at=i / 10)
        for i, deadline in enumerate((30.0, NEVER, 20.0, NEVER, NEVER, 10.0))
    ]
    filled(lane, *groups)
    assert [part.group for part in lane.parts] == groups
    assert [lane.take(1)[0].group for _ in groups] == groups
    assert (lane.queued_rows, lane.earliest_deadline) == (0, NEVER)


def test_a_near_deadline_goes_before_what_came_earlier() -> None:
    lane = make_lane(max_rows=4)
    filled(lane, make_group(lane, 1), make_group(lane, 1, deadline=30.0))
    filled(lane, *(make_group(lane, 1, deadline=0.1 + at, arrived_at=at) for at in (0.2, 0.1)))
    assert deadlines(lane.take(3)) == [0.2, pytest.approx(0.3), 30.0]


def test_a_deadline_that_has_come_near_counts() -> None:
    lane = make_lane(max_rows=1)
    filled(lane, make_group(lane, 1), make_group(lane, 1, 1, deadline=9.0, arrived_at=0.1))
    assert (lane.earliest_deadline, lane.rows_before(9.5), lane.rows_due_after(9.5, 9)) == (
        9.0,
        3,
        1,
    )
    lane.bring_forward(9.0 - NEAR_S)
    assert deadlines(lane.take(1)) == [9.0]
    # What comes back keeps its place.
    lane.give_back(lane.take(1))
    assert deadlines(lane.parts) == [9.0, NEVER]


def test_what_all_that_waits_takes_makes_deadlines_near() -> None:
    b = learned_broker(max_enqueued_batches=10_000)
    lane = b.ask(1, timeout_s=REST_S).lane
    assert lane.near_s() == NEAR_S
    b.ask(*[1] * 4000)
    # 1,000 batches of 20 ms, twice.
    assert 35 < lane.near_s() < 45
    second = b.start_worker()
    assert 18 < lane.near_s() < 25
    b.retire(second)


def test_a_far_deadline_that_passes_all_the_same_is_found() -> None:
    lane = make_lane(max_rows=4)
    filled(lane, make_group(lane, 1, 1, 1, deadlines=[5.0, 9.0, 7.0]), make_group(lane, 1))
    assert sum(part.rows for part in lane.expire(7.5)) == 2
    assert (lane.queued_rows, lane.earliest_deadline) == (2, 9.0)


def test_what_is_dropped_leaves_also_with_a_far_deadline() -> None:
    lane = make_lane(max_rows=4)
    first, second = (make_group(lane, 1, 1, deadline=d) for d in (30.0, 40.0))
    second.arrived_at = 0.2
    filled(lane, first, make_group(lane, 1, arrived_at=0.1), second)
    first.mark_dropped([0, 1])
    assert len(lane.remove_dropped()) == 1
    lane.take_out(Part(second, 0, 1, 0, 1))
    assert deadlines(lane.parts) == [NEVER, 40.0]
    assert lane.queued_rows == 2


# Under overload


def learned_broker(**parameters: int) -> VirtualBroker:
    """One worker that takes 20 ms for a batch of up to four rows, which the broker knows."""
    b = VirtualBroker(make_model(max_batch_size=4, **parameters))
    b.start_worker(make_report())
    for rows in (1, 1, 1, 4, 4, 4):
        b.ask(*[1] * rows)
        batch = b.tick_one()
        b.now += BATCH_S
        b.finish(batch)
    return b


def served(callers: dict[float | None, int], batches: int) -> Counter[float | None]:
    """Answers by timeout, of callers that ask again once they have theirs."""
    b = learned_broker()
    counts: Counter[float | None] = Counter()
    waiting = {b.ask(1, timeout_s=t): t for t, n in callers.items() for _ in range(n)}
    for _ in range(batches):
        batch = b.tick_one()
        b.now += BATCH_S
        b.finish(batch)
        for group in [part.group for part in batch.parts]:
            timeout_s = waiting.pop(group)
            counts[timeout_s] += 1
            waiting[b.ask(1, timeout_s=timeout_s)] = timeout_s
    return counts


def test_the_default_deadline_of_rest_is_no_advantage() -> None:
    counts = served({REST_S: 20, None: 20}, 100)
    assert counts.total() == 400
    assert abs(counts[REST_S] - counts[None]) <= 8


def test_who_asks_more_gets_more_with_a_far_deadline_or_none() -> None:
    counts = served({REST_S: 10, 5.0: 10, None: 20}, 100)
    assert counts[5.0] == pytest.approx(counts[REST_S], abs=8)
    assert counts[None] == pytest.approx(2 * counts[REST_S], abs=12)


def test_near_deadlines_are_met_whatever_waits_beside() -> None:
    counts = served({0.05: 3, REST_S: 20, None: 20}, 60)
    # One of each batch waits for the next: before anything waits for a second, all others do.
    assert counts[0.05] >= 3 * 59


# Any order of operations

arrivals = st.tuples(
    st.just("append"),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.lists(st.sampled_from([0.3, 0.9, 1.5, 5.0, 30.0, NEVER]), min_size=3, max_size=3),
)
operations = st.lists(
    st.one_of(
        arrivals,
        arrivals,
        st.tuples(st.just("take"), st.integers(1, 4), st.booleans()),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 0.5, 2.0, 8.0]), st.none()),
        st.tuples(st.just("drop"), st.integers(0, 9), st.sets(st.integers(0, 2))),
        st.tuples(st.just("expire"), st.none(), st.none()),
    ),
    max_size=30,
)


@given(operations)
def test_order_and_counts_hold(operations: list[tuple[str, object, object]]) -> None:
    lane = make_lane(max_rows=4)
    groups: list[RequestGroup] = []
    rows = 0
    now = 0.0
    for name, value, more in operations:
        if name == "append":
            assert isinstance(value, list)
            assert isinstance(more, list)
            due = [now + after for after in more[: len(value)]]
            groups.append(make_group(lane, *value, deadlines=due, arrived_at=now))
            lane.append(groups[-1])
            rows += sum(value)
        elif name == "take":
            assert isinstance(value, int)
            lane.bring_forward(now)
            urgent, is_patient = near_groups(lane, now), has_patient(lane, now)
            taken = lane.take(value, now)
            assert sum(part.rows for part in taken) <= value
            if near_groups(lane, now) and not is_patient:
                # Nothing near is left behind by what is not.
                assert {part.group for part in taken} <= urgent
            if more:
                lane.give_back(taken)
            else:
                rows -= sum(part.rows for part in taken)
        elif name == "wait":
            assert isinstance(value, float)
            now += value
        elif name == "drop" and groups:
            assert isinstance(value, int)
            assert isinstance(more, set)
            groups[value % len(groups)].mark_dropped(more)
            rows -= sum(part.rows for part in lane.remove_dropped())
        elif name == "expire":
            late = lane.expire(now)
            assert all(deadline <= now for deadline in deadlines(late))
            rows -= sum(part.rows for part in late)
            assert all(deadline > now for deadline in deadlines(lane.parts))
        check(lane, rows)


def check(lane: Lane, rows: int) -> None:
    """What the lane says of itself is so."""
    assert lane.queued_rows == sum(part.rows for part in lane.parts) == rows
    assert lane._far_rows == sum(part.rows for part in lane._far)
    assert lane._untimed_rows == sum(part.rows for part in lane._untimed)
    assert deadlines(lane._near) == sorted(deadlines(lane._near))
    assert lane._far_deadline <= min(deadlines([*lane._far]), default=NEVER)
    assert lane.earliest_deadline <= min(deadlines(lane.parts), default=NEVER)
    arrived = [part.group.arrived_at for part in lane.parts]
    assert lane.oldest_arrival == min(arrived, default=NEVER)
    far = [part.group.arrived_at for part in lane._far]
    assert far == sorted(far)


def near_groups(lane: Lane, now: float) -> set[RequestGroup]:
    return {part.group for part in lane.parts if part.earliest_deadline <= now + NEAR_S}


def has_patient(lane: Lane, now: float) -> bool:
    """Whether what goes by its arrival may have a quarter of each batch."""
    return any(now - part.group.arrived_at >= PATIENCE_S for part in lane._untimed)


single_rows = st.lists(
    st.tuples(st.sampled_from([0.2, 0.6, 0.9]), st.integers(0, 1)), min_size=1, max_size=20
)


@given(single_rows, st.integers(1, 8))
def test_far_deadlines_take_nothing_from_near_ones(
    asked: list[tuple[float, int]], far: int
) -> None:
    """What is near leaves in the same batches whether others with a far deadline wait or not."""

    def left(far: int) -> list[list[int]]:
        lane = make_lane(max_rows=4)
        near: dict[RequestGroup, int] = {}
        batches = []
        for i, (timeout_s, batches_now) in enumerate(asked):
            now = i * 0.1
            group = make_group(lane, 1, deadline=now + timeout_s, arrived_at=now)
            near[group] = i
            others = (make_group(lane, 1, deadline=1e6, arrived_at=now) for _ in range(far))
            filled(lane, group, *others)
            for _ in range(batches_now):
                lane.bring_forward(now)
                taken = [part.group for part in lane.take(2, now)]
                batches.append([near[group] for group in taken if group in near])
        return batches

    assert left(far) == left(0)
