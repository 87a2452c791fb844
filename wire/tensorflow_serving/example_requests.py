"""Requests of classify, regress and multi-inference, whose examples stay the bytes that they came
as: models parse them, and nobody before.

TensorFlow Serving does the same, with messages like these (``apis/internal/serialized_input.proto``
there).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2

from batchyard.wire.errors import InvalidArgument
from batchyard.wire.tensorflow_serving import messages

Array = npt.NDArray[Any]

# Methods of signatures that take examples, and the name of their only input.
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
EXAMPLES_INPUT = "inputs"

# Of the context, once for each example.
_CONTEXTS_NBYTES_MAX = 256 * 1024 * 1024
_PACKAGE = "batchyard.examples"
_Field = descriptor_pb2.FieldDescriptorProto
_MODEL_SPEC = messages.ModelSpec.DESCRIPTOR
_TASK = messages.MultiInferenceRequest.DESCRIPTOR.fields_by_name["tasks"].message_type


def _message(
    file: descriptor_pb2.FileDescriptorProto, name: str, **fields: tuple[int, str | None, bool]
) -> descriptor_pb2.DescriptorProto:
    """Fields by their name: number, a message's type (None: bytes), whether repeated."""
    message = file.message_type.add(name=name)
    for field_name, (number, type_name, is_repeated) in fields.items():
        field = message.field.add(name=field_name, number=number)
        field.label = _Field.LABEL_REPEATED if is_repeated else _Field.LABEL_OPTIONAL
        if type_name is None:
            field.type = _Field.TYPE_BYTES
        else:
            field.type, field.type_name = _Field.TYPE_MESSAGE, f".{type_name}"
    return message


def _describe() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="batchyard/examples.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=sorted({_MODEL_SPEC.file.name, _TASK.file.name}),
    )
    _message(file, "Examples", examples=(1, None, True), context=(2, None, False))
    kinds = _message(
        file,
        "Input",
        example_list=(1, f"{_PACKAGE}.Examples", False),
        example_list_with_context=(2, f"{_PACKAGE}.Examples", False),
    )
    kinds.oneof_decl.add(name="kind")
    for field in kinds.field:
        field.oneof_index = 0
    _message(
        file,
        "Request",
        model_spec=(1, _MODEL_SPEC.full_name, False),
        input=(2, f"{_PACKAGE}.Input", False),
    )
    _message(
        file,
        "MultiRequest",
        tasks=(1, _TASK.full_name, True),
        input=(2, f"{_PACKAGE}.Input", False),
    )
    return file


messages.POOL.Add(_describe())

# ClassificationRequest and RegressionRequest: they have the same fields.
ExamplesRequest = messages.message_class(f"{_PACKAGE}.Request")
MultiExamplesRequest = messages.message_class(f"{_PACKAGE}.MultiRequest")


def serialized_examples(request: Any) -> Array:
    """The examples of a request, each with its context: an object array (n,) of bytes.

    Raises InvalidArgument when there are none.
    """
    kind = request.input.WhichOneof("kind")
    found = list(getattr(request.input, kind).examples) if kind else []
    if not found:
        raise InvalidArgument("Input is empty.")
    if kind == "example_list_with_context":
        # Messages are merged by writing one behind the other; the example comes last, and counts.
        context = request.input.example_list_with_context.context
        check_context(len(context), len(found))
        found = [context + example for example in found]
    examples: Array = np.empty(len(found), object)
    examples[:] = found
    return examples


def check_context(nbytes: int, examples: int) -> None:
    """Whether so many examples may each have a context of so many bytes: a request of 3 MB could
    make a terabyte of it. Raises InvalidArgument."""
    if nbytes * examples > _CONTEXTS_NBYTES_MAX:
        raise InvalidArgument(
            f"the context has {nbytes} bytes, and {examples} examples have it: together they may "
            f"take {_CONTEXTS_NBYTES_MAX}"
        )
