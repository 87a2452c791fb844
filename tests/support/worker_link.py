"""The broker's end of a worker's link; and one with the worker's threads in this process."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt
from support.waiting import DEADLINE_S

from batchyard.pool.worker import execution
from batchyard.pool.worker.answers import Answers
from batchyard.pool.worker.intake import Ended, Intake
from batchyard.pool.worker.turns import Turns
from batchyard.wire import arena, dtypes, work
from batchyard.wire.link import Link
from batchyard.wire.signatures import SignatureSpec
from batchyard.wire.tensors import decode, encode

Array = npt.NDArray[Any]
Function = Callable[[Mapping[str, Array]], Mapping[str, Any]]
ARENA_NBYTES = 1 << 20
OUTPUT_OFFSET = ARENA_NBYTES // 2


class Model:
    """A callable as ``LoadedModel``."""

    signatures: Sequence[SignatureSpec] = ()
    signature_def = b""
    stateful = False
    bears_changing_inputs = any_thread = True
    device_arrays = False

    def __init__(self, function: Function) -> None:
        self._function = function

    def let_go(self) -> None:
        let_go = getattr(self._function, "let_go", None)
        if let_go is not None:
            let_go()

    def run(self, signature: str, inputs: Mapping[str, Array]) -> Sequence[tuple[str, Array]]:
        assert signature == "s"
        return list(self._function(inputs).items())


class BrokersEnd:
    """The other end of a worker's link: it lays batches out and reads what comes back."""

    def __init__(self) -> None:
        fd = arena.create_memfd(ARENA_NBYTES, "test-arena")
        self.arena = arena.Mapping(fd)
        os.close(fd)
        self.link, self.workers_link = Link.pair()
        self._regions: list[arena.Mapping] = []

    def die(self) -> None:
        """Closes the broker's end, as its death does."""
        self.link.close()

    def attach(self, region: int, nbytes: int = 4096) -> memoryview:
        """Gives the worker a region; its memory."""
        fd = arena.create_memfd(nbytes, "test-region")
        mapping = arena.Mapping(fd)
        self._regions.append(mapping)
        self.link.send(work.Attach(region).to_wire(), [fd])
        os.close(fd)
        return mapping.memory

    def detach(self, region: int) -> None:
        """Has the worker let go of a region."""
        self.link.send(work.Detach(region).to_wire())

    def send(
        self,
        batch_id: int = 1,
        output_nbytes: int = OUTPUT_OFFSET,
        model: str = "m",
        version: int = 7,
        signature: str = "s",
        offset: int = 0,
        rows: int = 1,
        padded_rows: int | None = None,
        alone: bool = False,
        placed: Sequence[work.PlacedInput] = (),
        copies: Sequence[tuple[int, int, int, int]] = (),
        replies: Sequence[tuple[int, int, int, int, int]] = (),
        **inputs: Array,
    ) -> None:
        """Writes inputs into the arena, from ``offset`` on, and has them run with those that are
        ``placed`` already."""
        places = list(placed)
        block = offset, 1024
        for name, array in inputs.items():
            dtype = dtypes.from_numpy(array.dtype) or ""
            frame = encode(array, dtype)
            self.arena.memory[offset : offset + len(frame)] = frame
            places.append((name, dtype, array.shape, work.ARENA, offset, len(frame)))
            offset += arena.align(len(frame))
        execute = work.Execute(
            batch_id=batch_id,
            model=model,
            version=version,
            signature=signature,
            rows=rows,
            padded_rows=rows if padded_rows is None else padded_rows,
            alone=alone,
            inputs=places,
            copies=list(copies),
            output_offset=OUTPUT_OFFSET,
            output_nbytes=output_nbytes,
            replies=list(replies),
            block=block,
            origins=[(batch_id, 0, 1, 0, rows)],
        )
        self.link.send(execute.to_wire())

    def receive(self) -> tuple[list[Any], list[int]]:
        """The next packet and its descriptors."""
        assert select.select([self.link], [], [], DEADLINE_S)[0], "the worker does not answer"
        return self.link.receive()

    def done(self) -> work.Done:
        """The next packet, which must say that a batch ran, without descriptors."""
        packet, fds = self.receive()
        assert (packet[0], fds) == (work.Kind.DONE, []), packet
        done = work.Done.from_wire(packet)
        # As they were sent: msgpack has arrays only, which come back as lists.
        done.outputs = [(n, d, tuple(s), offset, size) for n, d, s, offset, size in done.outputs]
        return done

    def failed(self) -> work.Failed:
        """The next packet, which must say that a batch raised."""
        packet, fds = self.receive()
        assert (packet[0], fds) == (work.Kind.FAILED, []), packet
        return work.Failed.from_wire(packet)

    def resumed(self) -> tuple[list[int], list[int]]:
        """The next packet, which must tell what the worker has of the last broker: the batches
        that it has not answered, and those whose inputs are kept."""
        packet, fds = self.receive()
        assert (packet[0], fds) == (work.Kind.RESUMED, []), packet
        resumed = work.Resumed.from_wire(packet)
        return [execute.batch_id for execute in resumed.batches], [kept[0] for kept in resumed.kept]

    def outputs(self, done: work.Done, memory: memoryview | None = None) -> dict[str, Array]:
        """The outputs that it tells of, as copies."""
        memory = self.arena.memory if memory is None else memory
        found = {}
        for name, dtype, shape, offset, nbytes in done.outputs:
            assert offset is not None, f"{name} is in regions only"
            found[name] = decode(bytes(memory[offset : offset + nbytes]), dtype, shape)
        return found

    def hears_nothing(self) -> bool:
        """Whether no packet waits."""
        return not select.select([self.link], [], [], 0)[0]

    def close(self) -> None:
        """Closes the link, and unmaps all."""
        self.link.close()
        for region in self._regions:
            region.close()
        self.arena.close()


class Broker(BrokersEnd):
    """A broker's end whose worker's threads are in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = Answers(self.workers_link)
        self.intake = Intake(
            self.workers_link, self.arena.memory, self.answers, self._begin, self._unload
        )
        self._models: dict[tuple[str, int], Model] = {}
        self._running = Turns(0)
        self._threads: list[threading.Thread] = []

    def serve(self, function: Function, threads: int = 1) -> None:
        """Has a worker's threads run ``function`` as model ``m`` version 7.

        With the first region one more begins, as in a worker; models run on ``threads`` of them.
        """
        self._models["m", 7] = Model(function)
        for _ in range(threads):
            self._running.release()
            self._begin()

    def _begin(self) -> None:
        def serve() -> None:
            with contextlib.suppress(Ended):
                execution.serve(self.intake, self.answers, self._models, self._running)

        thread = threading.Thread(target=serve)
        self._threads.append(thread)
        thread.start()

    def _unload(self, name: str, version: int) -> None:
        del self._models[name, version]

    def come_back(self) -> None:
        """Gives the worker a link to a broker started anew, which is this one from now on."""
        self.link, workers = Link.pair()
        self.intake.resume(workers)

    @property
    def threads(self) -> int:
        """How many threads serve."""
        return len(self._threads)

    def close(self) -> None:
        """Ends the worker's threads, as its supervisor does."""
        self.intake.end()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
        self.intake.close()
        super().close()


@contextlib.contextmanager
def worker_link() -> Iterator[Broker]:
    """A link whose worker's threads have ended at the end of the block."""
    broker = Broker()
    try:
        yield broker
    finally:
        broker.close()
