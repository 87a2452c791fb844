"""What TensorFlow Serving demands of signatures, requests and answers, in words that its clients
know.

Source: predict_util.cc, classifier.cc and regressor.cc under
https://github.com/tensorflow/serving/tree/master/tensorflow_serving/servables/tensorflow, as they
are without ``--enable_signature_method_name_check``, which is the default there: a signature of
any method may be asked for classes if its tensors have the right names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.wire import dtypes
from batchyard.wire.errors import FailedPrecondition, InvalidArgument
from batchyard.wire.signatures import SignatureSpec, format_shape
from batchyard.wire.tensorflow_serving.example_requests import EXAMPLES_INPUT

Array = npt.NDArray[Any]

# The names that the tensors of such signatures have in every SavedModel.
CLASSES_OUTPUT = "classes"
SCORES_OUTPUT = "scores"
VALUES_OUTPUT = "outputs"
# TensorFlow's names, where they differ from numpy's.
_TENSORFLOW_NAMES = {"float16": "half", "float32": "float", "float64": "double"}


def tensorflow_name(dtype: str) -> str:
    """What TensorFlow calls a dtype."""
    return _TENSORFLOW_NAMES.get(dtype, dtype)


def check_inputs(signature: SignatureSpec, given: Iterable[str]) -> None:
    """Whether a request has the inputs of a signature. Raises InvalidArgument."""
    if signature.open:
        return
    sent, needed = set(given), {spec.name for spec in signature.inputs}
    if len(sent) != len(needed):
        raise InvalidArgument(
            f"input size does not match signature: {len(sent)}!={len(needed)} "
            f"len({_set(sent)}) != len({_set(needed)}). Sent extra: {_set(sent - needed)}. "
            f"Missing but required: {_set(needed - sent)}."
        )
    for name in sorted(sent - needed):
        raise InvalidArgument(
            f"input tensor alias not found in signature: {name}. Inputs expected to be in the set "
            f"{_set(needed)}."
        )


def check_dtypes(signature: SignatureSpec, inputs: Mapping[str, Array]) -> None:
    """Whether a request's inputs, which ``check_inputs`` took, have the dtypes of a signature.

    Raises InvalidArgument, as TensorFlow does when it runs the signature.
    """
    for i, spec in enumerate(signature.inputs):
        given = dtypes.from_numpy(inputs[spec.name].dtype)
        if given is not None and given != spec.dtype:
            raise InvalidArgument(
                f"Expects arg[{i}] to be {tensorflow_name(spec.dtype)} but "
                f"{tensorflow_name(given)} is provided: it is the input {spec.name!r} of "
                f"signature {signature.name!r}"
            )


def check_rows(signature: SignatureSpec, inputs: Mapping[str, Array]) -> None:
    """Whether a request's inputs have rows, as many each, where requests are batched.

    Raises InvalidArgument, as TensorFlow Serving's batching_util.h does.
    """
    if not signature.batched:
        return
    for name in sorted(inputs):
        if not inputs[name].ndim:
            raise InvalidArgument(
                f"Batching Run() input tensors must have at least one dimension: {name!r} has none"
            )
    counts = {name: len(array) for name, array in sorted(inputs.items())}
    if len(set(counts.values())) > 1:
        raise InvalidArgument(
            f"Batching Run() input tensors must have equal 0th-dimension size, got {counts}"
        )


def check_filter(output_filter: Sequence[str], outputs: Iterable[str]) -> None:
    """Whether there are the outputs that a request wants, each once. Raises InvalidArgument."""
    known = set(outputs)
    seen: set[str] = set()
    for name in output_filter:
        if name not in known:
            raise InvalidArgument(
                f"output tensor alias not found in signature: {name} Outputs expected to be in "
                f"the set {_set(known)}."
            )
        if name in seen:
            raise InvalidArgument(f"duplicate output tensor alias: {name}")
        seen.add(name)


def check_classify(signature: SignatureSpec) -> None:
    """Whether a signature takes examples and gives classes or scores.

    Raises InvalidArgument, FailedPrecondition.
    """
    _check_one_input(signature)
    names = [spec.name for spec in signature.outputs]
    if len(names) not in (1, 2):
        raise InvalidArgument(f"Expected one or two output Tensors, found {len(names)}")
    _check_examples_input(signature, "classification")
    if not {CLASSES_OUTPUT, SCORES_OUTPUT} & set(names):
        raise FailedPrecondition(
            "Expected classification signature outputs to contain at least one of "
            f'"{CLASSES_OUTPUT}" or "{SCORES_OUTPUT}". Signature {signature.name!r} has '
            f"{_set(names)}."
        )


def check_regress(signature: SignatureSpec) -> None:
    """Whether a signature takes examples and gives values.

    Raises InvalidArgument, FailedPrecondition.
    """
    _check_one_input(signature)
    names = [spec.name for spec in signature.outputs]
    if len(names) != 1:
        raise InvalidArgument("Expected one output Tensor.")
    _check_examples_input(signature, "regression")
    if names != [VALUES_OUTPUT]:
        raise FailedPrecondition(
            f"No regression outputs found in SignatureDef: signature {signature.name!r} has the "
            f"output {names[0]!r}, needs {VALUES_OUTPUT!r}"
        )


def _check_one_input(signature: SignatureSpec) -> None:
    if signature.open or len(signature.inputs) != 1:
        raise InvalidArgument("Expected one input Tensor.")


def _check_examples_input(signature: SignatureSpec, method: str) -> None:
    name = signature.inputs[0].name
    if name != EXAMPLES_INPUT:
        raise FailedPrecondition(
            f"No {method} inputs found in SignatureDef: signature {signature.name!r} has the "
            f"input {name!r}, needs {EXAMPLES_INPUT!r}"
        )


def classes_and_scores(
    outputs: Mapping[str, Array], examples: int
) -> tuple[Array | None, Array | None]:
    """The classes (n, k) of bytes and scores (n, k) float32 among a signature's outputs.

    Raises InvalidArgument when they are no such arrays.
    """
    classes, scores = outputs.get(CLASSES_OUTPUT), outputs.get(SCORES_OUTPUT)
    if classes is not None:
        _check_matrix(classes, np.dtype(object), CLASSES_OUTPUT, "DT_STRING", examples)
    if scores is not None:
        _check_matrix(scores, np.dtype(np.float32), SCORES_OUTPUT, "DT_FLOAT", examples)
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise InvalidArgument(
            "Tensors class and score should match in dim_size(1). Got "
            f"{classes.shape[1]} vs. {scores.shape[1]}"
        )
    return classes, scores


def _check_matrix(array: Array, dtype: np.dtype, name: str, type_name: str, examples: int) -> None:
    if array.ndim != 2:
        raise InvalidArgument(
            "Expected Tensor shape: [batch_size num_classes] but got "
            f"{format_shape(array.shape)} of {name!r}"
        )
    if array.dtype != dtype:
        raise InvalidArgument(f"Expected {name} Tensor of {type_name}. Got: {array.dtype}")
    if len(array) != examples:
        raise InvalidArgument(f"Expected {name} output batch size of {examples}. Got: {len(array)}")


def regression_values(outputs: Mapping[str, Array], examples: int) -> Array:
    """The values, float32 (n,), among a signature's outputs.

    Raises InvalidArgument when they are no such array.
    """
    values = outputs[VALUES_OUTPUT]
    if values.ndim != 1 and (values.ndim != 2 or values.shape[1] != 1):
        raise InvalidArgument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{format_shape(values.shape)}"
        )
    if len(values) != examples:
        raise InvalidArgument(
            f"Input batch size did not match output batch size: {examples} vs. {len(values)}"
        )
    if values.dtype != np.float32:
        raise InvalidArgument(f"Expected output Tensor of DT_FLOAT.  Got: {values.dtype}")
    return values.reshape(-1)


def _set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
