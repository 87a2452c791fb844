"""Nothing is left of a peer's server, whatever it started and however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.waiting import wait_until

from batchyard.benchmarks.peers import process_tree

# A server with a child in a session of its own, one whose parent is gone, and shared memory.
_SERVER = """
import json, os, subprocess, sys, time
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
shell = ["sh", "-c", "sleep 1000 >&2 & echo $!"]
orphan = int(subprocess.run(shell, stdout=subprocess.PIPE, check=True).stdout)
name = f"/dev/shm/batchyard-test-{os.getpid()}"
shared = os.open(name, os.O_CREAT | os.O_RDWR)
open("left behind", "w").close()
pids = [os.getpid(), child.pid, orphan]
print(json.dumps([pids, name, os.getcwd(), os.environ["HOME"]]), flush=True)
exec(sys.argv[1])
"""
_FOREVER = "time.sleep(1000)"
_END_S = 20.0


@dataclass
class Kept:
    """A keeper, and what its server told of itself."""

    process: subprocess.Popen[str]
    pids: list[int]
    shared_memory: Path
    folder: Path

    def tell(self, command: str) -> str:
        """The keeper's answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(command, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def end(self) -> int:
        """Its exit code when its standard input has ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(_END_S)

    def states(self) -> set[str]:
        """Of all the server's processes."""
        return {process.state for process in process_tree.descendants(self.process.pid)}

    def assert_nothing_left(self) -> None:
        """When the keeper has ended."""
        assert not [pid for pid in self.pids if Path(f"/proc/{pid}").exists()]
        assert not self.shared_memory.exists()
        assert not self.folder.exists()


@contextlib.contextmanager
def kept(mode: str = "hold", then: str = _FOREVER) -> Iterator[Kept]:
    """Ends with the block."""
    command = [sys.executable, "-P", "-m", "batchyard.benchmarks.peers.keeper", mode]
    with subprocess.Popen(
        [*command, sys.executable, "-c", _SERVER, then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stderr is not None
            pids, name, folder, home = json.loads(process.stderr.readline())
            assert home == folder
            yield Kept(process, pids, Path(name), Path(folder))
        finally:
            # It tidies up after a test that failed, too.
            assert process.stdin is not None
            process.stdin.close()
            process.wait(_END_S)


def test_all_ends_with_standard_input() -> None:
    with kept() as server:
        assert server.shared_memory.exists()
        assert len(process_tree.descendants(server.process.pid)) == 3
        assert server.end() == 0
        server.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_it_to_the_harness(number: signal.Signals) -> None:
    with kept() as server:
        server.process.send_signal(number)
        assert server.tell("go") == "done"


def test_at_rest_all_are_held_still() -> None:
    with kept() as server:
        assert server.tell("rest") == "done"
        assert server.states() == {"T"}
        assert server.tell("go") == "done"
        wait_until(lambda: "T" not in server.states(), "they do not go on")
        assert server.tell("rest") == "done"
        assert server.end() == 0
        server.assert_nothing_left()


def test_who_must_not_be_held_is_left_alone() -> None:
    with kept("leave") as server:
        assert server.tell("rest") == "done"
        assert "T" not in server.states()


def test_what_a_crashed_server_left_is_removed() -> None:
    # It waits for a file before it dies.
    then = "while not os.path.exists('die'): time.sleep(0.01)"
    with kept("leave", then) as server:
        server.tell("rest")
        (server.folder / "die").touch()
        assert server.process.wait(_END_S) == 1
        server.assert_nothing_left()


def test_all_ends_with_a_killed_harness() -> None:
    harness = (
        "import subprocess, sys, time\n"
        "subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)\n"
        "time.sleep(1000)"
    )
    keeper = [sys.executable, "-P", "-m", "batchyard.benchmarks.peers.keeper", "hold"]
    command = [sys.executable, "-c", harness, *keeper, sys.executable, "-c", _SERVER, _FOREVER]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        pids, name, folder, _ = json.loads(process.stderr.readline())
        process.kill()
    gone = [Path(f"/proc/{pid}") for pid in pids] + [Path(name), Path(folder)]
    wait_until(lambda: not [p for p in gone if p.exists()], lambda: f"left: {gone}")


def test_shared_memory_of_a_process() -> None:
    path = Path(f"/dev/shm/batchyard-test-{os.getpid()}")
    with path.open("wb"):
        found = process_tree.shared_memory([os.getpid()])
        path.unlink()
        assert path in found
        # Whose name is gone needs no removing.
        assert path not in process_tree.shared_memory([os.getpid()])
