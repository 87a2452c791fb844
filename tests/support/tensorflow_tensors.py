"""Tensors as TensorFlow writes and reads them, for tests that do without it.

    python -P tests/support/tensorflow_tensors.py > tests/wire/tensorflow_serving/tensors.json

Each has the bytes of a ``TensorProto`` and what ``tf.make_ndarray`` makes of them.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import tensor_util

_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("half", "float32", "float64", "complex64", "complex128"),
    *("bfloat16", "float8_e5m2", "float8_e4m3fn", "string"),
)


def _values(dtype: Any) -> Any:
    if dtype == tf.string:
        return np.array([[b"", b"a\x00b", "\u00e9".encode()], [b"x" * 200, b"\xff", b"0"]], object)
    values = np.array([[0, 1, 2], [3, 1, 100]], np.float64)
    if dtype == tf.bool:
        values = values % 2
    elif not dtype.is_unsigned:
        values *= -1
    if dtype.is_complex:
        values = values + 1j
    return values.astype(dtype.as_numpy_dtype)


def _in_fields(values: Any, shape: tuple[int, ...]) -> Any:
    """The values in the field of their dtype, whatever TensorFlow would choose."""
    proto = tensor_util.make_tensor_proto(np.zeros((0,), values.dtype))
    del proto.tensor_shape.dim[:]
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    tensor_util.GetNumpyAppendFn(values.dtype)(proto, values.ravel())
    return proto


def _protos(dtype: Any) -> dict[str, Any]:
    values = _values(dtype)
    made = tensor_util.make_tensor_proto
    return {
        "as TensorFlow chooses": made(values),
        "one": made(values[0, 1]),
        "one, repeated": made(values[1, 2], dtype=dtype, shape=[2, 2]),
        "none": made(values[:0]),
        "in its field": _in_fields(values, (3, 2)),
        "the last repeated": _in_fields(values[0], (5,)),
    }


def main() -> None:
    found = []
    for name in _DTYPES:
        dtype = tf.as_dtype(name)
        for what, proto in _protos(dtype).items():
            array = tensor_util.MakeNdarray(proto)
            items = array.ravel().tolist()
            found.append(
                {
                    "name": f"{name}, {what}",
                    "dtype": "string" if array.dtype == object else array.dtype.name,
                    "proto": proto.SerializeToString(deterministic=True).hex(),
                    "shape": array.shape,
                    "array": [item.hex() for item in items]
                    if array.dtype == object
                    else array.tobytes().hex(),
                }
            )
    json.dump(found, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
