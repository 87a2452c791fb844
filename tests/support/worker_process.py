"""A real worker process, driven over its links as its supervisor and its brokers do."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from support.waiting import DEADLINE_S
from support.worker_link import BrokersEnd

from batchyard.pool.children import Child
from batchyard.wire import arena, control, work
from batchyard.wire.control import ModelSource, WorkerSettings
from batchyard.wire.link import Link

# TensorFlow's import takes seconds, on a noisy machine a multiple.
START_S = 60.0
_CALLABLES = Path(__file__).parent / "callables.py"


def python_model(function: str, name: str = "m", version: int = 7) -> ModelSource:
    """A function of ``support/callables.py``."""
    return ModelSource(name, version, "python", f"{_CALLABLES}:{function}", [1], None)


def saved_model(path: Path, name: str = "m", version: int = 7) -> ModelSource:
    """A SavedModel's folder."""
    return ModelSource(name, version, "savedmodel", str(path), [1], None)


class WorkerProcess(BrokersEnd):
    """Its supervisor and its broker at once."""

    def __init__(
        self, models: Sequence[ModelSource], environment: Mapping[str, str], **settings: Any
    ) -> None:
        super().__init__()
        fields = {
            "worker_id": 1,
            "slot": 0,
            "device": "cpu",
            "memory_limit_mb": None,
            "memory_growth": False,
            "intra_op_parallelism": 1,
            "inter_op_parallelism": 0,
            "cpu_affinity": None,
            "concurrent_batches": 1,
            "models": list(models),
            **settings,
        }
        fd = arena.create_memfd(self.arena.nbytes, "test-arena")
        self.arena.close()
        self.arena = arena.Mapping(fd)
        self.child = Child(
            "worker",
            "batchyard.pool.worker",
            WorkerSettings(**fields).to_wire(),
            [self.workers_link.fileno(), fd],
            {"TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        )
        os.close(fd)
        self.workers_link.close()

    def ready(self) -> work.Ready:
        """The next packet, which must say that it has loaded its models."""
        assert select.select([self.link], [], [], START_S)[0], "the worker does not become ready"
        packet, _ = self.link.receive()
        assert packet[0] == work.Kind.READY, packet
        return work.Ready.from_wire(packet)

    def come_back(self) -> None:
        """Gives it a link to a broker started anew, which is this one from now on."""
        self.link, theirs = Link.pair()
        self.child.link.send([control.Kind.LINK], [theirs.fileno()])
        theirs.close()

    def exit_code(self) -> int:
        """Waits for its end."""
        assert select.select([self.child.sentinel], [], [], DEADLINE_S)[0], "it does not end"
        return self.child.reap()

    def close(self) -> None:
        """Kills it, if it has not ended."""
        self.child.kill()
        self.child.reap()
        super().close()


@contextlib.contextmanager
def worker_process(
    *models: ModelSource, environment: Mapping[str, str] | None = None, **settings: Any
) -> Iterator[WorkerProcess]:
    """A worker that has ended at the end of the block. It may be loading still."""
    process = WorkerProcess(models, environment or {}, **settings)
    try:
        yield process
    finally:
        process.close()
