"""What TensorFlow Serving's two interfaces do, over a client of the broker.

Both gateways ask here, with arrays; how these travel is theirs. Codes and messages are TensorFlow
Serving's where clients may know them. A request that is right costs one round trip to the broker;
only when it fails is the model looked at, to say what is wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy.typing as npt

from batchyard.clients.async_client import Answer, AsyncClient
from batchyard.clients.gateways import signature_checks as checks
from batchyard.clients.gateways.served_model import ServedModel
from batchyard.wire import dtypes
from batchyard.wire.errors import (
    BatchyardError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from batchyard.wire.signatures import DEFAULT_SIGNATURE, SignatureSpec
from batchyard.wire.tensorflow_serving.example_requests import CLASSIFY, EXAMPLES_INPUT, REGRESS

__all__ = [
    "Classifications",
    "Inference",
    "ModelSpec",
    "Prediction",
    "Regressions",
    "ServedModel",
    "Task",
    "VersionStatus",
]

Array = npt.NDArray[Any]

# How long a model is not looked up again. Until it shows in an answer that it has changed.
_MODEL_KEPT_S = 1.0
_MODELS_KEPT = 1024


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model is asked, or has answered. At most one of ``version`` and ``label`` is given;
    an empty ``signature_name`` is ``serving_default``."""

    name: str
    version: int | None = None
    label: str | None = None
    signature_name: str = ""

    @property
    def signature(self) -> str:
        """The name of the signature that is meant."""
        return self.signature_name or DEFAULT_SIGNATURE

    def __str__(self) -> str:
        """As TensorFlow Serving's messages name it."""
        if self.version is not None:
            return f"Specific({self.name}, {self.version})"
        return f"Latest({self.name})"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The outputs of a signature. ``spec`` has the version and the signature that answered."""

    spec: ModelSpec
    outputs: dict[str, Array]


@dataclass(frozen=True, slots=True)
class Classifications:
    """``classes`` (n, k) of bytes, ``scores`` (n, k) float32; one of them may be None."""

    spec: ModelSpec
    classes: Array | None
    scores: Array | None


@dataclass(frozen=True, slots=True)
class Regressions:
    """``values`` (n,) float32."""

    spec: ModelSpec
    values: Array


@dataclass(frozen=True, slots=True)
class Task:
    """One of the tasks of a multi-inference: ``method`` is classify's or regress' name."""

    spec: ModelSpec
    method: str


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """``state`` is START, LOADING, AVAILABLE, UNLOADING or END; ``code`` the name of gRPC's code,
    with a ``message`` where it is not OK."""

    version: int
    state: str
    code: str
    message: str


class Inference:
    """Asks a server's models. For one event loop; the client is the caller's, and connected."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._models: dict[tuple[str, int | None, str | None], tuple[float, ServedModel]] = {}

    async def predict(
        self,
        spec: ModelSpec,
        inputs: Mapping[str, Array],
        output_filter: Sequence[str] = (),
        *,
        timeout: float | None,
        request_id: str | None = None,
    ) -> Prediction:
        """The outputs of a signature: those that ``output_filter`` names, or all.

        Raises NotFound, InvalidArgument, FailedPrecondition (no such signature), and what a
        request of the client raises.
        """
        deadline = _deadline(timeout)
        try:
            answer = await self._answer(spec, inputs, timeout, request_id)
        except (InvalidArgument, NotFound) as error:
            signature = await self._signature(spec, deadline, error, _no_serving_signature)
            checks.check_inputs(signature, inputs)
            checks.check_dtypes(signature, inputs)
            checks.check_rows(signature, inputs)
            raise
        outputs = answer.outputs
        if output_filter:
            checks.check_filter(output_filter, outputs)
            outputs = {name: outputs[name] for name in output_filter}
        return Prediction(_answered(spec, answer.version), outputs)

    async def classify(
        self,
        spec: ModelSpec,
        examples: Array,
        *,
        timeout: float | None,
        request_id: str | None = None,
    ) -> Classifications:
        """The classes of serialized ``tf.Example`` messages: an object array (n,) of bytes.

        Raises what ``predict`` raises; a missing signature is InvalidArgument here.
        """
        deadline = _deadline(timeout)
        try:
            answer = await self._answer_examples(spec, examples, timeout, request_id)
        except (InvalidArgument, NotFound) as error:
            checks.check_classify(await self._signature(spec, deadline, error, _no_signature))
            raise
        if not _is_classification(answer):
            checks.check_classify(await self._signature(spec, deadline, None, _no_signature))
        classes, scores = checks.classes_and_scores(answer.outputs, len(examples))
        return Classifications(_answered(spec, answer.version), classes, scores)

    async def regress(
        self,
        spec: ModelSpec,
        examples: Array,
        *,
        timeout: float | None,
        request_id: str | None = None,
    ) -> Regressions:
        """The values of serialized ``tf.Example`` messages; see ``classify``."""
        deadline = _deadline(timeout)
        try:
            answer = await self._answer_examples(spec, examples, timeout, request_id)
        except (InvalidArgument, NotFound) as error:
            checks.check_regress(await self._signature(spec, deadline, error, _no_signature))
            raise
        if list(answer.outputs) != [checks.VALUES_OUTPUT]:
            checks.check_regress(await self._signature(spec, deadline, None, _no_signature))
        values = checks.regression_values(answer.outputs, len(examples))
        return Regressions(_answered(spec, answer.version), values)

    async def multi_inference(
        self,
        tasks: Sequence[Task],
        examples: Array,
        *,
        timeout: float | None,
        request_id: str | None = None,
    ) -> list[Classifications | Regressions]:
        """Several signatures of one model, on the same examples, by the same version.

        Raises what ``classify`` raises, and InvalidArgument for tasks that do not go together.
        """
        if not tasks:
            raise InvalidArgument("ModelSpec has no name specified.")
        deadline = _deadline(timeout)
        model = await self.model(tasks[0].spec, timeout=timeout, fresh=True)
        _check_tasks(tasks, model)
        results = [
            (self.classify if task.method == CLASSIFY else self.regress)(
                replace(task.spec, version=model.version, label=None),
                examples,
                timeout=_left(deadline),
                request_id=request_id,
            )
            for task in tasks
        ]
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(_settled(result)) for result in results]
        settled = [task.result() for task in running]
        for result in settled:
            if isinstance(result, BatchyardError):
                raise result
        return [result for result in settled if not isinstance(result, BatchyardError)]

    async def model(
        self, spec: ModelSpec, *, timeout: float | None, fresh: bool = False
    ) -> ServedModel:
        """The version that answers a spec, and its signatures.

        Unless it must be ``fresh`` it may be what was known a second ago. Raises NotFound, and
        InvalidArgument for a label that is none.
        """
        _check_name(spec)
        key = spec.name, spec.version, spec.label
        now = time.monotonic()
        known = None if fresh else self._models.get(key)
        if known is not None and now - known[0] < _MODEL_KEPT_S:
            return known[1]
        try:
            metadata = await self._client.metadata(
                spec.name, version=spec.version, label=spec.label, timeout=timeout
            )
        except NotFound:
            # To the letter, here and below: clients compare it.
            raise NotFound(f"Servable not found for request: {spec}") from None
        except InvalidArgument:
            if spec.label is None:
                raise
            raise InvalidArgument(f"Unrecognized servable version label: {spec.label}") from None
        if len(self._models) >= _MODELS_KEPT:
            self._models.clear()
        model = ServedModel.from_metadata(metadata)
        self._models[key] = now, model
        return model

    async def status(self, spec: ModelSpec, *, timeout: float | None = None) -> list[VersionStatus]:
        """The states of a model's versions, of one if the spec names it, newest first.

        Raises NotFound when there is none.
        """
        served = await self._client.models(timeout=timeout)
        models = [model for model in served if model["name"] == spec.name]
        if not models and spec.version is None:
            raise NotFound(f"Could not find any versions of model {spec.name}")
        if spec.version is not None:
            models = [model for model in models if model["version"] == spec.version]
            if not models:
                raise NotFound(f"Could not find version {spec.version} of model {spec.name}")
        elif spec.label is not None:
            models = [model for model in models if spec.label in model["labels"]]
            if not models:
                raise InvalidArgument(f"Unrecognized servable version label: {spec.label}")
        statuses = [_status(model) for model in models]
        return sorted(statuses, key=lambda status: status.version, reverse=True)

    async def _answer(
        self,
        spec: ModelSpec,
        inputs: Mapping[str, Array],
        timeout: float | None,
        request_id: str | None,
    ) -> Answer:
        _check_name(spec)
        try:
            answer = await self._client.answer(
                spec.name,
                inputs,
                timeout=timeout,
                version=spec.version,
                label=spec.label,
                signature=spec.signature,
                request_id=request_id,
            )
        except (InvalidArgument, NotFound):
            # The model may have changed.
            self._models.pop((spec.name, spec.version, spec.label), None)
            raise
        known = self._models.get((spec.name, spec.version, spec.label))
        if known is not None and known[1].version != answer.version:
            del self._models[spec.name, spec.version, spec.label]
        return answer

    async def _answer_examples(
        self, spec: ModelSpec, examples: Array, timeout: float | None, request_id: str | None
    ) -> Answer:
        if not len(examples):
            raise InvalidArgument("Input is empty.")
        return await self._answer(spec, {EXAMPLES_INPUT: examples}, timeout, request_id)

    async def _signature(
        self,
        spec: ModelSpec,
        deadline: float | None,
        error: BatchyardError | None,
        missing: Any,
    ) -> SignatureSpec:
        """The signature of a request that failed; raises what is wrong with the spec, if it is
        the spec. When the model cannot be looked at, ``error`` has to do."""
        try:
            model = await self.model(spec, timeout=_left(deadline), fresh=True)
        except (NotFound, InvalidArgument):
            raise
        except BatchyardError:
            if error is None:
                raise
            raise error from None
        signature = model.signatures.get(spec.signature)
        if signature is None:
            missing(spec.signature)
            raise AssertionError
        return signature


def _no_serving_signature(name: str) -> NoReturn:
    raise FailedPrecondition(f'Serving signature key "{name}" not found.')


def _no_signature(name: str) -> NoReturn:
    raise InvalidArgument(f"No signature was found with the name: {name}")


def _check_name(spec: ModelSpec) -> None:
    if not spec.name:
        raise InvalidArgument("ModelSpec has no name specified.")


def _check_tasks(tasks: Sequence[Task], model: ServedModel) -> None:
    seen: set[str] = set()
    tensors: set[str] = set()
    for task in tasks:
        name = task.spec.signature
        if not task.spec.name:
            raise InvalidArgument("Found ModelSpec with an empty model name.")
        if task.spec.name != tasks[0].spec.name:
            raise InvalidArgument(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        if name in seen:
            raise InvalidArgument(f"Duplicate evaluation of signature: {name}")
        seen.add(name)
        signature = model.signatures.get(name)
        if signature is None:
            raise InvalidArgument(f"Requested signature not found in model graph: {name}")
        if task.method == CLASSIFY:
            checks.check_classify(signature)
        elif task.method == REGRESS:
            checks.check_regress(signature)
        else:
            raise Unimplemented(f"Unsupported signature method_name: {task.method}")
        tensors.add(_fed_tensor(model, signature))
    if len(tensors) > 1:
        raise InvalidArgument("Input tensor must be the same for all Signatures.")


def _fed_tensor(model: ServedModel, signature: SignatureSpec) -> str:
    """What tells examples of one signature from those of another; empty where they are serialized.

    TensorFlow 2 gives each signature a placeholder of its own: what is fed is the same.
    """
    if signature.inputs[0].dtype == dtypes.STRING:
        return ""
    inputs = model.signature_def.signature_def[signature.name].inputs
    name: str = inputs[EXAMPLES_INPUT].name
    return name


async def _settled(result: Any) -> Any:
    """What a coroutine returns, or the error that it raises."""
    try:
        return await result
    except BatchyardError as error:
        return error


def _is_classification(answer: Answer) -> bool:
    names = answer.outputs.keys()
    return len(names) in (1, 2) and (
        checks.CLASSES_OUTPUT in names or checks.SCORES_OUTPUT in names
    )


def _answered(spec: ModelSpec, version: int) -> ModelSpec:
    return ModelSpec(spec.name, version, None, spec.signature)


def _status(model: Mapping[str, Any]) -> VersionStatus:
    code = "UNKNOWN" if model["error"] else "OK"
    return VersionStatus(model["version"], model["state"], code, model["error"] or "")


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(deadline: float | None) -> float | None:
    """The seconds that are left; raises DeadlineExceeded when none are."""
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("the deadline passed before the model was asked")
    return left
