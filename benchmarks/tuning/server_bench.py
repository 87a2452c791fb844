"""Experiments with real servers, one for each placement, which take new settings as they run.

SIGHUP has a server read its configuration again: batching changes where it is, without a new
worker, which for TensorFlow would take seconds. A label of the model's version tells when it has.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import tomlkit

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.load import mix
from batchyard.benchmarks.load.plan import LoadPlan, MixEntry, Poisson
from batchyard.benchmarks.load.result import LoadResult
from batchyard.benchmarks.load.run import run_load
from batchyard.benchmarks.tuning.bench import (
    CannotRun,
    Execution,
    Load,
    Placement,
    Setting,
    backlog_grew,
    warmup_s,
)
from batchyard.benchmarks.tuning.subject import MARK, Subject
from batchyard.cli.local_server import server_bound_to
from batchyard.clients import Client
from batchyard.wire.errors import BatchyardError
from batchyard.wire.signatures import TensorSpec

# Batches of one size are run for so long, so often at least, and at most.
_EXECUTION_S, _EXECUTIONS_LEAST, _EXECUTIONS_MOST = 0.15, 4, 50
_DEADLINE_S = 30.0
_STEP_S = 0.002
_LARGEST = {"cpu": 1024, "gpu": 8192}
# Of the arena, and of what may wait, for rows that are counted by their inputs and outputs.
_MEMORY_SHARE = 0.25
_MOST_WAITING_ROWS = 1_000_000
# Idle servers cost a CPU nothing but memory; on a GPU two have no room.
_SERVERS = {"cpu": 2, "gpu": 1}
# These say that there was too much; others say that the model or the request is at fault.
_OVERLOAD = {"DEADLINE_EXCEEDED", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}
# A generator that lags by more of the deadline has measured itself.
_LAG_SHARE = 0.1


@dataclass(slots=True)
class _Server:
    stack: contextlib.ExitStack
    endpoint: str
    supervisor: int
    client: Client
    config: Path
    version: int
    specs: tuple[TensorSpec, ...]
    setting: Setting | None = None


class ServerBench:
    """See ``tuning.bench.Bench``. Ends its servers with the block."""

    def __init__(self, subject: Subject) -> None:
        """Nothing is started yet."""
        self._subject = subject
        self._servers: dict[Placement, _Server] = {}
        self._number = 0
        self._started_at = time.monotonic()
        self._entry = MixEntry(subject.model, rows=subject.rows, shape=subject.shape)
        self.device: Literal["cpu", "gpu"] = subject.device
        self.cores = subject.cores
        self.rows_per_request = subject.rows
        self.placements: tuple[Placement, ...] = subject.placements
        self.defaults = subject.now
        self.most_rows = subject.largest_batch or _LARGEST[subject.device]
        self.most_waiting_rows = _MOST_WAITING_ROWS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._servers:
            self._servers.popitem()[1].stack.close()

    def start(self) -> None:
        """The first server. Raises ServerDidNotStart, BenchmarkFailed."""
        server = self._server(self.placements[0])
        row_nbytes = _row_nbytes(server.specs, self._entry)
        pool, broker = self._subject.config.pool, self._subject.config.broker
        fits = int(_MEMORY_SHARE * pool.arena_mb * 2**20 / row_nbytes)
        if self._subject.largest_batch is None:
            self.most_rows = max(self.rows_per_request, min(self.most_rows, fits))
        may_wait = int(_MEMORY_SHARE * broker.max_queue_mb * 2**20 / row_nbytes)
        self.most_waiting_rows = max(self.most_rows, min(_MOST_WAITING_ROWS, may_wait))

    def spent_s(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._started_at

    def execution(self, setting: Setting, rows: int) -> Execution:
        """The time of a request that alone fills its batch, as its caller sees it."""
        # A single request fills no larger batch either, and the server need not change for each.
        server = self._set_up(replace(setting, max_batch_size=max(rows, self.most_rows)))
        inputs = next(mix.variants(server.specs, replace(self._entry, rows=rows), seed=0))
        times: list[float] = []
        until = time.perf_counter() + _EXECUTION_S
        try:
            while len(times) < _EXECUTIONS_LEAST or (
                time.perf_counter() < until and len(times) < _EXECUTIONS_MOST
            ):
                started = time.perf_counter()
                server.client.predict(self._subject.model, inputs)
                times.append(time.perf_counter() - started)
        except BatchyardError as error:
            raise CannotRun(str(error)) from None
        return Execution(rows, statistics.median(times[1:]), times[0])

    def saturate(self, setting: Setting, concurrency: int, seconds: float) -> Load:
        """By ``run_load``."""
        plan = self._plan(setting, seconds, None)
        result = run_load(replace(plan, concurrency=concurrency))
        return self._load(setting, result, rate=None, deadline_s=None)

    def offer(self, setting: Setting, rate: float, deadline_s: float, seconds: float) -> Load:
        """By ``run_load``."""
        plan = self._plan(setting, seconds, deadline_s)
        result = run_load(replace(plan, concurrency=None, arrivals=Poisson(rate)))
        return self._load(setting, result, rate, deadline_s)

    def _plan(self, setting: Setting, seconds: float, deadline_s: float | None) -> LoadPlan:
        server = self._set_up(setting)
        return LoadPlan(
            target=server.endpoint,
            mix=(replace(self._entry, deadline_s=deadline_s),),
            arrivals=None,
            concurrency=1,
            duration_s=seconds,
            warmup_s=warmup_s(deadline_s),
            # Other arrivals each time: the same would have the same luck.
            seed=self._number,
            grace_s=2 * (deadline_s or 0) + 5.0,
        )

    def _load(
        self, setting: Setting, result: LoadResult, rate: float | None, deadline_s: float | None
    ) -> Load:
        for code in result.errors.keys() - _OVERLOAD:
            message = result.error_messages.get(code, "")
            raise BenchmarkFailed(f"{self._subject.model} answers {code}: {message}")
        if not result.planned:
            raise BenchmarkFailed(f"no request was sent in {result.duration_s:g} s")
        batches = sum(result.batch_rows.values())
        rows = sum(size * count for size, count in result.batch_rows.items())
        lag_s = result.send_lag.quantile(0.99)
        lags = deadline_s is not None and lag_s > _LAG_SHARE * deadline_s
        return Load(
            setting=setting,
            rate=rate,
            seconds=result.duration_s,
            requests=result.planned,
            answered_rate=result.goodput,
            in_time_share=result.in_time / result.planned,
            mean_s=result.latency.mean,
            p50_s=result.latency.quantile(0.5),
            p99_s=result.latency.quantile(0.99),
            batch_rows=rows / batches if batches else None,
            errors=tuple(sorted(result.errors.items())),
            growing=deadline_s is not None and _grew(result, deadline_s),
            doubt=f"the generator sent late, by {1e3 * lag_s:.2g} ms (p99)" if lags else "",
        )

    # Servers

    def _set_up(self, setting: Setting) -> _Server:
        """A server that runs with this setting."""
        server = self._server(setting.placement)
        if server.setting == setting:
            return server
        self._number += 1
        self._write(server.config, setting, server.version)
        os.kill(server.supervisor, signal.SIGHUP)
        label = f"{MARK}{self._number}"
        deadline = time.monotonic() + _DEADLINE_S
        while label not in server.client.metadata(self._subject.model)["labels"]:
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"the server did not take a new setting: {setting}")
            time.sleep(_STEP_S)
        server.setting = setting
        return server

    def _server(self, placement: Placement) -> _Server:
        server = self._servers.pop(placement, None)
        if server is None:
            while len(self._servers) >= _SERVERS[self.device]:
                # The one that was used longest ago.
                self._servers.pop(next(iter(self._servers))).stack.close()
            server = self._started(placement)
        self._servers[placement] = server
        return server

    def _started(self, placement: Placement) -> _Server:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="batchyard-")))
            config = folder / "config.toml"
            self._write(config, replace(self.defaults, placement=placement), None)
            bind = [f"ipc://{folder}/ipc/broker"]
            (endpoint,) = stack.enter_context(server_bound_to(bind, [str(config)], folder / "log"))
            client = stack.enter_context(Client(endpoint))
            model = next(m for m in client.models() if m["is_current"])
            signatures = client.metadata(self._subject.model)["signatures"]
            return _Server(
                endpoint=endpoint,
                supervisor=_parent(client.stats()["broker"]["pid"]),
                client=client,
                config=config,
                version=model["version"],
                specs=_specs(signatures, self._entry),
                # Only now, when nothing can go wrong any more.
                stack=stack.pop_all(),
            )

    def _write(self, path: Path, setting: Setting, version: int | None) -> None:
        tables = self._subject.experiment(setting, version, self._number)
        path.write_text(tomlkit.dumps(tables))


def _grew(result: LoadResult, deadline_s: float) -> bool:
    medians = [interval.p50_s for interval in result.intervals if interval.p50_s is not None]
    quarter = max(1, len(medians) // 4)
    if len(medians) < 2:
        return False
    first, last = statistics.median(medians[:quarter]), statistics.median(medians[-quarter:])
    return backlog_grew(first, last, result.duration_s, deadline_s)


def _specs(signatures: dict[str, Any], entry: MixEntry) -> tuple[TensorSpec, ...]:
    if entry.signature not in signatures:
        known = ", ".join(sorted(signatures)) or "none"
        raise BenchmarkFailed(
            f"model {entry.model!r} has no signature {entry.signature!r} to make requests of; it "
            f"has {known} (a python model needs [models.signature])"
        )
    return tuple(
        TensorSpec(name, spec["dtype"], None if spec["shape"] is None else tuple(spec["shape"]))
        for name, spec in signatures[entry.signature]["inputs"].items()
    )


def _row_nbytes(specs: Sequence[TensorSpec], entry: MixEntry) -> int:
    inputs = next(mix.variants(specs, replace(entry, rows=1), seed=0))
    return max(1, sum(array.nbytes for array in inputs.values()))


def _parent(pid: int) -> int:
    # The name, which may hold spaces, ends with a parenthesis.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
