"""Bodies of :classify and :regress, and their answers."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from batchyard.clients.gateways.rest.example_json import (
    decode_examples,
    encode_classifications,
    encode_regressions,
)
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.tensorflow_serving.messages import Example

MAX = np.finfo(np.float64).max


def features(serialized: bytes) -> dict[str, list[Any]]:
    """The values of a serialized example's features, with the name of their kind before."""
    found = {}
    for name, feature in Example.FromString(serialized).features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = [kind, *(getattr(feature, kind).value if kind else ())]
    return found


def decode(text: str | bytes) -> list[dict[str, list[Any]]]:
    request = decode_examples(text.encode() if isinstance(text, str) else text)
    assert request.examples.dtype == object
    return [features(example) for example in request.examples]


def test_examples_have_the_features_that_they_say() -> None:
    first, second = decode(
        '{"examples": [{"names": ["foo", "bar"], "ratings": [8.0, 9.0], "age": 20},'
        ' {"names": ["baz"], "ratings": 6.0}]}'
    )
    assert first == {
        "names": ["bytes_list", b"foo", b"bar"],
        "ratings": ["float_list", 8.0, 9.0],
        "age": ["int64_list", 20],
    }
    assert second == {"names": ["bytes_list", b"baz"], "ratings": ["float_list", 6.0]}


def test_the_context_is_in_every_example() -> None:
    body = """{"signature_name": "custom",
        "context": {"query": "pizza", "location": ["sfo"]},
        "examples": [
          {"names": ["foo", "bar"], "ratings": [8.0, NaN, Infinity], "age": 20},
          {"names": ["baz", {"b64": "aGVsbG8="}], "intboolmix": [1, true, false]},
          {"query": 1, "ratings": -Infinity}]}"""
    assert decode_examples(body.encode()).signature_name == "custom"
    first, second, third = decode(body)
    both = {"query": ["bytes_list", b"pizza"], "location": ["bytes_list", b"sfo"]}
    assert both.items() <= first.items()
    assert first["ratings"][1:4:2] == [8.0, math.inf]
    assert math.isnan(first["ratings"][2])
    assert second == both | {
        "names": ["bytes_list", b"baz", b"hello"],
        "intboolmix": ["int64_list", 1, 1, 0],
    }
    # What an example says itself counts.
    assert third == both | {"query": ["int64_list", 1], "ratings": ["float_list", -math.inf]}


def test_features_without_values() -> None:
    assert decode('{"examples": [{}, {"a": []}]}') == [{}, {"a": [None]}]
    last = decode('{"examples": [{"a": 1, "a": "b"}]}')
    assert last == [{"a": ["bytes_list", b"b"]}]
    assert decode('{"examples": [{"": -9223372036854775808}]}') == [{"": ["int64_list", -(2**63)]}]
    assert decode(b'{"examples": [{"a": "\xff"}]}') == [{"a": ["bytes_list", b"\xff"]}]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "The document is empty"),
        ("[]", "Is not object"),
        ('{"signature_name": ["h"], "examples": [{}]}', "'signature_name' key must be a string"),
        ('{"context": [{}]}', "Example must be JSON object but got JSON Array"),
        ("{}", "key 'examples' is expected and was not found"),
        ('{"examples": {"names": ["foo"]}}', "list/array"),
        ('{"examples": []}', "is an empty array"),
        ('{"examples": [[{"names": ["foo"]}]]}', "Example must be JSON object"),
        ('{"examples": [{"n": [10, null]}]}', "n has element with unexpected JSON type: Null"),
        ('{"examples": [{"names": [10, 10.0]}]}', "feature: names expecting type: int64"),
        ('{"examples": [{"names": ["a", 10]}]}', "feature: names expecting type: bytes"),
        ('{"examples": [{"names": [1.5, true]}]}', "feature: names expecting type: float"),
        ('{"examples": [{"names": [10, {"test": 10}]}]}', "unexpected JSON type: Object"),
        ('{"examples": [{"names": {"b64": "", "c": 1}}]}', "unexpected JSON type: Object"),
        ('{"examples": [{"names": [[10], 20]}]}', "unexpected JSON type: Array"),
        ('{"examples": [{"names": [20, 18446744073709551603]}]}', "Only int64 is supported"),
        (f'{{"examples": [{{"names": {MAX}}}]}}', "loss of precision"),
        ('{"examples": [{"names": {"b64": "?"}}]}', "Unable to base64 decode"),
        (b'{"examples": [{"\xff": 1}]}', "is no UTF-8"),
        ('{"examples": [{"\\ud800": 1}]}', "is no UTF-8"),
        ('{"examples": [{"a": "\\ud800"}]}', "surrogate pair"),
        ('{"examples": ' + "[" * 100_000, "JSON Parse error"),
        ('{"examples": [{"a": ' + "[" * 500 + "]" * 500 + "}]}", "unexpected JSON type: Array"),
    ],
)
def test_what_is_refused(body: str | bytes, words: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        decode(body)
    assert words in refused.value.message


CLASSES = np.array([[b"car", b"bike"], [b'"', b"\xff"]], object)
SCORES = np.array([[0.2, 0.7], [1, np.nan]], np.float32)


def test_classifications() -> None:
    assert encode_classifications(CLASSES[:1], SCORES[:1]) == (
        b'{\n    "results": [[["car", 0.2], ["bike", 0.7]]\n    ]\n}'
    )
    text = encode_classifications(CLASSES, SCORES)
    assert b', [["\\"", 1.0], ["\xff", NaN]]\n' in text
    assert json.loads(encode_classifications(None, SCORES[:1])) == {
        "results": [[["", 0.2], ["", 0.7]]]
    }
    assert json.loads(encode_classifications(CLASSES[:1], None)) == {
        "results": [[["car", 0.0], ["bike", 0.0]]]
    }
    many = np.tile(SCORES[:1], (50, 3))
    assert json.loads(encode_classifications(None, many))["results"][49][5] == ["", 0.7]
    assert encode_classifications(None, np.zeros((2, 0), np.float32)) == (
        b'{\n    "results": [[], []\n    ]\n}'
    )


def test_regressions() -> None:
    values = np.array([0.2, np.inf, 1, -np.inf, np.nan], np.float32)
    assert encode_regressions(values) == (
        b'{\n    "results": [0.2, Infinity, 1.0, -Infinity, NaN]\n}'
    )
    many = encode_regressions(np.arange(1000, dtype=np.float32))
    assert json.loads(many) == {"results": list(range(1000))}


def test_answers_without_results() -> None:
    for none in (None, np.zeros((0, 2), np.float32)):
        with pytest.raises(InvalidArgument, match="empty ClassificationResults"):
            encode_classifications(None, none)
    with pytest.raises(InvalidArgument, match="empty RegressionResults"):
        encode_regressions(np.zeros(0, np.float32))


def test_a_context_is_not_repeated_without_end() -> None:
    document = {"context": {"text": "x" * 1_000_000}, "examples": [{}] * 300}

    with pytest.raises(InvalidArgument, match="300 examples have it"):
        decode_examples(json.dumps(document).encode())
