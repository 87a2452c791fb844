"""What clients and workers say to a broker's loop, of rows of the default signature."""

from __future__ import annotations

from support.broker_builders import make_rows, make_target
from support.broker_loop import LocalEnd, WorkerEnd

from batchyard.wire import protocol, work
from batchyard.wire.protocol import MessageType


def ask(client: LocalEnd, message_id: int, rows: int = 1, resent: bool = False) -> None:
    """A client sends a message of so many requests of a row each."""
    header = protocol.encode_predict(message_id, make_target(), rows, None, resent=resent)
    client.send(header, make_rows(rows))


def result_of(client: LocalEnd) -> list[protocol.Segment]:
    """What the next message answers, which must be outputs."""
    type_, body, _ = client.receive()
    assert type_ is MessageType.RESULT, body
    return protocol.decode_result(body).segments


def error_of(client: LocalEnd) -> protocol.Failure:
    """The next message, which must be an error."""
    type_, body, _ = client.receive()
    assert type_ is MessageType.ERROR
    return protocol.decode_error(body)


def done(worker: WorkerEnd, execute: work.Execute, arena: memoryview | None = None) -> None:
    """A worker answers a batch; sevens are its outputs if it is given the arena."""
    rows = execute.padded_rows
    if arena is not None:
        offset = execute.output_offset
        arena[offset : offset + 64 * rows] = make_rows(rows, 7.0)
    worker.done(execute, [("y", "float32", (rows, 16), execute.output_offset, 64 * rows)])
