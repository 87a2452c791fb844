"""Requests with ids and traces through the broker's loop: to the worker, and back with timings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.broker_builders import make_rows, make_target
from support.broker_loop import LocalEnd, LoopInThread, broker_loop

from batchyard.wire import control, log, protocol, work
from batchyard.wire.log import LogSettings
from batchyard.wire.protocol import MessageType, Result
from batchyard.wire.tags import Tag

TRACED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Y = [("y", "float32", (4, 16), None, 0)]


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[LoopInThread]:
    with broker_loop(tmp_path, batch_timeout_micros=60_000_000) as made:
        yield made


def send(client: LocalEnd, message_id: int, requests: int, *tags: Tag) -> None:
    header = protocol.encode_predict(message_id, make_target(), requests, None, tags=tags)
    client.send(header, make_rows(requests))


def result_of(client: LocalEnd) -> Result:
    type_, body, _ = client.receive()
    assert type_ is MessageType.RESULT, body
    return protocol.decode_result(body)


def test_who_traces_is_told_where_the_time_went(loop: LoopInThread) -> None:
    worker, client, other = loop.worker(), loop.client(), loop.client()
    send(client, 1, 1, Tag(0, 1, "a", None))
    send(client, 2, 2, Tag(1, 1, None, TRACED))
    send(other, 3, 1)
    execute = worker.execute()
    # With and without tags: one batch.
    assert execute.rows == 4
    assert execute.request_ids == ["a"]
    output = execute.output_offset
    worker.done(execute, [("y", "float32", (4, 16), output, 4 * 64)])
    result = result_of(client)
    assert [message_id for message_id, _, _ in result.segments] == [1, 2]
    (timing,) = result.timings
    assert timing.segment == 1
    assert (timing.batch_rows, timing.padded_rows, timing.worker) == (4, 4, 0)
    # What ``done`` says, unless the two clocks measured less.
    assert 0 <= timing.execute_us <= 1000
    assert min(timing.queue_us, timing.gather_us, timing.wait_us) >= 0
    assert result_of(other).timings == ()


def test_without_ids_workers_are_told_as_ever(loop: LoopInThread) -> None:
    worker, client = loop.worker(), loop.client()
    send(client, 1, 4, Tag(0, 4, None, TRACED))
    packet = worker.receive()
    assert len(packet) == 15
    assert work.Execute.from_wire(packet).request_ids == ()


def test_slow_requests_are_told_from_when_the_supervisor_says_so(
    loop: LoopInThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[LogSettings] = []
    monkeypatch.setattr(log, "configure", lambda _, given: settings.append(given) or given)
    worker, client = loop.worker(), loop.client()
    loop.supervisor.send([control.Kind.LOG, "json", "error", 0.001])
    loop.supervisor.send([control.Kind.PING])
    assert loop.told() == [control.Kind.PONG, 0]
    assert settings == [LogSettings("json", "error", 0.001)]
    told: list[dict[str, object]] = []
    monkeypatch.setattr(log, "warning", lambda event, **fields: told.append(fields))
    send(client, 1, 4, Tag(0, 2, "a", None), Tag(2, 1, "b", None))
    execute = worker.execute()
    worker.done(execute, [("y", "float32", (4, 16), execute.output_offset, 4 * 64)])
    result_of(client)
    loop.supervisor.send([control.Kind.LOG, "json", "error", 0.0])
    loop.supervisor.send([control.Kind.PING])
    assert loop.told() == [control.Kind.PONG, 0]
    assert [(fields["request_id"], fields["requests"]) for fields in told] == [("a,b", 4)]
