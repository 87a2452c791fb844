"""Responses of predict, written piece by piece, are those that protobuf reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.wire.errors import InvalidArgument
from batchyard.wire.tensorflow_serving.messages import PredictResponse
from batchyard.wire.tensorflow_serving.predict_response import encode_response
from batchyard.wire.tensorflow_serving.tensor_proto import from_array


def test_a_response_is_what_protobuf_would_write() -> None:
    outputs = {
        "small": np.arange(6, dtype=np.int16).reshape(2, 3),
        "large": np.arange(100_000, dtype=np.float64).reshape(10, -1),
        "strided": np.arange(100_000, dtype=np.float32).reshape(10, -1).T,
        "scalar": np.array(True),
        "none": np.empty((0, 5), np.uint8),
        "strings \u00e9": np.array([[b"a\xff", "\u00e9"], [b"", b"x" * 300]], object),
    }
    expected = PredictResponse()
    expected.model_spec.name = "m"
    expected.model_spec.version.value = 1 << 40
    expected.model_spec.signature_name = "s" * 200
    for name, array in outputs.items():
        expected.outputs[name].CopyFrom(from_array(array))

    encoded = encode_response("m", 1 << 40, "s" * 200, outputs)

    assert PredictResponse.FromString(encoded) == expected


def test_no_outputs() -> None:
    assert not PredictResponse.FromString(encode_response("m", 1, "s", {})).outputs


def test_an_output_that_is_no_tensor() -> None:
    with pytest.raises(InvalidArgument, match="datetime64"):
        encode_response("m", 1, "s", {"y": np.array(["2001-01-01"], "datetime64[D]")})


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1)))
def test_whole_numbers_are_written_as_protobuf_does(numbers: list[int]) -> None:
    encoded = encode_response("m", 1, "s", {"y": np.array(numbers, np.int64)}, as_content=False)

    assert list(PredictResponse.FromString(encoded).outputs["y"].int64_val) == numbers


def test_many_whole_numbers() -> None:
    numbers = np.arange(200_000, dtype=np.uint32).reshape(2, -1)

    encoded = encode_response("m", 1, "s", {"y": numbers}, as_content=False)

    output = PredictResponse.FromString(encoded).outputs["y"]
    assert np.array_equal(np.array(output.uint32_val), numbers.ravel())
