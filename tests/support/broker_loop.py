"""A broker's loop on a thread of this process; the test is its clients, workers and supervisor."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from support.broker_builders import make_model, make_ready, make_report
from support.waiting import DEADLINE_S

from batchyard.broker.catalog import Catalog
from batchyard.broker.front import Front
from batchyard.broker.local_front import LocalFront
from batchyard.broker.loop import BrokerLoop
from batchyard.broker.state import BrokerState
from batchyard.wire import arena, control, local, protocol, work
from batchyard.wire.access import Access
from batchyard.wire.errors import BatchyardError
from batchyard.wire.link import Link
from batchyard.wire.local import LocalSocket
from batchyard.wire.protocol import MessageType
from batchyard.wire.tensors import Buffer

ARENA_NBYTES = 1 << 20
REGION_NBYTES = 1 << 16


class WorkerEnd:
    """A worker's end of its link."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.regions: dict[int, arena.Mapping] = {}

    def receive(self) -> list[Any]:
        """The next packet; regions that come are mapped."""
        assert select.select([self.link], [], [], DEADLINE_S)[0], "no packet for the worker"
        packet, fds = self.link.receive()
        if packet[0] == work.Kind.ATTACH:
            self.regions[packet[1]] = arena.Mapping(fds[0])
            os.close(fds[0])
        elif packet[0] == work.Kind.DETACH:
            self.regions.pop(packet[1]).close()
        else:
            assert fds == []
        return list(packet)

    def execute(self) -> work.Execute:
        """The next packet, which must be a batch."""
        packet = self.receive()
        assert packet[0] == work.Kind.EXECUTE, packet
        execute = work.Execute.from_wire(packet)
        # As they were sent: msgpack has arrays only, which come back as lists.
        execute.inputs = [(n, d, tuple(s), m, o, b) for n, d, s, m, o, b in execute.inputs]
        execute.copies = [(r, o, t, b) for r, o, t, b in execute.copies]
        execute.replies = [(r, o, b, first, rows) for r, o, b, first, rows in execute.replies]
        execute.origins = [
            (m, first, n, start, rows) for m, first, n, start, rows in execute.origins
        ]
        return execute

    def done(
        self,
        execute: work.Execute,
        outputs: Sequence[work.PlacedOutput] = (),
        replied: bool = False,
    ) -> None:
        """Says that a batch ran."""
        done = work.Done(execute.batch_id, list(outputs), False, replied, False, 0.001)
        self.link.send(done.to_wire())

    def ready(self, *versions: int) -> None:
        """Says that it serves these versions of ``m``."""
        reports = [make_report(version=version) for version in versions or (1,)]
        self.link.send(make_ready(*reports).to_wire())

    def resumed(self, *batches: work.Execute, kept: Sequence[tuple[int, int, int]] = ()) -> None:
        """Says what it still has of a broker before."""
        self.link.send(work.Resumed(list(batches), list(kept)).to_wire())

    def failed(self, execute: work.Execute, error: BatchyardError) -> None:
        """Says that a batch raised."""
        failed = work.Failed(execute.batch_id, error.number, error.message, False)
        self.link.send(failed.to_wire())

    def hears_nothing(self) -> bool:
        """Whether no packet waits."""
        return not select.select([self.link], [], [], 0)[0]

    def close(self) -> None:
        """Dies."""
        self.link.close()
        for mapping in self.regions.values():
            mapping.close()
        self.regions.clear()


class LocalEnd:
    """A client's end of its local socket."""

    def __init__(self, found: LocalSocket) -> None:
        self.socket = found
        self.region: arena.Mapping | None = None

    def send(self, header: bytes, *frames: Buffer) -> None:
        """Sends a message."""
        assert self.socket.send(header, frames)

    def receive(self) -> tuple[MessageType, list[Any], list[Buffer]]:
        """The next message; LocalClosed at the end of file."""
        assert select.select([self.socket], [], [], DEADLINE_S)[0], "no message for the client"
        message = self.socket.receive_with_fd()
        assert message is not None
        header, frames, fd = message
        if fd is not None:
            self.region = arena.Mapping(fd)
            os.close(fd)
        return *protocol.decode(header), frames

    @property
    def memory(self) -> memoryview:
        """The region's."""
        assert self.region is not None
        return self.region.memory

    def hears_nothing(self) -> bool:
        """Whether no message waits."""
        return not select.select([self.socket], [], [], 0)[0]

    def close(self) -> None:
        """Goes without a word."""
        self.socket.close()
        if self.region is not None:
            self.region.close()
            self.region = None


class LoopInThread:
    """Model ``m`` of the default signature, served by as many workers as are attached.

    With ``awaited``, a broker that is started anew: these workers served the one before.
    """

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        regions_max: int = 8,
        awaited: Sequence[int] = (),
        **parameters: Any,
    ) -> None:
        self.endpoint = f"ipc://{folder}/broker"
        fd = arena.create_memfd(ARENA_NBYTES, "test-arena")
        self.arena = arena.Mapping(fd)
        os.close(fd)
        stack.callback(self.arena.close)
        self.front = Front(1 << 30)
        stack.callback(self.front.close)
        epoll = select.epoll()
        stack.callback(epoll.close)
        self.local_front = LocalFront(epoll, REGION_NBYTES, regions_max)
        stack.callback(self.local_front.close)
        self.front.bind([self.endpoint], Access(0o600))
        self.local_front.listen([self.endpoint], Access(0o600))
        self.supervisor, theirs = Link.pair()
        catalog = Catalog(ARENA_NBYTES)
        catalog.add(make_model(**parameters))
        if awaited:
            # The supervisor knows it of the broker before.
            catalog.learn(make_report())
        state = BrokerState(catalog, ARENA_NBYTES, 1 << 30, awaited=awaited)
        self.loop = BrokerLoop(
            state,
            self.front,
            self.local_front,
            epoll,
            self.arena,
            theirs,
            1 << 30,
            is_restarted=bool(awaited),
        )
        self._thread = threading.Thread(target=self.loop.run)
        stack.callback(theirs.close)
        stack.callback(self.loop.close)
        # Clients and workers are there still when the loop ends.
        self._ends = stack.enter_context(ExitStack())
        stack.callback(self._stop)
        self._thread.start()

    def _stop(self) -> None:
        self.supervisor.close()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    @property
    def is_running(self) -> bool:
        """Whether the loop has not ended."""
        return self._thread.is_alive()

    def attach(self, worker_id: int = 0, slot: int | None = None, restarts: int = 0) -> WorkerEnd:
        """A worker that was started, in a slot of its own if none is given."""
        ours, theirs = Link.pair()
        place = worker_id if slot is None else slot
        packet = [control.Kind.ATTACH, worker_id, place, os.getpid(), "cpu", 1, restarts]
        self.supervisor.send(packet, [theirs.fileno()])
        theirs.close()
        end = WorkerEnd(ours)
        self._ends.callback(end.close)
        return end

    def worker(
        self,
        worker_id: int = 0,
        slot: int | None = None,
        restarts: int = 0,
        versions: Sequence[int] = (1,),
    ) -> WorkerEnd:
        """A worker that is ready."""
        end = self.attach(worker_id, slot, restarts)
        end.ready(*versions)
        self.hears_ready(worker_id)
        return end

    def hears_ready(self, worker_id: int) -> None:
        """The supervisor is told that a worker is ready, and what it said of its models."""
        kind, told, reports = self.told()
        assert (kind, told) == (control.Kind.READY, worker_id)
        assert [report["name"] for report in reports] == ["m"] * len(reports)

    def told(self) -> list[Any]:
        """The next packet for the supervisor, but for those that a worker got its first batch."""
        while True:
            assert select.select([self.supervisor], [], [], DEADLINE_S)[0], "it is told nothing"
            packet = list(self.supervisor.receive()[0])
            if packet[0] != control.Kind.SERVED:
                return packet

    def reap(self, worker_id: int, why: str = "signal 9", comes_back: bool = True) -> None:
        """A worker's process is gone."""
        self.supervisor.send([control.Kind.REAPED, worker_id, why, comes_back])

    def client(self, by_name: bool = False) -> LocalEnd:
        """A client that was welcomed."""
        address = f"\0{self.local_front.name}" if by_name else local.socket_path(self.endpoint)
        assert address is not None
        found = local.connect(address)
        assert found is not None
        end = LocalEnd(found)
        self._ends.callback(end.close)
        type_, body, frames = end.receive()
        assert (type_, body[2], frames) == (MessageType.WELCOME, self.local_front.name, [])
        return end


@contextlib.contextmanager
def broker_loop(
    folder: Path, regions_max: int = 8, awaited: Sequence[int] = (), **parameters: Any
) -> Iterator[LoopInThread]:
    """A loop that has ended, with everything closed, at the end of the block."""
    with ExitStack() as stack:
        yield LoopInThread(folder, stack, regions_max, awaited, **parameters)
