"""``tensorflow.serving.PredictionService``:
https://github.com/tensorflow/serving/blob/master/tensorflow_serving/apis/prediction_service.proto"""

from __future__ import annotations

from typing import Any

import grpc

from batchyard.clients.gateways.grpc.calls import Call, Calls
from batchyard.clients.gateways.grpc.model_specs import read_spec, spec_of, write_spec
from batchyard.clients.gateways.inference import (
    Classifications,
    Inference,
    Regressions,
    Task,
)
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.protocol import INPUTS_MAX
from batchyard.wire.tensorflow_serving.example_requests import (
    ExamplesRequest,
    MultiExamplesRequest,
    serialized_examples,
)
from batchyard.wire.tensorflow_serving.messages import (
    ClassificationResponse,
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    MultiInferenceResponse,
    PredictRequest,
    RegressionResponse,
)
from batchyard.wire.tensorflow_serving.predict_response import encode_response
from batchyard.wire.tensorflow_serving.tensor_proto import Array, Room, to_array

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
# The only metadata that there is of a model.
_SIGNATURE_DEF = "signature_def"


class PredictionService:
    """Its methods, over the inference that both gateways share."""

    def __init__(self, inference: Inference, *, as_content: bool = True) -> None:
        """``as_content``: predictions have numbers in ``tensor_content``, not in typed fields."""
        self._inference = inference
        self._as_content = as_content

    def handler(self, calls: Calls) -> grpc.GenericRpcHandler:
        """What the server needs to serve it."""
        return calls.handler(
            PREDICTION_SERVICE,
            {
                "Predict": (PredictRequest, self.predict),
                "Classify": (ExamplesRequest, self.classify),
                "Regress": (ExamplesRequest, self.regress),
                "MultiInference": (MultiExamplesRequest, self.multi_inference),
                "GetModelMetadata": (GetModelMetadataRequest, self.get_model_metadata),
            },
        )

    async def predict(self, request: PredictRequest, call: Call) -> bytes:
        """Outputs of a signature for its inputs."""
        spec = spec_of(request)
        if len(request.inputs) > INPUTS_MAX:
            raise InvalidArgument(
                f"the request has {len(request.inputs)} inputs, at most {INPUTS_MAX} are taken"
            )
        room = Room()
        prediction = await self._inference.predict(
            spec,
            {alias: _array(alias, proto, room) for alias, proto in request.inputs.items()},
            request.output_filter,
            timeout=call.timeout,
            request_id=call.request_id,
        )
        spec = prediction.spec
        return encode_response(
            spec.name,
            spec.version or 0,
            spec.signature_name,
            prediction.outputs,
            as_content=self._as_content,
        )

    async def classify(self, request: Any, call: Call) -> bytes:
        """Classes of examples."""
        result = await self._inference.classify(
            spec_of(request),
            serialized_examples(request),
            timeout=call.timeout,
            request_id=call.request_id,
        )
        response = ClassificationResponse()
        write_spec(response.model_spec, result.spec)
        _write_classifications(response.result, result)
        return _encoded(response)

    async def regress(self, request: Any, call: Call) -> bytes:
        """Values of examples."""
        result = await self._inference.regress(
            spec_of(request),
            serialized_examples(request),
            timeout=call.timeout,
            request_id=call.request_id,
        )
        response = RegressionResponse()
        write_spec(response.model_spec, result.spec)
        _write_regressions(response.result, result)
        return _encoded(response)

    async def multi_inference(self, request: Any, call: Call) -> bytes:
        """Classes and values of the same examples, by several signatures."""
        results = await self._inference.multi_inference(
            [Task(read_spec(task.model_spec), task.method_name) for task in request.tasks],
            serialized_examples(request),
            timeout=call.timeout,
            request_id=call.request_id,
        )
        response = MultiInferenceResponse()
        for result in results:
            message = response.results.add()
            write_spec(message.model_spec, result.spec)
            if isinstance(result, Classifications):
                _write_classifications(message.classification_result, result)
            else:
                _write_regressions(message.regression_result, result)
        return _encoded(response)

    async def get_model_metadata(self, request: Any, call: Call) -> bytes:
        """The signatures of a model."""
        spec = spec_of(request)
        if not request.metadata_field:
            raise InvalidArgument(
                "GetModelMetadataRequest must specify at least one metadata_field: "
                f"{_SIGNATURE_DEF!r}"
            )
        for field in request.metadata_field:
            if field != _SIGNATURE_DEF:
                raise InvalidArgument(
                    f"Metadata field {field} is not supported; {_SIGNATURE_DEF!r} is"
                )
        model = await self._inference.model(spec, timeout=call.timeout, fresh=True)
        response = GetModelMetadataResponse()
        response.model_spec.name = spec.name
        response.model_spec.version.value = model.version
        response.metadata[_SIGNATURE_DEF].Pack(model.signature_def)
        return _encoded(response)


def _array(alias: str, proto: Any, room: Room) -> Array:
    try:
        return to_array(proto, room)
    except InvalidArgument as error:
        raise InvalidArgument(f"tensor parsing error: {alias}: {error.message}") from None


def _write_classifications(result: Any, found: Classifications) -> None:
    classes = None if found.classes is None else found.classes.tolist()
    scores = None if found.scores is None else found.scores.tolist()
    # A message's label is text.
    labels = None if classes is None else [[_text(name) for name in row] for row in classes]
    result.SetInParent()
    for row in range(len(labels if labels is not None else scores or ())):
        add = result.classifications.add().classes.add
        if labels is None:
            for score in (scores or ())[row]:
                add(score=score)
        elif scores is None:
            for label in labels[row]:
                add(label=label)
        else:
            for label, score in zip(labels[row], scores[row], strict=True):
                add(label=label, score=score)


def _text(label: bytes) -> str:
    try:
        return label.decode()
    except UnicodeDecodeError:
        raise InvalidArgument(
            f"the model's class {label[:40]!r} is not UTF-8, as a label must be"
        ) from None


def _write_regressions(result: Any, found: Regressions) -> None:
    result.SetInParent()
    for value in found.values.tolist():
        result.regressions.add(value=value)


def _encoded(response: Any) -> bytes:
    encoded: bytes = response.SerializeToString()
    return encoded
