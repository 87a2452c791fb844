"""A REST gateway that dies under load: serving goes on, and another gateway comes."""

from __future__ import annotations

import os
import signal
import threading
from urllib.parse import urlsplit

from support.rest_gateway import RestCaller
from support.server import BROKER, WORKER, Server, callable_path, model_table
from support.waiting import wait_until

REST = "batchyard.clients.gateways.rest"
ECHO = "/v1/models/echo:predict"
DOCUMENT = {"instances": [1.0, 2.0]}


class _Server(Server):
    """With the port of its gateway."""

    rest_port = 0

    def _read_line(self, deadline: float) -> str:
        line = super()._read_line(deadline)
        fields = dict(word.partition("=")[::2] for word in line.split())
        self.rest_port = urlsplit(fields["rest"]).port or 0
        return line


class Load:
    """Callers that ask one request after the other, by new connections."""

    def __init__(self, rest: RestCaller, callers: int) -> None:
        self.answers = [0] * callers
        self.losses = 0
        self.surprises: list[str] = []
        self._rest = rest
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(caller,)) for caller in range(callers)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, caller: int) -> None:
        while not self._over.is_set():
            try:
                answer = self._rest.post(ECHO, DOCUMENT)
            except ConnectionError:
                # It was asked when it died.
                self.losses += 1
                continue
            except Exception as error:
                self.surprises.append(repr(error))
                return
            if answer.status != 200 or answer.json != {"predictions": [1.0, 2.0]}:
                self.surprises.append(answer.text)
                return
            self.answers[caller] += 1


def _kill_gateway(server: Server) -> None:
    """Waits for another one."""
    (before,) = server.processes(REST)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: server.processes(REST) not in ([], [before]), "another gateway")


def test_who_asks_when_it_dies_loses_a_connection_and_nobody_anything_else() -> None:
    floats = {"x": ("float32", [-1])}
    signature = {"inputs": floats, "outputs": floats}
    config = "[rest]\nport = 0\n" + model_table("echo", callable_path("echo"), signature=signature)
    with _Server(config=config) as server:
        others = [server.processes(BROKER), server.processes(WORKER)]
        with Load(RestCaller(server.rest_port), callers=4) as load:
            wait_until(lambda: min(load.answers) > 20, lambda: f"{load.surprises}")
            _kill_gateway(server)
            load.answers[:] = [0] * 4
            wait_until(lambda: min(load.answers) > 20, lambda: f"{load.surprises}")
            # The SDK's clients did not notice.
            assert server.client().predict("echo", [3.0])["x"].tolist() == [3.0]
        assert load.surprises == []
        assert load.losses <= 4
        assert [server.processes(BROKER), server.processes(WORKER)] == others
