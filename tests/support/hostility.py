"""A server beside which tests are hostile, and a good client that must not notice."""

from __future__ import annotations

import itertools
import os
import threading

import numpy as np
from support.local_clients import LocalClient, target
from support.regions import regions_mapped
from support.server import BROKER, WORKER, Server, callable_path, model_table
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import Client
from batchyard.wire import protocol
from batchyard.wire.protocol import MessageType

MIB = 1 << 20
REGION_MB = 4
SIZE = REGION_MB * MIB
HELLO = protocol.encode(MessageType.HELLO, [])
ROW = 4096
ECHO = target("echo", x=("float32", (None, ROW // 4)))


def config(workers: int) -> str:
    """Small regions, and models that echo, wait at gates, and answer at length."""
    tables = f'[[pool.workers]]\ndevice = "cpu"\ncount = {workers}\n' + "".join(
        model_table(name, callable_path(name), max_batch_size=size)
        for name, size in (("echo", 64), ("steady", 4), ("grow", 1))
    )
    return f"[broker]\nregion_mb = {REGION_MB}\n{tables}"


class Witness:
    """Sends requests all the time, large and small, and checks every answer."""

    def __init__(self, client: Client) -> None:
        self.answers = 0
        self._client = client
        self._ends = threading.Event()
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            for i in itertools.count():
                x = np.full((1, 8 if i % 2 else 50_000), i, np.float32)
                y = self._client.predict("echo", {"x": x}, timeout=DEADLINE_S)["x"]
                assert (y == i).all()
                assert y.shape == x.shape
                self.answers += 1
                # Not as fast as it can: there are two cores.
                if self._ends.wait(0.005):
                    return
        except BaseException as error:
            self._errors.append(error)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        before = self.answers
        wait_until(lambda: self.answers > before or self._errors, "a good client is still answered")
        self._ends.set()
        self._thread.join(DEADLINE_S)
        assert not self._errors, self._errors


def open_files(server: Server) -> dict[int, int]:
    """How many descriptors the broker and the workers have, by process."""
    pids = server.processes(BROKER) + server.processes(WORKER)
    return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in pids}


def mappings(server: Server) -> dict[int, int]:
    """How many regions the broker and the workers have mapped, by process."""
    return {p: regions_mapped(p) for p in server.processes(BROKER) + server.processes(WORKER)}


def connect(server: Server) -> LocalClient:
    """A client that has done nothing yet."""
    return LocalClient(f"{server.ipc_path}.local")


def is_answered(client: LocalClient) -> bool:
    """Asks for something that is right."""
    client.predict(ECHO, 1, bytes(ROW))
    return client.result().segments == [(1, 0, 1)]
