"""A process with all that it started: found, held still, ended, and what it left in /dev/shm."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SHARED_MEMORY = "/dev/shm/"
# Marks what has no name any more.
_DELETED = " (deleted)"
_STEP_S = 0.005


class StillRunning(Exception):
    """Processes did not do as they were told in time."""


@dataclass(frozen=True, slots=True)
class Process:
    """A line of the kernel's list of processes."""

    pid: int
    parent: int
    state: str
    """A letter: ``T`` is held still, ``Z`` has ended and waits to be reaped."""


def descendants(pid: int) -> list[Process]:
    """The processes that this one started, and those that they started, and so on."""
    children: dict[int, list[Process]] = {}
    for process in _processes():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    parents = [pid]
    while parents:
        started = children.get(parents.pop(), [])
        found += started
        parents += [process.pid for process in started]
    return found


def hold(pid: int, timeout_s: float = 5.0) -> None:
    """Holds all descendants still, those too that are started meanwhile. Raises StillRunning."""
    _until(pid, signal.SIGSTOP, "TtZX", timeout_s)


def let_go(pid: int) -> None:
    """Lets the descendants go on."""
    for process in descendants(pid):
        _send(process.pid, signal.SIGCONT)


def kill(pid: int, timeout_s: float = 5.0) -> None:
    """Ends all descendants. Whose parent is gone, ``pid`` must be the one to reap."""
    _until(pid, signal.SIGKILL, "ZX", timeout_s)


def shared_memory(pids: Iterable[int]) -> set[Path]:
    """The files in /dev/shm that these processes have open or mapped."""
    return {path for pid in pids for path in _mapped(pid) | _open(pid)}


def _processes() -> list[Process]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # The name in parentheses may hold anything; state and parent follow it.
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                found.append(Process(int(name), int(fields[1]), fields[0]))
    return found


def _until(pid: int, number: signal.Signals, states: str, timeout_s: float) -> None:
    """Sends a signal until every descendant, new ones too, is in one of the states."""
    deadline = time.monotonic() + timeout_s
    while others := [p for p in descendants(pid) if p.state not in states]:
        if time.monotonic() >= deadline:
            raise StillRunning(f"{number.name} has no effect on {[p.pid for p in others]}")
        for process in others:
            _send(process.pid, number)
        time.sleep(_STEP_S)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _mapped(pid: int) -> set[Path]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
        return _in_shared_memory(line[line.find("/") :] for line in lines)
    return set()


def _open(pid: int) -> set[Path]:
    targets = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                targets.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return _in_shared_memory(targets)


def _in_shared_memory(paths: Iterable[str]) -> set[Path]:
    return {
        Path(path)
        for path in paths
        if path.startswith(_SHARED_MEMORY) and not path.endswith(_DELETED)
    }
