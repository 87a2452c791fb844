"""The parts of benchmarks that need no TensorFlow, each for a moment."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from batchyard.benchmarks import callables, raw, tensors
from batchyard.benchmarks.echo import echo_server
from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.memcpy import Memcpy
from batchyard.benchmarks.seqpacket_echo import seqpacket_echo
from batchyard.benchmarks.served import serve
from batchyard.clients import Client
from batchyard.wire import protocol

SECONDS = 0.05


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server with the callables that large tensors are sent to."""
    with serve(tensors.CALLABLES) as (_, ipc):
        yield ipc


def test_raw_requests_are_requests_of_one_row() -> None:
    header, frame = raw.one_row_requests("half_plus_two", 3)[2]
    type_, body = protocol.decode(header)
    assert type_ is protocol.MessageType.PREDICT
    predict = protocol.decode_predict(body)
    assert (predict.message_id, predict.rows) == (3, 1)
    assert protocol.Target.decode(predict.target).model == "half_plus_two"
    assert np.frombuffer(frame, np.float32).tolist() == [1.0]


def test_echo_answers_by_both_kinds_of_endpoint() -> None:
    frames = raw.one_row_requests("half_plus_two", 1)[0]
    with echo_server() as endpoints:
        for endpoint in endpoints:
            assert raw.echo_per_s(endpoint, frames, SECONDS) > 0
            assert raw.echo_p50_us(endpoint, frames, SECONDS) > 0


def test_raw_requests_stop_at_an_error(endpoint: str) -> None:
    with pytest.raises(BenchmarkFailed, match="no_such_model"):
        raw.requests_per_s(endpoint, "no_such_model", SECONDS)


def test_seqpacket_pair() -> None:
    with seqpacket_echo() as pair:
        pair.send(b"there")
        assert pair.recv(64) == b"there"


def test_memcpy_copies() -> None:
    memcpy = Memcpy()
    assert memcpy.gb_per_s(SECONDS) > 0
    assert memcpy.target.all()


def test_large_tensors(endpoint: str) -> None:
    for make in (tensors.ordinary, tensors.in_place):
        assert tensors.images_per_s(endpoint, "one_value", make, 1, SECONDS) > 0
    for floats in (tensors.SHORT, tensors.LONG):
        assert tensors.p50_us_of(endpoint, floats, SECONDS) > 0


def test_one_value_is_the_first_of_each_row(endpoint: str) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    answer = callables.one_value({"x": rows})["y"]
    assert answer.tolist() == [0.0, 4.0, 8.0]
    # A view would keep the batch that it came in.
    assert not np.shares_memory(answer, rows)
    with Client(endpoint) as client:
        assert client.predict("alone", rows)["y"].tolist() == [0.0, 4.0, 8.0]
