"""The messages are those that tensorflow-serving-api publishes."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from support import published_messages

from batchyard.wire.tensorflow_serving import messages


@pytest.mark.skipif(
    not published_messages.is_installed(), reason="needs tensorflow-serving-api (--no-deps)"
)
def test_messages_are_those_published() -> None:
    script = Path(published_messages.__file__)
    published = subprocess.run(
        [sys.executable, "-P", script], check=True, capture_output=True
    ).stdout

    kept = resources.files(messages.__package__).joinpath("published.binpb").read_bytes()

    assert kept == published


def test_a_request_has_the_published_bytes() -> None:
    request = messages.PredictRequest()
    request.model_spec.name = "m"
    request.model_spec.version.value = 3
    request.output_filter.append("y")

    assert request.SerializeToString() == b"\x0a\x07\x0a\x01m\x12\x02\x08\x03\x1a\x01y"
