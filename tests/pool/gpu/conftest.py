"""A worker's card, a framework beside it, and nothing left of either at the end of a test."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Iterator

import pytest
from support.card_batches import Block
from support.simulated_driver import Framework, SimulatedDriver, simulated_driver

from batchyard.pool.gpu.card import Card

ARENA_NBYTES = 1 << 22


@pytest.fixture
def driver() -> Iterator[SimulatedDriver]:
    """The simulated driver, of which a test leaves nothing in use."""
    driver = simulated_driver()
    driver.clear_log()
    before = driver.live(), driver.used
    yield driver
    driver.break_context(0)
    driver.cards.set_total(16 << 30)
    driver.cards.set_bytes_per_s(0)
    if (driver.live(), driver.used) != before:
        gc.collect()
    assert (driver.live(), driver.used) == before


@pytest.fixture
def framework(driver: SimulatedDriver) -> Iterator[Framework]:
    """What models compute with."""
    framework = Framework()
    yield framework
    driver.break_context(0)
    framework.close()


@pytest.fixture
def arena() -> memoryview:
    """Zeros."""
    return memoryview(mmap.mmap(-1, ARENA_NBYTES))


@pytest.fixture
def card(driver: SimulatedDriver, arena: memoryview) -> Iterator[Card]:
    """The card, with the arena page-locked."""
    card = Card.open(arena)
    assert card.why_not_page_locked is None
    yield card
    driver.break_context(0)
    card.close()


@pytest.fixture
def block(arena: memoryview) -> Block:
    """In the arena, from its beginning."""
    return Block(arena)
