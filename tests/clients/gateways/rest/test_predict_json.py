"""Bodies of :predict as tensors: what TensorFlow Serving's own tests of it ask, and what they leave
out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from batchyard.clients.gateways.rest import json_document
from batchyard.clients.gateways.rest.predict_json import PredictRequest, decode_predict
from batchyard.wire.errors import InvalidArgument, NotFound, Unimplemented
from batchyard.wire.signatures import TensorSpec

InputsOf = Callable[[str], Mapping[str, TensorSpec]]


def takes(**dtypes: str) -> InputsOf:
    """Any signature has these inputs."""
    return lambda _: {name: TensorSpec(name, dtype, None) for name, dtype in dtypes.items()}


def decode(text: str | bytes, **dtypes: str) -> PredictRequest:
    return decode_predict(text.encode() if isinstance(text, str) else text, takes(**dtypes))


def refusal(text: str | bytes, **dtypes: str) -> str:
    with pytest.raises(InvalidArgument) as refused:
        decode(text, **dtypes)
    assert len(refused.value.message) < 2000
    refused.value.message.encode()
    return refused.value.message


def check(array: Any, dtype: Any, values: Any) -> None:
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array, np.array(values, dtype))
    assert array.shape == np.array(values, dtype).shape


def test_rows_of_the_only_input_need_no_name() -> None:
    request = decode('{"instances": [[1,2],[3,4],[5,6]]}', default="int32")
    assert request.is_row
    assert request.signature_name == ""
    assert list(request.inputs) == ["default"]
    check(request.inputs["default"], "int32", [[1, 2], [3, 4], [5, 6]])


def test_the_signature_is_asked_for_its_inputs() -> None:
    asked = []

    def inputs_of(name: str) -> Mapping[str, TensorSpec]:
        asked.append(name)
        return takes(x="int32")(name)

    body = b'{"signature_name": "predict_images", "instances": [[1,2]]}'
    assert decode_predict(body, inputs_of).signature_name == "predict_images"
    long = b'{"instances": [%b], "signature_name": "after"}' % b",".join([b"7"] * 1000)
    assert decode_predict(long, inputs_of).signature_name == "after"
    assert asked == ["predict_images", "after"]

    def unknown(name: str) -> Mapping[str, TensorSpec]:
        raise NotFound(f"no signature {name}")

    with pytest.raises(NotFound):
        decode_predict(body, unknown)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_floats_take_whole_numbers_too(dtype: str) -> None:
    values = [1, 2.0, 3, 4, 5.003, 0.007, 0.0, -0.5]
    want = np.array(values, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    for key in ("instances", "inputs"):
        check(decode(json.dumps({key: values}), x=dtype).inputs["x"], want.dtype, want)


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)
def test_whole_numbers_within_their_bounds(dtype: str) -> None:
    bounds = np.iinfo(dtype)
    values = [int(bounds.min), 0, 7, int(bounds.max)]
    check(decode(json.dumps({"instances": values}), x=dtype).inputs["x"], dtype, values)
    for wrong in (bounds.min - 1, bounds.max + 1, 1.0, True, "1", None):
        said = refusal(json.dumps({"instances": [0, wrong]}), x=dtype)
        assert f"is not of expected type: {dtype}" in said
        assert "Failed to process element: 1 of 'instances'" in said


def test_bools_and_strings() -> None:
    check(decode('{"instances": [[true, false]]}', x="bool").inputs["x"], bool, [[True, False]])
    got = decode('{"inputs": ["", "h\u00e9", "\\u0000\\ud83d\\ude00"]}', x="string").inputs["x"]
    assert got.tolist() == [b"", "h\u00e9".encode(), "\0\U0001f600".encode()]
    for wrong in ("1", "0.0", '"true"', "null"):
        assert "not of expected type: bool" in refusal(f'{{"inputs": [{wrong}]}}', x="bool")
    for wrong, shown in (("1", "1 Type: Number"), ("true", "true Type: True"), ("null", "null")):
        said = refusal(f'{{"inputs": ["a", {wrong}]}}', x="string")
        assert "not of expected type: string" in said
        assert shown in said


def test_base64_stands_for_bytes_at_any_depth() -> None:
    hello, world = '{ "b64" : "aGVsbG8=" }', '{ "b64": "d29ybGQ=" }'
    for body, want in (
        (f'{{"instances": [{hello}, {world}]}}', [b"hello", b"world"]),
        (f'{{"instances": [[{hello}], [{world}]]}}', [[b"hello"], [b"world"]]),
        (f'{{"instances": [{{"x": [[{hello}], [{world}]]}}]}}', [[[b"hello"], [b"world"]]]),
        (f'{{"inputs": {hello}}}', b"hello"),
        (f'{{"inputs": {{"x": {hello}}}}}', b"hello"),
        (f'{{"inputs": ["a", {world}]}}', [b"a", b"world"]),
    ):
        check(decode(body, x="string").inputs["x"], object, want)


@pytest.mark.parametrize(
    ("text", "want"),
    [("/w==", b"\xff"), ("/w", b"\xff"), ("/w..", b"\xff"), ("aGV\\nsbG8", b"hello"), ("", b"")],
)
def test_base64_may_lack_its_padding(text: str, want: bytes) -> None:
    assert decode(f'{{"inputs": {{"b64": "{text}"}}}}', x="string").inputs["x"].item() == want


@pytest.mark.parametrize("text", ["a", "a===", "ab=", "a*==", "=", "aGVsbG8==", "\u00e9", "ab=c"])
def test_garbage_is_no_base64(text: str) -> None:
    assert "Unable to base64 decode" in refusal(f'{{"inputs": {{"b64": "{text}"}}}}', x="string")


def test_objects_that_are_no_base64() -> None:
    said = refusal('{"inputs": ["a", {"b64": 1}]}', x="string")
    assert "not formatted correctly for base64" in said
    said = refusal('{"inputs": ["a", {"b64": "", "c": 1}]}', x="string")
    assert "not formatted correctly for base64" in said
    assert "not of expected type: int32" in refusal('{"inputs": [{"b64": ""}]}', x="int32")


def test_rows_with_names() -> None:
    body = """{"instances": [
        {"i": [[1,2],[3,4],[5,6]], "s": ["foo", "bar"], "f": [1.0, NaN], "d": [NaN]},
        {"d": [2.0], "i": [[7,8],[9,0],[1,2]], "s": ["baz", "bat"], "f": [2.0, Infinity]}]}"""
    request = decode(body, i="int32", s="string", f="float32", d="float64")
    assert request.is_row
    check(request.inputs["i"], "int32", [[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 0], [1, 2]]])
    check(request.inputs["s"], object, [[b"foo", b"bar"], [b"baz", b"bat"]])
    check(request.inputs["f"], "float32", [[1, np.nan], [2, np.inf]])
    check(request.inputs["d"], "float64", [[np.nan], [2]])


def test_columns() -> None:
    whole = [[[1, 2], [3, 4], [5, 6]]]
    for body in ({"inputs": {"i": whole}}, {"inputs": whole}):
        request = decode(json.dumps(body), i="int32")
        assert not request.is_row
        check(request.inputs["i"], "int32", whole)
    body = {"inputs": {"i": whole, "s": ["foo"], "b": {"b64": "aGVsbG8="}, "more": 1}}
    request = decode(json.dumps(body), i="int32", s="string", b="string")
    assert set(request.inputs) == {"i", "s", "b"}
    check(request.inputs["b"], object, b"hello")
    check(decode('{"inputs": 2.5}', x="float32").inputs["x"], "float32", 2.5)


def test_not_a_number_and_infinity() -> None:
    body = '{"instances": [[NaN, Infinity, -Infinity, 1]]}'
    for dtype in ("float32", "float64", "float16"):
        check(decode(body, x=dtype).inputs["x"], dtype, [[np.nan, np.inf, -np.inf, 1]])
    assert "not of expected type: int32" in refusal('{"inputs": [NaN]}', x="int32")


@pytest.mark.parametrize(
    ("number", "dtype"),
    [
        (f"{np.finfo(np.float64).max}", "float32"),
        ("-1e39", "float32"),
        ("65520", "float16"),
        ("1e39", "bfloat16"),
        ("16777217", "float32"),
        ("16777216", "float32"),
        ("-16777217", "float32"),
        ("9007199254740993", "float64"),
    ],
)
def test_numbers_that_would_become_others(number: str, dtype: str) -> None:
    said = refusal(f'{{"instances": [1, {number}]}}', x=dtype)
    assert "without loss of precision" in said
    assert "element: 1" in said


def test_numbers_at_the_edge() -> None:
    body = '{"inputs": [16777215, -16777215, 16777217.0, 1e-46, 100000000000000000000000, -0]}'
    want = [16777215, -16777215, 16777216, 0, 1e23, 0]
    check(decode(body, x="float32").inputs["x"], "float32", want)
    check(decode('{"inputs": 9007199254740991}', x="float64").inputs["x"], "float64", 2**53 - 1)
    check(decode('{"inputs": 18446744073709551615}', x="uint64").inputs["x"], "uint64", 2**64 - 1)
    for too_big in ("1e999", "-1e999", "[1, NaN, 1e999]", "9" * 10_000):
        assert "Number too big" in refusal(f'{{"inputs": {too_big}}}', x="float64")
    assert "expected type: uint64" in refusal('{"inputs": 18446744073709551616}', x="uint64")
    assert "expected type: int64" in refusal('{"inputs": -9223372036854775809}', x="int64")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "The document is empty"),
        ("[1]", "Is not object"),
        (" ", "JSON Parse error: The document is empty. at offset: 1"),
        ("instances = [1, 2]", "JSON Parse error: Invalid value. at offset: 0"),
        ('{"instances": [1, 2,]}', "JSON Parse error: Invalid value. at offset: "),
        ("{", "JSON Parse error: Missing a name for object member. at offset: 1"),
        ('{"instances": [1],}', "JSON Parse error: Missing a name for object member. at offset: "),
        ('{"instances" [1]}', "Missing a colon after a name of object member. at offset: 13"),
        ('{"instances": [1 2]}', "JSON Parse error: Missing a comma or } or ]. at offset: 17"),
        ('{"instances": ["a]}', "Missing a closing quotation mark in string. at offset: "),
        (r'{"instances": ["\a"]}', "Invalid escape character in string. at offset: "),
        (
            r'{"instances": ["\u00g0"]}',
            "Incorrect hex digit after \\u escape in string. at offset: ",
        ),
        (
            '{"instances": [1]} x',
            "The document root must not be followed by other values. at offset: 19",
        ),
        ('{"signature_name": 5, "instances": [[1,2],[3,4]]}', "must be a string value"),
        ('{"instances": [[1]], "inputs": [[1]]}', "Not formatted correctly"),
        ('{"instances": 1}', "to be an list/array"),
        ('{"instances": {"x": 1}}', "to be an list/array"),
        ('{"instances": []}', "No values in 'instances' array"),
        ('{"predictions": [1]}', "Missing 'inputs' or 'instances' key"),
        ('{"instances": [[1,2],[3,4],[5,6,7]]}', "Expecting tensor size: 2 but got: 3"),
        ('{"instances": [[1,2],[3,4],[[5,6]]]}', "Expecting shape [2] but got: [1,2]"),
        ('{"instances": [1, [1]]}', "Expecting shape [] but got: [1]"),
        ('{"instances": [[], [1]]}', "Expecting tensor size: 0 but got: 1"),
        ('{"instances": [[1,2],["a", "b"]]}', "not of expected type: int32"),
        ('{"instances": [[1, [2]]]}', "Encountered list at unexpected level: 1 expected < 1"),
        ('{"instances": [[[1], 2]]}', "found at incorrect level: 2"),
        ('{"inputs": [[1, 2], [3]]}', "unexpected size: 1 at level: 1 expected size: 2"),
        ('{"instances": [[1], {"x": [1]}]}', "Expecting value/list but got object at item 1"),
        ('{"instances": [{"x": 1}, [1]]}', "Expecting object but got list at item 1"),
        ('{"instances": [{"x": 1}, {"y": 1}]}', "does not have named input: y"),
        ('{"instances": [{"x": 1}, {}]}', "must only have keys: x"),
        ('{"inputs": {"y": 1}}', "Missing named input: x"),
        (b'\xff{"inputs": 1}', "JSON Parse error"),
        ('{"inputs": 1, "\x00": 2}', "Invalid control character"),
    ],
)
def test_what_is_refused(body: str | bytes, words: str) -> None:
    assert words in refusal(body, x="int32")


def test_several_inputs_need_names() -> None:
    said = refusal('{"instances": [[1], [2]]}', x="int32", y="int32")
    assert "instances is a plain list, but expecting list of objects" in said
    assert "inputs is a plain value/list" in refusal('{"inputs": [1]}', x="int32", y="int32")
    assert "Missing named input: y" in refusal('{"inputs": {"x": 1}}', x="int32", y="int32")
    rows = '{"instances": [{"x": [[1], [2]], "y": 1}, {"x": [[[1], [2]]], "y": 1}]}'
    said = refusal(rows, x="int32", y="int32")
    assert "Failed to process element: 1 key: x of 'instances' list." in said
    assert "Expecting shape [2,1] but got: [1,2,1]" in said
    assert "Failed to get input map for signature: DEFAULT" in refusal('{"inputs": {}}')


def test_complex_numbers_have_no_json() -> None:
    for body in ('{"instances": [1]}', '{"inputs": [1]}'):
        with pytest.raises(Unimplemented, match="complex64"):
            decode(body, x="complex64")


def test_empty_lists_are_dimensions_too() -> None:
    check(decode('{"instances": [[], []]}', x="float32").inputs["x"], "float32", [[], []])
    check(decode('{"inputs": []}', x="string").inputs["x"], object, [])
    check(decode('{"inputs": [[[]]]}', x="bool").inputs["x"], bool, [[[]]])


def test_other_keys_and_a_byte_order_mark_are_passed_over() -> None:
    body = b'\xef\xbb\xbf {"a": {"b": [null]}, "inputs": [1], "inputs": [2]}'
    check(decode(body, x="int32").inputs["x"], "int32", [2])


def test_strings_need_not_be_utf8() -> None:
    body = b'{"inputs": ["a\xff\xc3\xa9"]}'
    assert decode(body, x="string").inputs["x"].item() == b"a\xff\xc3\xa9"
    for lone in ("\\ud800", "\\udfff", "a\\ud83d\\u0041"):
        assert "surrogate" in refusal(f'{{"inputs": "{lone}"}}', x="string")
    assert "\\udcff" in refusal(b'{"inputs": ["\xff"]}', x="int32")


@pytest.mark.parametrize("depth", [33, 1000, 5000, 100_000])
@pytest.mark.parametrize("opens", ["[", '{"a":'])
def test_nesting_ends(depth: int, opens: str) -> None:
    closes = "]" if opens == "[" else "}"
    for key in ("instances", "inputs", "signature_name", "other"):
        nested = opens * depth + "1" + closes * depth
        for body in (f'{{"{key}": {nested}}}', f'{{"{key}": {opens * depth}'):
            refusal(body, x="int32")


def test_lists_and_objects_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_document, "_CONTAINERS_MAX", 10)
    assert "more lists and objects than 10" in refusal(
        '{"instances": [[]' + ", []" * 9 + "]}", x="int32"
    )
    assert decode('{"instances": [[1]' + ", [1]" * 7 + "]}", x="int32").inputs["x"].shape == (8, 1)


def test_what_an_error_quotes_is_short() -> None:
    rows = [list(range(1000))] * 100
    assert len(refusal(json.dumps({"signature_name": 1, "inputs": rows}), x="bool")) < 300
    assert len(refusal(json.dumps({"inputs": ["x" * 10_000]}), x="int32")) < 300
    assert len(refusal(json.dumps({"instances": [{"k" * 9999: 1}]}), x="int32")) < 2000
