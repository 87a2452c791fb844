"""Faults made at random, by a seed, against one server from outside; each with its moment."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import zmq

from batchyard.benchmarks.callables import order
from batchyard.benchmarks.faults_judge import Fault
from batchyard.benchmarks.faults_server import BROKER, ServerView
from batchyard.clients import Client
from batchyard.wire import protocol
from batchyard.wire.errors import BatchyardError
from batchyard.wire.local import LOCAL_SUFFIX
from batchyard.wire.protocol import MessageType

_CLIENT_START_S = 10.0
_PAUSES_S = (0.3, 1.2)
_CONNECT_S = 1.0
# Below it a fault would take all capacity away, and requests could only wait, or be refused.
_LIVE_MIN = 2
_TOO_FEW = "not made: too few workers are live"
_GARBAGE_MESSAGES = 20
_ODD: Sequence[Any] = (0, -1, "x", None, [], {}, 1 << 62)
# What comes and goes with reloads.
_EXTRA = """
[[models]]
name = "extra"
path = "batchyard.benchmarks.callables:simulated_gpu"
runtime = "python"
"""
# Clients that stand still at once.
_DEAF_MAX = 8


class Injector:
    """Makes faults, one after the other, on a thread of its own while the block runs."""

    def __init__(
        self, server: ServerView, seed: int, only: Sequence[str] = (), calm: float = 1.0
    ) -> None:
        """``only`` names faults; all without it. ``calm`` makes the time between them longer."""
        self.timeline: list[Fault] = []
        self.errors: list[BaseException] = []
        self._server = server
        self._calm = calm
        self._choice = random.Random(seed)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._victims: list[subprocess.Popen[str]] = []
        self._stopped: set[int] = set()
        # Clients that stand still, the oldest first.
        self._deaf: list[subprocess.Popen[str]] = []
        self._deck: list[str] = []
        self._configuration = server.config.read_text()
        faults: dict[str, Callable[[], str]] = {
            "kill_worker": self._kill_worker,
            "die_at_call": self._die_at_call,
            "pause_worker": self._pause_worker,
            "stop_worker": self._stop_worker,
            "kill_broker": self._kill_broker,
            "kill_client": self._kill_client,
            "stop_client": self._stop_client,
            "garbage": self._garbage,
            "reload": self._reload,
        }
        self._faults = {name: faults[name] for name in only or faults}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends it: nobody stands still, no client of ours is left, no order waits."""
        self._ends.set()
        self._thread.join()
        for pid in self._stopped:
            _signal(pid, signal.SIGCONT)
        for victim in self._victims:
            victim.kill()
            victim.communicate()
        for when in ("before", "during", "after"):
            (self._server.folder / f"die-{when}").unlink(missing_ok=True)
        self._server.config.write_text(self._configuration)
        self._note("no more faults")

    def _run(self) -> None:
        try:
            while not self._ends.wait(self._choice.uniform(*_PAUSES_S) * self._calm):
                name = self._next_fault()
                self._note(f"{name}: begins")
                self._note(f"{name}: {self._faults[name]()}")
        except BaseException as error:
            self.errors.append(error)

    def _next_fault(self) -> str:
        """Each once before one comes again, in an order of chance."""
        if not self._deck:
            self._deck = self._choice.sample(sorted(self._faults), len(self._faults))
        return self._deck.pop()

    def _note(self, what: str) -> None:
        self.timeline.append(Fault(time.monotonic(), what))

    def _live(self) -> list[int]:
        """Workers that can take batches; none if there are so few that a fault must not be made."""
        with (
            contextlib.suppress(BatchyardError),
            Client(self._server.ipc, connect_timeout=_CONNECT_S) as client,
        ):
            live = self._server.live_workers(client.stats()) - self._stopped
            return sorted(live) if len(live) >= _LIVE_MIN else []
        return []

    # Faults; each gives what it did

    def _kill_worker(self) -> str:
        pids = self._live()
        if not pids:
            return _TOO_FEW
        pid = self._choice.choice(pids)
        _signal(pid, signal.SIGKILL)
        return f"process {pid}"

    def _die_at_call(self) -> str:
        if not self._live():
            return _TOO_FEW
        when = self._choice.choice(("before", "during", "after"))
        order(self._server.folder, when)
        return f"whoever runs next dies {when} it"

    def _pause_worker(self) -> str:
        """For less than a batch may take."""
        pids = self._live()
        if not pids:
            return _TOO_FEW
        pid, pause_s = self._choice.choice(pids), self._choice.uniform(0.01, 0.3)
        _signal(pid, signal.SIGSTOP)
        time.sleep(pause_s)
        _signal(pid, signal.SIGCONT)
        return f"process {pid} stood still for {pause_s:.2f} s"

    def _stop_worker(self) -> str:
        """For good: its batch runs too long, and it is replaced."""
        pids = self._live()
        if not pids:
            return _TOO_FEW
        pid = self._choice.choice(pids)
        self._stopped.add(pid)
        _signal(pid, signal.SIGSTOP)
        return f"process {pid} stands still"

    def _kill_broker(self) -> str:
        if not self._live():
            return _TOO_FEW
        pids = self._server.children(BROKER)
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        return f"process {pids}"

    def _kill_client(self) -> str:
        victim = self._victim()
        self._end_client(victim)
        return f"process {victim.pid}"

    def _stop_client(self) -> str:
        victim = self._victim()
        _signal(victim.pid, signal.SIGSTOP)
        self._deaf.append(victim)
        if len(self._deaf) > _DEAF_MAX:
            # Each holds its answers in the broker for as long as it is there.
            self._end_client(self._deaf.pop(0))
        return f"process {victim.pid} reads no more"

    def _end_client(self, victim: subprocess.Popen[str]) -> None:
        victim.kill()
        victim.communicate()
        self._victims.remove(victim)

    def _victim(self) -> subprocess.Popen[str]:
        endpoint = self._choice.choice((self._server.tcp, self._server.ipc))
        module = "batchyard.benchmarks.faults_victim"
        victim = subprocess.Popen(
            [sys.executable, "-P", "-m", module, endpoint, str(os.getpid())],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._victims.append(victim)
        # Not for its own sake: it may find no server, and is killed as well then.
        assert victim.stdout is not None
        select.select([victim.stdout], [], [], _CLIENT_START_S)
        return victim

    def _garbage(self) -> str:
        """By ZeroMQ on both endpoints, by plain TCP, and on the local socket."""
        for endpoint in (self._server.tcp, self._server.ipc):
            self._garbage_messages(endpoint)
        host, _, port = self._server.tcp.removeprefix("tcp://").rpartition(":")
        path = self._server.ipc.removeprefix("ipc://")
        for family, kind, address in (
            (socket.AF_INET, socket.SOCK_STREAM, (host, int(port))),
            (socket.AF_UNIX, socket.SOCK_STREAM, path),
            (socket.AF_UNIX, socket.SOCK_SEQPACKET, path + LOCAL_SUFFIX),
        ):
            with contextlib.suppress(OSError), socket.socket(family, kind) as plain:
                plain.settimeout(1.0)
                plain.connect(address)
                plain.sendall(self._choice.randbytes(self._choice.randint(1, 5000)))
        return f"{_GARBAGE_MESSAGES} messages by two endpoints, and bytes on three sockets"

    def _garbage_messages(self, endpoint: str) -> None:
        choice = self._choice
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 200)
            dealer.setsockopt(zmq.SNDTIMEO, 200)
            dealer.connect(endpoint)
            for _ in range(_GARBAGE_MESSAGES):
                frames = [
                    choice.randbytes(choice.randint(0, 200)) for _ in range(choice.randint(1, 4))
                ]
                if choice.random() < 0.5:
                    # One that gets past the first look.
                    type_ = choice.choice(list(MessageType))
                    body = choice.choices(_ODD, k=choice.randint(0, 6))
                    frames[0] = protocol.encode(type_, body)
                with contextlib.suppress(zmq.Again):
                    dealer.send_multipart(frames)

    def _reload(self) -> str:
        """With a model more than last time, or with one less."""
        config = self._server.config
        adds = config.read_text() == self._configuration
        config.write_text(self._configuration + _EXTRA * adds)
        _signal(self._server.supervisor, signal.SIGHUP)
        return f"SIGHUP, {'with' if adds else 'without'} the model extra"


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
