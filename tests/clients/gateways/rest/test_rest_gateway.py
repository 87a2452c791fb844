"""What a gateway does with time, with callers that leave, with web pages, and with bounds."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chromium import Chromium, needs_chromium
from support.page_server import page_server
from support.rest_gateway import RestCaller, rest_gateway
from support.server import Server, callable_path, model_table
from support.waiting import wait_until

GATED = "/v1/models/gated"
OPEN = {"instances": [0]}


@pytest.fixture(scope="module")
def serving() -> Iterator[Server]:
    """A server of its own: what waits at a gate keeps its worker busy."""
    tensors = {
        "inputs": {"gate": ("int64", [-1])},
        "outputs": {name: ("int64", [-1]) for name in ("gate", "batch", "rows", "pid")},
    }
    config = model_table(
        "gated", callable_path("gated"), signature=tensors, max_batch_size=1, max_enqueued_batches=2
    ) + model_table("any", callable_path("echo"))
    with Server(config=config) as running:
        yield running


@pytest.fixture(scope="module")
def rest(serving: Server) -> Iterator[RestCaller]:
    with rest_gateway(serving) as caller:
        yield caller


def test_a_request_has_so_much_time(serving: Server) -> None:
    gate = serving.gates.close(1)
    with rest_gateway(serving, timeout_s=0.3) as rest:
        answer = rest.post(f"{GATED}:predict", {"instances": [1]})
        assert (answer.status, "deadline" in answer.json["error"]) == (504, True)
        gate.open()
