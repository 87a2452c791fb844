"""``TensorProto`` to numpy and back, as TensorFlow itself has it (``tensors.json``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.wire import dtypes
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.tensorflow_serving.messages import TensorProto
from batchyard.wire.tensorflow_serving.tensor_proto import (
    EXPANDED_NBYTES_MAX,
    dtype_enum,
    dtype_name,
    from_array,
    to_array,
)

Array = npt.NDArray[Any]

TENSORS = json.loads((Path(__file__).parent / "tensors.json").read_text())
FLOAT, INT32, UINT8, INT8, STRING, BOOL, HALF, COMPLEX64 = 1, 3, 4, 6, 7, 10, 19, 8


def message(dtype: int, shape: list[int], **fields: Any) -> TensorProto:
    """A message with the sizes of ``shape``."""
    dims = {"dim": [{"size": size} for size in shape]}
    return TensorProto(dtype=dtype, tensor_shape=dims, **fields)


def assert_same(array: Array, expected: Array) -> None:
    """The same elements, to the bit."""
    assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
    if array.dtype == object:
        assert array.tolist() == expected.tolist()
    else:
        assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda tensor: tensor["name"])
def test_tensors_of_tensorflow(tensor: Any) -> None:
    array = to_array(TensorProto.FromString(bytes.fromhex(tensor["proto"])))

    if tensor["dtype"] == "string":
        expected = np.empty(len(tensor["array"]), object)
        expected[:] = [bytes.fromhex(item) for item in tensor["array"]]
    else:
        expected = np.frombuffer(bytes.fromhex(tensor["array"]), dtypes.to_numpy(tensor["dtype"]))
    assert_same(array, expected.reshape(tensor["shape"]))


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Any tensor of any dtype."""
    dtype = draw(st.sampled_from(dtypes.NAMES))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    count = int(np.prod(shape))
    if dtype == dtypes.STRING:
        array = np.empty(count, object)
        array[:] = draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
    elif dtype == "bool":
        array = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    else:
        nbytes = count * dtypes.itemsize(dtype)
        data = draw(st.binary(min_size=nbytes, max_size=nbytes))
        array = np.frombuffer(data, dtypes.to_numpy(dtype))
    return array.reshape(shape)


@given(arrays())
def test_arrays_come_back(array: Array) -> None:
    proto = from_array(array)

    assert dtype_name(proto.dtype) == dtypes.from_numpy(array.dtype)
    assert_same(to_array(TensorProto.FromString(proto.SerializeToString())), array)


@given(arrays())
def test_content_of_strided_arrays(array: Array) -> None:
    assert_same(to_array(from_array(array.T)), array.T)


def test_content_is_not_copied() -> None:
    proto = from_array(np.arange(5, dtype=np.float32))

    assert not to_array(proto).flags.owndata


def test_text_becomes_utf_8() -> None:
    assert list(from_array(np.array(["\u00e9", b"\xff"], object)).string_val) == [
        b"\xc3\xa9",
        b"\xff",
    ]


def test_unpacked_values() -> None:
    # As writers of proto2 have them: a field's number, wire type 5, four bytes, for each.
    head = message(FLOAT, [3]).SerializeToString()
    one, two = b"\x2d\x00\x00\x80\x3f", b"\x2d\x00\x00\x00\x40"

    assert to_array(TensorProto.FromString(head + one + two + one)).tolist() == [1, 2, 1]


def test_strings_in_one_piece() -> None:
    long = b"y" * 300
    content = b"\x00\x02\xac\x02" + b"ab" + long

    assert to_array(message(STRING, [3], tensor_content=content)).tolist() == [b"", b"ab", long]


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_any_strings_in_one_piece(strings: list[bytes]) -> None:
    lengths = b"".join(
        bytes([len(s)]) if len(s) < 128 else bytes([len(s) & 127 | 128, len(s) >> 7])
        for s in strings
    )
    proto = message(STRING, [len(strings)], tensor_content=lengths + b"".join(strings))

    assert to_array(proto).tolist() == strings


def test_values_left_out_are_zeros() -> None:
    assert to_array(message(INT32, [2, 2])).tolist() == [[0, 0], [0, 0]]
    assert to_array(message(STRING, [2])).tolist() == [b"", b""]
    assert to_array(message(COMPLEX64, [])).tolist() == 0j


WRONG = {
    "no dtype": (message(0, [1]), "DT_INVALID"),
    "unknown dtype": (message(1234, [1]), "1234"),
    "resource": (message(20, []), "DT_RESOURCE"),
    "unknown rank": (TensorProto(dtype=FLOAT, tensor_shape={"unknown_rank": True}), "unknown_rank"),
    "negative": (message(FLOAT, [2, -1]), "negative"),
    "overflow": (message(FLOAT, [1 << 32, 1 << 32]), "2**63"),
    "overflow of none": (message(FLOAT, [0, 1 << 32, 1 << 32]), "2**63"),
    "too many dimensions": (message(FLOAT, [1] * 33, float_val=[1]), "33 sizes"),
    "too many from little": (message(FLOAT, [10**18], float_val=[1]), "left out"),
    "too many from nothing": (message(UINT8, [10**18]), "left out"),
    "too many strings": (message(STRING, [10**18], string_val=[b""]), "left out"),
    "too many repetitions": (message(STRING, [1 << 16], string_val=[b"x" * 1024]), "left out"),
    "short content": (message(FLOAT, [2], tensor_content=b"1234567"), "7 bytes"),
    "long content": (message(FLOAT, [2], tensor_content=b"123456789"), "9 bytes"),
    "content of no bools": (message(BOOL, [2], tensor_content=b"\x00\x02"), "0 or 1"),
    "too many values": (message(FLOAT, [2], float_val=[1, 2, 3]), "3 elements"),
    "values without a shape": (message(FLOAT, [], float_val=[1, 2]), "2 elements"),
    "no int8": (message(INT8, [1], int_val=[128]), "int8 does not hold"),
    "no uint8": (message(UINT8, [1], int_val=[-1]), "uint8 does not hold"),
    "no half": (message(HALF, [1], half_val=[1 << 16]), "float16 does not hold"),
    "half a complex": (message(COMPLEX64, [1], scomplex_val=[1]), "two make an element"),
    "string ends in its length": (message(STRING, [1], tensor_content=b"\x80"), "ends within"),
    "string with a long length": (
        message(STRING, [1], tensor_content=b"\xff" * 11 + b"\x00"),
        "ends within",
    ),
    "string too short": (message(STRING, [1], tensor_content=b"\x02a"), "1 bytes of strings"),
    "string of 2**64": (
        message(STRING, [2], tensor_content=b"\xff" * 9 + b"\x01\x01" + b"a"),
        "1 bytes of strings",
    ),
    "strings left over": (message(STRING, [1], tensor_content=b"\x01ab"), "2 bytes of strings"),
    "strings in too few bytes": (message(STRING, [10**18], tensor_content=b"\x00"), "at least"),
}


@pytest.mark.parametrize(("proto", "complaint"), WRONG.values(), ids=WRONG)
def test_what_is_no_tensor(proto: TensorProto, complaint: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        to_array(proto)

    assert complaint in caught.value.message
    assert len(caught.value.message) < 400


def test_as_much_as_may_be_left_out() -> None:
    array = to_array(message(UINT8, [EXPANDED_NBYTES_MAX], int_val=[7]))

    assert array.nbytes == EXPANDED_NBYTES_MAX
    assert array[0] == array[-1] == 7


def test_a_dtype_that_tensorflow_does_not_have() -> None:
    with pytest.raises(InvalidArgument, match="datetime64"):
        from_array(np.array(["2001-01-01"], "datetime64[D]"))


def test_names_of_dtypes() -> None:
    assert (dtype_name(1), dtype_enum("bfloat16"), dtype_enum("string")) == ("float32", 14, STRING)
    with pytest.raises(KeyError):
        dtype_name(20)
    with pytest.raises(KeyError):
        dtype_enum("object")
