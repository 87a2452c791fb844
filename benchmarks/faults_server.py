"""A server whose processes are found, killed and counted from outside, by what the kernel says."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.faults_ledger import BATCH_S_VARIABLE, FOLDER_VARIABLE, Ledger
from batchyard.benchmarks.served import Model, configuration
from batchyard.cli.local_server import server_bound_to
from batchyard.clients import Client
from batchyard.wire.errors import BatchyardError

BROKER, WORKER = "batchyard.broker", "batchyard.pool.worker"
LIVE = frozenset(("READY", "BUSY"))
_DEADLINE_S = 60.0
_LOG_TAIL = 4000
_PAGE = os.sysconf("SC_PAGE_SIZE")
OBEDIENT = "obedient"


@dataclass(frozen=True, slots=True)
class ServerView:
    """One server: where it listens, its main process, its workers' folder."""

    tcp: str
    ipc: str
    supervisor: int
    folder: Path
    workers: int
    config: Path

    def children(self, module: str) -> list[int]:
        """The supervisor's children that run this module now."""
        path = f"/proc/{self.supervisor}/task/{self.supervisor}/children"
        pids = [int(word) for word in _read(path).split()]
        return [pid for pid in pids if module.encode() in _read(f"/proc/{pid}/cmdline")]

    def broker(self) -> int:
        """The broker's process. Raises BenchmarkFailed when there is none."""
        pids: list[int] = wait_until(lambda: self.children(BROKER), "the server has a broker")
        return pids[0]

    def ledger(self) -> Ledger:
        """What its workers ran so far."""
        return Ledger(self.folder)

    def live_workers(self, stats: Mapping[str, Any]) -> set[int]:
        """The processes that the broker says can take batches."""
        return {w["pid"] for w in stats["workers"] if w["state"] in LIVE}

    def end(self) -> None:
        """Asks it to stop, and waits until it has."""
        os.kill(self.supervisor, signal.SIGTERM)
        wait_until(lambda: not is_alive(self.supervisor), "the server stops")

    def wait_until_all_live(self, client: Client, besides: int = 0) -> None:
        """Waits until every worker can take batches again, and ``besides`` is none of them."""

        def live() -> bool:
            with contextlib.suppress(BatchyardError):
                pids = self.live_workers(client.stats())
                return len(pids) == self.workers and besides not in pids
            return False

        wait_until(live, f"{self.workers} workers are ready")


@contextlib.contextmanager
def faulty_server(
    models: Sequence[Model],
    *,
    workers: int,
    batch_s: float = 0.0,
    pool: Mapping[str, Any] | None = None,
) -> Iterator[ServerView]:
    """Runs a server whose ``obedient`` models take ``batch_s`` a batch. Raises ServerDidNotStart.

    Its folder goes with the block.
    """
    with tempfile.TemporaryDirectory(prefix="batchyard-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        config = folder / "config.toml"
        config.write_text(configuration(models, workers, {}, pool))
        variables = {FOLDER_VARIABLE: name, BATCH_S_VARIABLE: str(batch_s)}
        stack.enter_context(_environment(variables))
        bind = ["tcp://127.0.0.1:*", f"ipc://{folder}/ipc/broker"]
        log = folder / "log"
        tcp, ipc = stack.enter_context(server_bound_to(bind, [str(config)], log))
        with Client(ipc) as client:
            broker = client.stats()["broker"]["pid"]
        try:
            yield ServerView(tcp, ipc, _parent(broker), folder, workers, config)
        except (BenchmarkFailed, BatchyardError) as error:
            raise BenchmarkFailed(f"{error}\n{log.read_text()[-_LOG_TAIL:]}") from error


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def wait_until(
    condition: Callable[[], Any], what: str, timeout_s: float = _DEADLINE_S, step_s: float = 0.01
) -> Any:
    """The first true value of ``condition``. Raises BenchmarkFailed when it is late."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"not within {timeout_s:g} s: {what}")
        time.sleep(step_s)
    return value


def kill_and_see(pid: int) -> tuple[float, float]:
    """Kills a process; the moments just before, and when it was dead."""
    watched = os.pidfd_open(pid)
    try:
        before = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        select.select([watched], [], [], _DEADLINE_S)
        return before, time.monotonic()
    finally:
        os.close(watched)


def descriptors(pid: int) -> Counter[str]:
    """What a process has open, by kind: numbers are left out."""
    kinds: Counter[str] = Counter()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                kinds[re.sub(r"\d+", "", os.readlink(f"/proc/{pid}/fd/{name}"))] += 1
    return kinds


def rss_mb(pid: int) -> float:
    """Its resident memory in MiB; 0 when it is gone."""
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE / (1 << 20) if fields else 0.0


def own_mb(pid: int) -> float:
    """Of that what it shares with nobody; statm counts memfds and files as shared."""
    fields = _read(f"/proc/{pid}/statm").split()
    return (int(fields[1]) - int(fields[2])) * _PAGE / (1 << 20) if fields else 0.0


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    state = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return bool(state) and state[0] not in (b"Z", b"X")


def shared_memory() -> set[str]:
    """What lies in /dev/shm and nobody has mapped."""
    names = set(os.listdir("/dev/shm"))
    if not names:
        return names
    maps = b"".join(_read(f"/proc/{p}/maps") for p in os.listdir("/proc") if p.isdecimal())
    return {name for name in names if f" /dev/shm/{name}".encode() not in maps}


def _parent(pid: int) -> int:
    return int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def obedient_model(batching: Mapping[str, int], **settings: Any) -> Model:
    """``callables.obedient`` with rows of one number; ``settings`` are keys of ``[[models]]``."""
    return Model(
        OBEDIENT,
        f"batchyard.benchmarks.callables:{OBEDIENT}",
        batching,
        inputs={"id": ("int64", (-1,)), "act": ("int32", (-1,)), "x": ("float32", (-1,))},
        outputs={"y": ("float32", (-1,))},
        settings=settings,
    )
