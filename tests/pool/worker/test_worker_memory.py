"""Workers that run out of memory or descriptors: their batches are told so, and they go on."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.exported import exported
from support.waiting import wait_until
from support.worker_process import WorkerProcess, python_model, saved_model, worker_process

from batchyard.wire import control, work
from batchyard.wire.control import ModelSource
from batchyard.wire.errors import ResourceExhausted

DEFAULT = "serving_default"
MB = 1 << 20


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest) -> Path:
    return exported(request.config, "savedmodels_memory")


def memory(worker: WorkerProcess, what: str) -> int:
    """``VmSize`` or ``VmRSS``, in MiB."""
    status = Path(f"/proc/{worker.child.pid}/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) // 1024


def limit(worker: WorkerProcess, more_mb: int) -> None:
    """Lets it map so much more than it has."""
    nbytes = (memory(worker, "VmSize") + more_mb) * MB
    resource.prlimit(worker.child.pid, resource.RLIMIT_AS, (nbytes, nbytes))


def test_savedmodels_that_need_too_much_and_those_that_are_unloaded(models: Path) -> None:
    # In one process: importing TensorFlow takes seconds.
    hungry, heavy = saved_model(models / "hungry"), saved_model(models / "heavy", "heavy", 1)
    with worker_process(hungry, heavy) as worker:
        worker.ready()
        worker.send(model="heavy", version=1, signature=DEFAULT, x=np.ones(1, np.float32))
        worker.done()
        before = memory(worker, "VmRSS")
        worker.link.send(work.Unload("heavy", 1).to_wire())
        # The variable and the constant: 24 MiB each, of which there are copies.
        wait_until(lambda: memory(worker, "VmRSS") < before - 48, "memory is freed")

        limit(worker, 200)
        # Once: TensorFlow tries for ten seconds.
        for batch_id, needed in enumerate([1, 500 * MB, 1]):
            worker.send(batch_id=batch_id, signature=DEFAULT, n=np.array([needed]))
            if needed == 1:
                assert worker.outputs(worker.done())["y"].tolist() == [1]
                continue
            failed = worker.failed()
            assert (failed.batch_id, failed.number) == (batch_id, ResourceExhausted.number)
            assert "OOM when allocating" in failed.message


CALLABLES = """
import numpy as np

def run(inputs):
    n = int(inputs["n"][0])
    if n < 0:
        # An array that takes no memory itself.
        return {"y": np.broadcast_to(np.int8(0), (-n,))}
    return {"y": np.ones(n, np.int8)[:1]}

def many(inputs):
    return {f"output number {i}": inputs["n"] for i in range(int(inputs["n"][0]))}
"""


@pytest.fixture
def callable_of(tmp_path: Path) -> Callable[[str], ModelSource]:
    path = tmp_path / "model.py"
    path.write_text(CALLABLES)
    return lambda name: ModelSource("m", 7, "python", f"{path}:{name}", [1], None)


def test_callables_that_need_too_much_and_outputs_without_room(
    callable_of: Callable[[str], Any],
) -> None:
    with worker_process(callable_of("run")) as worker:
        worker.ready()
        before = descriptors_of(worker)
        limit(worker, 200)
        for batch_id, n in enumerate([1, 2000 * MB, 1, -2000 * MB, 1]):
            worker.send(batch_id=batch_id, n=np.array([n]))
            if n == 1:
                assert worker.done().batch_id == batch_id
                continue
            failed = worker.failed()
            assert (failed.batch_id, failed.number) == (batch_id, ResourceExhausted.number)
            assert ("no memory for outputs of 2097152000 bytes" in failed.message) == (n < 0)
        assert descriptors_of(worker) == before


def descriptors_of(worker: WorkerProcess) -> list[str]:
    return sorted(path.name for path in Path(f"/proc/{worker.child.pid}/fd").iterdir())


def no_more_descriptors(worker: WorkerProcess) -> None:
    taken = set(map(int, descriptors_of(worker)))
    lowest_free = next(n for n in range(len(taken) + 1) if n not in taken)
    _, hard = resource.prlimit(worker.child.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(worker.child.pid, resource.RLIMIT_NOFILE, (lowest_free, hard))


def test_an_answer_that_cannot_be_sent_is_an_error(callable_of: Callable[[str], Any]) -> None:
    with worker_process(callable_of("many")) as worker:
        worker.ready()
        no_more_descriptors(worker)
        # So many that the packet needs a descriptor.
        for batch_id, n in enumerate([1, 5000, 1]):
            worker.send(batch_id=batch_id, n=np.array([n]))
            if n == 1:
                assert worker.done().batch_id == batch_id
                continue
            failed = worker.failed()
            assert (failed.batch_id, failed.number) == (batch_id, ResourceExhausted.number)
            assert "Too many open files" in failed.message


def test_a_worker_that_does_not_know_what_it_was_told_ends() -> None:
    with worker_process(python_model("echo")) as worker:
        worker.ready()
        no_more_descriptors(worker)
        # Its broker would wait for the answer for ever.
        worker.send(copies=[(1, 64, 64, 64)] * 20_000, n=np.array([1]))
        assert worker.exit_code() == control.EXIT_FAILURE
