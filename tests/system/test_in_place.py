"""What models do with memory that is shared with clients: nobody else sees it, nobody is hurt."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.regions import offset_in_region
from support.server import WORKER, Server, callable_path, model_table
from support.waiting import DEADLINE_S

from batchyard.clients import Client

LARGE = 20_000
AT_ONCE = 20
SCRIBBLE_S = 1.0
MODELS = """
import threading
import numpy as np

answer = np.zeros((1, 250_000), np.float32)


def reuses(inputs):
    answer[:] = inputs["x"][0, 0]
    return {"y": answer}


def doubles(inputs):
    x = inputs["x"]
    x *= 2
    return {"y": x.copy()}


def on_thread(inputs):
    return {"thread": np.full(len(inputs["x"]), threading.get_native_id())}


def sorts(inputs):
    return {"y": np.argsort(inputs["x"], axis=1)}
"""
Array = npt.NDArray[Any]


def exempt(table: str) -> str:
    """The model is never shown a client's own memory."""
    return table.replace('runtime = "python"\n', 'runtime = "python"\nread_in_place = false\n')


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker, which runs one batch at a time."""
    path: Path = tmp_path_factory.mktemp("models") / "models.py"
    path.write_text(MODELS)
    located = callable_path("located")
    tables = [
        *(model_table(name, f"{path}:{name}", max_batch_size=1) for name in ("reuses", "doubles")),
        model_table("on_thread", f"{path}:on_thread", max_batch_size=1),
        exempt(model_table("sorts", f"{path}:sorts")),
        model_table("located", located),
        exempt(model_table("exempt", located)),
    ]
    with Server(config="".join(tables)) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


def row(value: float, width: int = LARGE) -> Array:
    return np.full((1, width), value, np.float32)


def in_region(client: Client, value: float) -> Array:
    x = client.empty((1, LARGE))
    assert offset_in_region(x) is not None
    x[:] = value
    return x


@pytest.mark.parametrize("width", [20, LARGE])
def test_a_model_may_use_its_outputs_again(client: Client, width: int) -> None:
    """It gives the same array with each batch: all of it is written before the next one runs."""
    client.predict("reuses", {"x": row(0)})
    sent: deque[tuple[int, Future[dict[str, Any]]]] = deque()
    wrong = []

    def take() -> None:
        i, future = sent.popleft()
        if not (future.result(DEADLINE_S)["y"] == i).all():
            wrong.append(i)

    for i in range(150):
        sent.append((i, client.submit("reuses", {"x": row(i, width)})))
        if len(sent) > AT_ONCE:
            take()
    while sent:
        take()
    assert wrong == []


def test_a_model_that_writes_to_its_inputs_gets_copies(server: Server, client: Client) -> None:
    x, other = in_region(client, 3), row(5)
    for _ in range(4):
        assert (client.predict("doubles", {"x": x})["y"] == 6).all()
        assert (client.predict("doubles", {"x": other})["y"] == 10).all()
    futures = [client.submit("doubles", {"x": x}) for _ in range(AT_ONCE)]
    assert all((future.result(DEADLINE_S)["y"] == 6).all() for future in futures)
    assert (x == 3).all()
    assert (other == 5).all()


def test_a_model_runs_on_one_thread(server: Server, client: Client) -> None:
    """It may have an event loop, or a connection that belongs to a thread."""
    small = {"x": np.zeros((1, 1))}
    seen = {int(client.predict("on_thread", small)["thread"][0])}
    x = in_region(client, 1)
    futures = [
        client.submit("on_thread", inputs) for inputs in [{"x": x}, {"x": row(2)}, small] * AT_ONCE
    ]
    seen |= {int(future.result(DEADLINE_S)["thread"][0]) for future in futures}
    assert len(seen) == 1


def where(client: Client, model: str, x: Array, timeout: float | None = None) -> int:
    outputs = client.predict(model, {"x": x}, timeout=timeout)
    assert (outputs["x"] == x).all()
    return int(outputs["offset"][0])


def test_who_sets_a_deadline_is_not_read_in_place(client: Client) -> None:
    """When it is over, the caller goes on, and the model may still run."""
    x = in_region(client, 1)
    for _ in range(2):
        assert where(client, "located", x, timeout=DEADLINE_S) == -1
        assert where(client, "located", x) == offset_in_region(x)


def test_a_model_may_be_exempted(client: Client) -> None:
    x = in_region(client, 1)
    for _ in range(2):
        assert where(client, "exempt", x) == -1
        assert where(client, "exempt", row(2)) == -1


def test_a_model_that_sorts_outlives_who_scribbles(server: Server, client: Client) -> None:
    workers = server.processes(WORKER)
    x = in_region(client, 0)
    values = np.random.default_rng(0).standard_normal((1, LARGE)).astype(np.float32)
    stop = threading.Event()

    def scribble() -> None:
        while not stop.is_set():
            x[:] = values
            x[:] = -1e30

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        until = time.monotonic() + SCRIBBLE_S
        while time.monotonic() < until:
            order = client.predict("sorts", {"x": x})["y"]
            assert np.array_equal(np.sort(order), np.arange(LARGE)[None])
    finally:
        stop.set()
        thread.join()
    with server.client() as other:
        assert np.array_equal(other.predict("sorts", {"x": values})["y"], np.argsort(values))
    assert server.processes(WORKER) == workers
