"""Batches in a worker: what the model sees, where its outputs go, what its errors become."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.waiting import DEADLINE_S
from support.worker_link import ARENA_NBYTES, OUTPUT_OFFSET, Array, Broker, worker_link

from batchyard.wire import arena, work
from batchyard.wire.errors import Internal, InvalidArgument, OutOfRange, ResourceExhausted


@pytest.fixture
def broker() -> Iterator[Broker]:
    with worker_link() as made:
        yield made


def echo(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    return inputs


def test_model_sees_aligned_views_of_the_arena(broker: Broker) -> None:
    seen: dict[str, tuple[int, bool]] = {}
    base = np.frombuffer(broker.arena.memory, np.uint8).ctypes.data

    def look(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        for name, array in inputs.items():
            seen[name] = (array.ctypes.data - base, bool(array.flags.c_contiguous))
        return {}

    broker.serve(look)
    broker.send(a=np.zeros(3, np.float32), b=np.zeros((2, 3), np.int8), offset=128)
    assert broker.done().outputs == []
    assert seen == {"a": (128, True), "b": (192, True)}


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(12, dtype=np.int16)[::3],
        np.array([True, False]),
        np.array([1.5, -2], ml_dtypes.bfloat16),
        np.array([[1 + 2j]], np.complex64),
        np.array([[b"a\0", b""], [b"bcd", "é".encode()]], object),
        np.array([], np.float64),
        np.zeros((0,), object),
        np.float32(7),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_outputs_arrive_as_they_are(broker: Broker, value: Array) -> None:
    broker.serve(lambda _: {"first": np.ones(5, np.int8), "y": value})
    broker.send()
    done = broker.done()
    assert (done.batch_id, done.overflow, done.kept) == (1, False, False)
    assert [(output[3] or 0) % arena.ALIGNMENT for output in done.outputs] == [0, 0]
    y = broker.outputs(done)["y"]
    assert (y.dtype, y.shape) == (value.dtype, value.shape)
    assert np.array_equal(y, value)
    assert broker.outputs(done)["first"].tolist() == [1] * 5


def test_strings_and_text_travel_both_ways(broker: Broker) -> None:
    def upper(inputs: Mapping[str, Array]) -> Mapping[str, Any]:
        assert inputs["x"].dtype == object
        return {"y": [item.decode().upper() for item in inputs["x"].ravel()], "x": inputs["x"]}

    broker.serve(upper)
    given = np.array([["a", "b\0"], ["", "é"]], object)
    broker.send(x=given)
    outputs = broker.outputs(broker.done())
    # numpy's own text type drops zeros at the end, as the model's author must know.
    assert outputs["y"].tolist() == [b"A", b"B", b"", "É".encode()]
    assert outputs["x"].tolist() == [[b"a", b"b\0"], [b"", "é".encode()]]


def test_inputs_may_be_outputs(broker: Broker) -> None:
    broker.serve(lambda inputs: {"x": inputs["x"], "reversed": inputs["x"][::-1]})
    broker.send(x=np.arange(4))
    done = broker.done()
    assert not done.kept
    outputs = broker.outputs(done)
    assert outputs["x"].tolist() == [0, 1, 2, 3]
    assert outputs["reversed"].tolist() == [3, 2, 1, 0]


def test_outputs_that_fit_exactly_stay_in_the_arena(broker: Broker) -> None:
    broker.serve(lambda _: {"a": np.zeros(65, np.int8), "b": np.zeros(64, np.int8)})
    broker.send(output_nbytes=128 + 64)
    assert [output[3] for output in broker.done().outputs] == [OUTPUT_OFFSET, OUTPUT_OFFSET + 128]


def test_outputs_that_do_not_fit_travel_in_a_memfd(broker: Broker) -> None:
    broker.serve(lambda _: {"a": np.arange(100), "b": np.array([b"xyz"], object)})
    before = len(os.listdir("/proc/self/fd"))
    broker.send(output_nbytes=64)
    packet, (fd,) = broker.receive()
    done = work.Done.from_wire(packet)
    assert done.overflow
    mapping = arena.Mapping(fd)
    os.close(fd)
    outputs = broker.outputs(done, mapping.memory)
    mapping.close()
    assert outputs["a"].tolist() == list(range(100))
    assert outputs["b"].tolist() == [b"xyz"]
    # The worker keeps none of it either: the next answer comes after it has closed its own.
    broker.send(output_nbytes=ARENA_NBYTES)
    broker.done()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("error", "number", "message"),
    [
        (partial(OutOfRange, "beyond"), OutOfRange.number, "beyond"),
        (partial(ValueError, "no luck"), Internal.number, "model 'm': ValueError: no luck"),
        (
            partial(MemoryError, "2 GB"),
            ResourceExhausted.number,
            "model 'm': the worker has no memory left: 2 GB",
        ),
        (MemoryError, ResourceExhausted.number, "model 'm': the worker has no memory left"),
        (partial(SystemExit, 3), Internal.number, "model 'm': SystemExit: 3"),
        # Text that UTF-8 cannot hold.
        (partial(ValueError, "a\ud800"), Internal.number, "model 'm': ValueError: a?"),
        (partial(OutOfRange, "a\ud800"), OutOfRange.number, "a?"),
    ],
)
def test_exceptions_are_answered_and_the_next_batch_runs(
    broker: Broker, error: Callable[[], BaseException], number: int, message: str
) -> None:
    errors = [error]

    def raises(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if errors:
            raise errors.pop()()
        return inputs

    broker.serve(raises)
    broker.send(batch_id=5, x=np.arange(4))
    failed = broker.failed()
    assert (failed.batch_id, failed.number, failed.message) == (5, number, message)
    assert not failed.kept
    broker.send(batch_id=6, x=np.arange(4))
    assert broker.done().batch_id == 6


def test_model_that_is_not_loaded_is_internal(broker: Broker) -> None:
    broker.serve(echo)
    broker.send(model="other")
    assert broker.failed().number == Internal.number


def test_output_of_a_dtype_without_a_name_is_internal(broker: Broker) -> None:
    broker.serve(lambda _: {"y": np.array(["2020"], "datetime64[D]")})
    broker.send()
    failed = broker.failed()
    assert failed.number == Internal.number
    assert failed.message == "model 'm': output 'y' has dtype datetime64[D]"


def test_output_whose_name_is_no_unicode_is_internal(broker: Broker) -> None:
    names = ["y", "\ud800"]
    broker.serve(lambda _: {names.pop(): np.zeros(1)})
    broker.send(batch_id=1)
    assert (broker.failed().number, names) == (Internal.number, ["y"])
    broker.send(batch_id=2)
    assert broker.done().batch_id == 2


def test_output_that_is_no_string_is_the_models_fault(broker: Broker) -> None:
    broker.serve(lambda _: {"y": None})
    broker.send()
    assert broker.failed().number not in (InvalidArgument.number,)


def test_threads_run_batches_side_by_side(broker: Broker) -> None:
    together = threading.Barrier(3)

    def meet(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        together.wait(DEADLINE_S)
        return {"y": inputs["x"] * 2}

    broker.serve(meet, threads=3)
    for i in range(3):
        broker.send(batch_id=i, offset=i * 1024, x=np.array([i]))
    assert {broker.done().batch_id for _ in range(3)} == {0, 1, 2}
