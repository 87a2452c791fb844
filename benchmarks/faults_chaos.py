"""Mixed load and random faults against one server for a while, and what came of it."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from batchyard.benchmarks.child import Child
from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.faults_injector import Injector
from batchyard.benchmarks.faults_judge import Fault, counted, read_outcomes, violations
from batchyard.benchmarks.faults_mix import LARGE, LARGE_COLUMNS
from batchyard.benchmarks.faults_server import OBEDIENT, ServerView, obedient_model, wait_until
from batchyard.benchmarks.served import Model
from batchyard.clients import Client

# Ids of different processes never meet.
_IDS_A_PROCESS = 1 << 32
_FRESH_S = 30.0

# Large rows fill a small arena at once: requests must wait for room.
ARENA_MB = 4
BATCH_TIMEOUT_S = 2.0


def chaos_models(**settings: object) -> list[Model]:
    """What the mixed load asks for; ``settings`` are keys of ``[[models]]``."""
    return [
        obedient_model({"max_batch_size": 16, "max_enqueued_batches": 1000}, **settings),
        Model(
            LARGE,
            "batchyard.benchmarks.callables:obedient",
            {"max_batch_size": 8, "max_enqueued_batches": 1000},
            inputs={"id": ("int64", (-1,)), "x": ("float32", (-1, LARGE_COLUMNS))},
            outputs={"y": ("float32", (-1, LARGE_COLUMNS))},
            settings=settings,
        ),
    ]


@dataclass(slots=True)
class Chaos:
    """One run: its faults, how its calls ended, and what nothing explains."""

    timeline: list[Fault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def told(self) -> str:
        """All of it, for a person."""
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        faults = "\n".join(f"  {fault.at:.3f} {fault.what}" for fault in self.timeline)
        return f"calls: {counts}\nfaults:\n{faults}\n" + "\n".join(self.violations[:20])


def run_chaos(
    server: ServerView,
    *,
    seconds: float,
    seed: int,
    faults: Sequence[str] = (),
    processes: int = 2,
    run: int = 0,
    calm: float = 1.0,
    each_second: Callable[[], None] = lambda: None,
) -> Chaos:
    """Load and faults for ``seconds``; waits until every call has its outcome.

    ``run`` tells several runs against one server apart. ``calm`` makes faults rarer, where workers
    need long to start. Raises what kept faults from being made.
    """
    chaos = Chaos()
    paths = [server.folder / f"outcomes-{run}-{i}" for i in range(processes)]
    with contextlib.ExitStack() as stack:
        children = []
        for i in range(processes):
            child = stack.enter_context(Child("batchyard.benchmarks.faults_mix"))
            child.ask(
                "start",
                tcp=server.tcp,
                ipc=server.ipc,
                first_id=1 + (run * processes + i) * _IDS_A_PROCESS,
                seed=seed + i,
                calm=calm,
            )
            children.append(child)
        until = time.monotonic() + seconds
        with Injector(server, seed, faults, calm) as injector:
            while (left_s := until - time.monotonic()) > 0 and not injector.errors:
                each_second()
                # So that a long run does not fill the callers' memory.
                for child, path in zip(children, paths, strict=True):
                    child.ask("flush", path=str(path))
                time.sleep(min(1.0, left_s))
        chaos.timeline = injector.timeline
        for child, path in zip(children, paths, strict=True):
            child.tell("stop", path=str(path))
        for child in children:
            chaos.violations += [f"caller {name!r} hangs" for name in child.hear()]
    if injector.errors:
        raise injector.errors[0]
    ledger = server.ledger()
    for path in paths:
        outcomes = counted(read_outcomes(path), chaos.counts)
        chaos.violations += violations(outcomes, ledger, chaos.timeline)
    return chaos


def settle(server: ServerView) -> None:
    """Waits until all is as it was before any fault. Raises BenchmarkFailed if it never is."""
    with Client(server.ipc) as client:
        server.wait_until_all_live(client)
        row = {
            "id": np.zeros(1, np.int64),
            "act": np.zeros(1, np.int32),
            "x": np.ones(1, np.float32),
        }
        for _ in range(4 * server.workers):
            if client.predict(OBEDIENT, row, timeout=_FRESH_S)["y"].tolist() != [2.0]:
                raise BenchmarkFailed("a fresh request is answered wrongly")

        def busy() -> list[str]:
            stats = client.stats()
            queued = [model["name"] for model in stats["models"] if model["queue_rows"]]
            return queued + ["arena"] * bool(stats["arena"]["used_bytes"])

        wait_until(lambda: not busy(), "nothing is queued, and the arena is free")
