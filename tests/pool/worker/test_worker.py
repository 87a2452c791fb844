"""Worker processes that outlive brokers, unload versions, and end with their supervisor."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.gates import FOLDER_VARIABLE, Gates
from support.waiting import wait_until
from support.worker_process import WorkerProcess, python_model, worker_process

from batchyard.wire import control, work
from batchyard.wire.control import ModelSource
from batchyard.wire.errors import Internal


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path / "gates")


@pytest.fixture
def worker(gates: Gates) -> Iterator[WorkerProcess]:
    models = [python_model("gated"), python_model("echo", "other", 2)]
    environment = {FOLDER_VARIABLE: str(gates.folder)}
    with worker_process(*models, environment=environment, concurrent_batches=2) as worker:
        yield worker


def versions(ready: work.Ready) -> list[tuple[str, int]]:
    return [(model.name, model.version) for model in ready.models]


def give(worker: WorkerProcess, batch_id: int, gate: int) -> None:
    worker.send(batch_id, gate=np.array([gate]), offset=4096 * batch_id, output_nbytes=0)


def answered(worker: WorkerProcess) -> int:
    """The next packet, which must say that a batch ran; its outputs came in a memfd."""
    packet, (fd,) = worker.receive()
    os.close(fd)
    assert packet[0] == work.Kind.DONE, packet
    return work.Done.from_wire(packet).batch_id


def test_batches_outlive_brokers(worker: WorkerProcess, gates: Gates) -> None:
    reports = worker.ready()
    assert versions(reports) == [("m", 7), ("other", 2)]
    for batch_id in (1, 2, 3):
        give(worker, batch_id, gate=batch_id)
    gates.wait_until_reached(1)
    gates.wait_until_reached(2)
    worker.die()
    gates.open(1)
    gates.wait_until_reached(3)
    worker.come_back()
    assert worker.resumed() == ([1, 2, 3], [])
    assert worker.ready() == reports
    # In vain before.
    assert answered(worker) == 1
    worker.die()
    # And one that dies before it reads anything.
    worker.come_back()
    worker.die()
    worker.come_back()
    assert worker.resumed() == ([2, 3], [])
    assert worker.ready() == reports
    gates.open(2)
    gates.open(3)
    assert {answered(worker), answered(worker)} == {2, 3}


def test_a_broker_may_die_while_models_load(gates: Gates, tmp_path: Path) -> None:
    model = tmp_path / "slow.py"
    model.write_text(
        "import os, time, pathlib\n"
        f"folder = pathlib.Path({str(gates.folder)!r})\n"
        "(folder / 'reached-1').write_text(str(os.getpid()))\n"
        "while not (folder / 'open-1').exists(): time.sleep(0.01)\n"
        "def echo(inputs): return inputs\n"
    )
    with worker_process(ModelSource("m", 7, "python", f"{model}:echo", [1], None)) as worker:
        gates.wait_until_reached(1)
        worker.die()
        worker.come_back()
        assert worker.resumed() == ([], [])
        assert worker.hears_nothing()
        worker.die()
        gates.open(1)
        worker.come_back()
        assert worker.resumed() == ([], [])
        assert versions(worker.ready()) == [("m", 7)]
        worker.send(batch_id=1, x=np.arange(3))
        assert worker.outputs(worker.done())["x"].tolist() == [0, 1, 2]


def test_it_waits_for_a_broker(worker: WorkerProcess) -> None:
    worker.ready()
    worker.die()
    wait_until(lambda: "S" in state_of(worker.child.pid), "it sleeps")
    assert worker.child.sentinel >= 0
    worker.come_back()
    assert worker.resumed() == ([], [])
    worker.ready()
    worker.send(model="other", version=2, x=np.arange(3))
    worker.done()


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("when", ["loading", "idle", "running", "without a broker"])
def test_it_ends_with_its_control_link(worker: WorkerProcess, gates: Gates, when: str) -> None:
    if when != "loading":
        worker.ready()
    if when == "running":
        give(worker, 1, gate=1)
        gates.wait_until_reached(1)
    if when == "without a broker":
        worker.die()
    worker.child.link.close()
    assert worker.exit_code() == control.EXIT_OK


def test_what_models_registered_for_the_end_is_done(tmp_path: Path) -> None:
    model = tmp_path / "model.py"
    model.write_text(
        "import atexit, pathlib\n"
        f"atexit.register(pathlib.Path({str(tmp_path / 'ended')!r}).touch)\n"
        "def echo(inputs): return inputs\n"
    )
    with worker_process(ModelSource("m", 7, "python", f"{model}:echo", [1], None)) as worker:
        worker.ready()
        worker.child.link.close()
        assert worker.exit_code() == control.EXIT_OK
    assert (tmp_path / "ended").exists()


def test_a_model_that_is_being_unloaded_is_waited_for_at_the_end(tmp_path: Path) -> None:
    model = tmp_path / "model.py"
    model.write_text(
        "import pathlib, time\n"
        "class Echo:\n"
        "    def __call__(self, inputs): return inputs\n"
        "    def __del__(self):\n"
        "        time.sleep(0.3)\n"
        f"        pathlib.Path({str(tmp_path / 'freed')!r}).touch()\n"
        # Nobody but the worker has it.
        "def __getattr__(name): return Echo()\n"
    )
    with worker_process(ModelSource("m", 7, "python", f"{model}:echo", [1], None)) as worker:
        worker.ready()
        worker.link.send(work.Unload("m", 7).to_wire())
        worker.child.link.close()
        assert worker.exit_code() == control.EXIT_OK
    assert (tmp_path / "freed").exists()


def test_it_dies_with_its_supervisor_only(worker: WorkerProcess) -> None:
    worker.ready()
    os.kill(worker.child.pid, signal.SIGTERM)
    worker.send(model="other", version=2, x=np.arange(3))
    worker.done()


def test_a_version_is_unloaded(worker: WorkerProcess) -> None:
    worker.ready()
    worker.link.send(work.Unload("m", 7).to_wire())
    # One that it never had is nothing to speak of.
    worker.link.send(work.Unload("m", 8).to_wire())
    give(worker, 1, gate=0)
    failed = worker.failed()
    assert (failed.batch_id, failed.number) == (1, Internal.number)
    worker.send(batch_id=2, model="other", version=2, x=np.arange(3))
    worker.done()
    worker.die()
    worker.come_back()
    worker.resumed()
    assert versions(worker.ready()) == [("other", 2)]


def test_what_does_not_load_is_named(tmp_path: Path) -> None:
    models = [python_model("echo"), python_model("missing", "bad", 3)]
    with worker_process(*models) as worker:
        packets = [worker.child.link.receive()[0]]
        while packets[-1][0] == control.Kind.LOADING:
            packets.append(worker.child.link.receive()[0])
        # One of two models was done.
        assert packets[-2] == [control.Kind.LOADING, 0.5, "loading bad"]
        packet = packets[-1]
        assert packet[:2] == [control.Kind.FAILED, control.EXIT_MODEL]
        assert "model 'bad' does not load" in packet[2]
        assert packet[3] == ["bad", 3]
        assert worker.exit_code() == control.EXIT_MODEL
