"""The ``tf.Example`` messages of a request to classify or to regress."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.wire.errors import InvalidArgument, Unimplemented


def serialized_examples(request_input: Any) -> npt.NDArray[Any]:
    """The examples of a ``tensorflow.serving.Input``: an object array (n,) of bytes.

    A context that they share is put before each: protobuf reads two messages that follow each
    other as one merged, and a feature of the later one counts. Raises InvalidArgument when there
    are none.
    """
    match request_input.WhichOneof("kind"):
        case "example_list":
            context, examples = b"", request_input.example_list.examples
        case "example_list_with_context":
            listed = request_input.example_list_with_context
            context, examples = listed.context.SerializeToString(), listed.examples
        case None:
            context, examples = b"", ()
        case kind:
            raise Unimplemented(f"input of kind {kind} is not supported; give an example_list")
    if not examples:
        raise InvalidArgument("Input is empty.")
    array = np.empty(len(examples), object)
    array[:] = [context + example.SerializeToString() for example in examples]
    return array
