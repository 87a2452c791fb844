"""Who listens at a TCP port of this machine, by /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process; ``command`` is the beginning of its command line."""

    pid: int
    command: str


def holder_of(port: int, root: Path = Path("/")) -> Holder | None:
    """The process that listens there; None when nobody does or it belongs to another user."""
    inodes = _listening(port, root)
    if not inodes:
        return None
    for folder in (root / "proc").glob("[0-9]*"):
        if not inodes.isdisjoint(_opened(folder)):
            return Holder(int(folder.name), _command(folder))
    return None


def _opened(folder: Path) -> Iterator[str]:
    """What a process has open; nothing of another user's, or of one that is gone."""
    with contextlib.suppress(OSError):
        for fd in os.listdir(folder / "fd"):
            # It may be closed meanwhile, as is that of this very list.
            with contextlib.suppress(FileNotFoundError):
                yield os.readlink(folder / "fd" / fd)


def _listening(port: int, root: Path) -> set[str]:
    """As /proc/PID/fd names them: ``socket:[4711]``."""
    inodes = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (root / "proc/net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    return inodes


def _command(folder: Path) -> str:
    try:
        words = (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode("utf-8", "replace").strip()[:80]
