"""The codec under arbitrary bytes and values; ``test_golden.py`` has the bytes themselves."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchyard.broker import queries
from batchyard.wire import dtypes, errors, protocol
from batchyard.wire.errors import InvalidArgument, Unimplemented
from batchyard.wire.protocol import InputHeader, MessageType, Result, Segment, Target

UINT64 = st.integers(0, (1 << 64) - 1)
INT64 = st.integers(-(1 << 63), (1 << 64) - 1)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=protocol.NAME_MAX)
DIMS = st.integers(0, protocol.DIM_MAX)
SHAPES = st.one_of(
    st.lists(DIMS, max_size=protocol.RANK_MAX).map(tuple),
    st.lists(DIMS, max_size=protocol.RANK_MAX - 1).map(lambda dims: (None, *dims)),
)
INPUTS = st.lists(st.builds(InputHeader, NAMES, st.sampled_from(dtypes.NAMES), SHAPES), max_size=4)
CHOICES = st.one_of(
    st.just((None, None)),
    st.tuples(st.integers(0, (1 << 63) - 1), st.none()),
    st.tuples(st.none(), NAMES),
)
TARGETS = st.builds(
    lambda model, choice, signature, priority, inputs: Target(
        model, choice[0], choice[1], signature, priority, tuple(inputs)
    ),
    NAMES,
    CHOICES,
    NAMES,
    st.integers(protocol.PRIORITY_MIN, protocol.PRIORITY_MAX),
    INPUTS,
)
SEGMENTS: st.SearchStrategy[list[Segment]] = st.lists(st.tuples(UINT64, UINT64, UINT64), max_size=4)
# Anything that msgpack can hold; often nearly right.
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    INT64,
    st.integers(-2, 12),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(["float32", "string", "models", "metadata"]),
    st.binary(max_size=6),
    st.just(Target("m", None, None, "s", 0, (InputHeader("x", "string", (None, 2)),)).encode()),
)
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=7), st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=6,
)


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def nested(depth: int) -> bytes:
    """Arrays inside each other."""
    return b"\x91" * (depth - 1) + b"\x90"


def read(header: bytes) -> Any:
    """A header as the broker reads it."""
    type_, body = protocol.decode(header)
    protocol.message_id_of(body)
    if type_ is MessageType.PREDICT:
        return Target.decode(protocol.decode_predict(body).target)
    if type_ is MessageType.CANCEL:
        return protocol.decode_segments(body)
    return body


def refuse_or_take(header: bytes) -> None:
    """Whatever it is, it raises nothing but what can be answered."""
    try:
        read(header)
    except (InvalidArgument, Unimplemented) as error:
        # The answer can be sent.
        protocol.encode_error([], error)


@given(st.binary(max_size=64))
@example(b"")
@example(b"BY\x01\x03")
def test_any_bytes(data: bytes) -> None:
    refuse_or_take(data)


@given(st.integers(0, 11), st.binary(max_size=64))
def test_any_body(type_: int, data: bytes) -> None:
    refuse_or_take(b"BY" + bytes([protocol.VERSION, type_]) + data)


@given(st.sampled_from([3, 5, 7]), st.lists(ANYTHING, max_size=7))
def test_any_fields(type_: int, body: list[Any]) -> None:
    refuse_or_take(b"BY" + bytes([protocol.VERSION, type_]) + pack(body))


@given(st.lists(ANYTHING, min_size=6, max_size=6))
def test_any_fields_of_a_target(fields: list[Any]) -> None:
    refuse_or_take(protocol.encode_predict(1, pack(fields), 1, None))


@given(TARGETS, st.integers(0, 5), ANYTHING)
def test_any_field_in_a_good_target(target: Target, place: int, value: Any) -> None:
    fields = msgpack.unpackb(target.encode())
    fields[place] = value
    refuse_or_take(protocol.encode_predict(1, pack(fields), 1, None))


@given(st.binary(max_size=64))
def test_any_bytes_as_target(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        Target.decode(b"\xc1" + data)
    refuse_or_take(protocol.encode_predict(1, data, None, None))


# msgpack takes 1,022 arrays inside each other, repr not quite as many.
@pytest.mark.parametrize("depth", [100, 900, 1000, 1020, 1100, 100_000])
@pytest.mark.parametrize("place", ["model", "priority", "dtype", "shape"])
def test_deeply_nested_field_of_a_target(place: str, depth: int) -> None:
    deep = nested(depth)
    fields = {"model": pack("m"), "version": b"\xc0", "label": b"\xc0", "signature": pack("s")}
    fields |= {"priority": b"\x00", "inputs": b"\x91\x93" + pack("x")}
    fields |= {"dtype": pack("float32"), "shape": b"\x90"} | {place: deep}
    with pytest.raises(InvalidArgument) as caught:
        Target.decode(b"\x96" + b"".join(fields.values()))
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("argument", ["version", "label"])
def test_deeply_nested_argument_of_a_query(argument: str) -> None:
    arguments = {"model": "m", argument: msgpack.unpackb(nested(1000))}
    # A broker that is asked no further than to the arguments.
    broker: Any = None
    with pytest.raises(InvalidArgument) as caught:
        queries.answer(broker, [1, "metadata", arguments])
    assert len(caught.value.message) < 400


@given(TARGETS)
def test_target_round_trip(target: Target) -> None:
    encoded = target.encode()
    assert Target.decode(encoded) == target
    assert Target.decode(encoded).encode() == encoded


@given(TARGETS, TARGETS)
def test_equal_targets_have_equal_bytes_and_others_do_not(a: Target, b: Target) -> None:
    assert (a == b) == (a.encode() == b.encode())


@given(
    UINT64,
    TARGETS,
    st.one_of(
        st.none(),
        st.integers(1, 9),
        st.lists(st.integers(1, protocol.DIM_MAX), min_size=1, max_size=9),
    ),
    st.data(),
)
def test_predict_round_trip(
    message_id: int, target: Target, rows: int | list[int] | None, data: st.DataObject
) -> None:
    count = 1 if rows is None else rows if isinstance(rows, int) else len(rows)
    each = st.lists(st.none() | INT64, min_size=count, max_size=count)
    timeouts_us = data.draw(st.none() | INT64 | each)
    header = protocol.encode_predict(message_id, target.encode(), rows, timeouts_us)
    type_, body = protocol.decode(header)
    assert type_ is MessageType.PREDICT
    assert protocol.message_id_of(body) == message_id
    predict = protocol.decode_predict(body)
    assert predict == protocol.Predict(message_id, target.encode(), rows, timeouts_us)
    assert protocol.encode_predict(message_id, predict.target, rows, timeouts_us) == header


@given(
    SEGMENTS,
    UINT64,
    st.lists(
        st.tuples(NAMES, st.sampled_from(dtypes.NAMES), st.lists(DIMS, max_size=4).map(tuple))
    ),
)
def test_result_round_trip(
    segments: list[Segment], version: int, outputs: list[tuple[str, str, tuple[int, ...]]]
) -> None:
    result = Result(segments, version, outputs)
    type_, body = protocol.decode(protocol.encode_result(result))
    assert type_ is MessageType.RESULT
    assert protocol.decode_result(body) == result


@given(SEGMENTS, st.sampled_from(sorted(errors.BY_NUMBER)), NAMES)
def test_error_round_trip(segments: list[Segment], number: int, message: str) -> None:
    error = errors.from_wire(number, message)
    type_, body = protocol.decode(protocol.encode_error(segments, error))
    assert type_ is MessageType.ERROR
    assert protocol.decode_error(body) == protocol.Failure(segments, number, message)


@given(SEGMENTS)
def test_cancel_round_trip(segments: list[Segment]) -> None:
    type_, body = protocol.decode(protocol.encode(MessageType.CANCEL, segments))
    assert type_ is MessageType.CANCEL
    assert protocol.decode_segments(body) == segments


@given(st.sampled_from(MessageType), st.lists(ANYTHING, max_size=4))
def test_any_buffer_decodes(type_: MessageType, body: list[Any]) -> None:
    header = protocol.encode(type_, body)
    expected = repr(protocol.decode(header))
    assert repr(protocol.decode(bytearray(header))) == expected
    assert repr(protocol.decode(memoryview(header))) == expected


@pytest.mark.parametrize(
    ("body", "message_id"),
    [([], None), ([5], 5), ([-5, 1], None), (["5"], None), ([True], None), ([None, 3], None)],
)
def test_message_id_of_a_wrong_body(body: list[Any], message_id: int | None) -> None:
    assert protocol.message_id_of(body) == message_id


def test_encoding_recovers_from_what_it_cannot_encode() -> None:
    before = protocol.encode_predict(1, b"", None, None)
    with pytest.raises(OverflowError):
        protocol.encode_predict(1 << 64, b"", None, None)
    assert protocol.encode_predict(1, b"", None, None) == before


@pytest.mark.parametrize("size", [protocol.NAME_MAX, protocol.NAME_MAX + 1])
def test_longest_name(size: int) -> None:
    encoded = Target("ß" * size, None, None, "s", 0, ()).encode()
    if size <= protocol.NAME_MAX:
        assert Target.decode(encoded).model == "ß" * size
    else:
        with pytest.raises(InvalidArgument):
            Target.decode(encoded)


@pytest.mark.parametrize("rows", [protocol.REQUESTS_MAX, [1] * protocol.REQUESTS_MAX])
def test_most_requests(rows: int | list[int]) -> None:
    _, body = protocol.decode(protocol.encode_predict(1, b"", rows, None))
    assert protocol.decode_predict(body).rows == rows
