"""Inference over a client that is played: what is asked anew, and how errors are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from batchyard.clients.async_client import Answer
from batchyard.clients.gateways.inference import Inference, ModelSpec, Task, VersionStatus
from batchyard.wire.errors import (
    BatchyardError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from batchyard.wire.tensorflow_serving.messages import SignatureDefMap

X = np.ones((2, 1), np.float32)
EXAMPLES = np.array([b"a", b"bc"], object)
SPEC = ModelSpec("m")


class PlayedClient:
    """Serves ``m``: ``serving_default`` takes x, ``scores`` takes examples."""

    def __init__(self) -> None:
        self.version = 1
        self.error: BatchyardError | None = None
        self.metadata_error: BatchyardError | None = None
        self.outputs: dict[str, Any] = {"y": X, "z": X}
        self.calls: list[dict[str, Any]] = []
        self.lookups = 0
        self.signature_def = b""

    async def answer(self, model: str, inputs: Any, **options: Any) -> Answer:
        self.calls.append({"model": model, **options})
        if self.error is not None:
            raise self.error
        return Answer(self.outputs, self.version)

    async def metadata(self, model: str, **_: Any) -> dict[str, Any]:
        self.lookups += 1
        if self.metadata_error is not None:
            raise self.metadata_error
        x = {"dtype": "float32", "shape": [None, 1]}
        examples = {"dtype": "string", "shape": [None]}
        return {
            "version": self.version,
            "signature_def": self.signature_def,
            "signatures": {
                "serving_default": self._signature({"x": x}, {"y": x, "z": x}),
                "scores": self._signature({"inputs": examples}, {"scores": x}),
                "values": self._signature({"inputs": examples}, {"outputs": x}),
                "open": {**self._signature({}, {}), "open": True},
            },
        }

    async def models(self, **_: Any) -> list[dict[str, Any]]:
        states = {1: ("UNLOADING", ""), 3: ("AVAILABLE", ""), 10: ("END", "no such file")}
        return [
            {"name": "m", "version": version, "labels": [], "state": state, "error": error}
            for version, (state, error) in states.items()
        ]

    def _signature(self, inputs: Any, outputs: Any) -> dict[str, Any]:
        return {
            "inputs": inputs,
            "outputs": outputs,
            "batched": True,
            "method_name": "tensorflow/serving/predict",
            "open": False,
        }


@pytest.fixture
def client() -> PlayedClient:
    return PlayedClient()


@pytest.fixture
def inference(client: PlayedClient) -> Any:
    made: Any = Inference(client)  # type: ignore[arg-type]
    return made


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def test_a_request_that_is_right_is_one_question(
    client: PlayedClient, inference: Inference
) -> None:
    spec = ModelSpec("m", label="stable")

    prediction = run(inference.predict(spec, {"x": X}, ["z"], timeout=5.0, request_id="r"))

    assert client.lookups == 0
    assert client.calls == [
        {
            "model": "m",
            "timeout": 5.0,
            "version": None,
            "label": "stable",
            "signature": "serving_default",
            "request_id": "r",
        }
    ]
    assert prediction.spec == ModelSpec("m", 1, None, "serving_default")
    assert list(prediction.outputs) == ["z"]


def test_a_model_is_not_looked_up_again_until_it_may_have_changed(
    client: PlayedClient, inference: Inference
) -> None:
    async def ask() -> list[int]:
        seen = []

        async def look(**options: Any) -> None:
            await inference.model(SPEC, timeout=None, **options)
            seen.append(client.lookups)

        await look()
        await look()
        await look(fresh=True)
        client.version = 2
        await inference.predict(SPEC, {"x": X}, timeout=None)
        await look()
        client.error = InvalidArgument("x has changed")
        with pytest.raises(InvalidArgument):
            await inference._answer(SPEC, {"x": X}, None, None)
        await look()
        return seen

    assert run(ask()) == [1, 1, 2, 3, 4]
    assert run(inference.model(SPEC, timeout=None)).version == 2


def test_a_savedmodels_own_signatures_are_passed_on(
    client: PlayedClient, inference: Inference
) -> None:
    signatures = SignatureDefMap()
    signatures.signature_def["own"].method_name = "any"
    client.signature_def = signatures.SerializeToString()

    model = run(inference.model(SPEC, timeout=None))

    assert model.signature_def == signatures
    assert model.signatures["serving_default"].inputs[0].shape == (None, 1)


def test_signatures_are_made_of_what_is_known(inference: Inference) -> None:
    model = run(inference.model(SPEC, timeout=None))

    signature = model.signature_def.signature_def["scores"]
    assert signature.inputs["inputs"].dtype == 7
    assert [dim.size for dim in signature.outputs["scores"].tensor_shape.dim] == [-1, 1]
    assert model.signatures["open"].open


Ask = Callable[[Inference], Any]
PREDICT: Ask = lambda inference: inference.predict(SPEC, {"x": X}, timeout=None)  # noqa: E731
WRONG_INPUT: Ask = lambda inference: inference.predict(SPEC, {"z": X}, timeout=None)  # noqa: E731


@pytest.mark.parametrize(
    ("ask", "error", "metadata_error", "expected"),
    [
        (PREDICT, Unavailable("full"), None, Unavailable("full")),
        (PREDICT, InvalidArgument("shape"), None, InvalidArgument("shape")),
        (PREDICT, InvalidArgument("shape"), Unavailable("gone"), InvalidArgument("shape")),
        (
            WRONG_INPUT,
            InvalidArgument("no input z"),
            None,
            InvalidArgument(
                "input tensor alias not found in signature: z. Inputs expected to be in the set "
                "{x}."
            ),
        ),
        (
            PREDICT,
            NotFound("not here"),
            NotFound("not here"),
            NotFound("Servable not found for request: Latest(m)"),
        ),
        (
            lambda inference: inference.predict(ModelSpec("m", 3), {}, timeout=None),
            NotFound("not here"),
            NotFound("not here"),
            NotFound("Servable not found for request: Specific(m, 3)"),
        ),
        (
            lambda inference: inference.predict(ModelSpec("m", label="l"), {}, timeout=None),
            InvalidArgument("not here"),
            InvalidArgument("not here"),
            InvalidArgument("Unrecognized servable version label: l"),
        ),
        (
            lambda inference: inference.predict(
                ModelSpec("m", signature_name="s"), {"x": X}, timeout=None
            ),
            NotFound("no s"),
            None,
            FailedPrecondition('Serving signature key "s" not found.'),
        ),
        (
            lambda inference: inference.predict(SPEC, {"x": X > 0}, timeout=None),
            InvalidArgument("input 'x' has dtype bool, needs float32"),
            None,
            InvalidArgument(
                "Expects arg[0] to be float but bool is provided: it is the input 'x' of "
                "signature 'serving_default'"
            ),
        ),
        (
            lambda inference: inference.predict(SPEC, {"x": X[0, 0]}, timeout=None),
            InvalidArgument("input 'x' has shape (), needs any shape"),
            None,
            InvalidArgument(
                "Batching Run() input tensors must have at least one dimension: 'x' has none"
            ),
        ),
        (
            lambda inference: inference.predict(
                ModelSpec("m", signature_name="open"), {"a": X, "b": X[:1]}, timeout=None
            ),
            InvalidArgument("inputs must have the same number of rows"),
            None,
            InvalidArgument(
                "Batching Run() input tensors must have equal 0th-dimension size, got "
                "{'a': 2, 'b': 1}"
            ),
        ),
        (
            lambda inference: inference.predict(SPEC, {"x": EXAMPLES}, timeout=None),
            InvalidArgument("input 'x' holds bytes, needs float32"),
            None,
            InvalidArgument(
                "Expects arg[0] to be float but string is provided: it is the input 'x' of "
                "signature 'serving_default'"
            ),
        ),
        (
            lambda inference: inference.regress(
                ModelSpec("m", signature_name="s"), EXAMPLES, timeout=None
            ),
            NotFound("no s"),
            None,
            InvalidArgument("No signature was found with the name: s"),
        ),
    ],
)
def test_errors(
    client: PlayedClient,
    inference: Inference,
    ask: Ask,
    error: BatchyardError,
    metadata_error: BatchyardError | None,
    expected: BatchyardError,
) -> None:
    client.error, client.metadata_error = error, metadata_error

    with pytest.raises(type(expected)) as caught:
        run(ask(inference))

    assert caught.value.message == expected.message


def test_nothing_is_looked_up_when_no_time_is_left(
    client: PlayedClient, inference: Inference
) -> None:
    client.error = InvalidArgument("late")

    with pytest.raises(InvalidArgument, match="late"):
        run(inference.predict(SPEC, {"z": X}, timeout=0.0))
    assert client.lookups == 0


@pytest.mark.parametrize(
    ("outputs", "complaint"),
    [
        ({"scores": np.zeros(2, np.float32)}, "[batch_size num_classes] but got (2,)"),
        ({"scores": np.zeros((3, 1), np.float32)}, "scores output batch size of 2. Got: 3"),
        ({"scores": np.zeros((2, 1))}, "scores Tensor of DT_FLOAT. Got: float64"),
        ({"classes": np.zeros((2, 1), np.float32)}, "classes Tensor of DT_STRING. Got: float32"),
        (
            {"scores": np.zeros((2, 3), np.float32), "classes": np.full((2, 1), b"a", object)},
            "class and score should match in dim_size(1). Got 1 vs. 3",
        ),
    ],
)
def test_outputs_that_are_no_classes(
    client: PlayedClient, inference: Inference, outputs: Any, complaint: str
) -> None:
    client.outputs = outputs
    spec = ModelSpec("m", signature_name="scores")

    with pytest.raises(InvalidArgument) as caught:
        run(inference.classify(spec, EXAMPLES, timeout=None))

    assert complaint in caught.value.message


@pytest.mark.parametrize(
    ("outputs", "complaint"),
    [
        (np.zeros((2, 2), np.float32), "[batch_size] or [batch_size, 1] but got (2, 2)"),
        (np.zeros(3, np.float32), "did not match output batch size: 2 vs. 3"),
        (np.zeros(2), "DT_FLOAT.  Got: float64"),
    ],
)
def test_outputs_that_are_no_values(
    client: PlayedClient, inference: Inference, outputs: Any, complaint: str
) -> None:
    client.outputs = {"outputs": outputs}
    spec = ModelSpec("m", signature_name="values")

    with pytest.raises(InvalidArgument) as caught:
        run(inference.regress(spec, EXAMPLES, timeout=None))

    assert complaint in caught.value.message


def test_values_are_flat(client: PlayedClient, inference: Inference) -> None:
    client.outputs = {"outputs": np.array([[1.5], [2.5]], np.float32)}
    spec = ModelSpec("m", signature_name="values")

    regressions = run(inference.regress(spec, EXAMPLES, timeout=None))

    assert regressions.values.tolist() == [1.5, 2.5]
    assert regressions.spec == ModelSpec("m", 1, None, "values")


def test_tasks_are_asked_of_one_version(client: PlayedClient, inference: Inference) -> None:
    client.version = 7
    client.outputs = {"scores": X}
    task = Task(
        ModelSpec("m", label="stable", signature_name="scores"), "tensorflow/serving/classify"
    )

    (result,) = run(inference.multi_inference([task], EXAMPLES, timeout=None))

    assert result.spec == ModelSpec("m", 7, None, "scores")
    assert [(call["version"], call["label"]) for call in client.calls] == [(7, None)]


def test_an_error_of_one_task_is_that_of_all(client: PlayedClient, inference: Inference) -> None:
    client.error = Unavailable("full")
    tasks = [
        Task(ModelSpec("m", signature_name=name), f"tensorflow/serving/{method}")
        for name, method in (("scores", "classify"), ("values", "regress"))
    ]

    with pytest.raises(Unavailable):
        run(inference.multi_inference(tasks, EXAMPLES, timeout=None))


def test_status_of_all_versions_newest_first(inference: Inference) -> None:
    assert run(inference.status(SPEC)) == [
        VersionStatus(10, "END", "UNKNOWN", "no such file"),
        VersionStatus(3, "AVAILABLE", "OK", ""),
        VersionStatus(1, "UNLOADING", "OK", ""),
    ]
