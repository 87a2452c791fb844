"""The examples of PyTorch and JAX, served on the CPU, where they are installed."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.server import Server
from support.waiting import DEADLINE_S

from batchyard.clients import Client

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["torch", "jax"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"needs {request.param}")
    name = {"torch": "pytorch"}.get(request.param, request.param)
    environment = {}
    if request.param == "jax":
        path = tmp_path_factory.mktemp("weights") / "weights.npz"
        # Scores that can be told: all of them alike, but for the last.
        np.savez(path, **_weights())
        environment["MODEL_WEIGHTS"] = str(path)
    server = Server(f"examples/gpu/{name}.toml", ipc=True, environment=environment)
    (server.working_folder / "examples").symlink_to(ROOT / "examples")
    with server:
        yield server


def _weights() -> dict[str, np.ndarray]:
    last = np.zeros(10, np.float32)
    last[-1] = np.log(11)
    return {
        "w1": np.zeros((784, 512), np.float32),
        "b1": np.zeros(512, np.float32),
        "w2": np.zeros((512, 10), np.float32),
        "b2": last,
    }


def test_it_answers_clients_that_ask_at_once(server: Server) -> None:
    draw = np.random.default_rng(1)
    # Of more bytes than a region is left alone for.
    images = draw.random((100, 784), np.float32)
    found: dict[tuple[int, int], np.ndarray] = {}

    def ask(first: int) -> None:
        with Client(f"ipc://{server.ipc_path}") as client:
            for rows in (1, 3, 21):
                asked = client.submit("classify", {"images": images[first : first + rows]})
                found[first, rows] = asked.result(DEADLINE_S)["scores"]

    threads = [threading.Thread(target=ask, args=(first,)) for first in (0, 25, 50, 75)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    with Client(f"ipc://{server.ipc_path}") as client:
        alone = client.predict("classify", {"images": images}, timeout=DEADLINE_S)["scores"]
    assert len(found) == 12
    for (first, rows), scores in found.items():
        assert scores.shape == (rows, 10)
        # A batch of another size is computed in another order.
        np.testing.assert_allclose(scores, alone[first : first + rows], rtol=1e-4)
    np.testing.assert_allclose(alone.sum(axis=1), 1, rtol=1e-5)
    if "MODEL_WEIGHTS" in server._environment:
        np.testing.assert_allclose(alone[:, -1], 0.55, rtol=1e-5)
