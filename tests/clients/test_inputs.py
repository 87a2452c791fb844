"""What callers may pass for an input, and what they are told when they may not."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from batchyard.clients.errors import InvalidArgument, NotFound
from batchyard.clients.inputs import Route, make_route, readable_metadata
from batchyard.wire.protocol import InputHeader, Target
from batchyard.wire.signatures import SignatureSpec, TensorSpec


def route(*inputs: TensorSpec, batched: bool = True, is_open: bool = False) -> Route:
    spec = SignatureSpec("s", inputs, (), batched, open=is_open)
    return Route("m", None, None, 0, spec, 1, 6400)


def column(dtype: str) -> Route:
    """One input ``x`` of shape (?,)."""
    return route(TensorSpec("x", dtype, (None,)))


def only_array(where: Route, value: Any) -> np.ndarray[Any, Any]:
    (array,), _, _ = where.arrays(value)
    return array


def refusal(where: Route, value: Any) -> str:
    with pytest.raises(InvalidArgument) as caught:
        where.arrays(value)
    return caught.value.message


ROWS_OF_3 = route(TensorSpec("x", "float32", (None, 3)))
TWO = route(TensorSpec("a", "float32", (None,)), TensorSpec("b", "int32", (None,)))
OPEN = route(is_open=True)


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("float32", [1, 2], [1.0, 2.0]),
        ("float32", [True, 2.5], [1.0, 2.5]),
        ("float32", [np.float64(3)], [3.0]),
        ("float64", (1.5,), [1.5]),
        ("float16", [0.5], [0.5]),
        ("int32", [True, False], [1, 0]),
        ("int8", [-128, 127], [-128, 127]),
        ("uint64", [2**64 - 1], [2**64 - 1]),
        ("uint8", [np.int64(3)], [3]),
        ("bool", [True, False], [True, False]),
        ("complex64", [1, 2.5, 1j], [1, 2.5, 1j]),
    ],
)
def test_python_values_become_the_signatures_dtype(dtype: str, value: Any, expected: Any) -> None:
    array = only_array(column(dtype), value)
    assert array.dtype == np.dtype(dtype)
    assert array.tolist() == [s.encode() if isinstance(s, str) else s for s in expected]


def test_list_of_arrays_must_keep_its_values() -> None:
    where = route(TensorSpec("x", "int32", (None, 2)))
    assert only_array(where, [np.array([3, 5])]).tolist() == [[3, 5]]
    assert "does not hold" in refusal(where, [np.array([2**40, 5])])


def test_bfloat16_takes_python_numbers_and_its_own_arrays() -> None:
    where = column("bfloat16")
    given = np.array([1.5, -2], ml_dtypes.bfloat16)
    assert only_array(where, given) is given
    for value in ([1.5, -2], [1, 2]):
        array = only_array(where, value)
        assert array.dtype == np.dtype(ml_dtypes.bfloat16)
        assert array.astype(np.float64).tolist() == value
    assert "has dtype float32, needs bfloat16" in refusal(where, np.zeros(1, np.float32))


@pytest.mark.parametrize(
    ("dtype", "value", "given"),
    [
        ("int32", [1.0], "float64"),
        ("float32", [1j], "complex128"),
        ("bool", [1], "int64"),
        ("float32", ["1"], "string"),
        # Arrays are taken as they are or refused, whatever their values.
        ("float32", np.zeros(2), "float64"),
        ("float64", np.zeros(2, np.float32), "float32"),
        ("int64", np.zeros(2, np.int32), "int32"),
        ("bool", np.zeros(2, np.uint8), "uint8"),
        ("float32", np.zeros(2, ">f4"), ">f4"),
        ("float32", np.array(["2020"], "datetime64[D]"), "datetime64[D]"),
        ("float32", np.float64(1), "float64"),
    ],
)
def test_wrong_dtype_is_refused_by_name(dtype: str, value: Any, given: str) -> None:
    message = f"model 'm' signature 's': input 'x' has dtype {given}, needs {dtype}"
    assert refusal(column(dtype), value) == message


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        (None, "None (null)"),
        ([1.0, None], "None (null), float"),
        ([{}], "dict"),
        (np.array(["a"], object), "str"),
    ],
)
def test_objects_that_are_no_numbers_are_named(value: Any, kinds: str) -> None:
    message = f"model 'm' signature 's': input 'x' holds {kinds}, needs float32"
    assert refusal(column("float32"), value) == message


def test_what_numpy_makes_an_array_of_counts_as_an_array() -> None:
    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.zeros(2)

    assert "has dtype float64, needs float32" in refusal(column("float32"), Tensor())
    assert only_array(column("float64"), Tensor()).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("uint8", 300),
        ("uint8", np.int64(300)),
        ("uint8", -1),
        ("int32", 2**31),
        ("int64", 2**63),
        ("int64", 2**70),
    ],
)
def test_integer_overflow_is_refused(dtype: str, value: int) -> None:
    assert refusal(column(dtype), [value]).startswith("model 'm' signature 's': input 'x'")


@pytest.mark.parametrize(("dtype", "value"), [("float32", 1e300), ("float16", 100_000)])
def test_float_overflow_is_refused(dtype: str, value: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        refusal(column(dtype), [value])


@pytest.mark.parametrize("dtype", ["float32", "string"])
def test_ragged_lists_are_refused(dtype: str) -> None:
    ragged: Any = [["a"], ["b", "c"]] if dtype == "string" else [[1.0], [1.0, 2.0]]
    said = refusal(column(dtype), ragged)
    assert said.endswith(": input 'x' is no array: its lists differ in length")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", "é"], ["a", "é"]),
        ([b"a", "b"], [b"a", "b"]),
        # Zeros at the end are part of a string.
        (["a\0", "b"], ["a\0", "b"]),
        ([b"\0\0", b"bcd"], [b"\0\0", b"bcd"]),
        (np.array([b"a\0", "b"], object), [b"a\0", "b"]),
        # numpy's own fixed-width types have lost theirs.
        (np.array([b"a\0", b"bcd"]), [b"a", b"bcd"]),
        (np.array(["a", "bcd"]), ["a", "bcd"]),
    ],
)
def test_strings_come_as_text_bytes_or_arrays_of_them(value: Any, expected: list[Any]) -> None:
    array = only_array(column("string"), value)
    assert array.dtype == object
    assert array.tolist() == [s.encode() if isinstance(s, str) else s for s in expected]


def test_text_and_bytes_may_be_mixed() -> None:
    assert only_array(column("string"), ["é", b"\xff"]).tolist() == ["é".encode(), b"\xff"]


def test_scalar_string_keeps_its_zeros() -> None:
    where = route(TensorSpec("x", "string", ()), batched=False)
    assert only_array(where, b"abc\0").tolist() == b"abc\0"


@pytest.mark.parametrize(
    "value", [np.array([1], object), [None], ["a", 1], ["\ud800"]], ids=["int", "None", "mix", "?"]
)
def test_what_is_no_string_is_refused_on_the_callers_stack(value: Any) -> None:
    refusal(column("string"), value)


@pytest.mark.parametrize(
    "value",
    [
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2],
        np.broadcast_to(np.array([1, 2, 3], np.float32), (2, 3)),
    ],
    ids=["fortran", "strided", "broadcast"],
)
def test_arrays_that_are_not_contiguous_are_copied(value: Any) -> None:
    array = only_array(ROWS_OF_3, value)
    assert array.flags.c_contiguous
    assert np.array_equal(array, value)


def test_contiguous_array_of_the_right_dtype_is_taken_as_it_is() -> None:
    given = np.zeros((2, 3), np.float32)
    assert only_array(ROWS_OF_3, given) is given
    assert only_array(ROWS_OF_3, {"x": given}) is given


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ([1.0, 2.0, 3.0], "(3,)"),
        ([[1.0, 2.0]], "(1, 2)"),
        ([[[1.0, 2.0, 3.0]]], "(1, 1, 3)"),
        (1.0, "()"),
    ],
)
def test_wrong_shape_is_refused_with_both_shapes(value: Any, shape: str) -> None:
    message = f"model 'm' signature 's': input 'x' has shape {shape}, needs (?, 3)"
    assert refusal(ROWS_OF_3, value) == message


def test_dimensions_of_one_at_the_end_may_be_left_out() -> None:
    where = route(TensorSpec("x", "float32", (None, 1)))
    _, flat, _ = where.arrays([1.0, 2.0])
    _, full, _ = where.arrays([[1.0], [2.0]])
    assert Target.decode(flat).inputs[0].shape == (None,)
    assert Target.decode(full).inputs[0].shape == (None, 1)


def test_unknown_rank_takes_any_but_a_batch_needs_rows() -> None:
    assert only_array(route(TensorSpec("x", "float32", None)), [[[1.0]]]).shape == (1, 1, 1)
    assert "has shape ()" in refusal(route(TensorSpec("x", "float32", None)), 1.0)
    alone = route(TensorSpec("x", "float32", None), batched=False)
    assert only_array(alone, 1.0).shape == ()


@pytest.mark.parametrize("value", [[], np.zeros(0, np.float32)])
def test_no_rows_are_refused(value: Any) -> None:
    assert "has no rows, needs at least one" in refusal(column("float32"), value)


def test_rows_must_agree_between_inputs() -> None:
    message = refusal(TWO, {"a": [1.0], "b": [2, 3]})
    assert message.endswith("inputs must have the same number of rows, got 'a' (1,), 'b' (2,)")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1]}, "misses input 'b'; its inputs are 'a', 'b'"),
        (None, "misses input 'a'; its inputs are 'a', 'b'"),
        ({"a": [1], "b": [1], "c": [1]}, "has no input 'c'; its inputs are 'a', 'b'"),
        ([1], "takes several inputs by name: pass a dict with 'a', 'b', not list"),
    ],
)
def test_missing_and_unknown_inputs_are_named(value: Any, message: str) -> None:
    assert refusal(TWO, value) == f"model 'm' signature 's' {message}"


def test_target_names_inputs_in_the_signatures_order() -> None:
    arrays, target, rows = TWO.arrays({"b": [1, 2], "a": [3, 4]})
    assert [array.tolist() for array in arrays] == [[3.0, 4.0], [1, 2]]
    assert rows == 2
    assert Target.decode(target) == Target(
        "m",
        None,
        None,
        "s",
        0,
        (InputHeader("a", "float32", (None,)), InputHeader("b", "int32", (None,))),
    )


def test_signature_that_is_not_batched_gives_whole_shapes() -> None:
    where = route(TensorSpec("x", "float32", (2, 3)), batched=False)
    _, target, rows = where.arrays(np.zeros((2, 3), np.float32))
    assert rows == 0
    assert Target.decode(target).inputs[0].shape == (2, 3)
    assert "has shape (1, 3), needs (2, 3)" in refusal(where, np.zeros((1, 3), np.float32))


def test_signature_without_inputs_takes_nothing() -> None:
    where = route(batched=False)
    nothings: list[Any] = [None, {}]
    for nothing in nothings:
        arrays, target, rows = where.arrays(nothing)
        assert (arrays, rows, Target.decode(target).inputs) == ([], 0, ())
    assert "pass a dict with none, not list" in refusal(where, [1.0])


def test_open_signature_takes_any_arrays_by_name() -> None:
    values = {"b": np.zeros((2, 4), np.int16), "a": [["x"], ["y"]]}
    arrays, target, rows = OPEN.arrays(values)
    assert rows == 2
    assert OPEN.input_dtypes(arrays) == ["string", "int16"]
    assert Target.decode(target).inputs == (
        InputHeader("a", "string", (None, 1)),
        InputHeader("b", "int16", (None, 4)),
    )
    assert OPEN.arrays(values)[1] is target


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "declares no inputs: pass a dict with at least one array by name"),
        (None, "declares no inputs: pass a dict with at least one array by name"),
        ({}, "declares no inputs: pass a dict with at least one array by name"),
        ({"a": 1}, "input 'a' must be an array with a dimension for rows, not int64 of shape ()"),
        (
            {"a": np.zeros(2, ">f4")},
            "input 'a' must be an array with a dimension for rows, not >f4",
        ),
        ({"a": []}, "the same number of rows, at least one, got [0]"),
        ({"a": [1], "b": [1, 2]}, "the same number of rows, at least one, got [1, 2]"),
    ],
)
def test_open_signature_refuses_what_has_no_rows(value: Any, message: str) -> None:
    assert message in refusal(OPEN, value)


def test_open_signature_keeps_zeros_at_the_end_of_strings() -> None:
    arrays, _, _ = OPEN.arrays({"a": [b"\x01\0", b"\x02\0\0"]})
    assert arrays[0].tolist() == [b"\x01\0", b"\x02\0\0"]


def test_open_signature_refuses_ragged_lists() -> None:
    said = refusal(OPEN, {"a": [[1], [1, 2]]})
    assert said.endswith("input 'a' is no array: its lists differ in length")


def metadata(**signatures: SignatureSpec) -> dict[str, Any]:
    return {
        "name": "m",
        "max_batch_size": 64,
        "max_enqueued_batches": 100,
        "signatures": {name: spec.to_wire() for name, spec in signatures.items()},
    }


def test_unknown_signature_is_not_found_and_the_others_are_named() -> None:
    spec = SignatureSpec("s", (), (), False)
    with pytest.raises(NotFound, match="model 'm' has no signature 't'; it has 'a', 's'"):
        make_route("m", None, None, "t", 0, metadata(s=spec, a=spec), 1)


def test_route_carries_version_label_and_priority() -> None:
    spec = SignatureSpec("s", (TensorSpec("x", "float32", (None,)),), (), True)
    for version, label in ((7, None), (None, "stable")):
        where = make_route("m", version, label, "s", -3, metadata(s=spec), 1)
        target = Target.decode(where.arrays([1.0])[1])
        assert (target.version, target.label, target.priority) == (version, label, -3)


def test_readable_metadata_has_tensors_by_name() -> None:
    spec = SignatureSpec(
        "s", (TensorSpec("x", "float32", (None, 3)),), (TensorSpec("y", "string", None),), True
    )
    readable = readable_metadata(metadata(s=spec))
    assert readable["name"] == "m"
    assert readable["signatures"]["s"] == {
        "inputs": {"x": {"dtype": "float32", "shape": [None, 3]}},
        "outputs": {"y": {"dtype": "string", "shape": None}},
        "method_name": "tensorflow/serving/predict",
        "batched": True,
        "open": False,
    }
