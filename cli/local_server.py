"""A server of one's own for as long as a subcommand needs it: for demo and bench."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from batchyard.wire.keys import SECRET_KEY_FILE_VARIABLE, SERVER_KEY_VARIABLE

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 40.0
_FREE_PORT = "tcp://127.0.0.1:*"


class ServerDidNotStart(Exception):
    """The server ended, or was not ready in time; the message has what it said."""


@contextlib.contextmanager
def sample_model() -> Iterator[Path]:
    """The folder of half_plus_two, in which it is version 1. Raises ServerDidNotStart."""
    with tempfile.TemporaryDirectory(prefix="batchyard-") as folder:
        path = Path(folder) / "half_plus_two"
        export(path, "batchyard.pool.runtimes.sample")
        yield path


def export(path: Path, module: str, *arguments: str) -> None:
    """Has a module write a SavedModel into a folder, by TensorFlow in a process of its own.

    Raises ServerDidNotStart.
    """
    ended = subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments, str(path)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise ServerDidNotStart(f"exporting {path.name} failed:\n{ended.stderr.strip()}")


@contextlib.contextmanager
def local_server(arguments: Sequence[str]) -> Iterator[str]:
    """Runs ``batchyard serve`` with these arguments on a free port; its TCP endpoint.

    Ends it again with SIGTERM. Raises ServerDidNotStart.
    """
    with server_bound_to([_FREE_PORT], arguments) as endpoints:
        yield endpoints[0]


@contextlib.contextmanager
def server_on_tcp_and_ipc(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The same with both kinds of endpoint, as a server has that is told nothing."""
    with tempfile.TemporaryDirectory(prefix="batchyard-") as folder:
        ipc = f"ipc://{folder}/broker"
        with server_bound_to([_FREE_PORT, ipc], arguments) as endpoints:
            yield endpoints[0], endpoints[1]


@contextlib.contextmanager
def server_bound_to(
    bind: Sequence[str],
    arguments: Sequence[str],
    log_path: Path | None = None,
    start_timeout_s: float = _START_TIMEOUT_S,
) -> Iterator[list[str]]:
    """Runs ``batchyard serve`` with these endpoints; what they came to be, in their order.

    Its log goes to ``log_path``, or is forgotten.
    """
    # Its clients are told of no server's keys: it has none.
    for variable in (SERVER_KEY_VARIABLE, SECRET_KEY_FILE_VARIABLE):
        os.environ.pop(variable, None)
    binding = [word for endpoint in bind for word in ("--bind", endpoint)]
    with tempfile.TemporaryFile("w+") if log_path is None else log_path.open("w+") as log:
        server = subprocess.Popen(
            [*_command(), *arguments, *binding],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Ctrl-C is for the subcommand, which ends its server in good order.
            start_new_session=True,
        )
        try:
            yield _endpoints(server, start_timeout_s)
        except _NotReady as error:
            log.seek(0)
            raise ServerDidNotStart(f"the server did not start: {error}\n{log.read()}") from None
        finally:
            _stop(server)


def _command() -> list[str]:
    # Nothing is left of the server when the subcommand is killed.
    code = (
        f"from batchyard.wire.control import die_with_parent; die_with_parent({os.getpid()})\n"
        "from batchyard.cli.main import main; main()"
    )
    return [sys.executable, "-P", "-c", code, "serve"]


class _NotReady(Exception):
    pass


def _endpoints(server: subprocess.Popen[str], timeout_s: float) -> list[str]:
    assert server.stdout is not None
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        if select.select([server.stdout], [], [], left)[0]:
            line = server.stdout.readline()
            if not line:
                raise _NotReady(f"it ended with exit code {server.wait()}")
            fields = dict(field.partition("=")[::2] for field in line.split())
            if fields.get("event") == "ready":
                return fields["endpoints"].split(",")
    raise _NotReady(f"it was not ready after {timeout_s:g} s")


def _stop(server: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(server.pid, signal.SIGTERM)
    try:
        server.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    if server.stdout is not None:
        server.stdout.close()
