"""The synchronous client against a real server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support.server import Server

from batchyard.clients import Client, errors


def test_predict_takes_a_dict_or_the_bare_array(client: Client) -> None:
    for inputs in ({"x": [[1, 2], [3, 4]]}, [[1, 2], [3, 4]]):
        outputs = client.predict("double", inputs)
        assert list(outputs) == ["y"]
        assert outputs["y"].dtype == np.float32
        assert outputs["y"].tolist() == [[2, 4], [6, 8]]


def test_strings_come_back_as_bytes(client: Client) -> None:
    assert client.predict("upper", ["a\0", "bc", ""])["y"].tolist() == [b"A\0", b"BC", b""]


@pytest.mark.parametrize("columns", [3, 100_000])
def test_outputs_can_be_written_to(client: Client, columns: int) -> None:
    """Also large ones, which are not copied."""
    given = np.arange(columns * 2, dtype=np.float64).reshape(2, columns)
    output = client.predict("echo", {"x": given})["x"]
    assert np.array_equal(output, given)
    output += 1


def test_version_and_label_choose(client: Client) -> None:
    choices: list[dict[str, Any]] = [{"version": 1}, {"label": "stable"}, {}]
    for choice in choices:
        assert client.predict("upper", ["a"], **choice)["y"].tolist() == [b"A"]


@pytest.mark.parametrize(
    ("model", "options", "error"),
    [
        ("nobody", {}, errors.NotFound),
        ("upper", {"version": 2}, errors.NotFound),
        ("upper", {"label": "canary"}, errors.InvalidArgument),
        ("upper", {"signature": "other"}, errors.NotFound),
        ("upper", {"version": 1, "label": "stable"}, errors.InvalidArgument),
        ("upper", {"priority": 11}, errors.InvalidArgument),
        ("upper", {"timeout": -1}, errors.InvalidArgument),
    ],
)
def test_wrong_requests_end_with_typed_errors(
    client: Client, model: str, options: Any, error: type[errors.BatchyardError]
) -> None:
    with pytest.raises(error):
        client.predict(model, ["a"], **options)
    assert client.predict("upper", ["a"])["y"].tolist() == [b"A"]


def test_submit_itself_raises_what_it_can_tell(client: Client) -> None:
    with pytest.raises(errors.InvalidArgument, match="needs float32"):
        client.submit("double", ["a"])


def test_models_errors_are_typed(client: Client) -> None:
    with pytest.raises(errors.Internal, match="ValueError: x must not be negative"):
        client.predict("fails", {"x": np.array([-1])})
    with pytest.raises(errors.OutOfRange, match="x is beyond 100") as caught:
        client.predict("typed_error", {"x": np.array([1])})
    assert (caught.value.code, caught.value.message) == ("OUT_OF_RANGE", "x is beyond 100")


def test_predict_many_answers_in_order(client: Client) -> None:
    rows = [1, 3, 2, 1]
    inputs = [np.full((n, 2), i, np.float32) for i, n in enumerate(rows)]
    outputs = client.predict_many("double", inputs)
    assert [output["y"].shape for output in outputs] == [(n, 2) for n in rows]
    assert [output["y"][0, 0] for output in outputs] == [0, 2, 4, 6]
    assert client.predict_many("double", []) == []


def test_predict_many_takes_requests_that_cannot_share_a_message(client: Client) -> None:
    inputs = [{"x": np.full((2, width), width)} for width in (1, 2, 1, 3)]
    outputs = client.predict_many("echo", inputs)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(inputs, outputs, strict=True))


def test_model_that_is_not_batched(client: Client) -> None:
    """Its requests travel each in a message of its own."""
    inputs = [np.full((n, 2), n, np.float32) for n in (1, 3, 2)]
    outputs = client.predict_many("alone", inputs)
    assert all(np.array_equal(a, b["x"]) for a, b in zip(inputs, outputs, strict=True))
    assert client.predict("alone", inputs[0])["x"].tolist() == [[1, 1]]


def test_model_that_is_not_batched_and_declares_nothing(client: Client) -> None:
    assert client.predict("alone_open", {"x": np.zeros((1, 2))})["x"].tolist() == [[0, 0]]


def test_predict_many_raises_the_first_error(client: Client) -> None:
    with pytest.raises(errors.Internal, match="must not be negative"):
        client.predict_many("fails", [{"x": np.array([n])} for n in (1, -1, 2)])


def test_what_the_server_says_of_itself(client: Client, server: Server) -> None:
    names = {model["name"] for model in client.models()}
    assert {"double", "upper", "echo"} <= names
    double = client.metadata("double")["signatures"]["serving_default"]
    assert double["inputs"] == {"x": {"dtype": "float32", "shape": [None, 2]}}
    stats = client.stats()
    assert stats["broker"]["pid"] in server.processes()
    assert [worker["state"] for worker in stats["workers"]] == ["READY"]
    assert stats["arena"]["used_bytes"] <= stats["arena"]["bytes"]


def test_what_the_server_counts(client: Client) -> None:
    def counted() -> tuple[dict[str, int], dict[str, Any]]:
        metrics = client.metrics()
        (model,) = [m for m in metrics["models"] if m["name"] == "double"]
        (measures,) = model["measures"]
        buckets = len(metrics["bounds"]["seconds"]) + 1
        for name in ("request_seconds", "queue_seconds", "execution_seconds"):
            assert len(measures[name]["counts"]) == buckets
        assert set(model["deadline_misses"]) == {"refused", "dropped", "expired", "late"}
        assert sum(measures["request_seconds"]["counts"]) == measures["codes"]["OK"]
        return measures["codes"], metrics

    before, _ = counted()
    client.predict("double", [[1, 2], [3, 4]])
    with pytest.raises(errors.NotFound):
        client.predict("double", [[1, 2]], version=77)
    after, metrics = counted()
    assert after["OK"] == before["OK"] + 1
    assert set(metrics) >= set(client.stats())
    assert metrics["broker"]["clients"] >= 1
    assert metrics["workers"][0]["busy_s"] > 0


def test_threads_share_a_client(client: Client) -> None:
    def work(thread: int) -> list[bool]:
        numbers = [thread * 1000 + i for i in range(50)]
        return [
            client.predict("double", [[number, -number]])["y"].tolist()
            == [[2 * number, -2 * number]]
            for number in numbers
        ]

    with ThreadPoolExecutor(8) as pool:
        assert all(all(answers) for answers in pool.map(work, range(8)))
