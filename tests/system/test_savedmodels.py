"""Every kind of SavedModel, through a real server with two workers that run TensorFlow."""

from __future__ import annotations

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import published_client, published_messages
from support.grpc_client import GrpcClient
from support.rest_gateway import rest_gateway
from support.server import Server
from support.waiting import wait_until

from batchyard.clients import Client
from batchyard.clients.errors import BatchyardError, InvalidArgument, NotFound
from batchyard.wire import dtypes
from batchyard.wire.tensorflow_serving.messages import SignatureDefMap

HALF_PLUS_TWO = ["half_plus_two", "half_plus_two_tf2"]


@pytest.fixture(autouse=True)
def _nothing_stays_in_the_arena(tensorflow_server: Server) -> Any:
    yield
    tensorflow_server.wait_until_idle()


def tf_example(**features: list[float]) -> bytes:
    """A serialized ``tf.Example`` with lists of floats, by protobuf's wire format.

    https://protobuf.dev/programming-guides/encoding: a tag, a length (here below 128), bytes.
    """

    def field(number: int, body: bytes) -> bytes:
        assert len(body) < 128
        return bytes((number << 3 | 2, len(body))) + body

    entries = b""
    for name, values in features.items():
        float_list = field(1, struct.pack(f"<{len(values)}f", *values))
        entries += field(1, field(1, name.encode()) + field(2, field(2, float_list)))
    return field(1, entries)


@pytest.mark.parametrize("model", HALF_PLUS_TWO)
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_half_plus_two(tensorflow: Client, model: str, shape: tuple[int, ...]) -> None:
    # Without the dimension of 1 it is TensorFlow Serving's own first example.
    x = np.array([1, 2, 5], np.float32).reshape(shape)
    y = tensorflow.predict(model, x)["y"]
    np.testing.assert_array_equal(y, np.array([2.5, 3, 4.5], np.float32).reshape(shape))
    assert y.dtype == np.float32


def test_metadata_has_the_signatures_as_the_savedmodel_has_them(tensorflow: Client) -> None:
    published = SignatureDefMap.FromString(tensorflow.metadata("half_plus_two")["signature_def"])
    assert published.signature_def["serving_default"].outputs["y"].name == "y:0"


def test_python_values(tensorflow: Client) -> None:
    assert tensorflow.predict("half_plus_two", [1.0, 2.0, 5.0])["y"].tolist() == [2.5, 3.0, 4.5]
    assert tensorflow.predict("half_plus_two", {"x": [[1], [2]]})["y"].tolist() == [[2.5], [3]]


def test_many_rows_are_split_over_batches_and_put_together(tensorflow: Client) -> None:
    x = np.arange(1000, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(tensorflow.predict("half_plus_two", x)["y"], x / 2 + 2)


@pytest.mark.parametrize(
    ("signature", "output", "expected"),
    [
        ("regress_x_to_y", "outputs", [[2.5], [3.0], [4.5]]),
        ("regress_x_to_y2", "outputs", [[3.5], [4.0], [5.5]]),
        ("classify_x_to_y", "scores", [[2.5], [3.0], [4.5]]),
    ],
)
def test_serialized_examples(
    tensorflow: Client, signature: str, output: str, expected: list[list[float]]
) -> None:
    examples = np.array([tf_example(x=[x]) for x in (1.0, 2.0, 5.0)], object)
    outputs = tensorflow.predict("half_plus_two", examples, signature=signature)
    assert {name: array.tolist() for name, array in outputs.items()} == {output: expected}


def test_regress_of_a_tensor(tensorflow: Client) -> None:
    outputs = tensorflow.predict("half_plus_two", [[2.0]], signature="regress_x2_to_y3")
    assert outputs["outputs"].tolist() == [[4.0]]


@pytest.mark.parametrize(
    ("example", "complaint"),
    [
        (tf_example(other=[1.0]), "Feature: x (data type: float) is required"),
        (b"\xff\xfe no protobuf", "Could not parse example"),
    ],
)
def test_examples_that_tensorflow_refuses(
    tensorflow: Client, example: bytes, complaint: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        tensorflow.predict("half_plus_two", [example], signature="classify_x_to_y")
    assert complaint in caught.value.message
    assert "model 'half_plus_two' signature 'classify_x_to_y'" in caught.value.message


@pytest.mark.parametrize("model", ["counter", "counter_resource"])
def test_counter_counts_every_call_once(
    tensorflow: Client, tensorflow_server: Server, model: str
) -> None:
    def run(signature: str, inputs: Any = None) -> float:
        return float(tensorflow.predict(model, inputs, signature=signature)["output"])

    # The first calls that it ever got: warm-up has not counted, nor been counted.
    assert run("get_counter") == 0
    assert run("incr_counter") == 1
    with ThreadPoolExecutor(16) as threads:
        seen = list(threads.map(lambda _: run("incr_counter"), range(100)))
    # Two workers run, but its state is one.
    assert sorted(seen) == list(range(2, 102))
    assert run("incr_counter_by", np.float32(0.5)) == 101.5
    assert run("reset_counter") == 0
    assert run("get_counter") == 0
    assert tensorflow_server.model_stats(model)["requests"] == 105


def test_two_workers_share_the_work(tensorflow: Client, tensorflow_server: Server) -> None:
    before = [worker["batches"] for worker in tensorflow_server.stats()["workers"]]
    # Small enough to travel in several messages, large enough to keep one worker busy.
    x = np.ones((64, 8, 8, 3), np.float32)

    def have_both_worked() -> bool:
        # One may do all of it, while the other is not given the processor.
        for future in [tensorflow.submit("image_mean", x) for _ in range(50)]:
            assert (future.result()["mean"] == 1).all()
        after = [worker["batches"] for worker in tensorflow_server.stats()["workers"]]
        return all(a < b for a, b in zip(before, after, strict=True))

    wait_until(have_both_worked, "both workers to run batches")


def test_fixed_first_dimension_is_never_batched(
    tensorflow: Client, tensorflow_server: Server
) -> None:
    signature = tensorflow.metadata("fixed_first_dim")["signatures"]["serving_default"]
    assert not signature["batched"]
    inputs = [np.full((2, 3), i, np.float32) for i in range(20)]
    for i, outputs in enumerate(tensorflow.predict_many("fixed_first_dim", inputs)):
        assert outputs["y"].tolist() == [[2.0 * i] * 3] * 2
        assert outputs["n"].tolist() == 2
    stats = tensorflow_server.model_stats("fixed_first_dim")
    assert stats["requests"] == stats["batches"] == 20
    with pytest.raises(InvalidArgument, match=r"has shape \(1, 3\), needs \(2, 3\)"):
        tensorflow.predict("fixed_first_dim", np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("shape", [(2,), (2, 3), (1, 2, 0, 2), (2, 1, 1, 1, 2)])
def test_unknown_rank(tensorflow: Client, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).random(shape).astype(np.float32)
    np.testing.assert_array_equal(tensorflow.predict("unknown_rank", x)["y"], x + 1)


def test_many_inputs_and_outputs(tensorflow: Client) -> None:
    inputs = {
        "name": ["anna", b"bo"],
        "b": np.arange(8, dtype=np.float32).reshape(2, 4),
        "a": [1, 2],
    }
    outputs = tensorflow.predict("multi_io", inputs)
    assert set(outputs) == {"total", "greeting", "pair"}
    assert outputs["total"].tolist() == [7.0, 24.0]
    assert outputs["greeting"].tolist() == [b"hello anna", b"hello bo"]
    assert outputs["pair"].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    second = tensorflow.predict("multi_io", inputs, signature="second")
    assert {name: array.tolist() for name, array in second.items()} == {"amount": [7.0, 24.0]}


def test_there_is_a_signature_for_every_dtype(tensorflow: Client) -> None:
    assert set(tensorflow.metadata("dtypes")["signatures"]) == set(dtypes.NAMES)


@pytest.mark.parametrize("dtype", [name for name in dtypes.NAMES if name != dtypes.STRING])
def test_every_dtype(tensorflow: Client, dtype: str) -> None:
    numpy_dtype = dtypes.to_numpy(dtype)
    # All patterns of bits of the first bytes, less those that are no truth values.
    high = 2 if dtype == "bool" else 256
    drawn = np.random.default_rng(2).integers(0, high, 6 * numpy_dtype.itemsize, np.uint8)
    x = drawn.view(numpy_dtype).reshape(3, 2)
    y = tensorflow.predict("dtypes", x, signature=dtype)["y"]
    assert y.dtype == numpy_dtype
    assert y.tobytes() == np.ascontiguousarray(x[:, ::-1]).tobytes()


@pytest.mark.parametrize("model", ["keras_mixed", "compiled"])
def test_half_precision_by_every_way(
    tensorflow: Client, tensorflow_server: Server, model: str
) -> None:
    x = np.array([[1, 2, 3, 4]], np.float32)
    kinds = {"serving_default": "float32", "half": "float16", "brain": "bfloat16"}
    with rest_gateway(tensorflow_server) as rest, GrpcClient(tensorflow_server.grpc) as grpc:
        for signature, dtype in kinds.items():
            y = tensorflow.predict(model, x, signature=signature)["y"]
            assert y.dtype == dtypes.to_numpy(dtype)
            by_grpc = grpc.predict(model, {"x": x}, signature_name=signature)["y"]
            assert by_grpc.dtype == y.dtype
            assert by_grpc.tolist() == y.tolist()
            body = {"signature_name": signature, "instances": x.tolist()}
            answer = rest.post(f"/v1/models/{model}:predict", body)
            # Enough digits to tell one number of its dtype from the next.
            assert np.array(answer.json["predictions"]).astype(y.dtype).tolist() == y.tolist()


def test_strings_of_all_kinds(tensorflow: Client) -> None:
    x = np.array([[b"", b"a\0b\0"], ["ä€😀", b"\xff\xfe"], [b"x" * 300_000, "y"]], object)
    y = tensorflow.predict("dtypes", x, signature="string")["y"]
    assert y.dtype == object
    assert y.tolist() == [[b"a\0b\0", b""], [b"\xff\xfe", "ä€😀".encode()], [b"y", b"x" * 300_000]]


def test_a_model_that_raises(tensorflow: Client) -> None:
    assert tensorflow.predict("raises", [1.0, 99.0])["y"].tolist() == [1.0, 99.0]
    with pytest.raises(InvalidArgument, match="x is too large") as caught:
        tensorflow.predict("raises", [100.0])
    assert "\n\t [[" not in caught.value.message
    with pytest.raises(NotFound, match="/nonexistent/batchyard"):
        tensorflow.predict("raises", [1.0], signature="missing")
    with pytest.raises(InvalidArgument, match=r"indices\[0\] = 10 is not in \[0, 10\)"):
        tensorflow.predict("embedding", [10])


def test_embedding(tensorflow: Client) -> None:
    y = tensorflow.predict("embedding", [9, 0])["y"]
    assert y.tolist() == [[36, 37, 38, 39], [0, 1, 2, 3]]


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The results of calls that all wait at the same time."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


@pytest.mark.parametrize(("model", "length"), [("padded", 5), ("bucketed", 8)])
def test_variable_length_is_padded_to_the_longest_or_its_bucket(
    tensorflow: Client, tensorflow_server: Server, model: str, length: int
) -> None:
    short = np.array([[7, 1]], np.int32)
    long = np.array([[0, 1, 2, 3, 4]], np.int32)
    # The model runs pairs only: these two must have met.
    a, b = together(
        lambda: tensorflow.predict(model, short), lambda: tensorflow.predict(model, long)
    )
    assert a["doubled"].tolist() == [[14, 2] + [14] * (length - 2)]
    assert a["sum"].tolist() == [8 + 7 * (length - 2)]
    assert b["doubled"].tolist() == [[0, 2, 4, 6, 8] + [0] * (length - 5)]
    assert b["sum"].tolist() == [10]
    assert tensorflow_server.model_stats(model)["batch_rows"] == {"2": 1}


def test_variable_length_without_padding_keeps_lengths_apart(tensorflow: Client) -> None:
    inputs = [np.ones((1, length), np.int32) for length in (1, 2, 3)]
    outputs = tensorflow.predict_many("variable_length", inputs)
    assert [o["doubled"].tolist() for o in outputs] == [[[2]], [[2, 2]], [[2, 2, 2]]]


def test_outputs_that_are_not_by_row_are_never_batched(
    tensorflow: Client, tensorflow_server: Server
) -> None:
    # The SavedModel does not say so; warm-up saw it.
    signature = tensorflow.metadata("reduces")["signatures"]["serving_default"]
    assert not signature["batched"]
    inputs = [np.full(n, 1, np.float32) for n in range(1, 21)]
    totals = [o["total"] for o in tensorflow.predict_many("reduces", inputs)]
    assert [total.tolist() for total in totals] == list(range(1, 21))
    assert totals[0].shape == ()
    assert tensorflow_server.model_stats("reduces")["batches"] == 20


def test_scalar_input_is_never_batched(tensorflow: Client) -> None:
    outputs = tensorflow.predict("scalar_input", {"x": [1.0, 2.0], "scale": 3.0})
    assert outputs["y"].tolist() == [3.0, 6.0]
    with pytest.raises(InvalidArgument, match=r"'scale' has shape \(1,\), needs \(\)"):
        tensorflow.predict("scalar_input", {"x": [1.0], "scale": [3.0]})


@pytest.mark.parametrize(
    ("model", "x", "expected"),
    [
        ("matrix_half_plus_two", np.full((2, 3, 3), 2, np.float32), np.full((2, 3, 3), 3)),
        ("image_mean", np.ones((2, 8, 8, 3), np.float32), np.ones((2, 3))),
    ],
)
def test_higher_ranks(
    tensorflow: Client, model: str, x: npt.NDArray[np.float32], expected: npt.NDArray[Any]
) -> None:
    (y,) = tensorflow.predict(model, x).values()
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("asked", [{}, {"version": 124}, {"label": "stable"}])
def test_the_highest_version_is_served(tensorflow: Client, asked: dict[str, Any]) -> None:
    assert tensorflow.predict("latest", [2.0], **asked)["y"].tolist() == [4.0]


def test_a_version_folder_is_served_under_its_number(tensorflow: Client) -> None:
    assert tensorflow.predict("older", [2.0], version=123)["y"].tolist() == [3.0]
    assert tensorflow.metadata("older")["version"] == 123


@pytest.mark.parametrize(
    ("model", "asked", "error", "complaint"),
    [
        ("latest", {"version": 123}, NotFound, "has no version 123 here; version 124 is served"),
        ("latest", {"label": "canary"}, InvalidArgument, "'canary'; labels are 'stable'"),
        (
            "latest",
            {"signature": "nope"},
            NotFound,
            "has no signature 'nope'; it has 'classify_x_to_y', ",
        ),
        ("nope", {}, NotFound, "model 'nope' is not served here; served are 'bucketed', "),
    ],
)
def test_what_is_not_served_is_told(
    tensorflow: Client,
    model: str,
    asked: dict[str, Any],
    error: type[BatchyardError],
    complaint: str,
) -> None:
    with pytest.raises(error) as caught:
        tensorflow.predict(model, [2.0], **asked)
    assert complaint in caught.value.message


def test_metadata(tensorflow: Client) -> None:
    metadata = tensorflow.metadata("latest")
    assert (metadata["name"], metadata["version"], metadata["state"]) == (
        "latest",
        124,
        "AVAILABLE",
    )
    assert metadata["labels"] == ["stable"]
    signatures = metadata["signatures"]
    assert signatures["serving_default"] == {
        "inputs": {"x": {"dtype": "float32", "shape": [None, 1]}},
        "outputs": {"y": {"dtype": "float32", "shape": [None, 1]}},
        "method_name": "tensorflow/serving/predict",
        "batched": True,
        "open": False,
    }
    classify = signatures["classify_x_to_y"]
    assert classify["method_name"] == "tensorflow/serving/classify"
    assert classify["inputs"] == {"inputs": {"dtype": "string", "shape": None}}


def test_models(tensorflow: Client) -> None:
    models = {model["name"]: model for model in tensorflow.models()}
    assert {model["state"] for model in models.values()} == {"AVAILABLE"}
    assert models["half_plus_two"]["version"] == 123
    assert "regress_x_to_y" in models["half_plus_two"]["signatures"]
    # Unnumbered folders of SavedModels' own are not taken for signatures.
    assert models["counter_resource"]["signatures"] == [
        "get_counter",
        "incr_counter",
        "incr_counter_by",
        "reset_counter",
    ]


def test_tensorflow_takes_the_arenas_memory_as_it_is(tensorflow: Client) -> None:
    outputs = tensorflow.predict("tensorflow_alias", {"x": np.arange(100, dtype=np.float32)})
    assert outputs["aligned_is_shared"].all()
    # Otherwise the answer above means nothing.
    assert not outputs["misaligned_is_shared"].any()


@pytest.mark.skipif(
    not published_messages.is_installed(), reason="needs tensorflow-serving-api (--no-deps)"
)
def test_the_published_stubs_of_tensorflow_serving(tensorflow_server: Server) -> None:
    answers = published_client.answers_of(tensorflow_server.grpc)

    spec = 'model_spec { name: "half_plus_two" version { value: 123 } signature_name: "%s" }'
    predicted = (
        'outputs { key: "y" value { dtype: DT_FLOAT tensor_shape { dim { size: 3 } dim { size: 1 '
        r'} } tensor_content: "\000\000 @\000\000@@\000\000\220@" } } ' + spec % "serving_default"
    )
    scores = " ".join(f"classifications {{ classes {{ score: {y} }} }}" for y in (2.5, 3.0, 4.5))
    values = " ".join(f"regressions {{ value: {y} }}" for y in (2.5, 3.0, 4.5))
    assert answers["predict"] == answers["predict of some"] == predicted
    assert answers["classify"] == f"result {{ {scores} }} {spec % 'classify_x_to_y'}"
    assert answers["regress"] == f"result {{ {values} }} {spec % 'regress_x_to_y'}"
    assert answers["multi_inference"] == (
        f"results {{ {spec % 'regress_x_to_y'} regression_result {{ {values} }} }} "
        f"results {{ {spec % 'classify_x_to_y'} classification_result {{ {scores} }} }}"
    )
    assert answers["metadata"].endswith('method_name: "tensorflow/serving/predict"')
    assert answers["status"] == (
        "model_version_status { version: 123 state: AVAILABLE status { } }"
    )
    for name, refusal in {
        "predict of none": "INVALID_ARGUMENT: output tensor alias not found in signature: z ",
        "predict by nobody": "NOT_FOUND: Servable not found for request: Latest(nobody)",
        "classify by regress": "FAILED_PRECONDITION: Expected classification signature outputs",
        "reload": "INVALID_ARGUMENT: model 'a': has no model_platform",
    }.items():
        assert answers[name][: len(refusal)] == refusal
