"""What an open-loop run came to: shares, latencies and goodput beside what could be had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.benchmarks.child import Child
from batchyard.benchmarks.faults_load import RIGHT
from batchyard.benchmarks.faults_server import OBEDIENT

_STEP_S = 0.01
# More than a run that is stopped by hand takes.
_LONG_S = 150.0
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how often; None: as the goals ask for."""

    seconds: float | None
    """Of what lasts: kills, and the mixed load."""
    times: int | None
    """Of what happens many times: deaths of the broker, new versions, deaths that are detected."""
    seed: int


@dataclass(frozen=True, slots=True)
class LoadRun:
    """Its arrays have an element a request; moments are ``time.monotonic()``."""

    planned: Floats
    sent: Floats
    done: Floats
    outcomes: npt.NDArray[Any]
    ids: npt.NDArray[np.int64]

    @classmethod
    def read(cls, path: Path) -> LoadRun:
        """What ``faults_load.open_loop`` wrote."""
        with np.load(path) as arrays:
            return cls(**{name: arrays[name] for name in arrays.files})

    @property
    def counts(self) -> Counter[str]:
        """How often there was each outcome."""
        return Counter(self.outcomes.tolist())

    @property
    def answered_share(self) -> float:
        """Right answers ÷ requests."""
        return float(np.mean(self.outcomes == RIGHT))

    def latency_ms(self, percentile: float) -> float:
        """Of the right answers, from the planned moment."""
        return float(np.percentile(self.latencies_ms(), percentile))

    def latencies_ms(self, since: float = 0.0, until: float = np.inf) -> Floats:
        """Of the right answers to requests planned for that time."""
        chosen = (self.outcomes == RIGHT) & (self.planned >= since) & (self.planned < until)
        latencies: Floats = (self.done - self.planned)[chosen] * 1e3
        return latencies

    @property
    def send_lag_ms(self) -> float:
        """By how much requests left late, p99."""
        return float(np.percentile((self.sent - self.planned) * 1e3, 99))

    def goodput(self, until: float) -> float:
        """Right answers that were there by then."""
        return float(np.sum((self.outcomes == RIGHT) & (self.done <= until)))


class Loads:
    """Runs loads in a process of its own, with ids that no two requests share."""

    def __init__(self, child: Child, endpoint: str, folder: Path, seed: int) -> None:
        self._child = child
        self._endpoint = endpoint
        self._path = folder / "load.npz"
        self._seed = seed
        self.model = OBEDIENT
        self._next_id = 1

    def peak(self, in_flight: int, seconds: float) -> float:
        """See ``faults_load.peak``."""
        found: float = self._child.ask(
            "peak", endpoint=self._endpoint, in_flight=in_flight, seconds=seconds
        )
        return found

    def start(self, rate: float, seconds: float = _LONG_S) -> None:
        """Begins a run; ``finish`` or ``stop`` next."""
        first_id, self._next_id = self._next_id, self._next_id + 10_000_000
        self._seed += 1
        self._child.tell(
            "open_loop",
            endpoint=self._endpoint,
            model=self.model,
            rate=rate,
            seconds=seconds,
            seed=self._seed,
            first_id=first_id,
            path=str(self._path),
        )

    def finish(self) -> LoadRun:
        """Waits for the run's end."""
        self._child.hear()
        return LoadRun.read(self._path)

    def stop(self) -> LoadRun:
        """Ends the run now; what it was so far."""
        stop = Path(f"{self._path}.stop")
        stop.touch()
        run = self.finish()
        stop.unlink()
        return run


@contextmanager
def loads(endpoint: str, folder: Path, seed: int) -> Iterator[Loads]:
    """A process that makes load for as long as the block runs."""
    with Child("batchyard.benchmarks.faults_load") as child:
        yield Loads(child, endpoint, folder, seed)


@dataclass(slots=True)
class Liveness:
    """When each worker could take batches: from polls of the broker, and from kills."""

    since: dict[int, float]
    until: dict[int, float]

    @classmethod
    def nothing(cls) -> Liveness:
        """Before the first poll."""
        return cls({}, {})

    def seen(self, live: set[int], now: float) -> None:
        """A poll."""
        for pid in live:
            self.since.setdefault(pid, now)
        for pid in self.since.keys() - live:
            self.until.setdefault(pid, now)

    def killed(self, pid: int, now: float) -> None:
        """From that moment on it is no use, whatever the broker still says."""
        self.until[pid] = now

    def possible(self, start: float, end: float, offered: float, each: float) -> float:
        """∫ min(offered, live workers x each) dt: the requests that could be answered."""
        moments = np.arange(start, end, _STEP_S)
        live = np.zeros(len(moments))
        for pid, since in self.since.items():
            live += (moments >= since) & (moments < self.until.get(pid, np.inf))
        return float(np.sum(np.minimum(offered, live * each)) * _STEP_S)

    def mean_live(self, start: float, end: float) -> float:
        """How many workers were live on average."""
        return self.possible(start, end, np.inf, 1.0) / (end - start)
