"""Notes what becomes of every simulated request and batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from batchyard.benchmarks.simulation.arrivals import Floats
from batchyard.benchmarks.simulation.result import Batches, Outcome, Requests
from batchyard.broker.events import Batch, Deliver, Refuse
from batchyard.broker.queue import RequestGroup
from batchyard.wire.errors import BatchyardError

_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Arriving:
    """All requests of a run, in the order of their planned moments; ``kind`` is a mix's entry."""

    planned: Floats
    kind: npt.NDArray[np.int32]


@dataclass(slots=True)
class RunBatch:
    """A batch on its device."""

    batch: Batch
    start: float
    end: float


@dataclass(slots=True)
class _BatchLog:
    handed_over: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)
    execution_s: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    padded_rows: list[int] = field(default_factory=list)
    worker: list[int] = field(default_factory=list)
    model: list[int] = field(default_factory=list)
    predicted_s: list[float] = field(default_factory=list)


class Recorder:
    """Of each kind ``deadline_s`` and ``rows`` are by its number, ``models`` its model's place."""

    def __init__(
        self,
        arriving: Arriving,
        rows: Sequence[int],
        deadline_s: Sequence[float],
        models: Sequence[int],
        names: Sequence[str],
    ) -> None:
        count = len(arriving.planned)
        self.errors: Counter[str] = Counter()
        # Lists: elements are set one by one.
        self._outcome = bytearray(count)
        self._answered = [0.0] * count
        self._device_s = [0.0] * count
        self._arriving = arriving
        self._rows = np.asarray(rows, np.int64)[arriving.kind]
        self._model = np.asarray(models, np.int32)[arriving.kind]
        self._deadline_s = np.asarray(deadline_s, np.float64)[arriving.kind]
        self._due: list[float] = (arriving.planned + self._deadline_s).tolist()
        # Requests of each message that has some without an answer.
        self._members: dict[int, Sequence[int]] = {}
        self._done: list[int] = []
        self._places = {name: place for place, name in enumerate(names)}
        self._log = _BatchLog()

    @property
    def unanswered(self) -> int:
        """Requests without an outcome."""
        return self._outcome.count(0)

    def sent(self, group: RequestGroup, requests: Sequence[int]) -> None:
        """A message holds these requests, in this order."""
        self._members[group.message_id] = requests

    def ran(self, run: RunBatch) -> None:
        """A batch ended."""
        batch, log = run.batch, self._log
        seconds = run.end - run.start
        log.handed_over.append(batch.dispatched_at)
        log.start.append(run.start)
        log.execution_s.append(seconds)
        log.rows.append(batch.rows)
        log.padded_rows.append(batch.layout.padded_rows)
        log.worker.append(batch.worker_id)
        log.model.append(self._places[batch.lane.model.name])
        log.predicted_s.append(_NAN if batch.expected_s is None else batch.expected_s)
        each_s = seconds / batch.rows
        device_s = self._device_s
        for part in batch.parts:
            members = self._members.get(part.group.message_id)
            if members is None:
                continue  # All of them were refused meanwhile.
            requests_s = each_s * part.rows / part.count
            for request in members[part.first : part.first + part.count]:
                device_s[request] += requests_s

    def delivered(self, deliver: Deliver, at: float) -> None:
        """The clients have a batch's outputs at that moment."""
        outcome, answered, due = self._outcome, self._answered, self._due
        for part, _ in deliver.parts:
            group = part.group
            split = group.split.get(part.first) if group.split else None
            if split is not None and split.rows_left:
                continue
            members = self._members[group.message_id]
            if split is not None and outcome[members[part.first]]:
                continue  # Another piece of it was in the same batch.
            for request in members[part.first : part.first + part.count]:
                assert not outcome[request], "a request is answered once"
                outcome[request] = Outcome.IN_TIME if at <= due[request] else Outcome.LATE
                answered[request] = at
            if not group.unanswered:
                self._done.append(group.message_id)

    def refused(self, refuse: Refuse, at: float, on_arrival: bool) -> None:
        """The clients have an error at that moment."""
        members = self._members[refuse.group.message_id]
        outcome = Outcome.REFUSED if on_arrival else Outcome.DROPPED
        for first, count in refuse.requests:
            self.errors[_code(refuse.error)] += count
            for request in members[first : first + count]:
                assert not self._outcome[request], "a request is answered once"
                self._outcome[request] = outcome
                self._answered[request] = at
        if not refuse.group.unanswered:
            self._done.append(refuse.group.message_id)

    def forget(self) -> None:
        """A turn is over: messages that are answered whole may go."""
        for message_id in self._done:
            self._members.pop(message_id, None)
        self._done.clear()

    def requests(self) -> Requests:
        """All of them."""
        return Requests(
            planned=self._arriving.planned,
            answered=np.asarray(self._answered, np.float64),
            outcome=np.frombuffer(bytes(self._outcome), np.uint8),
            model=self._model,
            rows=self._rows,
            deadline_s=self._deadline_s,
            device_s=np.asarray(self._device_s, np.float64),
        )

    def batches(self) -> Batches:
        """All that ran."""
        log = self._log
        return Batches(
            handed_over=np.asarray(log.handed_over, np.float64),
            start=np.asarray(log.start, np.float64),
            execution_s=np.asarray(log.execution_s, np.float64),
            rows=np.asarray(log.rows, np.int64),
            padded_rows=np.asarray(log.padded_rows, np.int64),
            worker=np.asarray(log.worker, np.int32),
            model=np.asarray(log.model, np.int32),
            predicted_s=np.asarray(log.predicted_s, np.float64),
        )


def _code(error: BatchyardError) -> str:
    return error.code
