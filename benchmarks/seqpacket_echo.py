"""The other end of a ``SOCK_SEQPACKET`` pair: sends every packet back as it came.

``python -m batchyard.benchmarks.seqpacket_echo FD`` ends when the pair is closed.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

PACKET_NBYTES = 64


def serve(sock: socket.socket) -> None:
    """Echoes until the other end closes."""
    while packet := sock.recv(PACKET_NBYTES):
        sock.send(packet)


@contextlib.contextmanager
def seqpacket_echo() -> Iterator[socket.socket]:
    """Runs the echo in a process of its own; our end of the pair."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            fd = theirs.fileno()
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "batchyard.benchmarks.seqpacket_echo", str(fd)],
                pass_fds=[fd],
                start_new_session=True,
            )
        try:
            yield ours
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
