"""Deadlines at a real server, of which the broker knows how long its batches take."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support.server import Server, model_table

from batchyard.clients.errors import DeadlineExceeded

_SLOW = """
import time

def slow(inputs):
    time.sleep(0.1)
    return {"y": inputs["x"] + 1}
"""
_SIGNATURE = """
[models.signature.inputs.x]
dtype = "int64"
shape = [-1]
[models.signature.outputs.y]
dtype = "int64"
shape = [-1]
"""
X = np.zeros(1, np.int64)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("models") / "slow.py"
    path.write_text(_SLOW)
    config = model_table("slow", f"{path}:slow", max_batch_size=4) + _SIGNATURE
    with Server(config=config) as server:
        yield server


def test_the_warm_up_told_how_long_batches_take(server: Server) -> None:
    with server.client() as client, pytest.raises(DeadlineExceeded, match=r"takes 1\d\d ms"):
        client.predict("slow", {"x": X}, timeout=0.05)
    stats = server.model_stats("slow")
    assert (stats["refused"], stats["batches"]) == (1, 0)


def test_more_than_can_be_done_in_time_is_refused_and_the_rest_is_answered(server: Server) -> None:
    before = server.model_stats("slow")
    with server.client() as client:
        # Ten batches, of which three or four can be done in time.
        futures = [client.submit("slow", {"x": X}, timeout=0.5) for _ in range(40)]
        errors = [future.exception() for future in futures]
    answered = sum(error is None for error in errors)
    assert 4 <= answered <= 16
    assert all(isinstance(error, DeadlineExceeded) for error in errors if error is not None)
    after = server.model_stats("slow")
    assert after["batches"] - before["batches"] <= 5
    assert after["refused"] - before["refused"] + after["dropped"] - before["dropped"] >= 20


def test_predictions_are_compared_with_what_was_measured(server: Server) -> None:
    with server.client() as client:
        for _ in range(3):
            client.predict("slow", {"x": X})
    prediction = server.model_stats("slow")["prediction"]
    assert prediction["count"] >= 3
    # Asleep for a tenth of a second, whatever else this machine does.
    assert 0 <= prediction["p50"] < 1
    assert server.model_stats("slow")["busy_s"] > 0.2


def test_without_a_deadline_all_are_answered(server: Server) -> None:
    with server.client() as client:
        futures = [client.submit("slow", {"x": X}) for _ in range(20)]
        assert [int(future.result()["y"][0]) for future in futures] == [1] * 20
