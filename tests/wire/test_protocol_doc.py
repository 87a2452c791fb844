"""A client written from ``docs/protocol.md`` alone talks to a real server."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from support.documented_client import (
    ANSWER,
    CANCEL,
    CANCELLED,
    DEADLINE_EXCEEDED,
    ERROR,
    GOODBYE,
    HELLO,
    INVALID_ARGUMENT,
    NOT_FOUND,
    PREDICT,
    QUERY,
    RESULT,
    UNIMPLEMENTED,
    WELCOME,
    DocumentedClient,
    as_array,
    floats,
    ints,
    pack_strings,
    target,
    unpack_strings,
)
from support.golden import Golden, read_golden
from support.server import Server, model_table

CODES = {"INVALID_ARGUMENT": INVALID_ARGUMENT, "UNIMPLEMENTED": UNIMPLEMENTED}
CALLABLES = Path(__file__).parent.parent / "support" / "callables.py"
MODELS = """
import numpy as np

def half_plus_two(inputs):
    return {"y": inputs["x"] / 2 + 2}

def upper(inputs):
    return {"y": np.array([item.upper() for item in inputs["x"].ravel()], object)}

def mean(inputs):
    return {"mean": np.float32(inputs["x"].mean())}
"""


HALF_PLUS_TWO = target("half_plus_two", ["x", "float32", [None]])
GATED = target("gated", ["gate", "int64", [None]])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("models") / "models.py"
    models.write_text(MODELS)
    config = (
        model_table(
            "half_plus_two",
            f"{models}:half_plus_two",
            labels={"stable": 1},
            signature={
                "inputs": {"x": ("float32", [-1])},
                "outputs": {"y": ("float32", [-1])},
            },
        )
        + model_table(
            "upper",
            f"{models}:upper",
            signature={"inputs": {"x": ("string", [-1])}, "outputs": {"y": ("string", [-1])}},
        )
        + model_table(
            "mean",
            f"{models}:mean",
            signature={"inputs": {"x": ("float32", [-1, 2])}, "outputs": {"mean": ("float32", [])}},
        )
        + model_table("gated", f"{CALLABLES}:gated")
    )
    with Server(config=config, bind=("tcp://127.0.0.1:*",)) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[DocumentedClient]:
    with zmq.Context() as context:
        client = DocumentedClient(context, server.endpoint)
        yield client
        client.close()


def test_welcome(client: DocumentedClient) -> None:
    client.send(HELLO, [])
    type_, (epoch, max_message_nbytes, _, features, *_), tensors = client.receive()
    assert (type_, max_message_nbytes, tensors) == (WELCOME, 1 << 30, [])
    assert "tags" in features
    assert client.query("stats")["broker"]["epoch"] == epoch


def test_the_example(client: DocumentedClient) -> None:
    example = {name: golden.data for name, golden in read_golden("valid/example.hex").items()}
    client.send_frames(example["hello"])
    assert client.receive()[0] == WELCOME
    client.send_frames(example["predict_header"], example["predict_x"])
    assert client.receive_frames() == [example["result_header"], example["result_y"]]


def test_models(client: DocumentedClient) -> None:
    models = {model["name"]: model for model in client.query("models")}
    assert models.keys() == {"half_plus_two", "upper", "mean", "gated"}
    assert models["half_plus_two"] == {
        "name": "half_plus_two",
        "version": 1,
        "is_current": True,
        "labels": ["stable"],
        "state": "AVAILABLE",
        "error": "",
        "signatures": ["serving_default"],
    }


def test_metadata(client: DocumentedClient) -> None:
    metadata = client.query("metadata", model="half_plus_two", label="stable")
    assert metadata["max_batch_size"] == 64
    assert "signature_def" not in metadata
    assert metadata["signatures"] == {
        "serving_default": {
            "name": "serving_default",
            "inputs": [["x", "float32", [None]]],
            "outputs": [["y", "float32", [None]]],
            "batched": True,
            "open": False,
            "method_name": "tensorflow/serving/predict",
            "checks_shapes": False,
        }
    }
    signatures = client.query("metadata", model="gated", version=None)["signatures"]
    assert signatures["serving_default"]["open"]
    assert not signatures["serving_default"]["inputs"]
    signatures = client.query("metadata", model="mean", version=1)["signatures"]
    assert not signatures["serving_default"]["batched"]


def test_stats(client: DocumentedClient) -> None:
    stats = client.query("stats")
    assert stats.keys() >= {"broker", "workers", "models", "arena"}
    assert stats["broker"].keys() >= {
        "pid",
        "epoch",
        "uptime_s",
        "cpu_s",
        "draining",
        "replies_dropped",
    }
    for worker in stats["workers"]:
        assert worker.keys() >= {"id", "pid", "device", "state", "restarts", "batches"}
    for model in stats["models"]:
        assert model.keys() >= {"name", "state", "queue_rows", "requests", "batches"}
        assert all(int(rows) for rows in model["batch_rows"])
    assert stats["arena"].keys() >= {"bytes", "used_bytes"}


@pytest.mark.parametrize(
    ("query", "number"),
    [
        (["colour", {}], INVALID_ARGUMENT),
        (["metadata", {}], INVALID_ARGUMENT),
        (["metadata", {"model": "nobody"}], NOT_FOUND),
        (["metadata", {"model": "mean", "version": 2}], NOT_FOUND),
        (["metadata", {"model": "mean", "label": "stable"}], INVALID_ARGUMENT),
    ],
)
def test_query_that_fails(client: DocumentedClient, query: list[Any], number: int) -> None:
    client.send(QUERY, [8, *query])
    type_, (query_id, answered, message, answer), _ = client.receive()
    assert (type_, query_id, answered, answer) == (ANSWER, 8, number, None)
    assert message


def test_rows_of_each_request(client: DocumentedClient) -> None:
    message_id = client.predict(HALF_PLUS_TWO, [2, 1], floats(2, 4, 6))
    type_, (segments, version, outputs, *_), tensors = client.receive()
    assert (type_, segments, version) == (RESULT, [[message_id, 0, 2]], 1)
    assert outputs == [["y", "float32", [3]]]
    assert as_array(outputs[0], tensors[0]).tolist() == [3, 4, 5]


def test_one_request_with_whole_shapes(client: DocumentedClient) -> None:
    message_id = client.predict(target("half_plus_two", ["x", "float32", [2]]), None, floats(2, 4))
    _, (segments, _, outputs, *_), tensors = client.receive()
    assert segments == [[message_id, 0, 1]]
    assert as_array(outputs[0], tensors[0]).tolist() == [3, 4]


def test_tags_and_timings(client: DocumentedClient) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    tags = [[0, 1, "order 7", None], [1, 2, None, traceparent]]
    client.send(PREDICT, [5, HALF_PLUS_TWO, 3, None, None, False, tags], floats(2, 4, 6))
    type_, (segments, _, outputs, _, _, timings, *_), tensors = client.receive()
    assert (type_, segments) == (RESULT, [[5, 0, 3]])
    assert as_array(outputs[0], tensors[0]).tolist() == [3, 4, 5]
    ((segment, *parts_us, batch_rows, padded_rows, worker),) = timings
    assert (segment, batch_rows, padded_rows, worker) == (0, 3, 3, 0)
    assert len(parts_us) == 4
    assert all(0 <= us < 60_000_000 for us in parts_us)


def test_version_and_label(client: DocumentedClient) -> None:
    for choice in ({"version": 1}, {"label": "stable"}):
        client.predict(target("half_plus_two", ["x", "float32", [None]], **choice), 1, floats(2))
        assert client.receive()[0] == RESULT
    client.predict(target("half_plus_two", ["x", "float32", [None]], version=2), 1, floats(2))
    assert client.receive()[1][1] == NOT_FOUND


def test_request_larger_than_a_batch(client: DocumentedClient) -> None:
    x = np.arange(1000, dtype="<f4")
    message_id = client.predict(HALF_PLUS_TWO, [len(x)], x.tobytes())
    _, (segments, _, outputs, *_), tensors = client.receive()
    assert segments == [[message_id, 0, 1]]
    assert (as_array(outputs[0], tensors[0]) == x / 2 + 2).all()


def test_many_requests_are_answered_in_several_messages(client: DocumentedClient) -> None:
    x = np.arange(300, dtype="<f4")
    message_id = client.predict(HALF_PLUS_TWO, len(x), x.tobytes())
    answered: dict[int, float] = {}
    messages = 0
    while len(answered) < len(x):
        type_, (segments, _, outputs, *_), tensors = client.receive()
        assert type_ == RESULT
        messages += 1
        requests = [i for _, first, count in segments for i in range(first, first + count)]
        assert all(segment[0] == message_id for segment in segments)
        assert not answered.keys() & set(requests)
        answered.update(zip(requests, as_array(outputs[0], tensors[0]).tolist(), strict=True))
    assert messages >= 300 / 64
    assert [answered[i] for i in range(len(x))] == (x / 2 + 2).tolist()


def test_strings(client: DocumentedClient) -> None:
    items = [b"a", b"", b"\0b\xff", "ß".encode()]
    client.predict(target("upper", ["x", "string", [None]]), len(items), pack_strings(*items))
    _, (_, _, outputs, *_), tensors = client.receive()
    assert outputs == [["y", "string", [4]]]
    assert unpack_strings(tensors[0], 4) == [b"A", b"", b"\0B\xff", "ß".encode()]


def test_signature_that_is_not_batched(client: DocumentedClient) -> None:
    message_id = client.predict(target("mean", ["x", "float32", [2, 2]]), None, floats(1, 2, 3, 6))
    _, (segments, _, outputs, *_), tensors = client.receive()
    assert segments == [[message_id, 0, 1]]
    assert outputs == [["mean", "float32", []]]
    assert struct.unpack("<f", tensors[0]) == (3.0,)


def test_one_result_for_two_messages(client: DocumentedClient, server: Server) -> None:
    client.predict(GATED, 1, ints(1))
    server.gates.wait_until_reached(1)
    sent = {client.predict(GATED, 1, ints(0)) for _ in range(2)}
    client.query("models")
    server.gates.open(1)
    assert client.receive()[0] == RESULT
    _, (segments, _, outputs, *_), tensors = client.receive()
    assert {segment[0] for segment in segments} == sent
    by_name = {output[0]: as_array(output, t) for output, t in zip(outputs, tensors, strict=True)}
    assert by_name["rows"].tolist() == [2, 2]


def test_cancel_and_deadline(client: DocumentedClient, server: Server) -> None:
    blocks = client.predict(GATED, 1, ints(2))
    server.gates.wait_until_reached(2)
    waits = client.predict(GATED, 3, ints(0, 0, 0), timeouts_us=[None, 1, None])
    type_, (segments, number, _), _ = client.receive()
    assert (type_, segments, number) == (ERROR, [[waits, 1, 1]], DEADLINE_EXCEEDED)
    client.send(CANCEL, [[waits, 2, 1], [12345, 0, 0]])
    type_, (segments, number, _), _ = client.receive()
    assert (type_, segments, number) == (ERROR, [[waits, 2, 1]], CANCELLED)
    # What runs is answered at once too, and what is answered is not answered again.
    client.send(CANCEL, [[blocks, 0, 0], [waits, 1, 0]])
    assert client.receive()[1][:2] == [[[blocks, 0, 1]], CANCELLED]
    server.gates.open(2)
    type_, (segments, *_), _ = client.receive()
    assert (type_, segments) == (RESULT, [[waits, 0, 1]])
    client.assert_nothing_comes()


def test_goodbye_drops_what_waits(client: DocumentedClient, server: Server) -> None:
    client.predict(GATED, 1, ints(3))
    server.gates.wait_until_reached(3)
    client.predict(GATED, 1, ints(0))
    client.send(GOODBYE, [])
    stats = client.query("stats")
    assert not [model for model in stats["models"] if model["queue_rows"]]
    server.gates.open(3)
    server.wait_until_idle()
    client.assert_nothing_comes()


@pytest.mark.parametrize(
    ("bad_target", "rows", "x", "number"),
    [
        (target("nobody", ["x", "float32", [None]]), 1, floats(1), NOT_FOUND),
        (target("half_plus_two", ["z", "float32", [None]]), 1, floats(1), INVALID_ARGUMENT),
        (target("half_plus_two", ["x", "int32", [None]]), 1, floats(1), INVALID_ARGUMENT),
        (target("half_plus_two", ["x", "float32", [None, 2]]), 1, floats(1, 2), INVALID_ARGUMENT),
        (HALF_PLUS_TWO, 2, floats(1), INVALID_ARGUMENT),
        (HALF_PLUS_TWO, None, floats(1), INVALID_ARGUMENT),
        (target("half_plus_two", ["x", "float32", [3]]), 2, floats(1, 2), INVALID_ARGUMENT),
        (target("mean", ["x", "float32", [1, 2]]), 2, floats(1, 2), INVALID_ARGUMENT),
        (target("upper", ["x", "string", [None]]), 1, floats(1), INVALID_ARGUMENT),
    ],
)
def test_whole_message_is_refused(
    client: DocumentedClient, bad_target: bytes, rows: Any, x: bytes, number: int
) -> None:
    message_id = client.predict(bad_target, rows, x)
    type_, (segments, answered, message), _ = client.receive()
    assert (type_, segments, answered) == (ERROR, [[message_id, 0, 0]], number)
    assert message


def golden(path: str) -> pytest.MarkDecorator:
    entries = read_golden(f"invalid/{path}.hex")
    return pytest.mark.parametrize("golden", entries.values(), ids=list(entries))


@golden("headers")
def test_broker_bears_what_is_no_header(client: DocumentedClient, golden: Golden) -> None:
    client.send_frames(golden.data)
    type_, (segments, number, message), _ = client.receive()
    assert (type_, segments, number) == (ERROR, [], CODES[golden.code])
    assert golden.words in message


@golden("predict")
def test_broker_bears_wrong_fields(client: DocumentedClient, golden: Golden) -> None:
    client.send_frames(golden.data)
    type_, (segments, number, message), _ = client.receive()
    readable = not golden.name.startswith(("id_", "no_fields"))
    assert (type_, segments, number) == (ERROR, [[1, 0, 0]] if readable else [], INVALID_ARGUMENT)
    assert golden.words in message


@golden("targets")
def test_broker_bears_wrong_targets(client: DocumentedClient, golden: Golden) -> None:
    message_id = client.predict(golden.data, 1, floats(1))
    type_, (segments, number, message), _ = client.receive()
    assert (type_, segments, number) == (ERROR, [[message_id, 0, 0]], INVALID_ARGUMENT)
    assert golden.words in message
