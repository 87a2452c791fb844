"""A ``PredictResponse``, as protobuf reads it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from batchyard.wire import dtypes
from batchyard.wire.tensorflow_serving import predict_response
from batchyard.wire.tensorflow_serving.messages import PredictResponse
from batchyard.wire.tensorflow_serving.predict_response import encode_response
from batchyard.wire.tensorflow_serving.tensor_proto import to_array
from batchyard.wire.tensorflow_serving.value_fields import value_field

Array = npt.NDArray[Any]
NUMBERS = [name for name in dtypes.NAMES if name != dtypes.STRING]
SHAPES = st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, Array]:
    """Of any bits: numbers that are none, the largest and the least are among them."""
    dtype = draw(st.sampled_from(NUMBERS))
    shape = draw(SHAPES)
    nbytes = int(np.prod(shape)) * dtypes.itemsize(dtype)
    content = draw(st.binary(min_size=nbytes, max_size=nbytes))
    if dtype == "bool":
        content = bytes(byte & 1 for byte in content)
    return dtype, np.frombuffer(content, dtypes.to_numpy(dtype)).reshape(shape)


def decoded(outputs: dict[str, Array], **options: Any) -> Any:
    return PredictResponse.FromString(encode_response("m", 3, "s", outputs, **options)).outputs


@given(case=arrays())
def test_content_and_values_are_the_array(case: tuple[str, Array]) -> None:
    dtype, array = case
    proto = decoded({"y": array})["y"]
    assert proto.tensor_content == array.tobytes()
    assert to_array(proto).tobytes() == array.tobytes()
    proto.tensor_content = b""
    if array.size:
        assert getattr(proto, value_field(dtype))
        from_values = to_array(proto)
        assert from_values.shape == array.shape
        if array.dtype.kind in "biu":
            assert from_values.tolist() == array.tolist()
        else:
            # A number that is none may have other bits after it was one of Python's.
            wide = np.complex128 if array.dtype.kind == "c" else np.float64
            with np.errstate(invalid="ignore"):
                np.testing.assert_array_equal(from_values.astype(wide), array.astype(wide))


def test_many_integers() -> None:
    array = np.arange(-70_000, 70_000, dtype=np.int64) * 123_456_789_012
    assert list(decoded({"y": array})["y"].int64_val) == array.tolist()


def test_clients_find_floats_where_tensorflow_serving_has_them() -> None:
    proto = decoded({"y": np.float32([3.0])})["y"]
    assert list(proto.float_val) == [3.0]
    alone = decoded({"y": np.float32([3.0])}, with_values=False)["y"]
    assert not alone.float_val
    assert alone.tensor_content == proto.tensor_content


def test_what_is_large_has_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_response, "_VALUES_NBYTES_MAX", 8)
    outputs = decoded({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})
    assert [len(outputs[name].float_val) for name in "ab"] == [2, 0]


def test_strings_and_the_spec() -> None:
    strings = np.array([b"one", b""], object)
    response = PredictResponse.FromString(encode_response("m", 3, "s", {"y": strings}))
    assert list(response.outputs["y"].string_val) == [b"one", b""]
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 3, "s")
