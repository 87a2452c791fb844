"""The wire's bytes as files: what they decode to, and what is refused with which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.broker_builders import OPEN, make_catalog
from support.golden import FOLDER, Golden, read_golden

from batchyard.broker import queries
from batchyard.broker.admission import admit
from batchyard.wire import dtypes, errors, protocol, tensors
from batchyard.wire.errors import BatchyardError
from batchyard.wire.protocol import (
    Failure,
    InputHeader,
    MessageType,
    Predict,
    RegionPlaces,
    Result,
    Target,
)
from batchyard.wire.tags import Tag, Timing

BY_CODE = {cls.code: cls for cls in errors.BY_NUMBER.values()}

X = InputHeader("x", "float32", (None, 2))
M = Target("m", None, None, "serving_default", 0, (X,))
M_3 = Target("m", 3, None, "serving_default", 0, (X,))
WHOLE = Target("m", None, None, "serving_default", 0, (InputHeader("x", "float32", (3, 2)),))
PAIR = Target("m", None, None, "serving_default", 0, (X, InputHeader("s", "string", (None,))))
NOW = Target("m", None, None, "now", 0, ())
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
LATE = "the deadline passed while the request waited for a worker"
MODEL = {
    "name": "m",
    "version": 3,
    "labels": ["stable"],
    "state": "AVAILABLE",
    "signatures": ["serving_default"],
}

# What the headers hold: a typed message where there is one, else the body.
HEADERS: dict[str, tuple[MessageType, Any]] = {
    "hello": (MessageType.HELLO, []),
    "welcome": (MessageType.WELCOME, [1790000000000000000, 1 << 30]),
    "welcome_with_local_name": (
        MessageType.WELCOME,
        [1790000000000000000, 1 << 30, "batchyard-0f"],
    ),
    "welcome_with_features": (
        MessageType.WELCOME,
        [1790000000000000000, 1 << 30, "batchyard-0f", ["tags"]],
    ),
    "predict_one_request": (MessageType.PREDICT, Predict(7, WHOLE.encode(), None, None)),
    "predict_one_row_each": (MessageType.PREDICT, Predict(8, M.encode(), 3, 2000)),
    "predict_rows_of_each": (
        MessageType.PREDICT,
        Predict(1 << 40, M_3.encode(), [2, 1, 300], [1_000_000, None, -5]),
    ),
    "predict_no_inputs": (MessageType.PREDICT, Predict((1 << 64) - 1, NOW.encode(), None, 5)),
    "predict_in_region": (
        MessageType.PREDICT,
        Predict(
            11,
            M.encode(),
            [2, 1],
            None,
            RegionPlaces([[4096, 0]], [(8192, 64), (8256, 64)]),
        ),
    ),
    "predict_in_region_and_in_a_frame": (
        MessageType.PREDICT,
        Predict(12, PAIR.encode(), 1, None, RegionPlaces([[1 << 40], None], None)),
    ),
    "predict_reply_in_region": (
        MessageType.PREDICT,
        Predict(13, M.encode(), 1, 5, RegionPlaces([None], [(0, 1 << 40)])),
    ),
    "predict_with_tags": (
        MessageType.PREDICT,
        Predict(
            14,
            M.encode(),
            3,
            2000,
            tags=(Tag(0, 1, "order 7", None), Tag(1, 2, None, TRACEPARENT)),
        ),
    ),
    "predict_resent_with_a_tag": (
        MessageType.PREDICT,
        Predict(15, M.encode(), 1, None, resent=True, tags=(Tag(0, 1, "order 8", TRACEPARENT),)),
    ),
    "predict_resent": (MessageType.PREDICT, Predict(8, M.encode(), 1, None, resent=True)),
    "predict_resent_in_region": (
        MessageType.PREDICT,
        Predict(13, M.encode(), 1, 5, RegionPlaces([None], [(0, 64)]), resent=True),
    ),
    "result": (MessageType.RESULT, Result([(8, 0, 2)], 1, [("y", "float32", (2, 10))])),
    "result_of_two_messages": (
        MessageType.RESULT,
        Result(
            [(8, 2, 1), (9, 0, 300)],
            42,
            [("class", "string", (301,)), ("score", "bfloat16", (301, 4))],
        ),
    ),
    "result_scalar": (MessageType.RESULT, Result([(10, 0, 1)], 1, [("y", "int64", ())])),
    "result_in_region": (
        MessageType.RESULT,
        Result([(11, 0, 2)], 1, [("y", "float32", (3, 10))], in_region=True),
    ),
    "result_while_others_wait": (
        MessageType.RESULT,
        Result([(8, 0, 2)], 1, [("y", "float32", (2, 10))], queued_rows=300),
    ),
    "result_with_timings": (
        MessageType.RESULT,
        Result(
            [(14, 0, 1), (14, 1, 2)],
            1,
            [("y", "float32", (3, 10))],
            timings=(Timing(1, 250, 40, 70_000, 1200, 60, 64, 3),),
        ),
    ),
    "cancel": (MessageType.CANCEL, [(8, 2, 1), (9, 0, 0)]),
    "cancel_nothing": (MessageType.CANCEL, []),
    "error": (MessageType.ERROR, Failure([(8, 3, 2)], 4, LATE)),
    "error_whole_message": (
        MessageType.ERROR,
        Failure([(8, 0, 0)], 5, "model 'm' is not served here"),
    ),
    "error_connection": (
        MessageType.ERROR,
        Failure([], 12, "protocol version 2 is not spoken here, only 1"),
    ),
    "query_models": (MessageType.QUERY, [1, "models", {}]),
    "query_metadata": (
        MessageType.QUERY,
        [2, "metadata", {"model": "m", "version": 3, "label": None}],
    ),
    "query_stats": (MessageType.QUERY, [3, "stats", {}]),
    "answer": (MessageType.ANSWER, [1, 0, "", [MODEL]]),
    "answer_error": (MessageType.ANSWER, [2, 5, "model 'n' is not served here", None]),
    "goodbye": (MessageType.GOODBYE, []),
    "draining": (MessageType.DRAINING, []),
}

TARGETS = {
    "served_version": Target(
        "half_plus_two", None, None, "serving_default", 0, (InputHeader("x", "float32", (None,)),)
    ),
    "version": M_3,
    "label": Target("m", None, "stable", "classify", 10, (X,)),
    "lowest_priority": Target("m", (1 << 63) - 1, None, "serving_default", -10, (X,)),
    "no_inputs": Target("m", None, None, "serving_default", 0, ()),
    "several_inputs": Target(
        "m",
        None,
        None,
        "serving_default",
        0,
        (
            InputHeader("name", "string", (None,)),
            InputHeader("scale", "bfloat16", ()),
            InputHeader("image", "uint8", (None, 224, 224, 3)),
        ),
    ),
    "names_beyond_ascii": Target(
        "模型", None, None, "serving_default", 0, (InputHeader("größe", "int64", (0, 1 << 40)),)
    ),
}


def array(dtype: str, values: Any) -> npt.NDArray[Any]:
    return np.array(values, dtypes.to_numpy(dtype))


# What the frames hold: the dtype's name is the entry's, unless it is given.
FRAMES: dict[str, tuple[str, npt.NDArray[Any]]] = {
    "bool": ("bool", array("bool", [True, False, True])),
    "int8": ("int8", array("int8", [-1, 127])),
    "int16": ("int16", array("int16", [-2, 258])),
    "int32": ("int32", array("int32", [-3, 0x01020304])),
    "int64": ("int64", array("int64", [-4, 0x0102030405060708])),
    "uint8": ("uint8", array("uint8", [0, 255])),
    "uint16": ("uint16", array("uint16", [1, (1 << 16) - 1])),
    "uint32": ("uint32", array("uint32", [2, (1 << 32) - 1])),
    "uint64": ("uint64", array("uint64", [3, (1 << 64) - 1])),
    "float16": ("float16", array("float16", [1.5, -2.0])),
    "float32": ("float32", array("float32", [[1, 2, 3], [4, 5, 6]])),
    "float64": ("float64", array("float64", 0.5)),
    "complex64": ("complex64", array("complex64", [1 + 2j])),
    "complex128": ("complex128", array("complex128", [-1 - 0.5j])),
    "bfloat16": ("bfloat16", array("bfloat16", [1.0, -2.5])),
    "float8_e5m2": ("float8_e5m2", array("float8_e5m2", [1.0, -2.0])),
    "float8_e4m3fn": ("float8_e4m3fn", array("float8_e4m3fn", [1.0, -2.0])),
    "no_elements": ("float32", array("float32", np.empty((0, 4)))),
    "string": ("string", array("string", [b"a", b"", b"bc"])),
    "string_any_bytes": ("string", array("string", [[b"\0\0"], [b"\xff\xfe"]])),
    "string_scalar": ("string", array("string", "é".encode())),
    "string_no_elements": ("string", array("string", [])),
}


def typed(type_: MessageType, body: list[Any]) -> Any:
    """The body as the typed message that it is, if there is one."""
    decoders: dict[MessageType, Callable[[list[Any]], Any]] = {
        MessageType.PREDICT: protocol.decode_predict,
        MessageType.RESULT: protocol.decode_result,
        MessageType.CANCEL: protocol.decode_segments,
        MessageType.ERROR: protocol.decode_error,
    }
    return decoders[type_](body) if type_ in decoders else body


def encoded(type_: MessageType, message: Any) -> bytes:
    """The header frame of what ``typed`` gives."""
    if isinstance(message, Predict):
        return protocol.encode_predict(
            message.message_id,
            message.target,
            message.rows,
            message.timeouts_us,
            message.region,
            message.resent,
            message.tags,
        )
    if isinstance(message, Result):
        return protocol.encode_result(message)
    if isinstance(message, Failure):
        error = errors.from_wire(message.number, message.message)
        return protocol.encode_error(message.segments, error)
    return protocol.encode(type_, message)


def entries(path: str) -> pytest.MarkDecorator:
    """Parametrizes a test with the entries of a golden file."""
    found = read_golden(path)
    assert found, path
    return pytest.mark.parametrize("golden", found.values(), ids=list(found))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("valid/headers.hex", HEADERS),
        ("valid/targets.hex", TARGETS),
        ("valid/frames.hex", FRAMES),
    ],
)
def test_every_valid_entry_has_its_value_here(path: str, expected: dict[str, Any]) -> None:
    assert list(read_golden(path)) == list(expected)


def test_every_type_and_dtype_has_an_entry() -> None:
    assert {type_ for type_, _ in HEADERS.values()} == set(MessageType)
    assert {dtype for dtype, _ in FRAMES.values()} == set(dtypes.NAMES)


@entries("valid/headers.hex")
def test_header(golden: Golden) -> None:
    type_, message = HEADERS[golden.name]
    decoded_type, body = protocol.decode(golden.data)
    assert decoded_type is type_
    assert typed(type_, body) == message
    assert encoded(type_, message) == golden.data


@entries("valid/targets.hex")
def test_target(golden: Golden) -> None:
    target = TARGETS[golden.name]
    assert Target.decode(golden.data) == target
    assert target.encode() == golden.data


@entries("valid/frames.hex")
def test_frame(golden: Golden) -> None:
    dtype, values = FRAMES[golden.name]
    tensors.check_frame(golden.data, dtype, values.shape, "x")
    decoded = tensors.decode(golden.data, dtype, values.shape)
    assert decoded.dtype == values.dtype
    assert decoded.shape == values.shape
    assert decoded.tolist() == values.tolist()
    assert bytes(tensors.encode(values, dtype)) == golden.data


def refused(golden: Golden, read: Callable[[bytes], object]) -> None:
    with pytest.raises(BatchyardError) as caught:
        read(golden.data)
    assert type(caught.value) is BY_CODE[golden.code]
    assert golden.words in f"{caught.value.message}"


@entries("invalid/headers.hex")
def test_refused_header(golden: Golden) -> None:
    refused(golden, protocol.decode)


@entries("invalid/predict.hex")
def test_refused_predict(golden: Golden) -> None:
    type_, body = protocol.decode(golden.data)
    assert type_ is MessageType.PREDICT
    refused(golden, lambda _: protocol.decode_predict(body))


@entries("invalid/cancel.hex")
def test_refused_cancel(golden: Golden) -> None:
    type_, body = protocol.decode(golden.data)
    assert type_ is MessageType.CANCEL
    refused(golden, lambda _: protocol.decode_segments(body))


@entries("invalid/targets.hex")
def test_refused_target(golden: Golden) -> None:
    refused(golden, Target.decode)


@entries("invalid/frames.hex")
def test_refused_frame(golden: Golden) -> None:
    dtype, shape = ("float32", (2, 3)) if golden.name.startswith("float32") else ("string", (2,))
    refused(golden, lambda data: tensors.check_frame(data, dtype, shape, "x"))


@entries("invalid/requests.hex")
def test_refused_request(golden: Golden) -> None:
    type_, body = protocol.decode(golden.data)
    if type_ is MessageType.QUERY:
        # It asks no further than to the arguments.
        broker: Any = None
        refused(golden, lambda _: queries.answer(broker, body))
    else:
        predict = protocol.decode_predict(body)
        catalog = make_catalog(OPEN)
        refused(golden, lambda _: admit(catalog, b"c", None, predict, [b""], 0.0))


def test_every_file_is_tested() -> None:
    names = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.hex")}
    assert names == {
        *(f"valid/{name}.hex" for name in ("example", "headers", "targets", "frames")),
        *(f"invalid/{name}.hex" for name in ("headers", "predict", "cancel", "targets", "frames")),
        "invalid/requests.hex",
    }
