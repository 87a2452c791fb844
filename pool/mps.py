"""NVIDIA's Multi-Process Service: whether workers will find its control daemon.

CUDA looks for it in a folder when a process first uses a card, and says nothing when there is
none. Source: https://docs.nvidia.com/deploy/mps/index.html
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PIPE_DIRECTORY = "CUDA_MPS_PIPE_DIRECTORY"
_DEFAULT_DIRECTORY = "/tmp/nvidia-mps"
_PID_FILE = "nvidia-cuda-mps-control.pid"
_CONTROL = b"nvidia-cuda-mps-control"


@dataclass(frozen=True, slots=True)
class Daemon:
    """A control daemon that runs, and its user; its own folder where that may be read."""

    pid: int
    uid: int
    directory: str | None = None


@dataclass(frozen=True, slots=True)
class Mps:
    """What there is of it here.

    ``directory`` is where workers look; ``is_there`` whether a daemon listens, or listened, in it.
    ``wrote`` is the process that the folder names, if it names one. ``daemons`` are those that run
    and can be seen: not those in other containers, nor, under systemd's ProtectProc, those of
    other users.
    """

    directory: str
    is_there: bool
    wrote: int | None = None
    daemons: tuple[Daemon, ...] = ()

    @property
    def daemon(self) -> Daemon | None:
        """The one that workers will find, if it can be seen."""
        return next((d for d in self.daemons if self.is_there and d.pid == self.wrote), None)


def read_mps(environ: Mapping[str, str], proc: Path = Path("/proc")) -> Mps:
    """What a process with that environment would find."""
    directory = environ.get(PIPE_DIRECTORY) or _DEFAULT_DIRECTORY
    folder = Path(directory)
    wrote = None
    with contextlib.suppress(OSError, ValueError):
        wrote = int((folder / _PID_FILE).read_text())
    try:
        is_there = (folder / "control").exists()
    except OSError:  # it is another user's: CUDA does not find it either
        is_there = False
    return Mps(directory, is_there, wrote, tuple(_daemons(proc)))


def _daemons(proc: Path) -> Iterator[Daemon]:
    for path in sorted(proc.glob("[0-9]*")):
        with contextlib.suppress(OSError):
            program = (path / "cmdline").read_bytes().partition(b"\0")[0]
            # Not the shell or editor whose arguments name it.
            if program.rpartition(b"/")[2] == _CONTROL:
                yield Daemon(int(path.name), path.stat().st_uid, _directory(path))


def _directory(path: Path) -> str | None:
    """What the process was told of its folder; None where its environment may not be read."""
    try:
        entries = (path / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    named = PIPE_DIRECTORY.encode() + b"="
    told = [os.fsdecode(entry.removeprefix(named)) for entry in entries if entry.startswith(named)]
    return told[0] if told else _DEFAULT_DIRECTORY
