"""Real SavedModels come and go while a server runs, and requests never notice."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.server import WORKER, Server
from support.waiting import wait_until

from batchyard.clients import Client
from batchyard.clients.errors import NotFound

# Fresh processes import TensorFlow, on a busy machine.
LOADED_S = 90.0
ROW = {"x": np.array([2.0], np.float32)}


def models(server: Server) -> dict[int, dict[str, Any]]:
    return {model["version"]: model for model in server.stats()["models"]}


def current(server: Server) -> list[int]:
    return [version for version, model in models(server).items() if model["is_current"]]


@pytest.fixture
def folder(tmp_path: Path, savedmodels: Path) -> Path:
    """A folder of versions with version 1."""
    folder = tmp_path / "model"
    copy(savedmodels, folder, 1)
    return folder


def copy(savedmodels: Path, folder: Path, version: int, kind: str = "half_plus_two") -> None:
    """A version comes by a rename, whole."""
    (source,) = (savedmodels / kind).iterdir()
    folder.mkdir(exist_ok=True)
    unfinished = folder / f"unfinished-{version}"
    shutil.copytree(source, unfinished)
    unfinished.rename(folder / str(version))


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    config = (
        "[pool]\nfile_system_poll_wait_seconds = 0.1\n"
        f'[[pool.workers]]\ndevice = "cpu"\n[[models]]\nname = "m"\npath = "{folder}"\n'
        "[models.batching]\nmax_batch_size = 4\n"
    )
    with Server(config=config) as server:
        yield server
        server.stop()


def predict(client: Client, **choice: Any) -> list[float]:
    result: list[float] = client.predict("m", ROW, **choice)["y"].tolist()
    return result


def test_versions_come_and_go(server: Server, folder: Path, savedmodels: Path) -> None:
    # One after the other on one server: each start imports TensorFlow.
    with server.client() as client:
        assert predict(client) == [3.0]
        old = server.processes(WORKER)
        check_one_that_does_not_load(server, client, folder, savedmodels)
        assert server.processes(WORKER) == old

        # One comes.
        copy(savedmodels, folder, 2)
        answers = 0
        while current(server) != [2]:
            # Requests are answered all the while.
            assert predict(client) == [3.0]
            answers += 1
        assert answers > 0
        wait_until(lambda: set(models(server)) == {2}, lambda: str(models(server)), LOADED_S)
        wait_until(lambda: not set(old) & set(server.processes(WORKER)), "the old process ended")
        assert predict(client) == predict(client, version=2) == [3.0]
        with pytest.raises(NotFound, match="has no version 1"):
            predict(client, version=1)
        assert "event=version_switched added=m:2 removed=m:1" in server.log

        # Back to the old one, by taking the new one away.
        shutil.rmtree(folder / "2")
        wait_until(lambda: current(server) == [1], lambda: str(models(server)), LOADED_S)
        assert predict(client) == predict(client, version=1) == [3.0]
        wait_until(lambda: set(models(server)) == {1}, lambda: str(models(server)))
        wait_until(lambda: len(server.processes(WORKER)) == 1, "the old process ended")

        # The next process has no need of version 2.
        (worker,) = server.processes(WORKER)
        os.kill(worker, signal.SIGKILL)
        assert predict(client, timeout=LOADED_S) == [3.0]


def check_one_that_does_not_load(
    server: Server, client: Client, folder: Path, savedmodels: Path
) -> None:
    """It is told, and changes nothing; another by its number is tried again."""
    copy(savedmodels, folder, 2, "bad")
    wait_until(
        lambda: models(server).get(2, {}).get("error"), lambda: str(models(server)), LOADED_S
    )
    assert "does not load" in models(server)[2]["error"]
    assert current(server) == [1]
    assert predict(client) == [3.0]
    shutil.rmtree(folder / "2")
    wait_until(lambda: set(models(server)) == {1}, lambda: str(models(server)))
