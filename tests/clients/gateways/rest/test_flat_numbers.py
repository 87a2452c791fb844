"""Numbers straight from the text of a request are the same as by way of a tree of lists."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.clients.gateways.rest import flat_numbers
from batchyard.clients.gateways.rest.flat_numbers import Plain
from batchyard.clients.inputs import Array


def plain(text: str) -> Plain:
    return Plain("", "inputs", None, 0, len(text))


def read(text: str, dtype: str = "float64") -> Array | None:
    return flat_numbers.read(text.encode(), plain(text), dtype)


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=5)
numbers = st.one_of(
    st.integers(-(2**53) + 1, 2**53 - 1), st.floats(), st.floats(width=32), st.integers(-9, 9)
)


@given(shapes, st.data(), st.sampled_from([None, 1, 4]))
def test_numbers_of_any_shape(shape: list[int], data: Any, indent: int | None) -> None:
    size = int(np.prod(shape))
    flat = data.draw(st.lists(numbers, min_size=size, max_size=size))
    nested = np.array(flat, object).reshape(shape).tolist()
    array = read(json.dumps(nested, indent=indent))
    assert array is not None
    np.testing.assert_array_equal(array, np.array(flat, np.float64).reshape(shape))


@given(st.text(st.sampled_from("[],1 2.e-"), max_size=30))
def test_text_that_is_no_array_is_none_here(text: str) -> None:
    array = read(text)
    if array is not None:
        np.testing.assert_array_equal(array, np.array(json.loads(text), np.float64))


@pytest.mark.parametrize(
    "text",
    [
        "[[1,2],[3[,4]]",
        "[[1,2],[3,]4]",
        "[[1,2]3,[4]]",
        "[1[,2]]",
        "[[1,2],[3]]",
        "[[1],2]",
        "[1,,2]",
        "[1,]",
        "[,]",
        "[]",
        "[[],[]]",
        "[1 2]",
        "[[1][2]]",
        "[1]]",
        "[[1]",
        "[01]",
        "[true]",
        '["1"]',
        "[null]",
        "[nan]",
        "[1e999]",
        "[{}]",
        "[" * 40 + "1" + "]" * 40,
    ],
)
def test_left_to_the_general_way(text: str) -> None:
    assert read(text) is None


@pytest.mark.parametrize(
    ("text", "dtype"),
    [("[1.0]", "int32"), ("[300]", "uint8"), ("[16777217]", "float32"), ("[1]", "bfloat16")],
)
def test_what_does_not_fit_is_left_to_it_too(text: str, dtype: str) -> None:
    assert read(text, dtype) is None


def test_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(3 * 40 * 5).reshape(3, 40, 5)
    text = json.dumps(rows.tolist())
    for nbytes in (1, 2, 3, 7, 50, 1 << 15):
        monkeypatch.setattr(flat_numbers, "_PIECE", nbytes)
        np.testing.assert_array_equal(read(text, "int64"), rows)
        assert read(text.replace("], [", "]; [", 1)) is None
        assert read(text.replace("17,", "17 ],", 1)) is None
        special = read(text.replace(" 17,", "NaN,").replace(" 18,", "-Infinity,"))
        assert special is not None
        assert np.isnan(special).any()
        assert np.isinf(special).any()


LONG = json.dumps([[0.5] * 300] * 2)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (f'{{"instances": {LONG}}}', ("", "instances", None)),
        (f' {{ "inputs" :{LONG} }} \n', ("", "inputs", None)),
        (f'{{"inputs": {{"x": {LONG} }}}}', ("", "inputs", "x")),
        (f'{{"signature_name": "s", "inputs": {LONG}}}', ("s", "inputs", None)),
        (f'{{"inputs": {{"x": {LONG}}}, "signature_name": "s"}}', ("s", "inputs", "x")),
        (f'{{"instances": {LONG}, "signature_name": "\\u0041"}}', None),
        (f'{{"signature_name": "s", "inputs": {LONG}, "signature_name": "t"}}', None),
        (f'{{"instances": {{"x": {LONG}}}}}', None),
        (f'{{"inputs": {{"x": {LONG}}}', None),
        (f'{{"inputs": {LONG}}}}}', None),
        (f'{{"inputs": {LONG}, "other": 1}}', None),
        (f'{{"other": 1, "inputs": {LONG}}}', None),
        (LONG, None),
        ('{"inputs": [1]}', None),
    ],
)
def test_where_the_array_is(body: str, found: tuple[str, str, str | None] | None) -> None:
    place = flat_numbers.find(body.encode())
    if found is None:
        assert place is None
        return
    assert place is not None
    assert place[:3] == found
    assert body[place.start : place.end] == LONG
