"""TensorFlow Serving's gRPC interface, of a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from support.grpc_client import TIMEOUT_S, GrpcClient, predict_request
from support.server import Server, callable_path, model_table

from batchyard.wire.dtypes import to_numpy
from batchyard.wire.tensorflow_serving import messages
from batchyard.wire.tensorflow_serving.tensor_proto import to_array

EXAMPLES = {"inputs": ("string", [-1])}
CONFIG = (
    "[grpc]\nport = 0\nmax_message_mb = 8\n"
    + model_table("echo", callable_path("echo"), max_batch_size=64)
    + model_table("fails", callable_path("fails"))
    + model_table(
        "double",
        callable_path("recorded"),
        labels={"stable": 1},
        signature={
            "inputs": {"x": ("float32", [-1, 2])},
            "outputs": {"y": ("float32", [-1, 2]), "rows": ("int64", [-1])},
        },
    )
    + model_table(
        "classifier",
        callable_path("classifier"),
        signature={
            "inputs": EXAMPLES,
            "outputs": {"classes": ("string", [-1, 2]), "scores": ("float32", [-1, 2])},
        },
    )
    + model_table(
        "wrong",
        callable_path("wrong_classifier"),
        signature={"inputs": EXAMPLES, "outputs": {"scores": ("float32", [-1])}},
    )
)
X = np.array([[1, 2], [3, 4]], np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(config=CONFIG) as made:
        yield made


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[GrpcClient]:
    with GrpcClient(server.grpc) as made:
        yield made


def examples(message_class: Any, model: str, *features: str, **spec: Any) -> Any:
    """A request with an example for each feature's name, whose bytes are 8 more than that's."""
    request = message_class(model_spec={"name": model, **spec})
    for feature in features:
        request.input.example_list.examples.add().features.feature[feature].SetInParent()
    return request


@pytest.mark.parametrize("dtype", ["float32", "int8", "bool", "complex128", "bfloat16", "string"])
def test_tensors_of_all_kinds_come_back(client: GrpcClient, dtype: str) -> None:
    numbers = np.array([[1, 0], [0, 1]])
    x = (
        numbers.astype(bytes).astype(object)
        if dtype == "string"
        else numbers.astype(to_numpy(dtype))
    )

    outputs = client.predict("echo", {"x": x})

    assert outputs["x"].dtype == x.dtype
    assert outputs["x"].tolist() == x.tolist()


def test_values_in_the_field_of_their_dtype(client: GrpcClient) -> None:
    request = predict_request("double", {})
    proto = request.inputs["x"]
    proto.dtype = 1
    proto.float_val.extend([1, 2, 3, 4])
    for size in (2, 2):
        proto.tensor_shape.dim.add(size=size)

    response = client.ask("Predict", request)

    assert to_array(response.outputs["y"]).tolist() == [[2, 4], [6, 8]]
    assert response.model_spec == messages.ModelSpec(
        name="double", version={"value": 1}, signature_name="serving_default"
    )


def test_large_tensors(server: Server, client: GrpcClient) -> None:
    x = np.random.default_rng(0).random((8, 100_000), np.float32)

    with GrpcClient(server.grpc, max_receive_message_length=-1) as large:
        np.testing.assert_array_equal(large.predict("echo", {"x": x})["x"], x)

    too_large = predict_request("echo", {"x": np.zeros((1, 3 << 20))})
    assert client.refusal("Predict", too_large).startswith("RESOURCE_EXHAUSTED: ")


def test_some_outputs(client: GrpcClient) -> None:
    assert list(client.predict("double", {"x": X}, output_filter=["rows"])) == ["rows"]


@pytest.mark.parametrize("spec", [{"version": {"value": 1}}, {"version_label": "stable"}])
def test_a_version_and_a_label(client: GrpcClient, spec: Any) -> None:
    assert client.predict("double", {"x": X}, **spec)["y"].tolist() == [[2, 4], [6, 8]]


def wrong_tensor() -> Any:
    request = predict_request("double", {"x": X})
    request.inputs["x"].tensor_content = b"123"
    return request


REFUSED: dict[str, tuple[Any, str]] = {
    "no message": (b"\xff", "INVALID_ARGUMENT: the request is no tensorflow.serving.PredictR"),
    "no spec": (messages.PredictRequest(), "INVALID_ARGUMENT: Missing ModelSpec"),
    "no name": (
        predict_request("", {"x": X}),
        "INVALID_ARGUMENT: ModelSpec has no name specified.",
    ),
    "no model": (
        predict_request("nope", {"x": X}),
        "NOT_FOUND: Servable not found for request: Latest(nope)",
    ),
    "no version": (
        predict_request("double", {"x": X}, version={"value": 7}),
        "NOT_FOUND: Servable not found for request: Specific(double, 7)",
    ),
    "negative version": (
        predict_request("double", {"x": X}, version={"value": -1}),
        "NOT_FOUND: Servable not found for request: Specific(double, -1)",
    ),
    "no label": (
        predict_request("double", {"x": X}, version_label="nope"),
        "INVALID_ARGUMENT: Unrecognized servable version label: nope",
    ),
    "no signature": (
        predict_request("double", {"x": X}, signature_name="nope"),
        'FAILED_PRECONDITION: Serving signature key "nope" not found.',
    ),
    "no input": (
        predict_request("double", {}),
        "INVALID_ARGUMENT: input size does not match signature: 0!=1 len({}) != len({x}). Sent "
        "extra: {}. Missing but required: {x}.",
    ),
    "an input more": (
        predict_request("double", {"x": X, "z": X}),
        "INVALID_ARGUMENT: input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent "
        "extra: {z}. Missing but required: {}.",
    ),
    "another input": (
        predict_request("double", {"z": X}),
        "INVALID_ARGUMENT: input tensor alias not found in signature: z. Inputs expected to be in "
        "the set {x}.",
    ),
    "another dtype": (
        predict_request("double", {"x": X.astype(int)}),
        "INVALID_ARGUMENT: Expects arg[0] to be",
    ),
    "another shape": (predict_request("double", {"x": X[:, :1]}), "INVALID_ARGUMENT: model"),
    "no tensor": (wrong_tensor(), "INVALID_ARGUMENT: tensor parsing error: x: tensor_content has"),
    "no output": (
        predict_request("double", {"x": X}, ["z"]),
        "INVALID_ARGUMENT: output tensor alias not found in signature: z Outputs expected to be in "
        "the set {rows,y}.",
    ),
    "an output twice": (
        predict_request("double", {"x": X}, ["y", "y"]),
        "INVALID_ARGUMENT: duplicate output tensor alias: y",
    ),
    "a model that raises": (
        predict_request("fails", {"x": np.full((1, 1), -1)}),
        "INTERNAL: model 'fails': ValueError: x must not be negative",
    ),
}


@pytest.mark.parametrize(("request_", "refusal"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(client: GrpcClient, request_: Any, refusal: str) -> None:
    assert client.refusal("Predict", request_)[: len(refusal)] == refusal


def test_classes(client: GrpcClient) -> None:
    request = examples(messages.ClassificationRequest, "classifier", "a", "abc")
    lengths = [example.ByteSize() for example in request.input.example_list.examples]

    response = client.ask("Classify", request)

    found = response.result.classifications
    assert [[c.label for c in one.classes] for one in found] == [["short", "long"]] * 2
    assert [[c.score for c in one.classes] for one in found] == [[100 - n, n] for n in lengths]
    assert (response.model_spec.name, response.model_spec.version.value) == ("classifier", 1)


@pytest.mark.parametrize(
    ("method", "model", "refusal"),
    [
        ("Classify", "double", "FAILED_PRECONDITION: No classification inputs found in Signatu"),
        ("Regress", "double", "INVALID_ARGUMENT: Expected one output Tensor."),
        ("Regress", "classifier", "INVALID_ARGUMENT: Expected one output Tensor."),
        ("Classify", "echo", "INVALID_ARGUMENT: Expected one input Tensor."),
        ("Classify", "wrong", "INVALID_ARGUMENT: Expected Tensor shape: [batch_size num_classes]"),
        ("Classify", "nope", "NOT_FOUND: Servable not found for request: Latest(nope)"),
    ],
)
def test_what_has_no_classes_or_values(
    client: GrpcClient, method: str, model: str, refusal: str
) -> None:
    request = examples(messages.ClassificationRequest, model, "a")

    assert client.refusal(method, request)[: len(refusal)] == refusal


def test_examples_are_needed_and_a_signature(client: GrpcClient) -> None:
    none = examples(messages.ClassificationRequest, "classifier")
    no_signature = examples(
        messages.ClassificationRequest, "classifier", "a", signature_name="nope"
    )

    assert client.refusal("Classify", none) == "INVALID_ARGUMENT: Input is empty."
    assert client.refusal("Regress", no_signature) == (
        "INVALID_ARGUMENT: No signature was found with the name: nope"
    )


CLASSIFY = "tensorflow/serving/classify"


@pytest.mark.parametrize(
    ("tasks", "refusal"),
    [
        ([], "INVALID_ARGUMENT: ModelSpec has no name specified."),
        ([("classifier", "", "tensorflow/serving/predict")], "UNIMPLEMENTED: Unsupported signat"),
        ([("classifier", "", CLASSIFY)] * 2, "INVALID_ARGUMENT: Duplicate evaluation of signat"),
        ([("classifier", "s", CLASSIFY)], "INVALID_ARGUMENT: Requested signature not found in m"),
        (
            [("classifier", "", CLASSIFY), ("wrong", "s", CLASSIFY)],
            "INVALID_ARGUMENT: All ModelSpecs in a MultiInferenceRequest must access the same",
        ),
        (
            [("classifier", "", CLASSIFY), ("", "s", CLASSIFY)],
            "INVALID_ARGUMENT: Found ModelSpec with an empty model name.",
        ),
        ([("classifier", "", "tensorflow/serving/regress")], "INVALID_ARGUMENT: Expected one out"),
        ([("nope", "", CLASSIFY)], "NOT_FOUND: Servable not found for request: Latest(nope)"),
    ],
)
def test_tasks_that_do_not_go_together(
    client: GrpcClient, tasks: list[tuple[str, str, str]], refusal: str
) -> None:
    request = messages.MultiInferenceRequest()
    request.input.example_list.examples.add()
    for model, signature, method in tasks:
        spec = {"name": model, "signature_name": signature}
        request.tasks.add(model_spec=spec, method_name=method)

    assert client.refusal("MultiInference", request)[: len(refusal)] == refusal


def test_metadata_says_what_a_model_takes(client: GrpcClient) -> None:
    request = messages.GetModelMetadataRequest(
        model_spec={"name": "double"}, metadata_field=["signature_def"]
    )

    response = client.ask("GetModelMetadata", request)

    assert response.model_spec.version.value == 1
    signatures = messages.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    assert signature.method_name == "tensorflow/serving/predict"
    assert signature.inputs["x"].dtype == 1
    assert [dim.size for dim in signature.inputs["x"].tensor_shape.dim] == [-1, 2]
    assert sorted(signature.outputs) == ["rows", "y"]


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ([], "GetModelMetadataRequest must specify at least one metadata_field"),
        (["signature_def", "graph"], "Metadata field graph is not supported"),
    ],
)
def test_metadata_that_there_is_not(client: GrpcClient, fields: list[str], refusal: str) -> None:
    request = messages.GetModelMetadataRequest(model_spec={"name": "double"}, metadata_field=fields)

    assert client.refusal("GetModelMetadata", request).startswith(f"INVALID_ARGUMENT: {refusal}")


@pytest.mark.parametrize(
    "spec", [{}, {"version": {"value": 1}}, {"version_label": "stable"}], ids=str
)
def test_status(client: GrpcClient, spec: Any) -> None:
    request = messages.GetModelStatusRequest(model_spec={"name": "double", **spec})

    (status,) = client.ask("GetModelStatus", request, "ModelService").model_version_status

    assert (status.version, status.State.Name(status.state)) == (1, "AVAILABLE")
    assert (status.status.error_code, status.status.error_message) == (0, "")


@pytest.mark.parametrize(
    ("request_", "refusal"),
    [
        ({}, "INVALID_ARGUMENT: Missing ModelSpec"),
        ({"model_spec": {"name": "m"}}, "NOT_FOUND: Could not find any versions of model m"),
        (
            {"model_spec": {"name": "double", "version": {"value": 2}}},
            "NOT_FOUND: Could not find version 2 of model double",
        ),
        (
            {"model_spec": {"name": "double", "version_label": "nope"}},
            "INVALID_ARGUMENT: Unrecognized servable version label: nope",
        ),
    ],
)
def test_status_of_what_is_not_there(client: GrpcClient, request_: Any, refusal: str) -> None:
    request = messages.GetModelStatusRequest(**request_)

    assert client.refusal("GetModelStatus", request, "ModelService") == refusal


def test_configurations_that_are_refused(client: GrpcClient) -> None:
    custom = messages.ReloadConfigRequest()
    custom.config.custom_model_config.SetInParent()
    no_platform = messages.ReloadConfigRequest()
    no_platform.config.model_config_list.config.add(name="m", base_path="/m")

    for request, refusal in (
        (custom, "ServerModelConfig type not supported by HandleReloadConfigRequest"),
        (no_platform, "model 'm': has no model_platform"),
    ):
        said = client.refusal("HandleReloadConfigRequest", request, "ModelService")
        assert said.startswith(f"INVALID_ARGUMENT: {refusal}")


def test_a_request_is_named_by_its_caller(client: GrpcClient) -> None:
    predict = client.method("Predict")

    _, call = predict.with_call(
        predict_request("double", {"x": X}), TIMEOUT_S, metadata=[("x-request-id", "r-1")]
    )
    # What cannot be a name is a proxy's own affair.
    _, other = predict.with_call(
        predict_request("double", {"x": X}), TIMEOUT_S, metadata=[("x-request-id", "r" * 129)]
    )

    assert [(key, value) for key, value in call.trailing_metadata()] == [("x-request-id", "r-1")]
    assert not list(other.trailing_metadata())


@pytest.mark.parametrize(
    "method", ["PredictionService/PredictStreamed", "SessionService/SessionRun", "No/No"]
)
def test_what_there_is_not(client: GrpcClient, method: str) -> None:
    call = client.channel.unary_unary(f"/tensorflow.serving.{method}")

    with pytest.raises(grpc.RpcError) as caught:
        call(b"", TIMEOUT_S)

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
