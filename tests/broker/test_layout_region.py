"""Rows that lie in clients' regions: read in place where they can be, else copied by the worker."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.broker_builders import make_report, make_signature
from support.virtual_arena import VirtualArena, floats, make_region, output, put_rows

from batchyard.broker.events import Batch
from batchyard.broker.replies import replies
from batchyard.wire import dtypes
from batchyard.wire.work import ARENA

# Rows of 8 bytes.
FLOATS = make_signature((("x", "float32", (None, 2)),), (("y", "float32", (None,)),))
PAIR = make_signature(
    (("x", "float32", (None, 2)), ("i", "int32", (None,)), ("s", "string", (None,))),
    (("y", "float32", (None,)),),
)
TOKENS = make_signature((("x", "int32", (None, None)),))
LENGTHS = make_signature((("x", "float32", (None, None)),))
WHOLE = make_signature((("x", "float32", (3, 2)),), (("y", "float32", (3,)),))
ROW = 8


def in_place(batch: Batch) -> list[bool]:
    return [slot.region is not None for slot in batch.layout.inputs]


def test_one_request_that_fills_its_batch_is_copied_by_nobody() -> None:
    arena, region = VirtualArena(FLOATS), make_region()
    arena.send(floats(1, 2, 3, 4), rows=[4], region=region, offsets=[[640]])
    batch = arena.tick_one()
    assert in_place(batch) == [True]
    # No room is taken in the arena, but for outputs.
    assert batch.layout.output_offset == 0
    gathered = arena.lay_out(batch)
    assert gathered.copies == []
    assert gathered.inputs == [("x", "float32", (4, 2), region.id, 640, 4 * ROW)]
    assert arena.gather(batch)[0].tolist() == floats(1, 2, 3, 4).tolist()


def test_requests_of_one_and_of_several_messages_may_make_one_run() -> None:
    arena, region = VirtualArena(FLOATS), make_region()
    arena.send(floats(1, 2), region=region, offsets=[[0, ROW]])
    arena.send(floats(3, 4), rows=[2], region=region, offsets=[[2 * ROW]])
    batch = arena.tick_one()
    assert len(batch.parts) == 2
    assert in_place(batch) == [True]
    assert arena.gather(batch)[0].tolist() == floats(1, 2, 3, 4).tolist()


@pytest.mark.parametrize(
    "offsets",
    [[0, 2 * ROW], [ROW, 0], [0, 0], [64, 64 + ROW + 1], [4, 4 + ROW], [32, 32 + ROW]],
    ids=["gap", "backwards", "twice the same", "odd", "misaligned", "half aligned"],
)
def test_what_does_not_lie_as_it_is_needed_is_copied(offsets: list[int]) -> None:
    arena, region = VirtualArena(FLOATS), make_region()
    rows = floats(1, 2)
    if offsets == [0, 0]:
        rows = floats(1, 1)
    arena.send(rows, region=region, offsets=[offsets])
    batch = arena.tick_one()
    assert in_place(batch) == [False]
    assert batch.layout.output_offset == 64
    assert arena.gather(batch)[0].tolist() == rows.tolist()


def test_neighbours_are_copied_together() -> None:
    arena, region = VirtualArena(FLOATS, max_batch_size=8), make_region()
    arena.send(floats(1, 2, 3, 4), region=region, offsets=[[0, ROW, 800, 800 + ROW]])
    batch = arena.tick_one()
    start = batch.block.offset
    assert arena.lay_out(batch).copies == [
        (region.id, 0, start, 2 * ROW),
        (region.id, 800, start + 2 * ROW, 2 * ROW),
    ]
    assert arena.gather(batch)[0].tolist() == floats(1, 2, 3, 4).tolist()


def test_rows_of_two_clients_are_never_one_run() -> None:
    arena = VirtualArena(FLOATS)
    one, two = make_region(1024, 1), make_region(1024, 2)
    arena.send(floats(1), client=b"1", region=one, offsets=[[0]])
    arena.send(floats(2), client=b"2", region=two, offsets=[[ROW]])
    batch = arena.tick_one()
    assert in_place(batch) == [False]
    start = batch.block.offset
    assert arena.lay_out(batch).copies == [(1, 0, start, ROW), (2, ROW, start + ROW, ROW)]
    assert arena.gather(batch)[0].tolist() == floats(1, 2).tolist()


def test_rows_in_a_frame_are_never_part_of_a_run() -> None:
    arena, region = VirtualArena(FLOATS), make_region()
    arena.send(floats(1), region=region, offsets=[[0]])
    arena.send(floats(2))
    batch = arena.tick_one()
    assert in_place(batch) == [False]
    assert arena.gather(batch)[0].tolist() == floats(1, 2).tolist()


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_with_padding_is_copied_and_padded_with_its_last_row(rows: int) -> None:
    arena, region = VirtualArena(FLOATS, allowed_batch_sizes=(4,)), make_region()
    arena.send(floats(*range(1, rows + 1)), rows=[rows], region=region, offsets=[[64]])
    batch = arena.tick_one()
    assert in_place(batch) == [False]
    expected = floats(*range(1, rows + 1), *[rows] * (4 - rows))
    assert arena.gather(batch)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("last_in_region", [True, False])
def test_frames_and_regions_in_one_batch_with_padding(last_in_region: bool) -> None:
    arena = VirtualArena(FLOATS, max_batch_size=8, allowed_batch_sizes=(8,))
    one, two = make_region(1024, 1), make_region(1024, 2)
    arena.send(floats(1, 2), client=b"1", region=one, offsets=[[800, 0]])
    arena.send(floats(3, 4), client=b"2", rows=[2])
    last: dict[str, Any] = {"region": two, "offsets": [[8]]} if last_in_region else {}
    arena.send(floats(5), client=b"3", **last)
    assert arena.gathered()[0].tolist() == floats(1, 2, 3, 4, 5, 5, 5, 5).tolist()


def test_pieces_of_a_large_request_are_read_in_place_where_aligned() -> None:
    arena, region = VirtualArena(FLOATS, workers=3, max_batch_size=8), make_region()
    rows = floats(*range(20))
    arena.send(rows, rows=[20], region=region, offsets=[[128]])
    batches = arena.tick(1.0)
    assert [in_place(batch) for batch in batches] == [[True]] * 3
    assert [arena.lay_out(b).inputs[0][3:] for b in batches] == [
        (region.id, 128, 64),
        (region.id, 192, 64),
        (region.id, 256, 32),
    ]
    found = [row for batch in batches for row in arena.gather(batch)[0].tolist()]
    assert found == rows.tolist()


def test_pieces_of_a_large_request_that_begin_anywhere_are_copied() -> None:
    arena, region = VirtualArena(FLOATS, workers=3, max_batch_size=3), make_region()
    rows = floats(*range(7))
    arena.send(rows, rows=[7], region=region, offsets=[[0]])
    batches = arena.tick(1.0)
    assert [in_place(batch) for batch in batches] == [[True], [False], [False]]
    found = [row for batch in batches for row in arena.gather(batch)[0].tolist()]
    assert found == rows.tolist()


def test_a_batch_out_of_the_middle_of_a_message() -> None:
    arena, region = VirtualArena(FLOATS, workers=2, max_batch_size=8), make_region()
    offsets = [ROW * i for i in range(12)]
    arena.send(floats(*range(12)), region=region, offsets=[offsets])
    first, second = arena.tick(1.0)
    assert (in_place(first), in_place(second)) == ([True], [True])
    assert arena.gather(first)[0].tolist() == floats(*range(8)).tolist()
    assert arena.gather(second)[0].tolist() == floats(*range(8, 12)).tolist()


@pytest.mark.parametrize("dtype", sorted(set(dtypes.NAMES) - dtypes.NOT_IN_REGIONS))
def test_only_what_no_kernel_checks_is_read_in_place(dtype: str) -> None:
    # An index that was checked could be another when it is used.
    arena, region = VirtualArena(make_signature((("x", dtype, (None, 8)),))), make_region()
    rows: npt.NDArray[Any] = np.arange(16).reshape(2, 8).astype(dtypes.to_numpy(dtype))
    target = [("x", dtype, (None, 8))]
    put_rows(region, [0], rows, [2])
    arena.send(rows, rows=[2], region=region, offsets=[[0]])
    batch = arena.tick_one()
    assert target[0][1] == batch.layout.inputs[0].dtype
    is_index = dtype.startswith(("int", "uint")) and dtype != "uint8"
    assert in_place(batch) == [not is_index]
    assert arena.lay_out(batch).inputs[0][5] == rows.nbytes


def test_inputs_of_a_batch_lie_where_each_may() -> None:
    arena, region = VirtualArena(PAIR), make_region()
    x, i, s = floats(1, 2), np.array([7, 8], np.int32), np.array([b"a", b"bc"], object)
    arena.send(x, i, s, rows=[2], region=region, offsets=[[64], [256], None])
    batch = arena.tick_one()
    assert in_place(batch) == [True, False, False]
    got_x, got_i, got_s = arena.gather(batch)
    assert (got_x.tolist(), got_i.tolist(), got_s.tolist()) == (x.tolist(), [7, 8], [b"a", b"bc"])
    assert [place[3] for place in arena.lay_out(batch).inputs] == [region.id, ARENA, ARENA]


def test_what_is_never_batched() -> None:
    arena, region = VirtualArena(WHOLE, workers=2), make_region()
    for start in (64, 100):
        arena.send(floats(1, 2, 3), region=region, offsets=[[start]])
    aligned, other = arena.tick()
    assert (in_place(aligned), in_place(other)) == ([True], [False])
    assert arena.gather(other)[0].tolist() == floats(1, 2, 3).tolist()
    put_rows(region, [64], floats(1, 2, 3), None)
    assert arena.gather(aligned)[0].tolist() == floats(1, 2, 3).tolist()


def test_rows_without_bytes() -> None:
    arena, region = VirtualArena(TOKENS, allowed_batch_sizes=(4,)), make_region(64)
    arena.send(np.empty((2, 0), np.int32), region=region, offsets=[[64, 0]])
    batch = arena.tick_one()
    assert in_place(batch) == [False]
    assert arena.gather(batch)[0].shape == (4, 0)


# Models that hold on to their inputs


def test_a_stateful_model_sees_copies() -> None:
    arena, region = VirtualArena(FLOATS), make_region()
    arena.lose(0)
    arena.start_worker(make_report(FLOATS, stateful=True))
    arena.send(floats(1, 2), rows=[2], region=region, offsets=[[0]])
    assert in_place(arena.tick_one()) == [False]


def test_a_model_that_kept_an_input_once_sees_copies_from_then_on() -> None:
    arena, region = VirtualArena(FLOATS), make_region()
    arena.send(floats(1, 2), rows=[2], region=region, offsets=[[0]])
    first = arena.tick_one()
    assert in_place(first) == [True]
    arena.finish(first, kept=True)
    arena.release(first)
    arena.send(floats(3, 4), rows=[2], region=region, offsets=[[0]])
    assert in_place(arena.tick_one()) == [False]


# Layouts that are kept for batches of as many rows


def test_a_batch_in_a_region_leaves_no_layout_for_one_of_frames() -> None:
    arena, region = VirtualArena(FLOATS), make_region()
    for kind in ("region", "frames", "region", "apart", "frames", "region"):
        if kind == "frames":
            arena.send(floats(1, 2), rows=[2])
        else:
            offsets = [0, ROW] if kind == "region" else [0, 64]
            arena.send(floats(1, 2), region=region, offsets=[offsets])
        batch = arena.tick_one()
        assert in_place(batch) == [kind == "region"]
        assert arena.gather(batch)[0].tolist() == floats(1, 2).tolist()
        arena.finish(batch)


def test_a_batch_that_takes_no_room_goes_while_the_arena_is_full() -> None:
    arena = VirtualArena(FLOATS, workers=2, arena_nbytes=192, max_batch_size=8)
    region = make_region()
    arena.send(floats(*range(8)))
    arena.tick_one()
    arena.send(floats(*range(8)), rows=[8], region=region, offsets=[[0]])
    assert in_place(arena.tick_one()) == [True]


# Rows of different lengths


def tokens(*rows: list[int]) -> npt.NDArray[Any]:
    return np.array(rows, np.int32)


def test_rows_of_different_lengths_are_padded_out_of_regions_too() -> None:
    arena = VirtualArena(TOKENS, max_batch_size=8, pad_variable_length_inputs=True)
    one, two = make_region(1024, 1), make_region(1024, 2)
    arena.send(
        tokens([1, 2], [3, 4], [5, 6]), rows=[1, 2], client=b"1", region=one, offsets=[[7, 512]]
    )
    arena.send(tokens([7, 8, 9]), client=b"2", region=two, offsets=[[1012]])
    arena.send(tokens([10]), client=b"3")
    batch = arena.tick_one()
    # The broker reads them itself: the worker makes no copies of what the client may change.
    assert arena.lay_out(batch).copies == []
    assert arena.gather(batch)[0].tolist() == [
        [1, 2, 1],
        [3, 4, 3],
        [5, 6, 3],
        [7, 8, 9],
        [10, 10, 10],
    ]


def test_rows_of_one_length_need_no_padding_and_are_read_in_place() -> None:
    arena = VirtualArena(LENGTHS, max_batch_size=8, pad_variable_length_inputs=True)
    region = make_region()
    rows = np.array([[1, 2], [3, 4]], np.float32)
    arena.send(rows, rows=[2], region=region, offsets=[[64]])
    batch = arena.tick_one()
    assert in_place(batch) == [True]
    assert arena.gather(batch)[0].tolist() == rows.tolist()


def test_a_bucket_that_is_longer_is_padded() -> None:
    arena = VirtualArena(
        LENGTHS, max_batch_size=8, pad_variable_length_inputs=True, length_buckets=(4,)
    )
    region = make_region()
    arena.send(np.array([[1, 2]], np.float32), region=region, offsets=[[64]])
    batch = arena.tick_one()
    assert in_place(batch) == [False]
    assert arena.gather(batch)[0].tolist() == [[1, 2, 1, 1]]


def test_a_piece_of_a_large_request_of_variable_length() -> None:
    arena = VirtualArena(TOKENS, workers=2, max_batch_size=2, pad_variable_length_inputs=True)
    region = make_region()
    arena.send(tokens([1, 2], [3, 4], [5, 6]), rows=[3], region=region, offsets=[[4]])
    arena.send(tokens([7, 8, 9]))
    first, second = arena.tick()
    assert arena.gather(first)[0].tolist() == [[1, 2], [3, 4]]
    assert arena.gather(second)[0].tolist() == [[5, 6, 1], [7, 8, 9]]


def test_the_client_may_write_to_its_region_while_the_batch_runs() -> None:
    """What it gets then is its own affair; nobody else's rows change."""
    arena, region = VirtualArena(FLOATS), make_region()
    arena.send(floats(1), client=b"1", region=region, offsets=[[0]])
    arena.send(floats(2), client=b"2")
    batch = arena.tick_one()
    region.memory[:] = bytes(len(region.memory))
    assert arena.gather(batch)[0].tolist() == [[0, 0], [2, -2]]
    deliver = arena.finish(batch)
    assert len(list(replies(deliver, [output("y", np.zeros(2, np.float32))]))) == 2
