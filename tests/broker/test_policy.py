"""The batching policy on facts alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from batchyard.broker.policy import (
    NEVER,
    batch_size,
    bucketed_length,
    choose_worker,
    padded_rows,
    ripe_at,
    rows_in_time,
    slack,
    urgency,
)


@dataclass
class Lane:
    """Rows that have the same deadline, if any; a batch takes ``seconds[padded size]``."""

    queued_rows: int = 1
    max_rows: int = 4
    first_rows: int = 1
    oldest_arrival: float = 10.0
    earliest_deadline: float = NEVER
    priority: int = 0
    batch_timeout_s: float = 2.0
    shed_at: float = -NEVER
    # Of one row, and of each more.
    cost: tuple[float, float] | None = None
    handing_s: float = 0.0
    dues: list[float] = field(default_factory=list)

    @property
    def sizes(self) -> list[int]:
        return [size for size in (1, 2, 4, 8, 16) if size <= self.max_rows]

    @property
    def earliest_due(self) -> float:
        return min(self.earliest_deadline, self.oldest_arrival + 1)

    def longest(self, rows: int) -> float | None:
        return None if self.cost is None else self.cost[0] + self.cost[1] * rows

    def rows_due_after(self, when: float, enough: int) -> int:
        return sum(due >= when for due in self.dues)


def timed(*dues: float, max_rows: int = 4, cost: tuple[float, float] = (0.0, 1.0)) -> Lane:
    """A lane of rows with these deadlines."""
    return Lane(len(dues), max_rows, earliest_deadline=min(dues), cost=cost, dues=sorted(dues))


@dataclass(eq=False)
class Worker:
    free_at: float = NEVER
    running_s: float = 0.0


@dataclass
class Room:
    idle: list[Worker] = field(default_factory=list)
    unknown: list[Worker] = field(default_factory=list)
    busy: list[Worker] = field(default_factory=list)


@pytest.mark.parametrize("queued_rows", [4, 5])
def test_a_full_batch_is_ripe_at_any_time(queued_rows: int) -> None:
    assert ripe_at(Lane(queued_rows=queued_rows)) == -NEVER


def test_a_batch_is_ripe_when_its_oldest_row_has_waited_the_timeout() -> None:
    assert ripe_at(Lane(queued_rows=3)) == 12.0
    assert ripe_at(Lane(batch_timeout_s=0.0)) == 10.0


def test_where_no_time_is_known_a_batch_is_ripe_after_half_of_what_a_deadline_leaves() -> None:
    assert ripe_at(Lane(earliest_deadline=11.0)) == 10.5
    assert ripe_at(Lane(earliest_deadline=15.0)) == 12.0


def test_a_batch_is_ripe_when_one_row_more_would_make_it_late() -> None:
    cost = (0.1, 0.01)
    assert ripe_at(Lane(2, earliest_deadline=11.0, cost=cost)) == 11.0 - 0.13 - 0.1
    assert ripe_at(Lane(2, earliest_deadline=15.0, cost=cost)) == 12.0


def test_priority_goes_first_then_who_is_no_hog_then_the_latest_start_then_arrival() -> None:
    lanes = [
        (Lane(priority=1, oldest_arrival=13.0), True),
        (Lane(earliest_deadline=10.5, oldest_arrival=10.0), False),
        # It takes longer.
        (Lane(earliest_deadline=10.9, cost=(0.2, 0.0), oldest_arrival=10.0), False),
        (Lane(earliest_deadline=10.8, oldest_arrival=10.0), False),
        # Due a second after they came.
        (Lane(oldest_arrival=10.0), False),
        (Lane(oldest_arrival=11.0), False),
        (Lane(oldest_arrival=9.0), True),
        (Lane(priority=-1, earliest_deadline=10.1), False),
    ]
    backwards = lanes[::-1]
    assert sorted(backwards, key=lambda pair: urgency(*pair)) == lanes


def test_an_idle_worker_takes_any_batch() -> None:
    worker = Worker()
    assert choose_worker(Lane(), Room([worker], [Worker()], [Worker(0.0)]), 10.0) == (worker, 10.0)
    assert choose_worker(Lane(), Room(), 10.0) == (None, NEVER)


def test_a_worker_of_which_nothing_is_known_takes_a_full_batch_ahead() -> None:
    room = Room(unknown=[Worker()])
    assert choose_worker(Lane(queued_rows=4), room, 10.0) == (room.unknown[0], 10.0)
    assert choose_worker(Lane(queued_rows=3), room, 10.0) == (None, NEVER)


def test_a_busy_worker_takes_a_batch_just_before_it_is_free() -> None:
    worker = Worker(11.0, 0.01)
    room = Room(busy=[worker])
    # So that the worker need not wait, and the batch can grow.
    assert choose_worker(Lane(), room, 10.0) == (worker, 11.0 - 0.0005)
    assert choose_worker(Lane(queued_rows=4), room, 10.0) == (worker, 11.0 - 0.002)
    # So much as to make it ready meanwhile.
    assert choose_worker(Lane(4, cost=(0.4, 0.0)), room, 10.0) == (worker, 11.0 - 0.1)
    # What comes before it runs, as a transfer to a card, has to fit into the time before.
    lane = Lane(4, cost=(0.4, 0.0), handing_s=0.2)
    assert choose_worker(lane, room, 10.0) == (worker, 11.0 - 0.2)
    assert choose_worker(Lane(), room, 10.9999) == (worker, 10.9999)


def test_a_worker_that_a_more_urgent_lane_waits_for_is_not_taken() -> None:
    first, second = Worker(11.0), Worker(12.0)
    room = Room(busy=[first, second])
    assert choose_worker(Lane(4), room, 11.0, {first}) == (second, 12.0 - 0.002)
    assert choose_worker(Lane(4), room, 11.0, {first, second}) == (None, NEVER)


def test_nobody_waits_behind_a_batch_that_takes_too_long() -> None:
    late, other = Worker(9.0, 0.5), Worker(11.0, 0.5)
    assert choose_worker(Lane(4), Room(busy=[late, other]), 9.4).worker is late
    assert choose_worker(Lane(4), Room(busy=[late, other]), 9.6) == (other, 11.0 - 0.002)
    # What can still grow does not even wait behind one that takes a little longer.
    assert choose_worker(Lane(), Room(busy=[late, other]), 9.1) == (other, 11.0 - 0.001)


def test_a_batch_has_all_that_can_be_in_time() -> None:
    lane = timed(14.0, 14.0, 14.0)
    assert batch_size(lane, 10.0, lane.longest) == (3, -NEVER)
    # Nothing is known, or nothing is due.
    assert batch_size(lane, 10.0, lambda _: None) == (3, -NEVER)
    assert batch_size(Lane(9), 10.0, lambda rows: 100.0) == (4, -NEVER)


def test_without_a_backlog_a_batch_shrinks_rather_than_drops() -> None:
    lane = timed(12.5, 13.5, 20.0)
    assert batch_size(lane, 10.0, lane.longest) == (2, -NEVER)


def test_what_would_be_late_is_dropped_when_shrinking_does_not_serve_the_others() -> None:
    # A flat cost: a smaller batch is no faster.
    lane = timed(11.0, 13.0, 13.0, cost=(2.0, 0.0))
    assert batch_size(lane, 10.0, lane.longest) == (2, 12.0)


def test_in_a_backlog_what_would_be_late_makes_room_for_what_is_behind() -> None:
    lane = timed(11.0, 11.0, 20.0, 20.0, 20.0, 20.0, 20.0, cost=(2.0, 0.0))
    assert batch_size(lane, 10.0, lane.longest) == (4, 12.0 + slack(2.0))


def test_a_batch_has_the_size_that_serves_most_rows_in_time_per_second() -> None:
    # Of the largest none would be in time.
    lane = timed(*[12.9] * 30, max_rows=16, cost=(2.0, 0.1))
    assert batch_size(lane, 10.0, lane.longest) == (8, 12.8 + slack(2.8))
    # Two are in time at the largest size, many more at a smaller.
    lane = timed(*[12.9] * 30, 19.0, 19.0, max_rows=16, cost=(2.0, 0.1))
    assert batch_size(lane, 10.0, lane.longest).rows == 8


def test_where_some_were_shed_lately_a_batch_does_not_shrink_for_one_row() -> None:
    lane = timed(12.5, 20.0, 20.0)
    lane.shed_at = 9.5
    assert batch_size(lane, 10.0, lane.longest) == (2, 13.0 + slack(3.0))


def test_when_nothing_can_be_in_time_all_is_dropped() -> None:
    lane = timed(10.5, 10.5, cost=(2.0, 0.0))
    assert batch_size(lane, 10.0, lane.longest) == (1, 12.0)


def test_no_size_is_chosen_that_the_first_request_does_not_fit_into() -> None:
    lane = timed(11.5, 20.0, 20.0, 20.0, cost=(0.0, 1.0))
    assert batch_size(lane, 10.0, lane.longest).rows == 1
    lane.first_rows = 4
    assert batch_size(lane, 10.0, lane.longest) == (3, 14.0)


@pytest.mark.parametrize(
    ("starts", "rows"),
    [
        # Idle: until 15 with some spare, four batches of a second.
        ([-NEVER], 16),
        ([10.5], 16),
        ([11.2], 12),
        ([-NEVER, 13.5], 20),
        ([14.9], 0),
    ],
)
def test_how_much_can_be_served_by_a_deadline(starts: list[float], rows: int) -> None:
    lane = Lane(max_rows=4)
    assert rows_in_time(lane, 15.0, 10.0, starts, lambda _: 1.0, 100) == rows
    assert rows_in_time(lane, 15.0, 10.0, starts, lambda _: None, 100) == 100


def test_what_has_no_time_for_a_full_batch_has_it_for_a_smaller() -> None:
    lane = Lane(max_rows=4)
    assert rows_in_time(lane, 13.0, 10.0, [-NEVER], lambda rows: rows * 1.0, 100) == 2


@pytest.mark.parametrize(
    ("rows", "sizes", "padded"),
    [(3, (), 3), (1, (1, 4, 8), 1), (2, (1, 4, 8), 4), (4, (1, 4, 8), 4), (5, (4, 8), 8)],
)
def test_a_batch_is_padded_to_the_next_allowed_size(
    rows: int, sizes: tuple[int, ...], padded: int
) -> None:
    assert padded_rows(rows, sizes) == padded


@pytest.mark.parametrize(
    ("length", "buckets", "bucketed"),
    [(3, (), 3), (3, (4, 8), 4), (4, (4, 8), 4), (5, (4, 8), 8), (9, (4, 8), 9), (0, (4,), 4)],
)
def test_a_length_goes_up_to_its_bucket_or_stays_beyond_the_last(
    length: int, buckets: tuple[int, ...], bucketed: int
) -> None:
    assert bucketed_length(length, buckets) == bucketed
