"""Runs a peer's server, holds it still when told, and tidies up after it, whatever happens.

``python -m batchyard.benchmarks.peers.keeper hold|leave COMMAND …`` runs the command. On standard
input it is told ``rest`` and ``go``, and answers each with a line, ``done`` or why not. At rest a
server that may be held is held still, so that it costs nothing.

When standard input ends, which it also does when the harness is killed, the keeper ends all that
the command started, and removes what that left in /dev/shm and the folder that it had for
temporary files and as its home. It exits with 1 when the command ended first.

The servers are not asked to stop: some take seconds over it, and some leave more behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from batchyard.benchmarks.peers import process_tree
from batchyard.wire.control import EXIT_FAILURE, EXIT_OK

HOLD, LEAVE = "hold", "leave"
REST, GO, DONE = "rest", "go", "done"
_PR_SET_CHILD_SUBREAPER = 36
_COMMAND_NBYTES = 64


class Keeper:
    """The processes under this one."""

    def __init__(self, command: Sequence[str], folder: str, may_hold: bool) -> None:
        self._may_hold = may_hold
        self._shared_memory: set[Path] = set()
        _adopt_orphans()
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            # What servers say goes to the log that standard error is.
            stdout=sys.stderr,
            cwd=folder,
            env={**os.environ, "TMPDIR": folder, "HOME": folder},
        )

    def obey(self) -> bool:
        """Does what standard input says until it ends, which is True, or the server does."""
        sentinel = os.pidfd_open(self._server.pid)
        actions = {REST: self._rest, GO: self._go}
        try:
            while sys.stdin in select.select([sys.stdin, sentinel], [], [])[0]:
                # The next command comes after the answer to this one.
                command = os.read(sys.stdin.fileno(), _COMMAND_NBYTES).decode().strip()
                if not command:
                    return True
                print(actions[command](), flush=True)
            return False
        finally:
            os.close(sentinel)

    def end_all(self) -> None:
        """Ends the server and what it started, and removes what they leave."""
        with contextlib.suppress(process_tree.StillRunning):
            # Held still, they neither make more shared memory nor let go of what they have.
            process_tree.hold(os.getpid())
        self._note_shared_memory()
        process_tree.kill(os.getpid())
        self._server.wait()
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        for path in self._shared_memory:
            path.unlink(missing_ok=True)

    def _rest(self) -> str:
        # Of a server that crashes, what it had at its last rest is known.
        self._note_shared_memory()
        try:
            if self._may_hold:
                process_tree.hold(os.getpid())
        except process_tree.StillRunning as error:
            return str(error)
        return DONE

    def _go(self) -> str:
        process_tree.let_go(os.getpid())
        return DONE

    def _note_shared_memory(self) -> None:
        processes = process_tree.descendants(os.getpid())
        self._shared_memory |= process_tree.shared_memory(process.pid for process in processes)


def _adopt_orphans() -> None:
    """Makes this process the parent of descendants whose parent ends: none gets out of the tree."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER failed")


def main() -> int:
    """The command line; the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Ends with its standard input alone, in good order.
        signal.signal(number, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(prefix="batchyard-", ignore_cleanup_errors=True) as folder:
        keeper = Keeper(sys.argv[2:], folder, may_hold=sys.argv[1] == HOLD)
        try:
            return EXIT_OK if keeper.obey() else EXIT_FAILURE
        finally:
            keeper.end_all()


if __name__ == "__main__":
    sys.exit(main())
