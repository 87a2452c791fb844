"""A server whose workers compute on a card, which is simulated: all but the card is real."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.log_lines import events
from support.server import WORKER, Server
from support.simulated_card import simulated_card
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import Client
from batchyard.clients.errors import Internal, ResourceExhausted

_TOY = Path(__file__).parents[1] / "support" / "toy_framework.py"
_CONFIG = f"""
[[pool.workers]]
device = "gpu:0"
count = 2
per_process_gpu_memory_fraction = 0.4
[[models]]
name = "double"
runtime = "python"
path = "{_TOY}:same_memory"
device_arrays = true
[models.signature.inputs]
x = {{ dtype = "float32", shape = [-1, -1] }}
[models.signature.outputs]
y = {{ dtype = "float32", shape = [-1, -1] }}
[models.batching]
max_batch_size = 8
[[models]]
name = "obeys"
runtime = "python"
path = "{_TOY}:obeys"
device_arrays = true
[models.signature.inputs]
x = {{ dtype = "float32", shape = [-1, 4] }}
say = {{ dtype = "string", shape = [-1] }}
[models.signature.outputs]
y = {{ dtype = "float32", shape = [-1, 4] }}
[models.batching]
max_batch_size = 8
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    cards = simulated_card(tmp_path_factory.mktemp("card"))
    environment = {**cards.environment, "TOY_KERNEL_S": "0.002"}
    with Server(config=_CONFIG, ipc=True, environment=environment) as server:
        yield server


class Load(threading.Thread):
    """A client that asks until it is told to stop, and looks at every answer."""

    def __init__(self, server: Server, seed: int) -> None:
        super().__init__(daemon=True)
        self._endpoint = f"ipc://{server.ipc_path}"
        self._random = random.Random(seed)
        self._stopped = threading.Event()
        self.answers = 0
        self.wrong: list[str] = []
        self.start()

    def run(self) -> None:
        try:
            with Client(self._endpoint) as client:
                while not self._stopped.is_set():
                    self._ask(client)
        except Exception as error:
            self.wrong.append(repr(error))

    def _ask(self, client: Client) -> None:
        # Large ones lie in the client's region.
        shapes = [(self._random.randint(1, 8), self._random.choice([4, 4, 40_000])) for _ in "1234"]
        xs = [np.full(shape, self._random.randint(0, 1000), np.float32) for shape in shapes]
        futures = [client.submit("double", {"x": x}) for x in xs]
        for x, future in zip(xs, futures, strict=True):
            if not np.array_equal(future.result(DEADLINE_S)["y"], 2 * x + 1):
                self.wrong.append(f"wrong answer to {x}")
            self.answers += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join(DEADLINE_S)
        assert not self.is_alive()
        assert not self.wrong, self.wrong


def obey(server: Server, *words: str) -> Any:
    with server.client() as client:
        x = np.ones((len(words), 4), np.float32)
        say = np.array([word.encode() for word in words], object)
        return client.predict("obeys", {"x": x, "say": say}, timeout=DEADLINE_S)["y"]


def wait_for_answers(server: Server, loads: Sequence[Load], enough: int) -> None:
    wait_until(
        lambda: all(load.answers >= enough or load.wrong for load in loads),
        lambda: f"{enough} answers each: {[load.answers for load in loads]}\n{server.log_tail}",
    )


def wait_for_both_workers(server: Server) -> None:
    wait_until(
        lambda: [w["state"] for w in server.stats()["workers"]].count("READY") == 2,
        lambda: f"both workers are ready\n{server.log_tail}",
    )


def test_every_answer_is_right_while_clients_ask_at_once_and_a_worker_is_killed(
    server: Server,
) -> None:
    loads = [Load(server, seed) for seed in range(3)]
    wait_for_answers(server, loads, 30)
    os.kill(server.processes(WORKER)[0], signal.SIGKILL)
    wait_for_answers(server, loads, 60)
    for load in loads:
        load.stop()
    wait_for_both_workers(server)
    server.wait_until_idle()
    assert len(events(server.log, "arena_page_locked")) == 3


def test_a_card_without_memory_is_no_reason_to_die(server: Server) -> None:
    before = set(server.processes(WORKER))
    with pytest.raises(ResourceExhausted, match="has no memory left"):
        obey(server, "allocate")
    assert obey(server, "", "").tolist() == [[3.0] * 4] * 2
    assert set(server.processes(WORKER)) == before


def test_who_breaks_the_card_is_found_and_others_are_answered(server: Server) -> None:
    load = Load(server, 7)
    with pytest.raises(Internal, match="context is broken"):
        obey(server, "break")
    load.stop()
    wait_for_both_workers(server)
    assert obey(server, "").tolist() == [[3.0] * 4]
    assert events(server.log, "card_lost")[0]["device"] == "gpu:0"
