"""A PREDICT message becomes a group, or hears what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.broker_builders import (
    NO_INPUTS,
    OPEN,
    make_catalog,
    make_predict,
    make_signature,
    make_target,
)

from batchyard.broker.admission import admit
from batchyard.broker.catalog import Catalog
from batchyard.broker.policy import NEVER
from batchyard.broker.queue import RequestGroup
from batchyard.wire.errors import BatchyardError, InvalidArgument, NotFound, ResourceExhausted
from batchyard.wire.protocol import DIM_MAX
from batchyard.wire.signatures import Shape
from batchyard.wire.tensors import Buffer, encode_strings

Inputs = Sequence[tuple[str, str, Shape]]

PAIR = make_signature(
    (("a", "float32", (None, 2)), ("b", "string", (None,))), (("y", "float32", (None,)),)
)
FIXED = make_signature((("x", "float32", (3, 2)),), (("y", "float32", (3,)),))
NOTHING = make_signature((), (("y", "float32", ()),))
SEQUENCE = make_signature((("x", "float32", (None, None)),))
LINE = make_signature((("x", "float32", (None, 1)),))
A, B = ("a", "float32", (None, 2)), ("b", "string", (None,))


def floats(count: int) -> bytes:
    return np.arange(count, dtype=np.float32).tobytes()


def strings(*items: bytes) -> bytes:
    return encode_strings(items)


def admitted(
    catalog: Catalog,
    inputs: Inputs,
    frames: Sequence[Buffer],
    rows: int | list[int] | None,
    timeouts_us: int | list[int | None] | None = None,
) -> RequestGroup:
    predict = make_predict(make_target(*inputs), rows, timeouts_us, message_id=7)
    return admit(catalog, b"client", None, predict, list(frames), 100.0)


def test_a_message_becomes_a_group_with_its_frames_in_the_signatures_order() -> None:
    frames = [strings(b"one", b"two", b""), floats(6)]
    group = admitted(make_catalog(PAIR), (B, A), frames, [1, 2])
    assert (group.client, group.message_id, group.arrived_at) == (b"client", 7, 100.0)
    assert (group.count, group.total_rows, group.rows) == (2, 3, [1, 2])
    assert group.shapes == [(3, 2), (3,)]
    assert group.sources == frames[::-1]
    assert group.nbytes == sum(map(len, frames))
    assert (group.unanswered, group.queued_rows) == (2, 0)


def test_a_number_of_rows_is_a_number_of_requests() -> None:
    frames = [floats(8), strings(*[b""] * 4)]
    for rows in (4, [1, 1, 1, 1]):
        group = admitted(make_catalog(PAIR), (A, B), frames, rows)
        assert (group.count, group.total_rows, group.rows) == (4, 4, None)


def test_whole_shapes_make_one_request() -> None:
    inputs = (("a", "float32", (3, 2)), ("b", "string", (3,)))
    group = admitted(make_catalog(PAIR), inputs, [floats(6), strings(*[b"s"] * 3)], None)
    assert (group.count, group.total_rows, group.rows) == (1, 3, [3])
    inputs = (("a", "float32", (1, 2)), ("b", "string", (1,)))
    group = admitted(make_catalog(PAIR), inputs, [floats(2), strings(b"s")], None)
    assert (group.count, group.total_rows, group.rows) == (1, 1, None)


def test_ones_that_were_left_out_stay_left_out() -> None:
    assert admitted(make_catalog(LINE), (("x", "float32", (3,)),), [floats(3)], None).shapes == [
        (3,)
    ]


def test_a_request_that_is_never_batched_counts_as_one_row() -> None:
    fixed = admitted(make_catalog(FIXED), (("x", "float32", (3, 2)),), [floats(6)], None)
    assert (fixed.count, fixed.total_rows, fixed.rows, fixed.shapes) == (1, 1, None, [(3, 2)])
    nothing = admit(make_catalog(NOTHING), b"c", None, make_predict(NO_INPUTS, None), [], 0.0)
    assert (nothing.count, nothing.total_rows, nothing.shapes) == (1, 1, [])


def test_an_open_signature_takes_what_comes() -> None:
    inputs = (("q", "bfloat16", (2, 3)), ("p", "string", (2,)))
    group = admitted(make_catalog(OPEN), inputs, [bytes(12), strings(b"a", b"b")], None)
    assert group.shapes == [(2,), (2, 3)]
    assert group.sources[1] == bytes(12)


# Deadlines: from what is left, in microseconds, to the broker's clock


def test_without_a_timeout_there_is_no_deadline() -> None:
    group = admitted(make_catalog(LINE), (("x", "float32", (None,)),), [floats(2)], 2)
    assert (group.earliest_deadline, group.deadlines) == (NEVER, None)


def test_one_timeout_holds_for_all_requests() -> None:
    group = admitted(make_catalog(LINE), (("x", "float32", (None,)),), [floats(2)], 2, 500_000)
    assert (group.earliest_deadline, group.deadlines) == (100.5, None)
    late = admitted(make_catalog(LINE), (("x", "float32", (None,)),), [floats(1)], 1, -1_000_000)
    assert late.earliest_deadline == 99.0


def test_each_request_may_have_its_own_timeout() -> None:
    inputs = (("x", "float32", (None,)),)
    group = admitted(make_catalog(LINE), inputs, [floats(3)], 3, [None, 250_000, 0])
    assert (group.earliest_deadline, group.deadlines) == (100.0, [NEVER, 100.25, 100.0])


# Refusals

WRONG: dict[str, tuple[Inputs, list[Buffer], int | list[int] | None, list[str]]] = {
    "no frames": ((A, B), [], 1, ["has 0 tensor frames", "needs 2 together", "one for each input"]),
    "missing frame": ((A, B), [floats(2)], 1, ["has 1 tensor frames", "needs 2 together"]),
    "surplus frame": (
        (A, B),
        [floats(2), strings(b""), b""],
        1,
        ["has 3 tensor frames", "needs 2 together"],
    ),
    "truncated frame": (
        (A, B),
        [floats(4)[:-1], strings(b"", b"")],
        2,
        ["'a'", "frame has 15 bytes", "float32 of shape (2, 2) takes 16"],
    ),
    "frame too long": (
        (A, B),
        [floats(5), strings(b"", b"")],
        2,
        ["'a'", "frame has 20 bytes", "takes 16"],
    ),
    "more rows than bytes": (
        (("a", "float32", (1000, 2)), ("b", "string", (1000,))),
        [floats(2), strings(b"")],
        None,
        ["'a'", "frame has 8 bytes", "float32 of shape (1000, 2) takes 8000"],
    ),
    "different row counts": (
        (("a", "float32", (3, 2)), ("b", "string", (2,))),
        [floats(6), strings(b"", b"")],
        None,
        ["same number of rows", "'a' (3, 2)", "'b' (2,)"],
    ),
    "rows in the shape and others in the message": (
        (("a", "float32", (3, 2)), B),
        [floats(6), strings(b"", b"")],
        [1, 1],
        ["'a' has 3 rows, the message 2"],
    ),
    "rows counted by nobody": (
        (A, B),
        [floats(2), strings(b"")],
        None,
        ["rows is nil", "whole shapes"],
    ),
    "rows counted in one input only": (
        (("a", "float32", (1, 2)), B),
        [floats(2), strings(b"")],
        None,
        ["rows is nil", "whole shapes"],
    ),
    "no rows": (
        (("a", "float32", (0, 2)), ("b", "string", (0,))),
        [b"", strings()],
        None,
        ["has no rows", "at least one"],
    ),
    "strings without offsets": (
        (A, B),
        [floats(2), b"abc"],
        1,
        ["'b'", "frame has 3 bytes", "1 strings take at least 8"],
    ),
    "strings of another count": (
        (A, B),
        [floats(4), strings(b"only one")],
        2,
        ["'b'", "string offsets must start at 12"],
    ),
    "strings that end early": (
        (A, B),
        [floats(2), strings(b"abc")[:-1]],
        1,
        ["'b'", "end at the frame's 10 bytes"],
    ),
    "strings with bytes after the end": (
        (A, B),
        [floats(2), strings(b"abc") + b"d"],
        1,
        ["'b'", "end at the frame's 12 bytes"],
    ),
    "string offsets that fall": (
        (A, B),
        [floats(4), np.array([12, 14, 13], "<u4").tobytes() + b"x"],
        2,
        ["'b'", "never fall"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_message_is_an_invalid_argument(name: str) -> None:
    inputs, frames, rows, words = WRONG[name]
    with pytest.raises(InvalidArgument) as caught:
        admitted(make_catalog(PAIR), inputs, frames, rows)
    assert caught.value.message.startswith("model 'm' signature 'serving_default'")
    for word in words:
        assert word in caught.value.message


def test_what_the_catalog_refuses_is_refused() -> None:
    with pytest.raises(NotFound, match="no version 2"):
        admit(make_catalog(), b"c", None, make_predict(make_target(version=2), 1), [b""], 0.0)
    with pytest.raises(InvalidArgument, match="misses input 'b'"):
        admitted(make_catalog(PAIR), (A,), [floats(2)], 1)


def test_sizes_whose_product_is_beyond_any_integer_are_refused() -> None:
    signature = make_signature((("x", "float32", None),))
    inputs = (("x", "float32", (None, *[DIM_MAX] * 31)),)
    with pytest.raises(ResourceExhausted, match=f"takes {4 * DIM_MAX**31} bytes"):
        admitted(make_catalog(signature), inputs, [floats(1)], 1)


@pytest.mark.parametrize("rows", [2, [1, 1]])
def test_what_is_never_batched_comes_alone(rows: int | list[int]) -> None:
    with pytest.raises(InvalidArgument, match=r"never batched.*a message of its own, not 2 in one"):
        admitted(make_catalog(FIXED), (("x", "float32", (3, 2)),), [floats(6)], rows)


def test_a_request_larger_than_a_batch_is_split_or_refused() -> None:
    inputs, frame = (("x", "float32", (None, 16)),), floats(5 * 16)
    assert admitted(make_catalog(), inputs, [frame], [5]).total_rows == 5
    unsplit: dict[str, Any] = {"enable_large_batch_splitting": False}
    with pytest.raises(InvalidArgument, match=r"has 5 rows, max_batch_size is 4 and enable_large"):
        admitted(make_catalog(**unsplit), inputs, [frame], [5])
    # The message may be larger, as long as no request in it is.
    assert admitted(make_catalog(**unsplit), inputs, [frame], [1, 4]).total_rows == 5
    assert admitted(make_catalog(**unsplit), inputs, [frame], 5).total_rows == 5


def test_rows_without_elements_cannot_be_padded() -> None:
    catalog = make_catalog(SEQUENCE, pad_variable_length_inputs=True)
    with pytest.raises(InvalidArgument, match=r"'x' has shape \(\?, 0\).*without elements"):
        admitted(catalog, (("x", "float32", (None, 0)),), [b""], 1)
    assert admitted(make_catalog(SEQUENCE), (("x", "float32", (None, 0)),), [b""], 1).nbytes == 0


@pytest.mark.parametrize("dtype", ["float32", "string"])
def test_rows_that_take_no_bytes_are_bounded(dtype: str) -> None:
    # One message of some bytes would otherwise keep the pool busy for ever.
    catalog = make_catalog(make_signature((("x", dtype, (None, None)),)))
    frame = strings() if dtype == "string" else b""
    with pytest.raises(BatchyardError):
        admitted(catalog, (("x", dtype, (None, 0)),), [frame], [DIM_MAX])


@given(
    inputs=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]),
            st.sampled_from(["float32", "string", "int8"]),
            st.lists(st.none() | st.integers(0, 3), max_size=3).map(tuple),
        ),
        max_size=3,
    ),
    frames=st.lists(st.binary(max_size=24), max_size=3),
    rows=st.none() | st.integers(1, 4) | st.lists(st.integers(1, 4), min_size=1, max_size=3),
    is_open=st.booleans(),
)
def test_whatever_comes_is_taken_whole_or_refused_with_a_typed_error(
    inputs: Inputs, frames: list[Buffer], rows: int | list[int] | None, is_open: bool
) -> None:
    catalog = make_catalog(OPEN if is_open else PAIR)
    predict = make_predict(make_target(*inputs), rows)
    try:
        group = admit(catalog, b"c", None, predict, frames, 0.0)
    except InvalidArgument:
        return
    assert len(group.sources) == len(group.shapes) == len(frames)
    assert all(shape[0] == group.total_rows > 0 for shape in group.shapes)
