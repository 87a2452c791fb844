"""Answers of :predict, byte by byte."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from batchyard.clients.gateways.rest.predict_json import decode_predict, encode_predict
from batchyard.clients.inputs import Array
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.signatures import TensorSpec


def rows(**outputs: Array) -> str:
    return encode_predict(outputs, is_row=True).decode()


def columns(**outputs: Array) -> str:
    return encode_predict(outputs, is_row=False).decode()


def strings(*values: Any) -> Array:
    return np.array(values, object)


NUMBERS = np.array([[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 0], [1, 2]]], np.int32)


def test_the_only_output_has_no_name() -> None:
    assert rows(i=NUMBERS) == (
        '{\n    "predictions": [[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 0], [1, 2]]\n    ]\n}'
    )
    assert rows(y=np.array([2.5, 3, 4.5], np.float32)) == (
        '{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'
    )
    assert columns(y=np.array([[2.5], [3]], np.float32)) == (
        '{\n    "outputs": [\n        [\n            2.5\n        ],\n'
        "        [\n            3.0\n        ]\n    ]\n}"
    )
    assert columns(y=np.array(7, np.int64)) == '{\n    "outputs": 7\n}'


def test_bytes_are_base64_where_the_name_says_so() -> None:
    values = strings([b"hello", b"\xff"], [b"", b"tf"])
    assert rows(s_bytes=values) == (
        '{\n    "predictions": [['
        '{\n                "b64": "aGVsbG8="\n            }, '
        '{\n                "b64": "/w=="\n            }], ['
        '{\n                "b64": ""\n            }, '
        '{\n                "b64": "dGY="\n            }]\n    ]\n}'
    )
    assert columns(s_bytes=strings(b"a")) == (
        '{\n    "outputs": [\n        {\n            "b64": "YQ=="\n        }\n    ]\n}'
    )
    assert json.loads(columns(i_bytes=NUMBERS)) == {"outputs": NUMBERS.tolist()}


def test_several_outputs_have_names() -> None:
    outputs = {
        "s": strings([b"foo", b"bar"], [b"baz", b"bat"]),
        "d": np.array([8.0, 9.0]),
        "f": np.array([[1], [2]], np.float32),
        "s_bytes": strings([b"a", b"b"], [b"c", b"d"]),
    }
    text = rows(**outputs)
    assert text.startswith(
        '{\n    "predictions": [\n        {\n            "d": 8.0,\n            "f": [1.0],\n'
        '            "s": ["foo", "bar"],\n            "s_bytes": [{\n                    "b64": '
    )
    assert text.endswith("}]\n        }\n    ]\n}")
    b64 = [{"b64": word} for word in ("YQ==", "Yg==", "Yw==", "ZA==")]
    assert json.loads(text) == {
        "predictions": [
            {"d": 8.0, "f": [1.0], "s": ["foo", "bar"], "s_bytes": b64[:2]},
            {"d": 9.0, "f": [2.0], "s": ["baz", "bat"], "s_bytes": b64[2:]},
        ]
    }
    column = json.loads(columns(**outputs, other=np.zeros((3, 1), np.int64)))["outputs"]
    assert column["d"] == [8.0, 9.0]
    assert column["s_bytes"] == [b64[:2], b64[2:]]
    assert column["other"] == [[0], [0], [0]]


@pytest.mark.parametrize("dtype", ["int32", "float32", "float64", "float16", "bool"])
@pytest.mark.parametrize("shape", [(1,), (3, 1), (100,), (2, 5, 4, 3), (1, 70), (70, 1), (4, 0, 2)])
def test_columns_are_indented_as_any_json_is(dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.arange(np.prod(shape)) % 7).reshape(shape).astype(dtype)
    for outputs in ({"a": array}, {"a": array, "b": array}):
        text = columns(**outputs)
        assert text == json.dumps(json.loads(text), indent=4)
        value = json.loads(text)["outputs"]
        want = array.tolist()
        assert value == (want if len(outputs) == 1 else {"a": want, "b": want})
    if 0 not in shape:
        text = rows(a=array)
        assert json.loads(text) == {"predictions": array.tolist()}
        inner = ", ".join(json.dumps(row) for row in json.loads(text)["predictions"])
        assert text == '{\n    "predictions": [' + inner + "\n    ]\n}"
        named = json.loads(rows(a=array, b=array))["predictions"]
        assert named == [{"a": row, "b": row} for row in array.tolist()]


def test_strings_are_escaped_as_rapidjson_does() -> None:
    text = columns(s=strings(b'\x00\x1f\x08\t\n\x0c\r"\\/\x7f' + "\u00e9\u2028".encode()))
    assert '"\\u0000\\u001F\\b\\t\\n\\f\\r\\"\\\\/\x7f\u00e9\u2028"' in text
    assert b'"a\xff"' in encode_predict({"s": strings(b"a\xff")}, is_row=True)


def test_other_floats() -> None:
    values = np.array([1.5, np.nan, -np.inf, 3], ml_dtypes.bfloat16)
    assert "[1.5, NaN, -Infinity, 3.0\n" in rows(x=values)
    assert "0.0999755859" in rows(x=np.array([0.1], np.float16))


def test_whole_numbers_and_bools() -> None:
    assert "[-128, 127\n" in rows(x=np.array([-128, 127], np.int8))
    assert "[18446744073709551615\n" in rows(x=np.array([2**64 - 1], np.uint64))
    assert "[[true, false]\n" in rows(x=np.array([[True, False]]))
    # As they lie in memory of another order.
    assert "[[0, 3], [1, 4], [2, 5]\n" in rows(x=np.arange(6).reshape(2, 3).T)
    assert "[[0.0, 2.0], [1.0, 3.0]\n" in rows(x=np.arange(4.0).reshape(2, 2).T)
    assert "[1.5, 65504.0\n" in rows(x=np.array([1.5, 65504], np.float16))
    assert "[[0, 2], [4, 6]\n" in rows(x=np.arange(8).reshape(2, 4)[:, ::2])


def test_what_has_no_json() -> None:
    with pytest.raises(InvalidArgument, match="empty tensor map"):
        rows()
    with pytest.raises(InvalidArgument, match="tensor type: complex64"):
        rows(x=np.array([1], np.complex64))
    with pytest.raises(InvalidArgument, match="no shape information"):
        rows(x=np.array(1, np.int32))
    with pytest.raises(InvalidArgument, match="inconsistent batch size"):
        rows(x=np.zeros((2, 3)), y=np.zeros((1, 3)))
    with pytest.raises(InvalidArgument, match="invalid batch size: 0"):
        rows(x=np.zeros((0, 3)))
    assert json.loads(columns(x=np.zeros((0, 3)))) == {"outputs": []}


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32", "float64", "bool", "string"])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 2, 2), (30, 10)])
def test_answers_can_be_asked_again(dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.arange(np.prod(shape)).reshape(shape) * 1.1).astype(
        "S" if dtype == "string" else dtype
    )
    array = array.astype(object) if dtype == "string" else array
    for key, is_row in (("instances", True), ("inputs", False)):
        body = encode_predict({"x": array}, is_row=is_row)
        body = body.replace(b"predictions", b"instances").replace(b"outputs", b"inputs")
        request = decode_predict(body, lambda _: {"x": TensorSpec("x", dtype, None)})
        assert key in body.decode()
        assert request.is_row == is_row
        np.testing.assert_array_equal(request.inputs["x"], array)
        assert request.inputs["x"].dtype == array.dtype
