"""Answers with numbers in the fields of their dtypes, as TensorFlow Serving writes them if nothing
else is said: clients such as its own mnist_client.py read ``float_val``."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from batchyard.wire import dtypes
from batchyard.wire.tensorflow_serving.messages import PredictResponse
from batchyard.wire.tensorflow_serving.predict_response import Array, encode_response
from batchyard.wire.tensorflow_serving.tensor_proto import to_array


def _array(name: str) -> Array:
    if name == dtypes.STRING:
        return np.array([[b"a", b""], [b"\xc3\xbc", b"\x00"]], object)
    numbers = np.array([[0, 1, 3], [100, 5, 0]])
    if name == "bool":
        return numbers > 1
    array = numbers.astype(dtypes.to_numpy(name))
    return array * (1 - 2j) if name.startswith("complex") else array


@pytest.mark.parametrize("name", dtypes.NAMES)
@pytest.mark.parametrize("as_content", [False, True])
def test_every_dtype_comes_back(name: str, as_content: bool) -> None:
    array = _array(name).astype(_array(name).dtype, order="F")
    encoded = encode_response("m", 1, "s", {"y": array}, as_content=as_content)

    output = PredictResponse.FromString(encoded).outputs["y"]

    assert bool(output.tensor_content) == (as_content and name != dtypes.STRING)
    back = to_array(output)
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    assert np.array_equal(back, array)


@pytest.mark.parametrize(
    ("array", "field", "values"),
    [
        (np.float32([1.5, -0.0]), "float_val", [1.5, -0.0]),
        (np.float64([1e300]), "double_val", [1e300]),
        (np.array([-1, 300], np.int32), "int_val", [-1, 300]),
        (np.array([255], np.uint8), "int_val", [255]),
        (np.array([-(2**63)]), "int64_val", [-(2**63)]),
        (np.array([2**64 - 1], np.uint64), "uint64_val", [2**64 - 1]),
        (np.array([True, False]), "bool_val", [True, False]),
        (np.float16([1.0]), "half_val", [0x3C00]),
        (np.array([1.0], ml_dtypes.bfloat16), "half_val", [0x3F80]),
        (np.complex64([1 + 2j]), "scomplex_val", [1.0, 2.0]),
        (np.float32([]), "float_val", []),
        (np.float32(2.5), "float_val", [2.5]),
    ],
)
def test_the_fields_are_those_of_the_dtypes(array: Array, field: str, values: list[object]) -> None:
    encoded = encode_response("m", 1, "s", {"y": np.asarray(array)}, as_content=False)

    output = PredictResponse.FromString(encoded).outputs["y"]

    assert list(getattr(output, field)) == values
    assert [f.name for f, _ in output.ListFields()][2:] == ([field] if values else [])
