"""A peer's server, run by a keeper and at rest except while it is measured."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from batchyard.benchmarks.peers import keeper, process_tree
from batchyard.benchmarks.peers.catalog import Peer
from batchyard.benchmarks.peers.contestant import ContestantFailed
from batchyard.benchmarks.peers.environments import python
from batchyard.benchmarks.peers.http_load import Connection, HttpFailed

_START_TIMEOUT_S = 60.0
_TRY_AGAIN_S = 0.1
_KEEPER_TIMEOUT_S = 20.0
_SAID_LINES = 3


class PeerServer:
    """Ends with the block, and all that it started with it.

    What its methods raise is ContestantFailed.
    """

    def __init__(self, peer: Peer, model: Path, batching: Mapping[str, int]) -> None:
        """``model`` is the folder of a SavedModel."""
        self.port = _free_port()
        self._command = [
            *(sys.executable, "-P", "-m", "batchyard.benchmarks.peers.keeper"),
            keeper.HOLD if peer.may_be_held else keeper.LEAVE,
            *(python(peer.name), str(peer.script), "--model", str(model)),
            *("--port", str(self.port)),
        ]
        for key, value in batching.items():
            self._command += [f"--{key.replace('_', '-')}", str(value)]

    def __enter__(self) -> PeerServer:
        self._log = tempfile.TemporaryFile("w+", errors="replace")
        self._keeper = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # Ctrl-C is for the harness, which ends its servers.
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._keeper.stdin.close()
        try:
            self._keeper.wait(_KEEPER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(process_tree.StillRunning):
                process_tree.kill(self._keeper.pid)
            self._keeper.kill()
            self._keeper.wait()
        self._keeper.stdout.close()
        self._log.close()

    def wait_until_answering(self, request: bytes) -> None:
        """Asks until it gets a good answer."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                with Connection(self.port) as connection:
                    connection.call(request)
                    return
            except (OSError, HttpFailed) as error:
                if self._keeper.poll() is not None:
                    raise self._failed("ended while it started") from None
                if time.monotonic() >= deadline:
                    raise self._failed(
                        f"was not ready after {_START_TIMEOUT_S:g} s: {error}"
                    ) from None
            time.sleep(_TRY_AGAIN_S)

    def rest(self) -> None:
        """Keeps it from costing anything. Some poll without end while nobody asks them."""
        self._tell(keeper.REST)

    @contextlib.contextmanager
    def going(self) -> Iterator[None]:
        """Lets it run for the block."""
        self._tell(keeper.GO)
        try:
            yield
        except Exception:
            # Not after Ctrl-C, which ends it anyway.
            self.rest()
            raise
        self.rest()

    def _tell(self, command: str) -> None:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        try:
            print(command, file=self._keeper.stdin, flush=True)
        except BrokenPipeError:
            raise self._failed("ended") from None
        if not select.select([self._keeper.stdout], [], [], _KEEPER_TIMEOUT_S)[0]:
            raise self._failed(f"did not {command} in {_KEEPER_TIMEOUT_S:g} s")
        answer = self._keeper.stdout.readline().strip()
        if answer != keeper.DONE:
            raise self._failed(answer or "ended")

    def _failed(self, what: str) -> ContestantFailed:
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return ContestantFailed(" | ".join([what, *lines[-_SAID_LINES:]]))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
