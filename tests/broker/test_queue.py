"""Groups, parts and lanes: rows leave once, in order, and requests stay whole."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from support.broker_builders import make_group, make_lane, make_signature

from batchyard.broker.lane import Lane
from batchyard.broker.policy import NEVER
from batchyard.broker.queue import Part, RequestGroup

Run = tuple[int, int, int, int]


def run_of(part: Part) -> Run:
    return part.first, part.count, part.row_start, part.rows


def runs(parts: list[Part]) -> list[Run]:
    """``(first, count, row_start, rows)`` of each part."""
    return [run_of(part) for part in parts]


def filled(lane: Lane, *groups: RequestGroup) -> Lane:
    for group in groups:
        lane.append(group)
    return lane


# RequestGroup


def test_a_group_is_one_part_when_every_request_fits_into_a_batch() -> None:
    lane = make_lane(max_rows=4)
    assert runs(make_group(lane, 1, 1, 1, 1, 1, 1).parts(4)) == [(0, 6, 0, 6)]
    assert runs(make_group(lane, 2, 4, 1).parts(4)) == [(0, 3, 0, 7)]


def test_a_request_larger_than_a_batch_is_a_part_of_its_own() -> None:
    group = make_group(make_lane(), 1, 2, 9, 5, 3)
    assert runs(group.parts(4)) == [(0, 2, 0, 3), (2, 1, 3, 9), (3, 1, 12, 5), (4, 1, 17, 3)]
    assert {request: split.rows_left for request, split in group.split.items()} == {2: 9, 3: 5}
    alone = make_group(make_lane(), 5)
    assert runs(alone.parts(4)) == [(0, 1, 0, 5)]
    assert set(alone.split) == {0}


def test_rows_start_where_the_requests_before_end() -> None:
    lane = make_lane()
    assert [make_group(lane, 2, 3, 1).row_start(i) for i in range(4)] == [0, 2, 5, 6]
    assert [make_group(lane, 1, 1).row_start(i) for i in range(3)] == [0, 1, 2]


# Part


def test_a_part_gives_as_many_whole_requests_as_fit() -> None:
    (part,) = make_group(make_lane(), 2, 3, 1, 4).parts(4)
    taken = part.take(5)
    assert taken is not None
    assert (run_of(taken), run_of(part)) == ((0, 2, 0, 5), (2, 2, 5, 5))
    assert part.take(0) is None
    taken = part.take(4)
    assert taken is not None
    assert (run_of(taken), run_of(part)) == ((2, 1, 5, 1), (3, 1, 6, 4))
    assert part.take(3) is None
    assert run_of(part) == (3, 1, 6, 4)


def test_a_large_request_gives_any_number_of_its_rows() -> None:
    _, part = make_group(make_lane(), 1, 9).parts(4)
    taken = part.take(4)
    assert taken is not None
    assert (run_of(taken), run_of(part)) == ((1, 1, 1, 4), (1, 1, 5, 5))


def test_a_part_is_divided_into_runs_of_wanted_and_unwanted_requests() -> None:
    (part,) = make_group(make_lane(), 1, 2, 1, 3, 1).parts(4)
    stay, go = part.divide({1, 2, 4})
    assert (runs(stay), runs(go)) == ([(0, 1, 0, 1), (3, 1, 4, 3)], [(1, 2, 1, 3), (4, 1, 7, 1)])
    assert runs(part.divide(range(9))[1]) == [(0, 5, 0, 8)]
    assert runs(part.divide({7})[0]) == [(0, 5, 0, 8)]


def test_a_piece_of_a_large_request_is_never_divided() -> None:
    (part,) = make_group(make_lane(), 9).parts(4)
    piece = part.take(4)
    assert piece is not None
    assert piece.divide({0}) == ([], [piece])
    assert piece.divide({1}) == ([piece], [])


# Lane


def test_a_lane_bounds_what_waits_by_batches() -> None:
    assert make_lane(max_rows=4, max_enqueued_batches=3).max_queued_rows == 12
    single = make_lane(max_rows=4, signature=make_signature((), ()), max_enqueued_batches=3)
    assert single.max_queued_rows == 3


def test_a_lane_gives_a_batch_from_the_front_across_groups() -> None:
    lane = make_lane(max_rows=4)
    first, second = make_group(lane, 1, 2), make_group(lane, 1, 1, 1, arrived_at=1.0)
    filled(lane, first, second)
    taken = lane.take(4)
    assert [part.group for part in taken] == [first, second]
    assert runs(taken) == [(0, 2, 0, 3), (0, 1, 0, 1)]
    assert (lane.queued_rows, lane.oldest_arrival) == (2, 1.0)
    assert runs(lane.take(4)) == [(1, 2, 1, 2)]
    assert (lane.queued_rows, list(lane.parts)) == (0, [])
    assert lane.take(4) == []


def test_a_request_that_does_not_fit_any_more_waits_and_nothing_passes_it() -> None:
    lane = filled(make_lane(max_rows=4), *(make_group(make_lane(), n) for n in (2, 3, 1)))
    assert [part.rows for part in lane.take(4)] == [2]
    assert [part.rows for part in lane.take(4)] == [3, 1]


def test_a_large_request_fills_what_is_left_of_each_batch() -> None:
    lane = make_lane(max_rows=4)
    filled(lane, make_group(lane, 3), make_group(lane, 10), make_group(lane, 1))
    batches = []
    while taken := lane.take(4):
        batches.append(runs(taken))
    assert batches == [
        [(0, 1, 0, 3), (0, 1, 0, 1)],
        [(0, 1, 1, 4)],
        [(0, 1, 5, 4)],
        [(0, 1, 9, 1), (0, 1, 0, 1)],
    ]


def test_parts_given_back_are_taken_again_in_their_order() -> None:
    lane = make_lane(max_rows=4)
    filled(lane, make_group(lane, 3, 3), make_group(lane, 9), make_group(lane, 1))
    order = [(id(part.group), row) for part in lane.parts for row in rows_of(part)]
    lane.give_back(lane.take(4))
    lane.give_back(lane.take(2))
    assert lane.queued_rows == 16
    assert [(id(part.group), row) for part in lane.parts for row in rows_of(part)] == order


def test_removed_requests_leave_wherever_they_are() -> None:
    lane = make_lane(max_rows=4)
    other, group = make_group(lane, 1, 1), make_group(lane, 1, 9, 1, 2, deadline=5.0)
    filled(lane, other, group)
    assert runs(lane.take(1)) == [(0, 1, 0, 1)]
    group.mark_dropped({1, 3})
    assert runs(lane.remove_dropped()) == [(1, 1, 1, 9), (3, 1, 11, 2)]
    assert (lane.queued_rows, lane.earliest_deadline) == (3, 5.0)
    assert runs(list(lane.parts)) == [(2, 1, 10, 1), (0, 2, 0, 2)]
    assert lane.remove_dropped() == []
    group.mark_dropped(range(4))
    lane.remove_dropped()
    assert (lane.queued_rows, lane.earliest_deadline) == (2, NEVER)


def test_requests_past_their_deadline_are_taken_out_one_by_one() -> None:
    lane = make_lane()
    all_late = make_group(lane, 1, 1, deadline=1.0)
    some_late = make_group(lane, 1, 1, 1, deadlines=[1.0, 3.0, 0.5])
    never = make_group(lane, 1, 1)
    filled(lane, all_late, some_late, never)
    assert lane.earliest_deadline == 0.5
    assert lane.expire(0.4) == []
    expired = lane.expire(1.0)
    assert [(part.group, *run_of(part)[:2]) for part in expired] == [
        (some_late, 0, 1),
        (some_late, 2, 1),
        (all_late, 0, 2),
    ]
    assert (lane.queued_rows, lane.earliest_deadline) == (3, 3.0)
    assert runs(lane.expire(3.0)) == [(1, 1, 1, 1)]
    assert (lane.queued_rows, lane.earliest_deadline) == (2, NEVER)


def test_the_earliest_deadline_goes_first_and_what_has_none_takes_the_room_that_is_left() -> None:
    lane = make_lane(max_rows=4)
    never, late = make_group(lane, 1, 1, 1), make_group(lane, 1, 1, deadline=0.9)
    early, same = make_group(lane, 1, deadline=0.5), make_group(lane, 1, deadline=0.9)
    filled(lane, never, late, early, same)
    assert lane.earliest_deadline == 0.5
    assert [part.group for part in lane.take(3)] == [early, late]
    assert [(part.group, part.rows) for part in lane.take(3)] == [(same, 1), (never, 2)]


def test_what_has_no_deadline_gets_a_quarter_of_each_batch_when_it_has_waited() -> None:
    lane = make_lane(max_rows=8)
    timed = make_group(lane, *[1] * 20, deadline=2.0, arrived_at=1.0)
    filled(lane, make_group(lane, *[1] * 8, arrived_at=0.2), timed)
    assert [part.rows for part in lane.take(8, 1.1)] == [8]
    assert [part.rows for part in lane.take(8, 1.5)] == [6, 2]
    assert [part.rows for part in lane.take(8, 1.5)] == [6, 2]
    assert [part.rows for part in lane.take(8, 1.5)] == [4]


def test_how_much_goes_before_a_deadline() -> None:
    lane = make_lane(max_rows=8)
    filled(lane, *(make_group(lane, 1, 1, deadline=i / 10) for i in (2, 4, 6, 8)))
    assert [lane.rows_before(deadline) for deadline in (0.1, 0.2, 0.5, 0.8, 0.9)] == [0, 2, 4, 8, 8]
    assert [lane.rows_due_after(when, 100) for when in (0.1, 0.2, 0.25, 0.9)] == [8, 8, 6, 0]
    assert lane.rows_due_after(0.1, 3) in (3, 4)


def test_the_oldest_arrival_is_known_whatever_goes_first() -> None:
    lane = make_lane(max_rows=8)
    lax = make_group(lane, 1, deadline=1.0, arrived_at=0.1)
    tight = make_group(lane, 1, deadline=0.5, arrived_at=0.2)
    never = make_group(lane, 1, arrived_at=0.3)
    filled(lane, lax, tight, never)
    assert lane.oldest_arrival == 0.1
    taken = lane.take(1)
    assert lane.oldest_arrival == 0.1
    lane.take(1)
    assert lane.oldest_arrival == 0.3
    lane.give_back(taken)
    assert lane.oldest_arrival == 0.2


def test_a_lane_that_was_emptied_has_no_deadline() -> None:
    lane = make_lane()
    filled(lane, make_group(lane, 1, deadline=1.0)).take(4)
    assert lane.earliest_deadline == NEVER


def test_what_still_waits_has_its_own_deadline_not_that_of_what_was_taken() -> None:
    lane = make_lane(max_rows=1)
    filled(lane, make_group(lane, 1, deadline=1.0), make_group(lane, 1, deadline=9.0))
    lane.take(1)
    assert lane.earliest_deadline == 9.0


def test_what_still_waits_of_a_group_has_its_own_deadline() -> None:
    lane = make_lane(max_rows=1)
    filled(lane, make_group(lane, 1, 1, deadlines=[1.0, 9.0]))
    lane.take(1)
    lane.expire(2.0)
    assert lane.earliest_deadline == 9.0


# Any order of operations


def rows_of(part: Part) -> range:
    return range(part.row_start, part.row_start + part.rows)


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)
operations = st.one_of(
    st.tuples(st.just("append"), sizes, st.lists(st.integers(1, 20), min_size=4, max_size=4)),
    st.tuples(st.just("take"), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("remove"), st.integers(0, 9), st.sets(st.integers(0, 3))),
    st.tuples(st.just("expire"), st.integers(0, 20), st.none()),
)


@given(st.lists(operations, max_size=30))
def test_every_row_leaves_once_in_order_and_requests_stay_whole(
    operations: list[tuple[str, int | list[int], object]],
) -> None:
    lane = make_lane(max_rows=4)
    groups: list[RequestGroup] = []
    gone: Counter[tuple[int, int]] = Counter()

    def leave(parts: list[Part]) -> None:
        for part in parts:
            gone.update((groups.index(part.group), row) for row in rows_of(part))
            if part.first not in part.group.split:
                start, stop = part.first, part.first + part.count
                assert part.row_start == part.group.row_start(start)
                assert part.row_start + part.rows == part.group.row_start(stop)

    for name, value, more in operations:
        if name == "append":
            assert isinstance(value, list)
            assert isinstance(more, list)
            deadlines = [float(deadline) for deadline in more[: len(value)]]
            groups.append(make_group(lane, *value, deadlines=deadlines))
            lane.append(groups[-1])
        elif name == "take":
            assert isinstance(value, int)
            taken = lane.take(value)
            assert sum(part.rows for part in taken) <= value
            if more and taken:
                lane.give_back(taken)
                continue
            leave(taken)
        elif name == "remove" and groups:
            assert isinstance(value, int)
            assert isinstance(more, set)
            groups[value % len(groups)].mark_dropped(more)
            leave(lane.remove_dropped())
        elif name == "expire":
            assert isinstance(value, int)
            leave(lane.expire(value))
        waiting = Counter(
            (groups.index(part.group), row) for part in lane.parts for row in rows_of(part)
        )
        assert lane.queued_rows == waiting.total()
        everything = [(i, row) for i, group in enumerate(groups) for row in range(group.total_rows)]
        assert waiting + gone == Counter(everything)


def test_what_is_left_of_a_part_without_its_deadline_is_not_lost() -> None:
    lane = make_lane(max_rows=4)
    group = make_group(lane, 2, 1, 9, deadlines=[NEVER, 5.0, NEVER])
    filled(lane, group)
    group.mark_dropped([1, 2])
    assert len(lane.remove_dropped()) == 2
    assert runs(lane.take(4)) == [(0, 1, 0, 2)]
    assert lane.queued_rows == 0


# What has no deadline, once it has waited for long


def urgent(lane: Lane, *rows: int) -> RequestGroup:
    return make_group(lane, *rows, deadline=3.0, arrived_at=2.0)


def taken_rows(lane: Lane, without: RequestGroup, batches: int, size: int = 8) -> list[int]:
    """Rows of a group in each of so many batches."""
    taken = (lane.take(size, now=2.0) for _ in range(batches))
    return [sum(p.rows for p in parts if p.group is without) for parts in taken]


def test_it_gets_a_quarter_of_each_batch() -> None:
    lane = make_lane(max_rows=8)
    patient = make_group(lane, *[1] * 99)
    filled(lane, patient, urgent(lane, *[1] * 99))
    assert taken_rows(lane, patient, 4) == [2, 2, 2, 2]


def test_requests_that_do_not_fit_into_a_quarter_get_it_later() -> None:
    lane = make_lane(max_rows=8)
    patient = make_group(lane, *[5] * 9)
    filled(lane, patient, urgent(lane, *[1] * 99))
    assert taken_rows(lane, patient, 8) == [0, 0, 5, 0, 5, 0, 0, 5]
    # Also where batches are smaller than they are.
    assert sum(taken_rows(lane, patient, 10, size=4)) == 10


def test_it_does_not_keep_out_a_request_that_needs_the_whole_batch() -> None:
    lane = make_lane(max_rows=8)
    patient = make_group(lane, *[1] * 99)
    filled(lane, patient, urgent(lane, *[8] * 9))
    assert taken_rows(lane, patient, 8) == [0, 0, 0, 8, 0, 0, 0, 8]
