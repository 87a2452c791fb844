"""The broker's loop when it goes on where another broker ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.broker_builders import make_rows
from support.broker_loop import LoopInThread, broker_loop
from support.descriptors import no_descriptors_leak
from support.loop_talk import ask, done, result_of
from support.waiting import wait_until

from batchyard.wire import control, protocol, work
from batchyard.wire.protocol import MessageType

ID = 1 << 50


@pytest.fixture
def restarted(tmp_path: Path) -> Iterator[LoopInThread]:
    """A broker after one that worker 0 served."""
    with no_descriptors_leak(), broker_loop(tmp_path, awaited=[0]) as made:
        yield made


def orphan(message_id: int, rows: int = 1, offset: int = 1024) -> work.Execute:
    """A batch of the broker before, of one message."""
    return work.Execute(
        batch_id=41,
        model="m",
        version=1,
        signature="serving_default",
        rows=rows,
        padded_rows=rows,
        alone=False,
        inputs=[("x", "float32", (rows, 16), work.ARENA, offset, 64 * rows)],
        copies=[],
        output_offset=offset + 64 * rows,
        output_nbytes=64 * rows + 64,
        replies=[],
        block=(offset, 64 * (2 * rows + 1)),
        origins=[(message_id, 0, rows, 0, rows)],
    )


def test_clients_are_not_heard_before_the_workers_have_told(restarted: LoopInThread) -> None:
    client = restarted.client()
    ask(client, 1)
    worker = restarted.attach()
    wait_until(lambda: 0 in restarted.loop.workers, "it is there")
    assert not restarted.loop.state.groups
    worker.resumed()
    wait_until(lambda: bool(restarted.loop.state.groups), "it has told, and clients are heard")
    assert worker.hears_nothing()
    worker.ready()
    restarted.hears_ready(0)
    done(worker, worker.execute())
    assert result_of(client) == [(1, 0, 1)]


def test_what_a_worker_still_runs_is_joined(restarted: LoopInThread) -> None:
    worker, client = restarted.attach(), restarted.client()
    execute = orphan(ID, rows=2)
    worker.resumed(execute)
    worker.ready()
    ask(client, ID, rows=2, resent=True)
    wait_until(lambda: bool(restarted.loop.state.groups), "it has come")
    assert worker.hears_nothing()
    done(worker, execute, restarted.arena.memory)
    type_, body, (frame,) = client.receive()
    assert (type_, protocol.decode_result(body).segments) == (MessageType.RESULT, [(ID, 0, 2)])
    assert bytes(frame) == make_rows(2, 7.0)


def test_outputs_that_came_before_their_client_are_kept_apart_from_the_arena(
    restarted: LoopInThread,
) -> None:
    worker, client = restarted.attach(), restarted.client()
    execute = orphan(ID)
    worker.resumed(execute)
    worker.ready()
    restarted.hears_ready(0)
    assert restarted.loop.state.allocator.used_nbytes == execute.block[1]
    done(worker, execute, restarted.arena.memory)
    wait_until(lambda: restarted.loop.state.allocator.used_nbytes == 0, "the block is free")
    offset = execute.output_offset
    restarted.arena.memory[offset : offset + 64] = bytes(64)
    ask(client, ID, resent=True)
    type_, _, (frame,) = client.receive()
    assert (type_, bytes(frame)) == (MessageType.RESULT, make_rows(1, 7.0))


def test_new_batches_get_other_blocks_and_ids(restarted: LoopInThread) -> None:
    worker, client = restarted.attach(), restarted.client()
    execute = orphan(ID, rows=2, offset=0)
    worker.resumed(execute, kept=[(40, 512, 64)])
    worker.ready()
    ask(client, 1, rows=4)
    ahead = worker.execute()
    assert ahead.batch_id > execute.batch_id
    start, nbytes = ahead.block
    assert start >= 576 or (start >= 320 and start + nbytes <= 512)
    done(worker, execute)
    done(worker, ahead)
    assert result_of(client) == [(1, 0, 4)]
    worker.link.send(work.Released(40).to_wire())
    wait_until(lambda: restarted.loop.state.allocator.used_nbytes == 0, "all is free")


def test_a_worker_that_says_nothing_is_ended(
    restarted: LoopInThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchyard.broker.loop._SILENCE_MAX_S", 0.2)
    restarted.attach()
    packet = restarted.told()
    assert packet[:2] == [control.Kind.HUNG, 0]
    assert "did not answer the broker that was started anew" in packet[2]
    restarted.reap(0)
    client = restarted.client()
    ask(client, 1)
    worker = restarted.worker(1, slot=0)
    done(worker, worker.execute())
    assert result_of(client) == [(1, 0, 1)]


def test_a_worker_that_died_before_it_told_is_not_waited_for(restarted: LoopInThread) -> None:
    client = restarted.client()
    ask(client, 1)
    restarted.attach().close()
    restarted.reap(0)
    worker = restarted.worker(1, slot=0)
    done(worker, worker.execute())
    assert result_of(client) == [(1, 0, 1)]
