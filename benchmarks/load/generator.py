"""One process that sends requests when they are planned to and notes what became of each.

``python -m batchyard.benchmarks.load.generator`` is a ``benchmarks.child``: ``prepare``, then
``run``. Its records are its parent's memory (``records.py``).
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from batchyard.benchmarks.child import answer
from batchyard.benchmarks.load.mix import draw, variants
from batchyard.benchmarks.load.pacing import (
    collect_garbage,
    precise_loop,
    punctual,
    without_collections,
)
from batchyard.benchmarks.load.plan import LoadPlan
from batchyard.benchmarks.load.records import Records
from batchyard.benchmarks.load.schedule import Schedule, make_schedule
from batchyard.benchmarks.load.sending import ClosedLoop, OpenLoop, Sender
from batchyard.benchmarks.load.targets.base import Send, make_target
from batchyard.wire.control import die_with_parent
from batchyard.wire.errors import (
    BatchyardError,
    ConfigurationError,
    DeadlineExceeded,
    ResourceExhausted,
    Unavailable,
)

# Code, as the parent has it back, of what is no error of the server's.
CONFIGURATION = "CONFIGURATION"
# A model that was never run may compile first.
_FIRST_ANSWER_S = 60.0
# Kinds of a closed loop that are drawn; then they come again.
_CLOSED_KINDS = 65_536
# What a busy server says, not one that cannot serve these requests.
_BUSY = (DeadlineExceeded, ResourceExhausted, Unavailable)


class Generator:
    """What the parent's questions are put to."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=precise_loop)

    def prepare(
        self, plan: dict[str, Any], process: int, records: str, capacity: int
    ) -> dict[str, Any]:
        """Connects, makes the inputs, and has each kind of request answered once.

        The answer has the ``error`` that shows that the plan cannot be carried out, if one does.
        """
        try:
            self._plan = LoadPlan.from_json(plan)
            self._process = process
            self._schedule = make_schedule(self._plan).share(process, self._plan.processes)
            self._records = _filled(Records(records, capacity), self._schedule)
            self._target = make_target(self._plan.target)
            self._requests = self._runner.run(self._prepare())
        except ConfigurationError as error:
            return {"error": [CONFIGURATION, str(error)]}
        except BatchyardError as error:
            return {"error": [error.number, error.message]}
        # Now: when requests are due there is no time for it.
        collect_garbage()
        return {}

    async def _prepare(self) -> list[list[Send]]:
        await self._target.connect()
        requests = []
        for entry in self._schedule.mix:
            specs = await self._target.inputs(entry)
            sends = [
                self._target.prepare(entry, inputs)
                for inputs in variants(specs, entry, self._plan.seed)
            ]
            await _first_answer(sends[0], entry.model)
            requests.append(sends)
        return requests

    def run(self, start_at: float) -> dict[str, Any]:
        """Sends; returns when all is answered or given up, with the errors' first messages."""
        with without_collections():
            return self._runner.run(self._run(start_at))

    async def _run(self, start_at: float) -> dict[str, Any]:
        plan = self._plan
        deadlines = [entry.deadline_s for entry in self._schedule.mix]
        sender = Sender(self._requests, deadlines, self._records)
        end_at = start_at + plan.duration_s
        give_up_at = end_at + plan.grace_s
        if plan.concurrency is None:
            with punctual(plan.processes):
                await OpenLoop(sender, len(self._schedule.times), start_at, give_up_at).run()
            await sender.finish(give_up_at)
        else:
            kinds = draw(plan.mix, _CLOSED_KINDS, plan.seed + self._process).tolist()
            # Those that are left when callers are divided go to the first processes.
            callers = len(range(self._process, plan.concurrency, plan.processes))
            await ClosedLoop(sender, kinds, start_at, end_at).run(callers, give_up_at)
        await self._target.close()
        return {"messages": sender.messages}


def _filled(records: Records, schedule: Schedule) -> Records:
    count = len(schedule.times)
    records.planned[:count] = schedule.times.data
    records.kind[:count] = schedule.kinds.data
    return records


async def _first_answer(send: Send, model: str) -> None:
    """Has a request answered. Raises what says that such requests cannot be served at all."""
    try:
        async with asyncio.timeout(_FIRST_ANSWER_S):
            await send(None)
    except TimeoutError:
        raise Unavailable(
            f"model {model!r} did not answer its first request in {_FIRST_ANSWER_S:g} s"
        ) from None
    except _BUSY:
        pass


if __name__ == "__main__":
    die_with_parent(os.getppid())
    generator = Generator()
    answer({"prepare": generator.prepare, "run": generator.run})
