"""Batches come to a worker's threads with the memory that they may touch."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from support.descriptors import no_descriptors_leak
from support.waiting import DEADLINE_S

from batchyard.pool.worker.answers import Answers
from batchyard.pool.worker.intake import Assignment, Ended, Intake
from batchyard.wire import arena, work
from batchyard.wire.link import Link

ARENA_NBYTES = 4096


class Sender:
    """The broker's end, and an intake at the other."""

    def __init__(self) -> None:
        fd = arena.create_memfd(ARENA_NBYTES, "test-arena")
        self.arena = arena.Mapping(fd)
        os.close(fd)
        self.link, workers = Link.pair()
        self.began = 0
        self.intake = Intake(workers, self.arena.memory, Answers(workers), self._begin)

    def _begin(self) -> None:
        self.began += 1

    def attach(self, region: int, fill: int) -> None:
        """A region of 128 bytes ``fill``."""
        fd = arena.create_memfd(128, "test-region")
        mapping = arena.Mapping(fd)
        mapping.memory[:] = bytes([fill]) * 128
        mapping.close()
        self.link.send(work.Attach(region).to_wire(), [fd])
        os.close(fd)

    def detach(self, region: int) -> None:
        self.link.send(work.Detach(region).to_wire())

    def execute(self, batch_id: int, *regions: int, copies: int = 0, replies: int = 0) -> None:
        """A batch with an input in each of the regions, copies from one, replies to another."""
        inputs: list[work.PlacedInput] = [
            ("x", "uint8", (1,), region, 0, 1) for region in (work.ARENA, *regions)
        ]
        execute = work.Execute(
            batch_id=batch_id,
            model="m",
            version=1,
            signature="s",
            rows=1,
            padded_rows=1,
            alone=False,
            inputs=inputs,
            copies=[(copies, 0, 0, 1)] if copies else [],
            output_offset=0,
            output_nbytes=0,
            replies=[(replies, 0, 1, 0, 1)] if replies else [],
            block=(0, 64),
            origins=[(batch_id, 0, 1, 0, 1)],
        )
        self.link.send(execute.to_wire())

    def next(self) -> Assignment:
        return self.intake.next()

    def close(self) -> None:
        self.link.close()
        # With the regions that are attached still.
        self.intake.close()
        self.arena.close()


@pytest.fixture
def sender() -> Iterator[Sender]:
    with no_descriptors_leak():
        made = Sender()
        yield made
        made.close()


def mapped_regions() -> int:
    """How many mappings of test regions this process has."""
    with open("/proc/self/maps") as maps:
        return sum("test-region" in line for line in maps)


def test_a_batch_without_regions_has_the_arena(sender: Sender) -> None:
    sender.execute(7)
    assignment = sender.next()
    assert (assignment.execute.batch_id, assignment.regions) == (7, {})
    assert assignment.memory(work.ARENA).nbytes == ARENA_NBYTES
    sender.arena.memory[5] = 9
    assert assignment.arena[5] == 9
    assert sender.began == 0


def test_a_batch_has_the_regions_that_it_speaks_of_and_no_others(sender: Sender) -> None:
    for region in range(1, 6):
        sender.attach(region, fill=region)
    sender.execute(1, 1, copies=2, replies=3)
    sender.execute(2)
    first, second = sender.next(), sender.next()
    assert sorted(first.regions) == [1, 2, 3]
    assert [first.memory(region)[0] for region in (1, 2, 3)] == [1, 2, 3]
    assert second.regions == {}


def test_each_batch_has_views_of_its_own(sender: Sender) -> None:
    # By which it is known what a batch's model holds on to.
    sender.attach(1, fill=1)
    sender.execute(1, 1)
    sender.execute(2, 1)
    first, second = sender.next(), sender.next()
    assert first.arena is not second.arena
    assert first.regions[1] is not second.regions[1]
    assert np.shares_memory(first.regions[1], second.regions[1])


def test_only_the_first_region_is_told_of(sender: Sender) -> None:
    sender.attach(1, fill=1)
    sender.attach(2, fill=2)
    sender.detach(1)
    sender.attach(3, fill=3)
    sender.execute(1)
    sender.next()
    assert sender.began == 1


def test_a_region_that_is_detached_goes_when_its_last_batch_does(sender: Sender) -> None:
    before = mapped_regions()
    sender.attach(1, fill=42)
    sender.execute(1, 1)
    sender.detach(1)
    sender.execute(2, 1)
    first, second = sender.next(), sender.next()
    # It came before the region went, and reads it still.
    assert first.regions[1][127] == 42
    assert second.regions == {}
    assert mapped_regions() == before + 1
    del first
    assert mapped_regions() == before


def test_a_region_that_nobody_reads_goes_at_once(sender: Sender) -> None:
    before = mapped_regions()
    sender.attach(1, fill=1)
    sender.detach(1)
    # One that was never attached is nothing to speak of.
    sender.detach(9)
    sender.execute(1)
    sender.next()
    assert mapped_regions() == before


def test_a_region_may_come_again_under_another_number(sender: Sender) -> None:
    sender.attach(1, fill=1)
    sender.detach(1)
    sender.attach(2, fill=2)
    sender.execute(1, 1, 2)
    assert {region: array[0] for region, array in sender.next().regions.items()} == {2: 2}


@pytest.mark.parametrize("what", ["unsealed", "no file", "none"])
def test_a_region_that_cannot_be_mapped_is_missing(
    sender: Sender, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fds = []
    if what == "unsealed":
        fds = [os.memfd_create("test")]
        os.ftruncate(fds[0], 128)
    elif what == "no file":
        fds = [os.open("/dev/null", os.O_RDWR)]
    sender.link.send(work.Attach(1).to_wire(), fds)
    for fd in fds:
        os.close(fd)
    sender.attach(2, fill=2)
    sender.execute(1, 1, 2)
    assert sorted(sender.next().regions) == [2]
    sender.detach(1)
    sender.execute(2)
    assert sender.next().execute.batch_id == 2


def test_threads_get_each_batch_once_and_after_its_region(sender: Sender) -> None:
    seen: list[tuple[int, int]] = []

    def take() -> None:
        try:
            while True:
                assignment = sender.next()
                region = assignment.execute.batch_id
                seen.append((region, int(assignment.regions[region][0])))
        except Ended:
            return

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for region in range(1, 60):
        sender.attach(region, fill=region)
        sender.execute(region, region)
        sender.detach(region)
    sender.intake.end()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert sorted(seen) == [(region, region) for region in range(1, 60)]
