"""The broker's core driven in virtual time: turns as ``broker.loop`` takes them, without bytes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import count

from batchyard.benchmarks.simulation.broker import Kind, message
from batchyard.benchmarks.simulation.device import Device
from batchyard.benchmarks.simulation.recorder import Arriving, Recorder, RunBatch
from batchyard.benchmarks.simulation.scenario import Overheads
from batchyard.broker import events
from batchyard.broker.policy import NEVER
from batchyard.broker.state import BrokerState

_TIME_PASSED = events.TimePassed()
# More turns than any run needs without a request, a batch or an answer between them.
_IDLE_TURNS_MAX = 100_000


class Engine:
    """Runs until every request is answered. The devices are those of the broker's workers."""

    def __init__(
        self,
        state: BrokerState,
        devices: dict[int, Device],
        kinds: Sequence[Kind],
        arriving: Arriving,
        recorder: Recorder,
        overheads: Overheads,
    ) -> None:
        self.turns = 0
        self._state = state
        self._devices = devices
        self._kinds = kinds
        self._recorder = recorder
        self._overheads = overheads
        # When each request is at the broker.
        self._arrivals: list[float] = (arriving.planned + overheads.request_s).tolist()
        self._arrivals.append(NEVER)
        self._kind_of: list[int] = arriving.kind.tolist()
        self._next = 0
        # Batches that ended, by when the broker hears of it.
        self._answers: list[tuple[float, int, RunBatch]] = []
        self._message_ids = count(1)

    def run(self) -> None:
        """Raises RuntimeError when the broker forgets somebody, or runs in circles."""
        state, arrivals, answers = self._state, self._arrivals, self._answers
        turn_s = self._overheads.turn_s
        now = -NEVER
        idle_turns = 0
        while True:
            next_answer = answers[0][0] if answers else NEVER
            at = min(arrivals[self._next], next_answer, state.next_wakeup())
            if at == NEVER:
                break
            now = max(at, now + turn_s) if now > -NEVER else max(at, 0.0)
            before = self._next, len(answers)
            while answers and answers[0][0] <= now:
                self._finish(heapq.heappop(answers)[2], now)
            if arrivals[self._next] <= now:
                self._take_in(now)
            if not state.is_quiet:
                self._apply(_TIME_PASSED, now)
            self._recorder.forget()
            self.turns += 1
            idle_turns = idle_turns + 1 if before == (self._next, len(answers)) else 0
            if idle_turns > _IDLE_TURNS_MAX:
                raise RuntimeError(f"the broker turns in circles at {now:.6f} s")
        if self._recorder.unanswered:
            raise RuntimeError(f"{self._recorder.unanswered} requests are never answered")

    def _take_in(self, now: float) -> None:
        """What has arrived by now: requests of a kind as one message, as the SDK sends them."""
        arrivals = self._arrivals
        first = self._next
        stop = first + 1
        while arrivals[stop] <= now:
            stop += 1
        self._next = stop
        if stop == first + 1 or len(self._kinds) == 1:
            self._send(self._kind_of[first], range(first, stop), now)
            return
        by_kind: dict[int, list[int]] = {}
        for request in range(first, stop):
            by_kind.setdefault(self._kind_of[request], []).append(request)
        for kind, requests in by_kind.items():
            self._send(kind, requests, now)

    def _send(self, kind: int, requests: Sequence[int], now: float) -> None:
        group = message(next(self._message_ids), self._kinds[kind], len(requests), now)
        self._recorder.sent(group, requests)
        self._apply(events.RequestsArrived(group), now)

    def _finish(self, run: RunBatch, now: float) -> None:
        self._recorder.ran(run)
        execution_s = run.end - run.start
        self._apply(events.BatchFinished(run.batch.id, 0, False, execution_s=execution_s), now)

    def _apply(self, event: events.Event, now: float) -> None:
        for action in self._state.handle(event, now):
            if isinstance(action, events.Dispatch):
                self._dispatch(action.batch, now)
            elif isinstance(action, events.Deliver):
                self._recorder.delivered(action, now + self._overheads.reply_s)
                self._apply(events.BatchDelivered(action.batch.id), now)
            elif isinstance(action, events.Refuse):
                on_arrival = (
                    isinstance(event, events.RequestsArrived) and event.group is action.group
                )
                self._recorder.refused(action, now + self._overheads.reply_s, on_arrival)
            else:
                raise RuntimeError(f"nothing here asks for {action}")

    def _dispatch(self, batch: events.Batch, now: float) -> None:
        start, end = self._devices[batch.worker_id].run(
            batch.lane.model.name, batch.layout.padded_rows, now + self._overheads.handover_s
        )
        heard_at = end + self._overheads.answer_s
        heapq.heappush(self._answers, (heard_at, batch.id, RunBatch(batch, start, end)))
