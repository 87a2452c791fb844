"""A real server for tests: ``batchyard serve`` in a process of its own, with its children.

    with Server("--model", f"half_plus_two={path}") as server, server.client() as client:
        ...

It has a folder of its own for its runtime files, its temporary files and its log. Leaving the
block stops it by SIGTERM and asserts that it ended with 0 and left nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from support.gates import FOLDER_VARIABLE, Gates
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import Client

# Two workers that import TensorFlow on two cores take 7 s; a noisy machine takes a multiple.
_START_S = 60.0
_STOP_S = 20.0
_LOG_TAIL = 6000
# -P: what lies in the working directory must not stand in for an installed module. The server
# dies with the tests, however they end.
_COMMAND = [
    *(sys.executable, "-P", "-c"),
    f"from batchyard.wire.control import die_with_parent; die_with_parent({os.getpid()})\n"
    "from batchyard.cli.main import main; main()",
]
_CALLABLES = Path(__file__).parent / "callables.py"
BROKER, WORKER = "batchyard.broker", "batchyard.pool.worker"
METRICS = "batchyard.clients.gateways.metrics"


def callable_path(name: str) -> str:
    """The path, as a configuration has it, of a model of ``support/callables.py``."""
    return f"{_CALLABLES}:{name}"


def model_table(
    name: str,
    path: Path | str,
    *,
    labels: Mapping[str, int] | None = None,
    signature: Mapping[str, Mapping[str, tuple[str, list[int]]]] | None = None,
    jit_compile: bool = False,
    **batching: Any,
) -> str:
    """A ``[[models]]`` table; ``path`` with a colon is for the python runtime.

    ``signature`` has dtype and shape of ``inputs`` and ``outputs`` by name.
    """
    lines = ["[[models]]", f"name = {_toml(name)}", f"path = {_toml(str(path))}"]
    if ":" in str(path):
        lines.append('runtime = "python"')
    if jit_compile:
        lines.append("jit_compile = true")
    if labels:
        lines += ["[models.version_labels]", *_pairs(labels)]
    for side, tensors in (signature or {}).items():
        for tensor, (dtype, shape) in tensors.items():
            lines.append(f"[models.signature.{side}.{_toml(tensor)}]")
            lines += _pairs({"dtype": dtype, "shape": shape})
    if batching:
        lines += ["[models.batching]", *_pairs(batching)]
    return "\n".join(lines) + "\n"


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in values.items()]


def _toml(value: Any) -> str:
    # What is used here is written in JSON as it is in TOML.
    return json.dumps(value)


class Server:
    """See the module. Methods that wait have a deadline, and fail with the server's log."""

    def __init__(
        self,
        *arguments: str,
        command: str = "serve",
        config: str | None = None,
        bind: tuple[str, ...] = ("tcp://127.0.0.1:*",),
        ipc: bool = False,
        environment: Mapping[str, str] | None = None,
        wait: bool = True,
        client_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Not started yet. ``wait``: entering waits until it is ready.

        ``command`` is ``serve`` or ``tfs``; ``client_options`` are what its clients need, such as
        keys.

        ``ipc``: it also binds the default path of its own runtime folder. Its workers run on
        the CPU if nothing else is said.
        """
        # Not pytest's folder: an ipc path may have 107 bytes only.
        self.folder = Path(tempfile.mkdtemp(prefix="batchyard-test-", dir="/tmp"))
        self.runtime_folder = self.folder / "run"
        self.working_folder = self.folder / "work"
        self._temporary_folder = self.folder / "tmp"
        self._log_path = self.folder / "log"
        for path in (self.runtime_folder, self.working_folder, self._temporary_folder):
            path.mkdir()
        self.gates = Gates(self.folder / "gates")
        self.ipc_path = self.runtime_folder / "batchyard" / "broker"
        self.endpoints: list[str] = []
        # Where the metrics gateway listens, if there is one.
        self.metrics_url = ""
        # Where the gateways of REST and gRPC listen: HOST:PORT.
        self.rest = self.grpc = ""
        self._command = command
        self._wait = wait
        self._client_options = client_options or {}
        self._environment = environment or {}
        self._arguments = list(arguments)
        if config is not None:
            (self.folder / "config.toml").write_text(config)
            self._arguments.insert(0, str(self.folder / "config.toml"))
        if "--device" not in arguments and "[[pool.workers]]" not in (config or ""):
            self._arguments += ["--device", "cpu"]
        endpoints = [*bind, *([f"ipc://{self.ipc_path}"] if ipc else [])]
        if command == "tfs":
            endpoints = [",".join(endpoints)]
        for endpoint in endpoints:
            self._arguments += ["--bind", endpoint]
        self._process: subprocess.Popen[bytes] | None = None
        self._shm_before: set[str] = set()
        self._client: Client | None = None
        # What a killed process cannot remove.
        self._may_leave_sockets = False

    # Starting and ending

    def __enter__(self) -> Server:
        try:
            self.start()
            if self._wait:
                self.wait_until_ready()
        except BaseException:
            self._abandon()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self.is_running:
                self.stop()
        finally:
            self._abandon()

    def start(self) -> None:
        """Starts the process, which is not ready yet."""
        self._shm_before = _shared_memory_names()
        environment = {k: v for k, v in os.environ.items() if k != "RUNTIME_DIRECTORY"}
        environment |= {
            "XDG_RUNTIME_DIR": str(self.runtime_folder),
            "TMPDIR": str(self._temporary_folder),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            FOLDER_VARIABLE: str(self.gates.folder),
            **self._environment,
        }
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*_COMMAND, self._command, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.working_folder,
                env=environment,
                # So that Ctrl-C can be played: a signal to the whole process group.
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Waits for the line on standard output that says so."""
        line = self._read_line(time.monotonic() + _START_S)
        fields = dict(word.partition("=")[::2] for word in line.split())
        if fields.get("event") != "ready":
            raise AssertionError(f"the server is not ready but says {line!r}\n{self.log_tail}")
        self.endpoints = fields["endpoints"].split(",")
        self.metrics_url = fields.get("metrics", "")
        self.rest = fields.get("rest", "").removeprefix("http://")
        self.grpc = fields.get("grpc", "").partition(",")[0]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Asks it to end and asserts that it does, with 0, leaving nothing behind."""
        self.signal(number)
        code = self.wait_for_exit()
        assert code == 0, f"the server ended with {code}\n{self.log_tail}"

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the server's main process."""
        self._running().send_signal(number)

    def press_ctrl_c(self) -> None:
        """Sends SIGINT to all processes of the server, as a terminal does."""
        os.killpg(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """Ends the main process, and with it all, without a chance to tidy up its sockets."""
        self._may_leave_sockets = True
        self._running().kill()
        self._running().wait()

    def wait_for_exit(self, timeout_s: float = _STOP_S) -> int:
        """The exit code of the main process; asserts that nothing is left behind."""
        process = self._running()
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"the server did not end within {timeout_s:g} s\n{self.log_tail}"
            ) from None
        self._close_client()
        self.assert_nothing_left()
        return code

    def assert_nothing_left(self) -> None:
        """Whether its processes, sockets, shared memory and temporary files are gone."""
        wait_until(lambda: not self.processes(), lambda: f"still there: {self.processes()}", 5.0)
        left = [path for path in self._temporary_folder.rglob("*") if not path.is_dir()]
        if not self._may_leave_sockets:
            left += [path for path in self.runtime_folder.rglob("*") if not path.is_dir()]
        assert not left, f"left behind: {left}"
        names = _shared_memory_names() - self._shm_before
        # What others of this machine made meanwhile, they have mapped.
        if names:
            names -= _mapped_shared_memory_names()
        assert not names, f"left in /dev/shm: {names}"

    # What there is

    @property
    def is_running(self) -> bool:
        """Whether the main process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The main process: the supervisor."""
        return self._running().pid

    @property
    def endpoint(self) -> str:
        """The first place where it listens."""
        return self.endpoints[0]

    @property
    def log(self) -> str:
        """Its standard error, and that of its children, so far."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    @property
    def log_tail(self) -> str:
        """The end of the log."""
        return self.log[-_LOG_TAIL:]

    def processes(self, module: str = "") -> list[int]:
        """Children that run, of the broker's or the workers' module, by their environment.

        It tells them apart from those of other servers even once their parent is gone.
        """
        mark = f"XDG_RUNTIME_DIR={self.runtime_folder}".encode()
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        own = self._process.pid if self._process is not None else 0
        return [
            pid
            for pid in pids
            if pid != own
            and mark in _read_proc(pid, "environ").split(b"\0")
            and module.encode() in _read_proc(pid, "cmdline")
        ]

    def client(self, **options: Any) -> Client:
        """A new client, which the caller closes."""
        return Client(self.endpoint, **{**self._client_options, **options})

    def stats(self) -> dict[str, Any]:
        """What the broker says of itself."""
        if self._client is None:
            self._client = self.client()
        return self._client.stats()

    def forget_client(self) -> None:
        """The next ``stats`` connects again, as to another broker."""
        self._close_client()

    def model_stats(self, name: str) -> dict[str, Any]:
        """What ``stats`` says of one model."""
        found: dict[str, Any] = next(m for m in self.stats()["models"] if m["name"] == name)
        return found

    def wait_until_idle(self, timeout_s: float = DEADLINE_S) -> None:
        """Waits until nothing is queued and no block of the arena is in use."""

        def busy() -> list[str]:
            stats = self.stats()
            busy = [m["name"] for m in stats["models"] if m["queue_rows"]]
            return busy + ["arena"] * bool(stats["arena"]["used_bytes"])

        wait_until(lambda: not busy(), lambda: f"idle, but {busy()} is not", timeout_s)

    # Inside

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server was not started"
        return self._process

    def _read_line(self, deadline: float) -> str:
        stdout = self._running().stdout
        assert stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                raise AssertionError(f"the server says nothing\n{self.log_tail}")
            read = os.read(stdout.fileno(), 1)
            if not read:
                code = self._running().wait(_STOP_S)
                raise AssertionError(f"the server ended with {code}\n{self.log_tail}")
            line += read
        return line.decode()

    def _close_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _abandon(self) -> None:
        """Ends whatever is left, without asking, and removes the folder."""
        self._close_client()
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            stdout: IO[bytes] | None = self._process.stdout
            if stdout is not None:
                stdout.close()
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def refused(*arguments: str, **options: Any) -> Iterator[tuple[int, str]]:
    """The exit code and the log of a server that does not start."""
    server = Server(*arguments, wait=False, **options)
    with server:
        yield server.wait_for_exit(_START_S), server.log


def _shared_memory_names() -> set[str]:
    return set(os.listdir("/dev/shm"))


def _mapped_shared_memory_names() -> set[str]:
    maps = b"".join(_read_proc(int(pid), "maps") for pid in os.listdir("/proc") if pid.isdecimal())
    paths = {line.partition(b" /dev/shm/")[2] for line in maps.splitlines()}
    # A file that was removed while it is mapped is marked so.
    return {path.decode().removesuffix(" (deleted)") for path in paths}


def _read_proc(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
