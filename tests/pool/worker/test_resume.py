"""A worker's batches outlive the broker that gave them: the next one is told, and answered."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from support.waiting import DEADLINE_S, wait_until
from support.worker_link import Array, Broker, worker_link

from batchyard.wire import arena, work
from batchyard.wire.link import Link

ONE = 1


@pytest.fixture
def broker() -> Iterator[Broker]:
    with worker_link() as made:
        yield made


class Doors:
    """A model whose runs wait until the batch's number, its input, is let through."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self._through: set[int] = set()
        self._changed = threading.Condition()
        self.kept: dict[int, Array] = {}

    def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        number = int(inputs["x"][0])
        with self._changed:
            self.entered.append(number)
            assert self._changed.wait_for(lambda: number in self._through, DEADLINE_S)
        if number in self.kept:
            self.kept[number] = inputs["x"]
        return {"y": inputs["x"] * 10}

    def let_through(self, *numbers: int) -> None:
        with self._changed:
            self._through.update(numbers)
            self._changed.notify_all()

    def wait_until_entered(self, *numbers: int) -> None:
        wait_until(lambda: sorted(self.entered) == sorted(numbers), f"{numbers} run")


@pytest.fixture
def doors() -> Iterator[Doors]:
    doors = Doors()
    yield doors
    doors.let_through(*range(100))


def number(value: int) -> Array:
    return np.array([value])


def give(broker: Broker, *numbers: int) -> None:
    """Batches whose ids, and whose only inputs, are these numbers."""
    for n in numbers:
        broker.send(batch_id=n, x=number(n), offset=4096 * n)


def answered(broker: Broker) -> tuple[int, list[int]]:
    """The next packet, which must say that a batch ran: its id and its output."""
    done = broker.done()
    return done.batch_id, broker.outputs(done)["y"].tolist()


def test_a_worker_without_batches_says_so(broker: Broker, doors: Doors) -> None:
    broker.serve(doors)
    doors.let_through(1)
    broker.die()
    broker.come_back()
    assert broker.resumed() == ([], [])
    give(broker, 1)
    assert answered(broker) == (1, [10])


def test_a_batch_that_runs_is_told_of_and_answered(broker: Broker, doors: Doors) -> None:
    broker.serve(doors)
    give(broker, 3)
    doors.let_through(3)
    assert answered(broker) == (3, [30])
    broker.send(batch_id=4, x=number(4), offset=4096, rows=2, output_nbytes=512)
    doors.wait_until_entered(3, 4)
    broker.die()
    broker.come_back()
    packet, _ = broker.receive()
    (execute,) = work.Resumed.from_wire(packet).batches
    # The packet that the last broker sent, word for word.
    assert (execute.batch_id, execute.rows, execute.output_nbytes) == (4, 2, 512)
    assert (execute.block, execute.origins) == ([4096, 1024], [[4, 0, 1, 0, 2]])
    doors.let_through(4)
    assert answered(broker) == (4, [40])


def test_batches_that_wait_are_told_of_and_run_in_their_order(broker: Broker, doors: Doors) -> None:
    broker.serve(doors)
    give(broker, 1, 2, 3)
    doors.wait_until_entered(1)
    broker.die()
    # Although nobody reads from the old link while the first batch runs.
    broker.come_back()
    assert broker.resumed() == ([1, 2, 3], [])
    give(broker, 4)
    doors.let_through(1, 2, 3, 4)
    assert [answered(broker)[0] for _ in range(4)] == [1, 2, 3, 4]
    assert doors.entered == [1, 2, 3, 4]


def test_an_answer_in_vain_is_given_again_once(broker: Broker, doors: Doors) -> None:
    broker.serve(doors)
    give(broker, 1, 2)
    doors.wait_until_entered(1)
    broker.die()
    doors.let_through(1)
    # It goes on with the next at once.
    doors.wait_until_entered(1, 2)
    broker.come_back()
    assert broker.resumed() == ([1, 2], [])
    assert answered(broker) == (1, [10])
    doors.let_through(2)
    assert answered(broker) == (2, [20])
    broker.die()
    broker.come_back()
    assert broker.resumed() == ([], [])
    give(broker, 3)
    doors.wait_until_entered(1, 2, 3)
    assert broker.hears_nothing()


def test_an_answer_in_vain_comes_with_its_memfd(broker: Broker, doors: Doors) -> None:
    before = len(os.listdir("/proc/self/fd"))
    broker.serve(doors)
    broker.send(batch_id=1, x=number(1), output_nbytes=0)
    doors.wait_until_entered(1)
    broker.die()
    doors.let_through(1)
    wait_until(lambda: broker.answers.in_vain, "the answer is in vain")
    broker.come_back()
    assert broker.resumed() == ([1], [])
    assert from_memfd(broker, *broker.receive()) == [10]
    give(broker, 2)
    doors.let_through(2)
    assert answered(broker) == (2, [20])
    assert len(os.listdir("/proc/self/fd")) == before


def test_inputs_that_are_kept_are_told_of_with_their_block(broker: Broker, doors: Doors) -> None:
    doors.kept = {1: number(0), 2: number(0)}
    doors.let_through(1, 2)
    broker.serve(doors)
    give(broker, 1, 2)
    for _ in range(2):
        assert broker.done().kept
    broker.die()
    # Nobody can be told now, and the next broker need not be.
    del doors.kept[1]
    broker.come_back()
    packet, _ = broker.receive()
    resumed = work.Resumed.from_wire(packet)
    assert (resumed.batches, resumed.kept) == ([], [[2, 2 * 4096, 1024]])
    del doors.kept[2]
    assert broker.receive() == ([work.Kind.RELEASED, 2], [])
    broker.die()
    broker.come_back()
    assert broker.resumed() == ([], [])


@pytest.mark.parametrize("let_go", [True, False])
def test_an_answer_in_vain_says_what_is_kept_now(
    broker: Broker, doors: Doors, let_go: bool
) -> None:
    doors.kept = {1: number(0)}
    broker.serve(doors)
    give(broker, 1)
    doors.wait_until_entered(1)
    broker.die()
    doors.let_through(1)
    wait_until(lambda: broker.answers.in_vain, "the answer is in vain")
    if let_go:
        doors.kept.clear()
    broker.come_back()
    # Once: its answer says that it is kept.
    assert broker.resumed() == ([1], [])
    assert broker.done().kept != let_go
    if not let_go:
        doors.kept.clear()
        assert broker.receive() == ([work.Kind.RELEASED, 1], [])
    give(broker, 2)
    doors.let_through(2)
    assert answered(broker) == (2, [20])


def test_inputs_are_let_go_of_while_there_is_no_broker(broker: Broker) -> None:
    class Keeps:
        """Until it was asked often."""

        def __init__(self) -> None:
            self.kept: list[Array] = []
            self.asked = 0

        def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            self.kept.append(inputs["x"])
            return {}

        def let_go(self) -> None:
            self.asked += 1
            if self.asked == 6:
                self.kept.clear()

    model = Keeps()
    broker.serve(model)
    give(broker, 1)
    assert broker.done().kept
    broker.die()
    wait_until(lambda: model.asked >= 6, "it was asked to let go")
    broker.come_back()
    assert broker.resumed() == ([], [])


def test_regions_of_the_last_broker_serve_its_batches_only(broker: Broker, doors: Doors) -> None:
    broker.serve(doors)
    old = broker.attach(ONE)
    old[:16] = np.array([1, 2], np.int64).tobytes()
    for n in (1, 2):
        placed = [("x", "int64", (1,), ONE, 8 * (n - 1), 8)]
        replies = [(ONE, 64 * n, 64, 0, 1)]
        broker.send(batch_id=n, placed=placed, replies=replies, output_nbytes=0)
    doors.wait_until_entered(1)
    # After the batches that lie in the first, as it would be without the broker's end.
    other = broker.attach(2)
    broker.die()
    broker.come_back()
    packet, _ = broker.receive()
    # The client that has this region has another now: it would not look there.
    assert [each.replies for each in work.Resumed.from_wire(packet).batches] == [[], []]
    new = broker.attach(ONE)
    new[:16] = np.array([3, 4], np.int64).tobytes()
    placed = [("x", "int64", (1,), ONE, 0, 8)]
    broker.send(batch_id=3, placed=placed, replies=[(ONE, 64, 64, 0, 1)], output_nbytes=0)
    # No region of the new broker has this number.
    broker.send(batch_id=4, placed=[("x", "int64", (1,), 2, 0, 8)])
    doors.let_through(1, 2, 3)
    # Another thread gathers ahead, so that the order is open.
    found: dict[int, Any] = {}
    for _ in range(4):
        packet, fds = broker.receive()
        found[packet[1]] = packet[0] if not fds else from_memfd(broker, packet, fds)
    assert found == {1: [10], 2: [20], 3: work.Kind.DONE, 4: work.Kind.FAILED}
    assert bytes(old[64:]) == bytes(4096 - 64)
    assert np.frombuffer(new[64:72], np.int64) == [30]
    assert sorted(doors.entered) == [1, 2, 3]
    assert bytes(other) == bytes(4096)
    wait_until(lambda: mapped_regions() == 3 + 1, "the old one is unmapped")


def test_replies_that_are_being_written_stay_where_they_are(broker: Broker) -> None:
    execute = work.Execute(
        batch_id=1,
        model="m",
        version=7,
        signature="s",
        rows=1,
        padded_rows=1,
        alone=False,
        inputs=[],
        copies=[],
        output_offset=0,
        output_nbytes=0,
        replies=[(ONE, 0, 64, 0, 1)],
        block=(0, 64),
        origins=[],
    )
    broker.answers.given(execute)
    broker.answers.replying(execute)
    broker.die()
    broker.come_back()
    packet, _ = broker.receive()
    assert work.Resumed.from_wire(packet).batches[0].replies == [[ONE, 0, 64, 0, 1]]


def from_memfd(broker: Broker, packet: list[Any], fds: list[int]) -> Any:
    """The output that came beside the packet."""
    (fd,) = fds
    mapping = arena.Mapping(fd)
    os.close(fd)
    output = broker.outputs(work.Done.from_wire(packet), mapping.memory)["y"].tolist()
    mapping.close()
    return output


def mapped_regions() -> int:
    """How many mappings of test regions this process has."""
    with open("/proc/self/maps") as maps:
        return sum("test-region" in line for line in maps)


def test_brokers_that_die_at_once_are_outlived(broker: Broker, doors: Doors) -> None:
    broker.serve(doors)
    give(broker, 1, 2)
    doors.wait_until_entered(1)
    broker.die()
    for _ in range(2):
        # Dead before it could be told anything.
        ours, theirs = Link.pair()
        ours.close()
        broker.intake.resume(theirs)
    broker.come_back()
    assert broker.resumed() == ([1, 2], [])
    give(broker, 3)
    broker.die()
    broker.come_back()
    assert broker.resumed() == ([1, 2, 3], [])
    doors.let_through(1, 2, 3)
    assert [answered(broker)[0] for _ in range(3)] == [1, 2, 3]


def test_a_link_whose_other_end_lives_is_left_all_the_same(broker: Broker, doors: Doors) -> None:
    """A stopped process may hold it, or a packet that nobody has read."""
    broker.serve(doors, threads=2)
    give(broker, 1, 2, 3)
    doors.wait_until_entered(1, 2)
    old = broker.link
    broker.come_back()
    assert broker.resumed() == ([1, 2, 3], [])
    doors.let_through(1, 2, 3)
    assert sorted(answered(broker)[0] for _ in range(3)) == [1, 2, 3]
    old.close()


def test_many_threads_come_over_together(broker: Broker, doors: Doors) -> None:
    """Each batch is answered once, whatever was done while brokers came and went."""
    doors.let_through(*range(1, 10))
    broker.serve(lambda inputs: {"y": inputs["x"] * 10}, threads=4)
    broker.attach(ONE)
    last = 0
    open_batches: set[int] = set()
    for broker_number in range(20):
        for _ in range(5):
            last += 1
            broker.send(batch_id=last, x=number(last), offset=4096 * (last % 100), output_nbytes=64)
            open_batches.add(last)
        # Some are answered, and some of the answers read.
        for _ in range(broker_number % 3):
            open_batches.remove(broker.done().batch_id)
        while not broker.hears_nothing():
            open_batches.remove(broker.done().batch_id)
        broker.die()
        broker.come_back()
        batches, kept = broker.resumed()
        assert not kept
        # The others' answers were lost with the broker.
        assert set(batches) <= open_batches
        open_batches = set(batches)
    while open_batches:
        open_batches.remove(broker.done().batch_id)
    assert broker.hears_nothing()
    assert broker.answers.idle
