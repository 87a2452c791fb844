"""Batches whose rows and outputs lie in clients' regions."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from support.waiting import DEADLINE_S
from support.worker_link import ARENA_NBYTES, OUTPUT_OFFSET, Array, Broker, Function, worker_link

from batchyard.wire import arena, work
from batchyard.wire.errors import Internal, ResourceExhausted

ONE, TWO = 1, 2


@pytest.fixture
def broker() -> Iterator[Broker]:
    with worker_link() as made:
        yield made


def put(memory: memoryview, offset: int, array: Array) -> int:
    """Writes an array; how many bytes it has."""
    memory[offset : offset + array.nbytes] = array.tobytes()
    return int(array.nbytes)


def values(memory: memoryview, offset: int, count: int) -> list[Any]:
    """``count`` float32."""
    array: list[Any] = np.frombuffer(memory, np.float32, count, offset).tolist()
    return array


def returns(*outputs: Array) -> Function:
    return lambda _: {f"y{i}": array for i, array in enumerate(outputs)}


def floats(*items: float) -> Array:
    return np.array(items, np.float32)


# Inputs


def test_rows_are_copied_out_of_regions_side_by_side(broker: Broker) -> None:
    broker.serve(lambda inputs: {"y": inputs["x"] * 2, "z": inputs["z"]})
    one, two = broker.attach(ONE), broker.attach(TWO)
    put(one, 100, floats(1, 2))
    put(one, 7, floats(4))
    put(two, 4088, floats(3, 9))
    put(broker.arena.memory, 512, floats(5))
    copies = [(ONE, 100, 256, 8), (TWO, 4088, 264, 4), (ONE, 7, 268, 4)]
    placed = [
        ("x", "float32", (4,), work.ARENA, 256, 16),
        ("z", "float32", (1,), work.ARENA, 512, 4),
    ]
    broker.send(placed=placed, copies=copies, rows=4)
    outputs = broker.outputs(broker.done())
    assert outputs["y"].tolist() == [2, 4, 6, 8]
    assert outputs["z"].tolist() == [5]


def test_a_copy_of_no_bytes_does_no_harm(broker: Broker) -> None:
    broker.serve(lambda inputs: {"n": np.array(inputs["x"].shape)})
    broker.attach(ONE, 64)
    broker.send(placed=[("x", "int32", (2, 0), work.ARENA, 0, 0)], copies=[(ONE, 64, 0, 0)], rows=2)
    assert broker.outputs(broker.done())["n"].tolist() == [2, 0]


def test_an_input_is_read_in_place(broker: Broker) -> None:
    seen: list[int] = []

    def look(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        x = inputs["x"]
        seen.append(x.ctypes.data % arena.ALIGNMENT)
        # The client's own memory, while the model runs.
        seen.extend(x.tolist())
        return {"y": x + inputs["a"]}

    broker.serve(look)
    memory = broker.attach(ONE)
    put(memory, 128, floats(3, 4))
    broker.send(placed=[("x", "float32", (2,), ONE, 128, 8)], a=floats(1, 1), rows=2)
    assert broker.outputs(broker.done())["y"].tolist() == [4, 5]
    assert seen == [0, 3, 4]


def test_inputs_of_two_clients_in_place_and_copied_at_once(broker: Broker) -> None:
    broker.serve(lambda inputs: {"y": inputs["a"] + inputs["b"]})
    put(broker.attach(ONE), 64, floats(1, 2))
    put(broker.attach(TWO), 3, floats(10, 20))
    broker.send(
        placed=[
            ("a", "float32", (2,), ONE, 64, 8),
            ("b", "float32", (2,), work.ARENA, 0, 8),
        ],
        copies=[(TWO, 3, 0, 8)],
        rows=2,
    )
    assert broker.outputs(broker.done())["y"].tolist() == [11, 22]


@pytest.mark.parametrize("place", ["copies", "inputs", "replies"])
def test_a_batch_whose_region_is_missing_fails_and_the_next_runs(
    broker: Broker, place: str
) -> None:
    broker.serve(returns(floats(1)))
    places: dict[str, dict[str, Any]] = {
        "copies": {"copies": [(ONE, 0, 0, 4)]},
        "inputs": {"placed": [("x", "float32", (1,), ONE, 0, 4)]},
        "replies": {"replies": [(ONE, 0, 64, 0, 1)]},
    }
    more = places[place]
    # Whether or not there are other regions.
    broker.send(batch_id=1, **more)
    assert broker.failed().number == ResourceExhausted.number
    broker.attach(TWO)
    broker.send(batch_id=2, **more)
    assert broker.failed().number == ResourceExhausted.number
    broker.send(batch_id=3)
    assert broker.done().batch_id == 3


def test_a_batch_that_runs_reads_its_region_after_the_client_has_gone(broker: Broker) -> None:
    reached, go = threading.Event(), threading.Event()

    def wait(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        reached.set()
        assert go.wait(DEADLINE_S)
        return {"y": inputs["x"].copy()}

    broker.serve(wait)
    put(broker.attach(ONE), 64, floats(7))
    broker.send(
        placed=[("x", "float32", (1,), ONE, 64, 4)], replies=[(ONE, 0, 64, 0, 1)], alone=True
    )
    assert reached.wait(DEADLINE_S)
    broker.detach(ONE)
    go.set()
    assert broker.done().replied


# Outputs


def test_all_outputs_go_into_the_regions(broker: Broker) -> None:
    broker.serve(returns(floats(1, 2, 3, 99), np.arange(8, dtype=np.int64).reshape(4, 2)))
    one, two = broker.attach(ONE), broker.attach(TWO)
    # Rows 0 and 1 are one request's, row 2 another's, row 3 is padding.
    replies = [(ONE, 256, 128, 0, 2), (TWO, 64, 128, 2, 1)]
    broker.send(rows=3, padded_rows=4, replies=replies)
    done = broker.done()
    assert (done.replied, done.overflow, done.kept) == (True, False, False)
    assert done.outputs == [
        ("y0", "float32", (4,), None, 0),
        ("y1", "int64", (4, 2), None, 0),
    ]
    assert values(one, 256, 2) == [1, 2]
    assert np.frombuffer(one, np.int64, 4, 320).tolist() == [0, 1, 2, 3]
    assert values(two, 64, 1) == [3]
    assert np.frombuffer(two, np.int64, 2, 128).tolist() == [4, 5]


def test_nothing_is_written_outside_of_the_space(broker: Broker) -> None:
    broker.serve(returns(floats(1), np.full((1, 3), 7, np.int8)))
    one = broker.attach(ONE, 512)
    one[:] = b"\xaa" * 512
    broker.send(replies=[(ONE, 128, 128, 0, 1)])
    assert broker.done().replied
    assert bytes(one[:128]) == b"\xaa" * 128
    assert bytes(one[128:132]) == floats(1).tobytes()
    assert bytes(one[132:192]) == b"\xaa" * 60
    assert bytes(one[192:195]) == b"\7\7\7"
    assert bytes(one[195:]) == b"\xaa" * (512 - 195)


def test_who_has_no_room_is_left_to_the_broker(broker: Broker) -> None:
    broker.serve(returns(floats(1, 2, 3)))
    one = broker.attach(ONE, 512)
    one[:] = b"\xaa" * 512
    # The second has a byte too little, the third has no space at all.
    broker.send(rows=3, replies=[(ONE, 0, 64, 0, 1), (ONE, 64, 63, 1, 1)])
    done = broker.done()
    assert done.replied
    assert broker.outputs(done)["y0"].tolist() == [1, 2, 3]
    assert values(one, 0, 1) == [1]
    assert bytes(one[4:]) == b"\xaa" * 508


def test_partly_replied_outputs_may_need_a_memfd_too(broker: Broker) -> None:
    broker.serve(returns(np.arange(64, dtype=np.int64)))
    broker.attach(ONE, 512)
    broker.send(rows=64, replies=[(ONE, 0, 64, 0, 1)], output_nbytes=64)
    packet, (fd,) = broker.receive()
    done = work.Done.from_wire(packet)
    assert (done.replied, done.overflow) == (True, True)
    mapping = arena.Mapping(fd)
    assert broker.outputs(done, mapping.memory)["y0"].tolist() == list(range(64))
    mapping.close()
    os.close(fd)


def test_outputs_that_all_lie_in_regions_need_no_room_in_the_block(broker: Broker) -> None:
    broker.serve(returns(np.arange(64, dtype=np.int64)))
    broker.attach(ONE)
    broker.send(rows=64, replies=[(ONE, 0, 512, 0, 64)], output_nbytes=0)
    done = broker.done()
    assert (done.replied, done.overflow) == (True, False)


@pytest.mark.parametrize(
    ("outputs", "padded_rows"),
    [
        ([np.array([b"a", b"b"], object)], 2),
        ([np.zeros(2, np.float32), np.array([b"a", b"b"], object)], 2),
        ([np.zeros(3, np.float32)], 2),
        ([np.float32(1)], 2),
        ([np.zeros(2, np.float32)], 4),
    ],
    ids=["strings", "strings among numbers", "other rows", "scalar", "no row for padding"],
)
def test_what_cannot_be_cut_into_requests_goes_into_the_block(
    broker: Broker, outputs: list[Array], padded_rows: int
) -> None:
    broker.serve(returns(*outputs))
    one = broker.attach(ONE, 512)
    one[:] = b"\xaa" * 512
    broker.send(rows=2, padded_rows=padded_rows, replies=[(ONE, 0, 128, 0, 2)])
    done = broker.done()
    assert not done.replied
    found = broker.outputs(done)
    for i, array in enumerate(outputs):
        assert found[f"y{i}"].tolist() == array.tolist()
    assert bytes(one) == b"\xaa" * 512


@pytest.mark.parametrize("shape", [(), (5,), (3, 0)])
def test_outputs_of_a_request_alone_go_as_they_are(broker: Broker, shape: tuple[int, ...]) -> None:
    broker.serve(returns(np.full(shape, 4, np.float32)))
    one = broker.attach(ONE)
    broker.send(rows=2, alone=True, replies=[(ONE, 64, 64, 0, 2)])
    done = broker.done()
    assert done.replied
    assert done.outputs == [("y0", "float32", shape, None, 0)]
    count = int(np.prod(shape))
    assert values(one, 64, count) == [4.0] * count


def test_a_request_alone_without_room_gets_them_from_the_block(broker: Broker) -> None:
    broker.serve(returns(np.full(17, 4, np.float32)))
    broker.attach(ONE)
    broker.send(rows=2, alone=True, replies=[(ONE, 64, 64, 0, 2)])
    assert broker.outputs(broker.done())["y0"].tolist() == [4] * 17


def test_inputs_may_be_outputs_over_themselves(broker: Broker) -> None:
    broker.serve(lambda inputs: {"y": inputs["x"][::-1]})
    one = broker.attach(ONE)
    put(one, 64, floats(1, 2, 3))
    broker.send(
        rows=3,
        alone=True,
        placed=[("x", "float32", (3,), ONE, 64, 12)],
        replies=[(ONE, 64, 64, 0, 3)],
    )
    assert broker.done().replied
    assert values(one, 64, 3) == [3, 2, 1]


def test_outputs_that_are_no_tensors_fail_before_anything_is_written(broker: Broker) -> None:
    broker.serve(returns(floats(1), np.array(["2020"], "datetime64[D]")))
    one = broker.attach(ONE, 512)
    one[:] = b"\xaa" * 512
    broker.send(alone=True, replies=[(ONE, 0, 256, 0, 1)])
    assert broker.failed().number == Internal.number
    assert bytes(one) == b"\xaa" * 512


def test_the_block_of_outputs_is_not_touched_when_all_lie_in_regions(broker: Broker) -> None:
    broker.serve(returns(floats(1)))
    broker.attach(ONE)
    before = bytes(broker.arena.memory[OUTPUT_OFFSET:ARENA_NBYTES])
    broker.send(replies=[(ONE, 0, 64, 0, 1)])
    assert broker.done().replied
    assert bytes(broker.arena.memory[OUTPUT_OFFSET:ARENA_NBYTES]) == before
