"""Mixed load of every kind that the SDK has, from one process: each call's outcome is written down.

``python -m batchyard.benchmarks.faults_mix`` is a ``benchmarks.child``: ``start``, then ``stop``,
which writes a line of JSON a call. Calls go to ``obedient`` and, with large rows, to ``large``.
"""

from __future__ import annotations

import asyncio
import faulthandler
import itertools
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchyard.benchmarks.callables import Act, expected
from batchyard.benchmarks.child import answer
from batchyard.clients import AsyncClient, Client
from batchyard.wire.errors import BatchyardError

# A call that has no outcome after this long has none.
LIMIT_S = 60.0
SMALL, LARGE = "obedient", "large"
# Is called if it is served.
SAVEDMODEL = "half_plus_two"
LARGE_COLUMNS = 25_000
_MANY = 40
_BURST = 16
_TASKS = 6
_PAUSE_S = 0.1
# Of the calls that are neither large nor have a deadline; the others stay with good rows.
_RAISING = 0.02
_KILLING = 0.0005


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call; moments are ``time.monotonic()``.

    ``ids`` are its requests' (several for ``predict_many``). ``outcome`` is RIGHT, WRONG, SILENT,
    an error's code, or the name of an exception that is none of ours.
    """

    kind: str
    ids: list[int]
    act: int
    timeout_s: float | None
    sent: float
    done: float
    outcome: str
    detail: str = ""

    @property
    def took_s(self) -> float:
        """From the call to its outcome."""
        return self.done - self.sent


class Mix:
    """The callers of one process, each a thread; the asynchronous ones share one."""

    def __init__(self, tcp: str, ipc: str, first_id: int, seed: int, calm: float) -> None:
        self._ids = itertools.count(first_id)
        self._seed = seed
        self._killing = _KILLING / calm
        self._ends = threading.Event()
        self._clients = [Client(ipc), Client(tcp)]
        self._ipc = ipc
        self.outcomes: list[Outcome] = []
        calls: dict[str, Callable[[Client, random.Random], None]] = {
            "single": self._single,
            "burst": self._burst,
            "many": self._many,
            "large": self._large,
            "deadline": self._deadline,
        }
        if any(model["name"] == SAVEDMODEL for model in self._clients[0].models()):
            calls["savedmodel"] = self._savedmodel
        self._threads = [
            threading.Thread(
                target=self._call, args=(name, call, client, i), name=name, daemon=True
            )
            for i, (name, call) in enumerate(calls.items())
            for client in (self._clients if name == "burst" else [self._clients[i % 2]])
        ]
        self._threads.append(
            threading.Thread(target=self._run_tasks, args=(seed,), name="async", daemon=True)
        )

    def start(self) -> None:
        """Begins to call."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[str]:
        """Ends it; the names of callers that hang beyond all limits."""
        self._ends.set()
        deadline = time.monotonic() + LIMIT_S + 10
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if stuck:
            faulthandler.dump_traceback(sys.stderr)
            return stuck
        for client in self._clients:
            client.close()
        return []

    # The kinds of calls

    def _call(
        self, name: str, call: Callable[[Client, random.Random], None], client: Client, i: int
    ) -> None:
        choice = random.Random(f"{self._seed} {name} {i}")
        while not self._ends.wait(choice.random() * _PAUSE_S):
            call(client, choice)

    def _single(self, client: Client, choice: random.Random) -> None:
        inputs, act = self._small(choice, True)
        self._note(
            "single", inputs, act, None, lambda: client.predict(SMALL, inputs, timeout=LIMIT_S)
        )

    def _burst(self, client: Client, choice: random.Random) -> None:
        """Many under way at once; each has an outcome of its own."""
        under_way: list[tuple[dict[str, Any], int, float, Future[Any]]] = []
        done: dict[int, float] = {}
        for i in range(choice.randint(1, _BURST)):
            inputs, act = self._small(choice, True)
            sent = time.monotonic()
            try:
                future: Future[Any] = client.submit(SMALL, inputs)
            except BatchyardError as error:
                self._add("burst", inputs, act, None, sent, error)
                continue

            def note(_: object, i: int = i) -> None:
                done[i] = time.monotonic()

            future.add_done_callback(note)
            under_way.append((inputs, act, sent, future))
        for inputs, act, sent, future in under_way:
            left_s = max(sent + LIMIT_S - time.monotonic(), 0.001)
            self._note("burst", inputs, act, None, lambda f=future, s=left_s: f.result(s), sent)  # type: ignore[misc]

    def _many(self, client: Client, choice: random.Random) -> None:
        each = [self._small(choice, False)[0] for _ in range(choice.randint(1, _MANY))]
        inputs = {"id": np.concatenate([one["id"] for one in each])}
        inputs["x"] = np.concatenate([one["x"] for one in each])

        def call() -> dict[str, Any]:
            answers = client.predict_many(SMALL, each, timeout=LIMIT_S)
            return {"y": np.concatenate([one["y"] for one in answers])}

        self._note("many", inputs, Act.ANSWER, None, call)

    def _large(self, client: Client, choice: random.Random) -> None:
        rows = choice.randint(1, 4)
        shape = (rows, LARGE_COLUMNS)
        # Built in place, where the server reads it, or an ordinary array that is copied there.
        x = client.empty(shape) if choice.random() < 0.5 else np.empty(shape, np.float32)
        x[:] = np.arange(rows * LARGE_COLUMNS, dtype=np.float32).reshape(shape) % choice.randint(
            2, 999
        )
        inputs = {"id": self._new_ids(rows), "x": x}
        self._note(
            "large",
            inputs,
            Act.ANSWER,
            None,
            lambda: client.predict(LARGE, inputs, timeout=LIMIT_S),
        )

    def _deadline(self, client: Client, choice: random.Random) -> None:
        inputs, _ = self._small(choice, False)
        timeout_s = choice.choice((0.001, 0.02, 0.2))
        call = lambda: client.predict(SMALL, inputs, timeout=timeout_s)  # noqa: E731
        self._note("deadline", inputs, Act.ANSWER, timeout_s, call)

    def _savedmodel(self, client: Client, choice: random.Random) -> None:
        x = np.array([choice.randrange(1 << 16)], np.float32)
        inputs = {"id": self._new_ids(1), "x": x}

        def call() -> dict[str, Any]:
            y = client.predict(SAVEDMODEL, x, timeout=LIMIT_S)["y"]
            # What is right is said for ``obedient``.
            return {"y": (y - 2) * 4 + inputs["id"] % 1000}

        self._note("savedmodel", inputs, Act.ANSWER, None, call)

    def _run_tasks(self, seed: int) -> None:
        asyncio.run(self._tasks(seed))

    async def _tasks(self, seed: int) -> None:
        async with AsyncClient(self._ipc) as client:
            await asyncio.gather(
                *(self._task(client, random.Random(f"{seed} task {i}")) for i in range(_TASKS))
            )

    async def _task(self, client: AsyncClient, choice: random.Random) -> None:
        while not self._ends.is_set():
            await asyncio.sleep(choice.random() * _PAUSE_S)
            inputs, act = self._small(choice, True)
            sent = time.monotonic()
            result: Any
            try:
                result = await asyncio.wait_for(client.predict(SMALL, inputs), LIMIT_S)
            except Exception as error:
                result = error
            self._add("async", inputs, act, None, sent, result)

    # What they have in common

    def _small(self, choice: random.Random, acts: bool) -> tuple[dict[str, Any], int]:
        rows = choice.randint(1, 4)
        act, dice = Act.ANSWER, choice.random()
        if acts and dice < self._killing:
            act = Act.DIE
        elif acts and dice < _RAISING:
            act = Act.RAISE
        inputs = {
            "id": self._new_ids(rows),
            "act": np.full(rows, act, np.int32),
            "x": np.array([choice.randrange(1 << 20) for _ in range(rows)], np.float32),
        }
        return inputs, act

    def _new_ids(self, rows: int) -> Any:
        return np.array([next(self._ids) for _ in range(rows)])

    def _note(
        self,
        kind: str,
        inputs: dict[str, Any],
        act: int,
        timeout_s: float | None,
        call: Callable[[], Any],
        sent: float | None = None,
    ) -> None:
        sent = time.monotonic() if sent is None else sent
        result: Any
        try:
            result = call()
        except Exception as error:
            result = error
        self._add(kind, inputs, act, timeout_s, sent, result)

    def _add(
        self,
        kind: str,
        inputs: dict[str, Any],
        act: int,
        timeout_s: float | None,
        sent: float,
        result: Any,
    ) -> None:
        done = time.monotonic()
        outcome, detail = judge(inputs, result)
        if outcome == "DEADLINE_EXCEEDED" and timeout_s is None:
            outcome = "SILENT"
        ids = inputs["id"].tolist()
        self.outcomes.append(Outcome(kind, ids, act, timeout_s, sent, done, outcome, detail))


def judge(inputs: dict[str, Any], result: Any) -> tuple[str, str]:
    """What a call came to, by its outputs or the exception that it ended with."""
    if isinstance(result, BatchyardError):
        return result.code, result.message
    if isinstance(result, TimeoutError):
        return "SILENT", ""
    if isinstance(result, BaseException):
        return type(result).__name__, str(result)
    right = expected(inputs["x"], inputs["id"])
    if np.array_equal(result["y"], right):
        return "RIGHT", ""
    return "WRONG", f"got {result['y'].ravel()[:8]}, right is {right.ravel()[:8]}"


_mix: list[Mix] = []


def start(tcp: str, ipc: str, first_id: int, seed: int, calm: float) -> None:
    """Begins the load; rows that kill are the rarer the calmer it is."""
    _mix.append(Mix(tcp, ipc, first_id, seed, calm))
    _mix[0].start()


def flush(path: str) -> int:
    """Appends the outcomes so far to the file, and forgets them; how many they were."""
    outcomes = _mix[0].outcomes
    count = len(outcomes)
    with Path(path).open("a") as file:
        file.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes[:count])
    del outcomes[:count]
    return count


def stop(path: str) -> list[str]:
    """Ends the load and writes what is left; the callers that hang."""
    stuck = _mix[0].stop()
    flush(path)
    _mix.clear()
    return stuck


if __name__ == "__main__":
    answer({"start": start, "stop": stop, "flush": flush})
