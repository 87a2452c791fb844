"""What the broker and a worker say to each other, over a real link."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchyard.wire import dtypes
from batchyard.wire.link import Link
from batchyard.wire.signatures import SignatureSpec, TensorSpec
from batchyard.wire.work import (
    Attach,
    Detach,
    Done,
    Execute,
    Failed,
    Kind,
    ModelReport,
    PlacedInput,
    Ready,
    Released,
    Resumed,
    SignatureReport,
    Unload,
)

TEXT = st.text(max_size=6)
NUMBERS = st.integers(0, 1 << 60)
SECONDS = st.floats(0, 1e6)
DTYPES = st.sampled_from(dtypes.NAMES)
SPECS = st.builds(
    TensorSpec, TEXT, DTYPES, st.none() | st.lists(st.none() | NUMBERS, max_size=3).map(tuple)
)
SPEC_TUPLES = st.lists(SPECS, max_size=2).map(tuple)
SIGNATURES = st.builds(
    SignatureReport,
    st.builds(SignatureSpec, TEXT, SPEC_TUPLES, SPEC_TUPLES, st.booleans(), TEXT, st.booleans()),
    st.none() | NUMBERS,
)
REPORTS = st.builds(
    ModelReport,
    TEXT,
    NUMBERS,
    st.booleans(),
    st.booleans(),
    st.lists(SIGNATURES, max_size=2).map(tuple),
    SECONDS,
    SECONDS,
    st.binary(max_size=9),
)
READY = st.builds(Ready, TEXT, st.lists(REPORTS, max_size=2).map(tuple))
SHAPES = st.lists(NUMBERS, max_size=3).map(tuple)
INPUTS = st.lists(st.tuples(TEXT, DTYPES, SHAPES, NUMBERS, NUMBERS, NUMBERS), max_size=3)
OUTPUTS = st.lists(st.tuples(TEXT, DTYPES, SHAPES, st.none() | NUMBERS, NUMBERS), max_size=3)
COPIES = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=3)
REPLIES = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=3)
EXECUTE = st.builds(
    Execute,
    batch_id=NUMBERS,
    model=TEXT,
    version=NUMBERS,
    signature=TEXT,
    rows=NUMBERS,
    padded_rows=NUMBERS,
    alone=st.booleans(),
    inputs=INPUTS,
    copies=COPIES,
    output_offset=NUMBERS,
    output_nbytes=NUMBERS,
    replies=REPLIES,
    block=st.tuples(NUMBERS, NUMBERS),
    origins=st.lists(st.tuples(*[NUMBERS] * 5), max_size=3),
)
RESUMED = st.builds(
    Resumed,
    st.lists(EXECUTE, max_size=3),
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=3),
)
DONE = st.builds(
    Done,
    batch_id=NUMBERS,
    outputs=OUTPUTS,
    overflow=st.booleans(),
    replied=st.booleans(),
    kept=st.booleans(),
    execution_s=SECONDS,
)
FAILED = st.builds(Failed, NUMBERS, NUMBERS, TEXT, st.booleans())
SHARES_LINK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    a, b = Link.pair()
    yield a, b
    a.close()
    b.close()


def carried(ends: tuple[Link, Link], packet: list[Any]) -> list[Any]:
    ends[0].send(packet)
    received: list[Any] = ends[1].receive()[0]
    return received


def as_tuples(places: Any) -> list[Any]:
    """Places as they were sent: msgpack has arrays only, which come back as lists."""
    return [(name, dtype, tuple(shape), *where) for name, dtype, shape, *where in places]


@SHARES_LINK
@given(ready=READY)
def test_ready(ends: tuple[Link, Link], ready: Ready) -> None:
    packet = carried(ends, ready.to_wire())
    assert packet[0] == Kind.READY
    assert Ready.from_wire(packet) == ready


@SHARES_LINK
@given(execute=EXECUTE)
def test_execute(ends: tuple[Link, Link], execute: Execute) -> None:
    packet = carried(ends, execute.to_wire())
    assert packet[0] == Kind.EXECUTE
    assert as_it_was_sent(Execute.from_wire(packet)) == execute


def as_it_was_sent(execute: Execute) -> Execute:
    execute.inputs = as_tuples(execute.inputs)
    execute.copies = [(r, o, t, n) for r, o, t, n in execute.copies]
    execute.replies = [(r, o, n, first, rows) for r, o, n, first, rows in execute.replies]
    offset, nbytes = execute.block
    execute.block = offset, nbytes
    execute.origins = [(m, f, c, start, rows) for m, f, c, start, rows in execute.origins]
    return execute


@SHARES_LINK
@given(resumed=RESUMED)
def test_resumed(ends: tuple[Link, Link], resumed: Resumed) -> None:
    packet = carried(ends, resumed.to_wire())
    assert packet[0] == Kind.RESUMED
    received = Resumed.from_wire(packet)
    batches = [as_it_was_sent(execute) for execute in received.batches]
    kept = [(batch_id, offset, nbytes) for batch_id, offset, nbytes in received.kept]
    assert Resumed(batches, kept) == resumed
    # A worker passes on what it read.
    again = carried(ends, Resumed(Resumed.from_wire(packet).batches, kept).to_wire())
    assert again == packet


@SHARES_LINK
@given(done=DONE)
def test_done(ends: tuple[Link, Link], done: Done) -> None:
    packet = carried(ends, done.to_wire())
    assert packet[0] == Kind.DONE
    received = Done.from_wire(packet)
    received.outputs = as_tuples(received.outputs)
    assert received == done


@SHARES_LINK
@given(failed=FAILED)
def test_failed(ends: tuple[Link, Link], failed: Failed) -> None:
    packet = carried(ends, failed.to_wire())
    assert packet[0] == Kind.FAILED
    assert Failed.from_wire(packet) == failed


def test_released(ends: tuple[Link, Link]) -> None:
    assert carried(ends, Released(7).to_wire()) == [Kind.RELEASED, 7]


def test_unload(ends: tuple[Link, Link]) -> None:
    packet = carried(ends, Unload("m", 3).to_wire())
    assert packet == [Kind.UNLOAD, "m", 3]
    assert Unload.from_wire(packet) == Unload("m", 3)


def test_a_region_comes_with_its_descriptor_and_goes_without(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    fd = os.memfd_create("test-region")
    try:
        ours.send(Attach(5).to_wire(), [fd])
        packet, (received,) = theirs.receive()
        assert packet == [Kind.ATTACH, 5]
        assert os.path.samestat(os.fstat(fd), os.fstat(received))
        os.close(received)
    finally:
        os.close(fd)
    assert carried(ends, Detach(5).to_wire()) == [Kind.DETACH, 5]


def test_a_batch_of_many_inputs_fits(ends: tuple[Link, Link]) -> None:
    """Longer than a packet of the socket may be."""
    places: list[PlacedInput] = [
        (f"input-{i}", "float32", (64, 224), 0, i, 64) for i in range(5000)
    ]
    copies = [(1, 64 * i, 128 * i, 64) for i in range(5000)]
    execute = Execute(1, "m", 1, "s", 64, 64, False, places, copies, 0, 0, [], (0, 64), [])
    received = Execute.from_wire(carried(ends, execute.to_wire()))
    assert as_tuples(received.inputs) == places
    assert [tuple(copy) for copy in received.copies] == copies
