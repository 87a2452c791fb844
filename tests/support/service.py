"""A service of systemd in a container, as an operator sees it."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from support.systemd_container import Container
from support.waiting import wait_until

PYTHON = "/opt/batchyard/bin/python"
BATCHYARD = "/opt/batchyard/bin/batchyard"
LOAD = "/opt/tests/service_load.py"


def as_user(uid: int, group: str = "") -> list[str]:
    """What to put before a command that a user runs, who is in a group or in none."""
    of_group = f"--groups={group}" if group else "--clear-groups"
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", of_group]


@dataclass
class Service:
    """One unit."""

    container: Container
    name: str = "batchyard"

    @property
    def folder(self) -> str:
        """Where its socket is."""
        return f"/run/{self.name.replace('@', '-')}"

    @property
    def ipc(self) -> str:
        """Its endpoint for those on the same machine."""
        return f"ipc://{self.folder}/broker"

    def systemctl(self, verb: str, *words: str, code: int | None = 0) -> str:
        """What ``systemctl VERB`` says of it."""
        return self.container.run("systemctl", verb, *words, self.name, code=code)

    def shown(self, name: str) -> str:
        """A property of the unit."""
        return self.systemctl("show", "--value", f"--property={name}").strip()

    def age_s(self) -> float:
        """How long it has been active, or was."""
        return time.monotonic() - int(self.shown("ActiveEnterTimestampMonotonic")) / 1e6

    def pid(self) -> int:
        """The supervisor's, as the container numbers it."""
        return int(self.shown("MainPID"))

    def children(self, module: str) -> list[int]:
        """Those that run a module, by pid."""
        words = ["pgrep", "--parent", str(self.pid()), "--full", module]
        return [int(pid) for pid in self.container.run(*words, code=None).split()]

    def signal(self, number: signal.Signals, pid: int) -> None:
        """Sends a signal to one of its processes."""
        # 0, as of one that does not run, would be the processes of the tests.
        assert pid > 0, self.journal()
        self.container.run("kill", f"-{number.name}", str(pid))

    def journal(self, *options: str) -> str:
        """What it logged, and systemd of it."""
        words = ["journalctl", "--unit", self.name, "--output=cat", "--no-pager", *options]
        return self.container.run(*words)

    def stats(self) -> dict[str, Any]:
        """What ``batchyard status --json`` says."""
        words = [BATCHYARD, "status", "--json", "--endpoint", self.ipc]
        stats: dict[str, Any] = json.loads(self.container.run(*words))
        return stats

    def predict(
        self, model: str, endpoint: str, *options: str, uid: int = 0, group: str = ""
    ) -> str:
        """What ``batchyard predict`` prints for one row, asked by a user."""
        row = '{"x": [[1, 2, 3, 4]]}'
        words = [BATCHYARD, "predict", "--endpoint", endpoint, *options, model, row]
        if uid:
            words = [*as_user(uid, group), *words]
        return self.container.run(*words, code=None)

    def wait_for_status(self, *texts: str) -> None:
        """Waits until STATUS= has all of these in it."""
        wait_until(
            lambda: all(text in self.shown("StatusText") for text in texts),
            lambda: f"{texts}; the status is {self.shown('StatusText')!r}\n{self.journal()}",
        )

    @contextlib.contextmanager
    def load(
        self, model: str, *endpoints: str, reconnect_timeout_s: float = 10
    ) -> Iterator[dict[str, Any]]:
        """Load while the block runs; what came of it is in the dictionary afterwards."""
        words = [PYTHON, LOAD, model, str(reconnect_timeout_s), *endpoints]
        process = self.container.start(*words)
        assert process.stdout is not None
        result: dict[str, Any] = {}
        try:
            line = process.stdout.readline()
            assert line == "started\n", line
            yield result
            # nsenter passes no signal on.
            self.container.run("pkill", "--full", LOAD)
            result |= json.loads(process.communicate(timeout=30)[0])
        finally:
            process.kill()
            process.communicate()
