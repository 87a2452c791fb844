"""Open-loop load on ``obedient``, from a process of its own that is asked over a pipe.

``python -m batchyard.benchmarks.faults_load`` is a ``benchmarks.child``. Requests of one row
leave at moments that a Poisson process planned, whatever the answers do; a latency counts from the
planned moment. Every answer is checked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.benchmarks.callables import expected
from batchyard.benchmarks.child import answer
from batchyard.clients import Client
from batchyard.wire.errors import BatchyardError

RIGHT, SILENT, WRONG, TWICE = "RIGHT", "SILENT", "WRONG", "TWICE"
# A request that has no answer after this long gets none.
_GRACE_S = 30.0
_ANSWER = np.zeros(1, np.int32)
Floats = npt.NDArray[np.float64]


class OpenLoop:
    """One run: what was planned, and what became of it."""

    def __init__(self, rate: float, seconds: float, seed: int, first_id: int) -> None:
        random = np.random.default_rng(seed)
        gaps = random.exponential(1 / rate, int(rate * seconds * 1.5) + 100)
        moments = np.cumsum(gaps)
        self.planned: Floats = moments[moments < seconds]
        count = len(self.planned)
        self.ids = np.arange(first_id, first_id + count)
        self.x = random.integers(0, 1 << 20, count).astype(np.float32)
        self.sent = np.zeros(count)
        self.done = np.zeros(count)
        self.outcomes = [SILENT] * count

    def run(
        self,
        send: Callable[[int], Future[Any]],
        until: Path | None = None,
        grace_s: float = _GRACE_S,
    ) -> None:
        """Sends each at its moment, and waits for what is unanswered.

        When the file ``until`` is there, nothing more is sent, and what was not counts for nothing.
        """
        start = time.monotonic() + 0.05
        self.planned += start
        futures = []
        for i, planned in enumerate(self.planned.tolist()):
            if until is not None and until.exists():
                self.planned = self.planned[:i]
                break
            while (left := planned - time.monotonic()) > 0:
                time.sleep(left)
            self.sent[i] = time.monotonic()
            try:
                future = send(i)
            except BatchyardError as error:
                self.done[i] = time.monotonic()
                self.outcomes[i] = error.code
                continue
            future.add_done_callback(partial(self.answered, i))
            futures.append(future)
        deadline = time.monotonic() + grace_s
        for future in futures:
            while not future.done() and time.monotonic() < deadline:
                time.sleep(0.005)

    def answered(self, i: int, future: Future[Any]) -> None:
        """Notes an answer; a second one for the same request is seen."""
        if self.outcomes[i] is not SILENT:
            self.outcomes[i] = TWICE
            return
        self.done[i] = time.monotonic()
        error = future.exception()
        if error is not None:
            self.outcomes[i] = getattr(error, "code", type(error).__name__)
            return
        right = self.right(i)
        self.outcomes[i] = RIGHT if np.array_equal(future.result()["y"], right) else WRONG

    def inputs(self, i: int) -> dict[str, Any]:
        """Of request ``i``."""
        return {"id": self.ids[i : i + 1], "act": _ANSWER, "x": self.x[i : i + 1]}

    def right(self, i: int) -> Any:
        """Its right answer."""
        return expected(self.x[i : i + 1], self.ids[i : i + 1])

    def save(self, path: Path) -> None:
        """Writes it for ``faults_run.LoadRun``."""
        count = len(self.planned)
        np.savez(
            path,
            planned=self.planned,
            sent=self.sent[:count],
            done=self.done[:count],
            outcomes=np.array(self.outcomes[:count]),
            ids=self.ids[:count],
        )


class HalfPlusTwo(OpenLoop):
    """The same on the SavedModel ``half_plus_two``."""

    def inputs(self, i: int) -> dict[str, Any]:
        """Of request ``i``."""
        return {"x": self.x[i : i + 1]}

    def right(self, i: int) -> Any:
        """Its right answer."""
        return self.x[i : i + 1] / 2 + 2


_LOADS = {"obedient": OpenLoop, "half_plus_two": HalfPlusTwo}


def open_loop(
    endpoint: str,
    model: str,
    rate: float,
    seconds: float,
    seed: int,
    first_id: int,
    path: str,
) -> dict[str, int]:
    """Runs one and writes it to ``path`` (.npz); how often there was each outcome.

    It ends after ``seconds``, or when there is a file ``path.stop``.
    """
    loop = _LOADS[model](rate, seconds, seed, first_id)
    with Client(endpoint) as client:

        def send(i: int) -> Future[Any]:
            return client.submit(model, loop.inputs(i))

        # The model's signature is asked for before the clock starts.
        client.metadata(model)
        loop.run(send, Path(f"{path}.stop"))
    loop.save(Path(path))
    return dict(Counter(loop.outcomes[: len(loop.planned)]))


def peak(endpoint: str, in_flight: int, seconds: float) -> float:
    """Requests answered a second while ``in_flight`` are under way: what the server can do."""
    x, ids = np.zeros(1, np.float32), np.zeros(1, np.int64)
    with Client(endpoint) as client:

        def submit() -> Future[Any]:
            return client.submit("obedient", {"id": ids, "act": _ANSWER, "x": x})

        futures = [submit() for _ in range(in_flight)]
        # The first answers come from batches that were not full.
        for i in range(in_flight):
            futures[i].result()
            futures[i] = submit()
        count, started = 0, time.perf_counter()
        while (elapsed_s := time.perf_counter() - started) < seconds:
            futures[count % in_flight].result()
            futures[count % in_flight] = submit()
            count += 1
        for future in futures:
            future.result()
    return count / elapsed_s


if __name__ == "__main__":
    answer({"open_loop": open_loop, "peak": peak})
