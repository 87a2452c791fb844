"""Examples stay the bytes that they came as, each behind its context."""

from __future__ import annotations

from typing import Any

import pytest

from batchyard.wire.errors import InvalidArgument
from batchyard.wire.tensorflow_serving.example_requests import (
    ExamplesRequest,
    MultiExamplesRequest,
    serialized_examples,
)
from batchyard.wire.tensorflow_serving.messages import (
    ClassificationRequest,
    Example,
    MultiInferenceRequest,
    RegressionRequest,
)


def example(**features: float) -> Any:
    """An example with a number for each feature."""
    made = Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


@pytest.mark.parametrize("published", [ClassificationRequest, RegressionRequest])
def test_examples_are_those_sent(published: Any) -> None:
    sent = published()
    sent.model_spec.name = "m"
    sent.model_spec.version_label = "stable"
    sent.input.example_list.examples.extend([example(x=1.0), example(x=2.0, y=3.0)])

    request = ExamplesRequest.FromString(sent.SerializeToString())

    assert (request.model_spec.name, request.model_spec.version_label) == ("m", "stable")
    found = [Example.FromString(one) for one in serialized_examples(request)]
    assert found == list(sent.input.example_list.examples)


def test_a_context_is_in_each_example_which_may_say_otherwise() -> None:
    sent = MultiInferenceRequest()
    sent.tasks.add(method_name="tensorflow/serving/regress").model_spec.name = "m"
    listed = sent.input.example_list_with_context
    listed.context.CopyFrom(example(a=1.0, b=2.0))
    listed.examples.extend([example(x=1.0), example(b=5.0)])

    request = MultiExamplesRequest.FromString(sent.SerializeToString())

    assert [task.model_spec.name for task in request.tasks] == ["m"]
    found = [Example.FromString(one) for one in serialized_examples(request)]
    assert found == [example(a=1.0, b=2.0, x=1.0), example(a=1.0, b=5.0)]


@pytest.mark.parametrize("kind", ["example_list", "example_list_with_context", None])
def test_no_examples(kind: str | None) -> None:
    request = ExamplesRequest()
    if kind is not None:
        getattr(request.input, kind).SetInParent()

    with pytest.raises(InvalidArgument, match=r"Input is empty\.$"):
        serialized_examples(request)


def test_a_context_is_not_repeated_without_end() -> None:
    request = ExamplesRequest()
    request.input.example_list_with_context.context = bytes(1 << 20)
    request.input.example_list_with_context.examples.extend([b""] * 300)

    with pytest.raises(InvalidArgument, match="1048576 bytes, and 300 examples have it"):
        serialized_examples(request)
