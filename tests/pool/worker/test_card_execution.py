"""A worker whose models compute on the card: a real process, on a simulated card."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.simulated_card import simulated_card
from support.worker_process import WorkerProcess, worker_process

from batchyard.wire import arena, control, work
from batchyard.wire.control import ModelSource
from batchyard.wire.errors import Internal, ResourceExhausted
from batchyard.wire.link import LinkClosed
from batchyard.wire.protocol import reply_offsets

_TOY = Path(__file__).parents[2] / "support" / "toy_framework.py"
_X = {"x": {"dtype": "float32", "shape": [-1, 4]}}
_Y = {"y": {"dtype": "float32", "shape": [-1, 4]}}


def toy_model(
    function: str, inputs: Mapping[str, Any] = _X, outputs: Mapping[str, Any] | None = _Y
) -> ModelSource:
    signature = None if outputs is None else {"inputs": inputs, "outputs": outputs}
    return ModelSource(
        function, 7, "python", f"{_TOY}:{function}", [1, 4], signature, device_arrays=True
    )


# As a broker's: no batch has the number of another.
numbers = itertools.count(1)

MODELS = [
    toy_model("double"),
    toy_model("same_memory"),
    toy_model("mixed", outputs=None),
    toy_model("obeys", {**_X, "say": {"dtype": "string", "shape": [-1]}}),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    folder = tmp_path_factory.mktemp("card")
    cards = simulated_card(folder)
    return {**cards.environment, "TOY_KERNEL_S": "0.005", "TOY_DONE": str(folder / "done")}


@pytest.fixture(scope="module")
def reports(environment: Mapping[str, str]) -> Iterator[tuple[WorkerProcess, work.Ready]]:
    with worker_process(
        *MODELS, environment=environment, device="gpu:0", concurrent_batches=2
    ) as worker:
        yield worker, worker.ready()


@pytest.fixture
def worker(reports: tuple[WorkerProcess, work.Ready]) -> WorkerProcess:
    return reports[0]


def why_it_ended(worker: WorkerProcess) -> str:
    while (packet := worker.child.link.receive()[0])[0] != control.Kind.FAILED:
        pass
    reason: str = packet[2]
    return reason


def rows(count: int, first: float = 0.0) -> np.ndarray[Any, Any]:
    return np.arange(first, first + 4 * count, dtype=np.float32).reshape(count, 4)


def test_a_worker_tells_what_warm_up_on_the_card_saw(
    reports: tuple[WorkerProcess, work.Ready],
) -> None:
    double, *_ = reports[1].models
    # A client's region is not page-locked: its rows are gathered into the arena, which is.
    assert not double.bears_changing_inputs
    (signature,) = double.signatures
    assert signature.output_row_nbytes == 16
    assert {size for size, _ in signature.warmup_runs} == {1, 4}
    assert all(seconds >= 0.005 for _, seconds in signature.warmup_runs)


@pytest.mark.parametrize("model", ["double", "same_memory"])
def test_batches_are_answered_in_the_order_of_their_starts(
    worker: WorkerProcess, model: str
) -> None:
    before = 0
    for i in range(6):
        x = rows(1 + i % 3, 100.0 * i)
        number = next(numbers)
        worker.send(number, model=model, offset=4096 * i, rows=len(x), x=x)
        if i % 2:
            for expected in (before, number):
                done = worker.done()
                assert done.batch_id == expected
                assert done.execution_s >= 0.004
                assert not done.kept
                if expected == number:
                    # The earlier one's lie there no more: all batches here share that place.
                    assert np.array_equal(worker.outputs(done)["y"], 2 * x + 1)
        before = number


def test_outputs_may_lie_anywhere(worker: WorkerProcess) -> None:
    x = rows(3)
    worker.send(next(numbers), model="mixed", rows=3, x=x)
    done = worker.done()
    outputs = worker.outputs(done)
    assert [name for name, *_ in done.outputs] == [
        *("words", "y", "rows", "x", "on_own_thread", "empty")
    ]
    # A model's calls are on the thread that loaded it, however many run at once.
    assert outputs["on_own_thread"].all()
    assert outputs["words"].tolist() == [b"row 0", b"row 1", b"row 2"]
    assert outputs["rows"].tolist() == [3, 3, 3]
    assert np.array_equal(outputs["y"], 2 * x + 1)
    assert np.array_equal(outputs["x"], x)
    assert outputs["empty"].shape == (3, 0)
    assert all((offset or 0) % arena.ALIGNMENT == 0 for *_, offset, _ in done.outputs)


def test_outputs_that_do_not_fit_travel_in_a_memfd(worker: WorkerProcess) -> None:
    x = rows(3)
    worker.send(next(numbers), model="mixed", rows=3, output_nbytes=64, x=x)
    packet, (fd,) = worker.receive()
    done = work.Done.from_wire(packet)
    assert done.overflow
    mapping = arena.Mapping(fd)
    os.close(fd)
    outputs = worker.outputs(done, mapping.memory)
    mapping.close()
    assert np.array_equal(outputs["y"], 2 * x + 1)
    assert outputs["words"].tolist() == [b"row 0", b"row 1", b"row 2"]


def test_rows_come_from_regions_and_outputs_go_there(worker: WorkerProcess) -> None:
    theirs = worker.attach(5, 4096)
    x = rows(2)
    theirs[0 : x.nbytes] = x.tobytes()
    placed: Sequence[work.PlacedInput] = [("x", "float32", (2, 4), work.ARENA, 0, x.nbytes)]
    for room, replied in ((reply_offsets([16])[-1], True), (0, False)):
        worker.send(
            *(next(numbers), 4096, "double"),
            rows=2,
            placed=placed,
            copies=[(5, 0, 0, x.nbytes)],
            replies=[(5, 1024, room, 0, 1), (5, 2048, room, 1, 1)],
        )
        done = worker.done()
        assert done.replied
        if replied:
            assert done.outputs == [("y", "float32", (2, 4), None, 0)]
            for row, offset in enumerate((1024, 2048)):
                y = np.frombuffer(theirs[offset : offset + 16], np.float32)
                assert np.array_equal(y, 2 * x[row] + 1)
        else:
            assert np.array_equal(worker.outputs(done)["y"], 2 * x + 1)
    worker.detach(5)


def say(*words: str) -> np.ndarray[Any, Any]:
    return np.array([word.encode() for word in words], object)


@pytest.mark.parametrize(
    ("word", "number", "message"),
    [
        ("raise", Internal.number, "model 'obeys': ValueError: no such luck"),
        (
            "exhaust",
            ResourceExhausted.number,
            "model 'obeys': the worker has no memory left: CUDA out of memory. Tried to allocate "
            "2.00 GiB",
        ),
        (
            "allocate",
            ResourceExhausted.number,
            "model 'obeys': the worker has no memory left: CUDA out of memory. Tried to allocate "
            "some",
        ),
        (
            "shape",
            Internal.number,
            "model 'obeys' returned output 'y' as float32 of shape (1, 1), the configuration "
            "declares float32 of shape (?, 4)",
        ),
        (
            "dtype",
            Internal.number,
            "model 'obeys' returned output 'y' as float64 of shape (2, 4), the configuration "
            "declares float32 of shape (?, 4)",
        ),
    ],
)
def test_what_a_model_raises_is_answered_and_others_run(
    worker: WorkerProcess, word: str, number: int, message: str
) -> None:
    x = rows(2)
    first, second, third = (next(numbers) for _ in range(3))
    worker.send(first, model="double", rows=2, x=x)
    worker.send(second, model="obeys", offset=4096, rows=2, x=x, say=say("", word))
    worker.send(third, model="obeys", offset=8192, rows=2, x=x, say=say("", ""))
    assert worker.done().batch_id == first
    failed = worker.failed()
    assert (failed.batch_id, failed.number, failed.message) == (second, number, message)
    done = worker.done()
    assert done.batch_id == third
    assert np.array_equal(worker.outputs(done)["y"], 2 * x + 1)


def test_a_batch_that_raised_is_answered_when_the_card_is_done_with_it(
    worker: WorkerProcess, environment: Mapping[str, str]
) -> None:
    done = Path(environment["TOY_DONE"])
    done.unlink(missing_ok=True)
    worker.send(next(numbers), model="obeys", x=rows(1), say=say("raise"))
    worker.failed()
    # Now its block is given away: nothing reads it any more.
    assert done.exists()


def test_a_batch_is_waited_for_while_a_model_captures_a_graph(worker: WorkerProcess) -> None:
    x = rows(1)
    worker.send(next(numbers), model="obeys", x=x, say=say("capture"))
    assert np.array_equal(worker.outputs(worker.done())["y"], 2 * x + 1)


def test_what_was_given_is_answered_to_the_next_broker(worker: WorkerProcess) -> None:
    x = rows(2)
    for offset in (4096, 8192):
        worker.send(next(numbers), model="double", offset=offset, rows=2, x=x)
    worker.die()
    worker.come_back()
    resumed, _ = worker.resumed()
    packet, _ = worker.receive()
    assert packet[0] == work.Kind.READY
    for number in resumed:
        assert worker.done().batch_id == number


def test_a_lost_card_ends_the_worker_and_the_batch_is_not_answered(
    environment: Mapping[str, str],
) -> None:
    with worker_process(*MODELS[3:], environment=environment, device="gpu:0") as worker:
        worker.ready()
        x = rows(1)
        worker.send(1, model="obeys", x=x, say=say(""))
        worker.send(2, model="obeys", offset=4096, x=x, say=say("break"))
        worker.send(3, model="obeys", offset=8192, x=x, say=say(""))
        assert worker.done().batch_id == 1
        assert "CUDA_ERROR_ILLEGAL_ADDRESS" in why_it_ended(worker)
        assert worker.exit_code() == control.EXIT_FAILURE
        with pytest.raises(LinkClosed):
            worker.receive()


def test_page_locking_may_be_refused(environment: Mapping[str, str]) -> None:
    refused = {**environment, "SIMULATED_CARD_PAGE_LOCK_ERROR": "801"}
    with worker_process(*MODELS[:1], environment=refused, device="gpu:0") as worker:
        (model,) = worker.ready().models
        # The driver copies it once more from anywhere: then as well from where the client has it.
        assert model.bears_changing_inputs
        x = rows(2)
        worker.send(1, model="double", rows=2, x=x)
        assert np.array_equal(worker.outputs(worker.done())["y"], 2 * x + 1)
        # It ends when its supervisor says so.
        worker.child.link.shut_down()
        assert worker.exit_code() == control.EXIT_OK


def test_without_cuda_only_models_that_need_it_do_not_load(
    environment: Mapping[str, str], tmp_path: Path
) -> None:
    # No card is left.
    none = {**environment, "SIMULATED_CARD": str(tmp_path / "none")}
    callables = Path(__file__).parents[2] / "support" / "callables.py"
    echo = ModelSource("echo", 1, "python", f"{callables}:echo", [1], None)
    with (
        worker_process(echo, environment=none, device="gpu:0") as worker,
        worker_process(*MODELS[:1], environment=none, device="gpu:0") as other,
    ):
        assert worker.ready().models[0].name == "echo"
        assert why_it_ended(other).startswith(
            "model 'double' does not load: device_arrays needs CUDA's driver: no card can be used"
        )
        assert other.exit_code() == control.EXIT_MODEL


def test_a_model_that_is_too_large_for_its_share_says_so(
    environment: Mapping[str, str], tmp_path: Path
) -> None:
    (tmp_path / "large.py").write_text("raise MemoryError('out of memory')")
    large = ModelSource("large", 1, "python", f"{tmp_path}/large.py:run", [1], None)
    share = {"device": "gpu:0", "memory_limit_mb": 512}
    with worker_process(large, environment=environment, **share) as worker:
        assert "needs more than the 512 MiB of gpu:0" in why_it_ended(worker)
