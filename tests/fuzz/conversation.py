"""A broker's loop without sockets: clients that say what a fuzzer made, and a worker that runs
whatever comes of it. Every request is answered once."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

from fuzz.served import ARENA_NBYTES, fuzzed_reports, make_fuzzed_catalog, make_fuzzed_region

from batchyard.broker import events
from batchyard.broker.loop import BrokerLoop
from batchyard.broker.state import BrokerState
from batchyard.broker.worker_link import WorkerLink
from batchyard.wire import protocol, work
from batchyard.wire.arena import Mapping, create_memfd
from batchyard.wire.errors import BY_NUMBER, BatchyardError
from batchyard.wire.protocol import MessageType
from batchyard.wire.tensors import Buffer

_TURNS_MAX = 200_000
_QUEUE_NBYTES = 1 << 16
_MESSAGE_NBYTES = 1 << 15


@cache
def _arena() -> Mapping:
    return Mapping(create_memfd(ARENA_NBYTES, "fuzz-arena"))


class Front:
    """Takes note of what is sent."""

    name = "fuzz"
    gate = None

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes, list[Buffer]]] = []

    def send(self, client: bytes, header: bytes, frames: list[Buffer]) -> list[Any]:
        self.sent.append((client, header, [bytes(frame) for frame in frames]))
        return []

    def knows(self, key: bytes) -> bool:
        return False

    def clients(self) -> list[bytes]:
        return []

    def regions(self) -> dict[str, int]:
        return {}

    def attach(self, worker: Any, key: bytes) -> None: ...


class Worker(WorkerLink):
    """Gets batches, which run when they are asked to."""

    def __init__(self) -> None:
        nobody: Any = None
        super().__init__(0, 0, 1, "cpu", 1, nobody, nobody, serves=True)
        self.batches: list[work.Execute] = []

    def send(self, packet: list[Any], fds: list[int]) -> None:
        assert packet[0] == work.Kind.EXECUTE
        self.batches.append(work.Execute.from_wire(packet))


class Conversation:
    """A broker that has just started."""

    def __init__(self) -> None:
        self.front, self.worker = Front(), Worker()
        front: Any = self.front
        nobody: Any = None
        state = BrokerState(make_fuzzed_catalog(is_served=False), ARENA_NBYTES, _QUEUE_NBYTES)
        self.loop = BrokerLoop(state, front, front, nobody, _arena(), nobody, _MESSAGE_NBYTES)
        self.loop.workers[0] = self.worker
        ready = work.Ready("cpu", fuzzed_reports())
        self.loop._apply(events.WorkerReady(0, 1, ready, 0))
        self._region = make_fuzzed_region()
        # Requests of messages that can be told apart, by client and message.
        self._expected: dict[tuple[bytes, int], int] = {}
        self._lenient: set[tuple[bytes, int]] = set()
        self._gone: set[bytes] = set()

    def hear(self, client: bytes, is_near: bool, header: bytes, frames: list[bytes]) -> None:
        """A message comes; half of the time a batch runs afterwards."""
        self._take_note(client, header)
        region = self._region if is_near else None
        self.loop._clients._serve_message(client, region, header, list(frames))
        self.loop._apply(events.TimePassed())
        if len(self.front.sent) % 2:
            self._run_one()

    def _take_note(self, client: bytes, header: bytes) -> None:
        try:
            type_, body = protocol.decode(header)
        except BatchyardError:
            return
        message_id = protocol.message_id_of(body)
        if type_ is MessageType.GOODBYE:
            self._gone.add(client)
        elif type_ is MessageType.CANCEL:
            self._lenient |= {key for key in self._expected if key[0] == client}
        elif type_ in (MessageType.PREDICT, MessageType.QUERY) and message_id is not None:
            key = client, message_id
            if key in self._expected:
                self._lenient.add(key)
            count = 1
            if type_ is MessageType.PREDICT:
                try:
                    count = protocol.decode_predict(body).count
                except BatchyardError:
                    count = 0
            self._expected[key] = count

    def _run_one(self) -> None:
        if not self.worker.batches:
            return
        execute = self.worker.batches.pop(0)
        nbytes = 4 * execute.padded_rows
        assert execute.output_offset >= 0
        assert execute.output_offset + execute.output_nbytes <= ARENA_NBYTES
        if nbytes > execute.output_nbytes:
            packet = work.Failed(execute.batch_id, 8, "no room", False).to_wire()
        else:
            shape = (execute.padded_rows,)
            output = ("y", "float32", shape, execute.output_offset, nbytes)
            packet = work.Done(execute.batch_id, [output], False, False, False, 0.0).to_wire()
        self.loop._workers._serve_packet(self.worker, packet, [])
        self.loop._apply(events.TimePassed())

    def end(self) -> None:
        """All that was accepted runs; then every request has its answer, and nothing is held."""
        for _ in range(_TURNS_MAX):
            if not self.worker.batches:
                break
            self._run_one()
        state = self.loop.state
        assert state.is_idle
        assert state.allocator.used_nbytes == 0
        assert state.queue_nbytes == 0
        self._check_answers()

    def _check_answers(self) -> None:
        answered: Counter[tuple[bytes, int, int]] = Counter()
        for client, header, frames in self.front.sent:
            type_, body = protocol.decode(header)
            if type_ is MessageType.RESULT:
                result = protocol.decode_result(body)
                assert len(frames) == (0 if result.in_region else len(result.outputs))
                segments = result.segments
            elif type_ is MessageType.ERROR:
                failure = protocol.decode_error(body)
                assert failure.number in BY_NUMBER
                assert failure.message
                segments = failure.segments
            elif type_ is MessageType.ANSWER:
                segments = [(body[0], 0, 1)]
            else:
                assert type_ is MessageType.WELCOME
                continue
            for message_id, first, count in segments:
                known = self._expected[client, message_id]
                for request in range(first, first + count) if count else range(max(known, 1)):
                    answered[client, message_id, request] += 1
        for (client, message_id), count in self._expected.items():
            if client in self._gone or (client, message_id) in self._lenient:
                continue
            times = [answered[client, message_id, i] for i in range(max(count, 1))]
            assert set(times) == {1}, f"{message_id}: {times[:9]}"
