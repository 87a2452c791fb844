"""Runs the requests that a SavedModel brings along for its own warm-up.

They are TensorFlow Serving's (https://www.tensorflow.org/tfx/serving/saved_model_warmup), and its
rules hold: a record that cannot be read or run keeps the version from being served. Each runs as a
batch of its own, cut and padded as the broker would do it, so that the shapes are those that occur.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from batchyard.pool.runtimes.base import Array, LoadedModel
from batchyard.pool.worker.trial_runs import TrialRun, trial_run_of
from batchyard.pool.worker.warmup import output_nbytes
from batchyard.wire import dtypes
from batchyard.wire.control import WarmupRequests
from batchyard.wire.errors import (
    BatchyardError,
    InvalidArgument,
    NotFound,
    Unimplemented,
    from_wire,
)
from batchyard.wire.signatures import DEFAULT_SIGNATURE, SignatureSpec, format_shape, shape_fits
from batchyard.wire.tensorflow_serving.example_requests import (
    CLASSIFY,
    EXAMPLES_INPUT,
    REGRESS,
    ExamplesRequest,
    serialized_examples,
)
from batchyard.wire.tensorflow_serving.messages import PredictionLog, RegressionRequest
from batchyard.wire.tensorflow_serving.tensor_proto import to_array

RECORDS_MAX = 1000


class WarmupRan(NamedTuple):
    """How many records there were, and how many bytes outputs took for a row, by signature."""

    records: int
    output_row_nbytes: dict[str, int]


class _Call(NamedTuple):
    spec: SignatureSpec
    inputs: Mapping[str, Array]


def run_requests(
    model: LoadedModel,
    records: Iterable[bytes],
    how: WarmupRequests,
    tell: Callable[[int], None] = lambda number: None,
    run: TrialRun | None = None,
) -> WarmupRan:
    """Runs all, one after the other. ``tell`` hears the number of each before, from 1.

    ``run`` is how the model is run, if not in host memory.

    Raises a BatchyardError that names the record.
    """
    run = run or trial_run_of(model, None)
    signatures = {spec.name: spec for spec in model.signatures}
    row_nbytes: dict[str, int] = {}
    number = 0
    for number, record in enumerate(records, 1):
        tell(number)
        if number > RECORDS_MAX:
            raise InvalidArgument(f"Number of warmup records exceeds the maximum ({RECORDS_MAX})")
        try:
            calls = _calls(record, signatures)
            for _ in range(how.iterations):
                for call in calls:
                    _run(run, call, how, row_nbytes)
        except BatchyardError as error:
            raise from_wire(error.number, f"record {number}: {error.message}") from error
    return WarmupRan(number, row_nbytes)


def _run(run: TrialRun, call: _Call, how: WarmupRequests, row_nbytes: dict[str, int]) -> None:
    name = call.spec.name
    for inputs in _batches(call, how):
        rows = len(next(iter(inputs.values()))) if call.spec.batched else 1
        nbytes = -(-sum(map(output_nbytes, run(name, inputs).outputs)) // max(rows, 1))
        row_nbytes[name] = max(row_nbytes.get(name, 0), nbytes)


def _calls(record: bytes, signatures: Mapping[str, SignatureSpec]) -> list[_Call]:
    """What a record asks to run."""
    try:
        log = PredictionLog.FromString(record)
    except DecodeError as error:
        raise InvalidArgument(
            f"Failed to parse warmup record: it must be a PredictionLog: {error}"
        ) from None
    match log.WhichOneof("log_type"):
        case None:
            return []
        case "predict_log":
            return [_prediction(log.predict_log.request, signatures)]
        case "classify_log":
            return [_of_examples(log.classify_log.request, signatures)]
        case "regress_log":
            return [_of_examples(log.regress_log.request, signatures)]
        case "multi_inference_log":
            return _of_tasks(log.multi_inference_log.request, signatures)
        case other:
            raise Unimplemented(
                f"Unsupported log_type for warmup: {other}; supported are predict_log, "
                "classify_log, regress_log and multi_inference_log"
            )


def _prediction(request: Any, signatures: Mapping[str, SignatureSpec]) -> _Call:
    spec = _signature(request.model_spec, signatures)
    inputs = {name: to_array(tensor) for name, tensor in request.inputs.items()}
    _check(spec, inputs)
    outputs = {output.name for output in spec.outputs}
    for name in request.output_filter:
        if name not in outputs:
            raise InvalidArgument(f"signature {spec.name!r} has no output {name!r} to filter by")
    return _Call(spec, inputs)


def _of_examples(request: Any, signatures: Mapping[str, SignatureSpec]) -> _Call:
    # TensorFlow Serving does not look at the signature's own method.
    spec = _signature(request.model_spec, signatures)
    as_bytes = ExamplesRequest.FromString(request.SerializeToString())
    inputs = {EXAMPLES_INPUT: serialized_examples(as_bytes)}
    _check(spec, inputs)
    return _Call(spec, inputs)


def _of_tasks(request: Any, signatures: Mapping[str, SignatureSpec]) -> list[_Call]:
    calls = []
    for task in request.tasks:
        if task.method_name not in (CLASSIFY, REGRESS):
            raise Unimplemented(f"Unsupported signature method_name: {task.method_name}")
        of_task = RegressionRequest(model_spec=task.model_spec, input=request.input)
        calls.append(_of_examples(of_task, signatures))
    return calls


def _signature(model_spec: Any, signatures: Mapping[str, SignatureSpec]) -> SignatureSpec:
    """The one that is asked for. The model's name and version are not looked at."""
    name = model_spec.signature_name or DEFAULT_SIGNATURE
    if name not in signatures:
        known = ", ".join(map(repr, sorted(signatures)))
        raise NotFound(f"the model has no signature {name!r}; it has {known}")
    return signatures[name]


def _check(spec: SignatureSpec, inputs: Mapping[str, Array]) -> None:
    """Whether the broker would take such a request."""
    where = f"signature {spec.name!r}"
    needed = [each.name for each in spec.inputs]
    if inputs.keys() != set(needed):
        raise InvalidArgument(
            f"{where} needs the inputs {', '.join(needed) or 'none'}, got "
            f"{', '.join(sorted(inputs)) or 'none'}"
        )
    for each in spec.inputs:
        array = inputs[each.name]
        dtype = dtypes.from_numpy(array.dtype)
        if dtype != each.dtype:
            raise InvalidArgument(
                f"{where}: input {each.name!r} has dtype {dtype}, needs {each.dtype}"
            )
        if not shape_fits(each, array.shape) or (spec.batched and not array.ndim):
            raise InvalidArgument(
                f"{where}: input {each.name!r} has shape {format_shape(array.shape)}, needs "
                f"{format_shape(each.shape)}"
            )
    if spec.batched and len({len(array) for array in inputs.values()}) > 1:
        raise InvalidArgument(f"{where}: its inputs differ in their number of rows")


def _batches(call: _Call, how: WarmupRequests) -> Iterator[Mapping[str, Array]]:
    """What the broker would make of a request that comes alone."""
    if not call.spec.batched:
        yield call.inputs
        return
    lengthened = {
        spec.name: _lengthened(call.inputs[spec.name], spec.shape, how.length_buckets)
        for spec in call.spec.inputs
    }
    rows = len(next(iter(lengthened.values())))
    most = how.max_batch_size or rows
    for start in range(0, rows, max(most, 1)):
        yield {
            name: _with_rows(array[start : start + most], how.allowed_batch_sizes)
            for name, array in lengthened.items()
        }


def _lengthened(
    array: Array, declared: Sequence[int | None] | None, buckets: Sequence[int]
) -> Array:
    """Its open dimensions padded up to the next bucket, with its first element."""
    if not buckets or not array.size:
        return array
    open_axes = [
        axis
        for axis in range(1, array.ndim)
        if declared is None or axis >= len(declared) or declared[axis] is None
    ]
    shape = list(array.shape)
    for axis in open_axes:
        shape[axis] = _next(shape[axis], buckets)
    padded = np.full(shape, array.flat[0], array.dtype)
    padded[tuple(map(slice, array.shape))] = array
    return padded


def _with_rows(array: Array, allowed: Sequence[int]) -> Array:
    """Padded up to the next allowed number of rows, with the last row."""
    missing = _next(len(array), allowed) - len(array)
    return np.concatenate([array, *[array[-1:]] * missing]) if missing else array


def _next(size: int, sizes: Sequence[int]) -> int:
    i = bisect_left(sizes, size)
    return sizes[i] if i < len(sizes) else size
