"""The broker in virtual time, with a card to which a batch has to be brought before it runs.

That takes 8 ms, and then a batch 20 ms; while one runs the next can be brought there.
"""

from __future__ import annotations

import pytest
from support.broker_builders import make_model, make_report
from support.virtual_broker import VirtualBroker

from batchyard.broker.events import Batch

BRING_S, BATCH_S = 0.008, 0.02


class Card:
    """A worker's, and when it has done what it was given."""

    def __init__(self) -> None:
        self.free_at = self.bus_free_at = self.idle_s = 0.0

    def run(self, batch: Batch, given_at: float) -> tuple[float, float]:
        """When it ends, and how long the worker will say that it ran."""
        self.bus_free_at = there_at = max(given_at, self.bus_free_at) + BRING_S
        start = max(there_at, self.free_at)
        self.idle_s += start - self.free_at
        self.free_at = start + BATCH_S
        return self.free_at, BATCH_S


def serve(b: VirtualBroker, card: Card, batches: int) -> None:
    """Has so many batches run, whatever the broker hands over when."""
    running: list[tuple[Batch, float, float]] = []
    done = 0
    while done < batches:
        for batch in b.tick():
            running.append((batch, *card.run(batch, b.now)))
        ends_at = running[0][1]
        wakes_at = b.state.next_wakeup()
        if b.now < wakes_at < ends_at:
            b.now = wakes_at
            continue
        b.now = ends_at
        batch, _, seconds = running.pop(0)
        b.finish(batch, execution_s=seconds)
        done += 1
    assert not running


def test_full_batches_are_brought_to_a_card_while_the_one_before_runs() -> None:
    b = VirtualBroker(make_model(max_batch_size=4, max_enqueued_batches=1000))
    b.start_worker(make_report())
    card = Card()
    for _ in range(5):
        b.now += 1.0
        b.ask(1, 1, 1, 1)
        serve(b, card, 1)
    b.now = card.free_at = b.now + 1.0
    card.idle_s = 0.0
    b.ask(*[1] * 40)
    serve(b, card, 10)
    # The first has to be brought there in any case.
    assert card.idle_s == pytest.approx(BRING_S)
