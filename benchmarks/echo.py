"""The reference: a raw pyzmq ROUTER that sends every message back as it came.

``python -m batchyard.benchmarks.echo PARENT_PID ENDPOINT...`` prints its endpoints and serves until
it is killed, or its parent is.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import zmq

from batchyard.wire.control import die_with_parent


def serve(bind: list[str]) -> None:
    """Echoes forever, one message at a time."""
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    endpoints = []
    for endpoint in bind:
        socket.bind(endpoint)
        endpoints.append(socket.getsockopt_string(zmq.LAST_ENDPOINT))
    print(*endpoints, flush=True)
    receive, send = socket.recv_multipart, socket.send_multipart
    while True:
        send(receive())


@contextlib.contextmanager
def echo_server() -> Iterator[tuple[str, str]]:
    """Runs the echo in a process of its own; its endpoints by tcp and ipc."""
    with tempfile.TemporaryDirectory(prefix="batchyard-") as folder:
        bind = ["tcp://127.0.0.1:*", f"ipc://{folder}/echo"]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "batchyard.benchmarks.echo", str(os.getpid()), *bind],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            tcp, ipc = process.stdout.readline().split()
            yield tcp, ipc
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    serve(sys.argv[2:])
