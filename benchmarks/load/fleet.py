"""The generator processes of one run."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

from batchyard.benchmarks.child import Child, ChildFailed
from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.load.generator import CONFIGURATION
from batchyard.benchmarks.load.plan import LoadPlan
from batchyard.benchmarks.load.records import SharedRecords
from batchyard.wire.errors import ConfigurationError, from_wire

_MODULE = "batchyard.benchmarks.load.generator"
# An interpreter with its imports, and a model's first answer.
_PREPARE_TIMEOUT_S = 120.0
# They end by themselves when the grace is over.
_END_TIMEOUT_S = 30.0


class GeneratorFailed(BenchmarkFailed):
    """A generator died or hung; the message has what it said."""


class Fleet:
    """One process for each of ``records``; they end with the block, whatever they do."""

    def __init__(self, plan: LoadPlan, records: Sequence[SharedRecords]) -> None:
        self._plan = plan
        self._records = records
        self._stack = ExitStack()
        self.processes: list[Child] = []
        self._running: list[Child] = []
        self._give_up_at = 0.0
        # The first message of each error's code.
        self.messages: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.processes = [self._stack.enter_context(Child(_MODULE)) for _ in self._records]
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def prepare(self) -> None:
        """Has all of them ready to send.

        Raises ConfigurationError, GeneratorFailed, or the error of the server that says why not.
        """
        for i, (child, records) in enumerate(zip(self.processes, self._records, strict=True)):
            child.tell(
                "prepare",
                plan=self._plan.to_json(),
                process=i,
                records=records.path,
                capacity=records.capacity,
            )
        for child in self.processes:
            error = _hear(child, _PREPARE_TIMEOUT_S).get("error")
            if error is not None:
                code, message = error
                if code == CONFIGURATION:
                    raise ConfigurationError(message)
                raise from_wire(code, message)

    def start(self, start_at: float) -> None:
        """Gives all of them one time to start at."""
        for child in self.processes:
            child.tell("run", start_at=start_at)
        self._running = list(self.processes)
        self._give_up_at = start_at + self._plan.duration_s + self._plan.grace_s + _END_TIMEOUT_S

    def wait(self, timeout_s: float) -> bool:
        """Whether all have ended, waiting for it so long. Raises GeneratorFailed."""
        until = time.monotonic() + timeout_s
        while self._running:
            now = time.monotonic()
            if now >= self._give_up_at:
                raise GeneratorFailed(f"a load generator did not end {_END_TIMEOUT_S:g} s late")
            ready, _, _ = select.select(self._running, [], [], max(until - now, 0.0))
            if not ready:
                return False
            for child in ready:
                self.messages = _hear(child, _END_TIMEOUT_S)["messages"] | self.messages
                self._running.remove(child)
        return True


def _hear(child: Child, timeout_s: float) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = child.hear(timeout_s)
    except ChildFailed as error:
        raise GeneratorFailed(f"a load generator failed: {error}") from None
    return answer
