"""What the check says of workers that keep to their memory, and of those that do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.played_pool import MIB, UUID, PlayedCard, play

from batchyard.benchmarks.gpu import check_binding, check_memory
from batchyard.benchmarks.gpu.check_memory import check_cap, check_growth, check_sharing
from batchyard.benchmarks.gpu.check_subject import Subject
from batchyard.benchmarks.gpu.pools import python_allocation
from batchyard.benchmarks.gpu.verdicts import Verdict
from batchyard.pool.inventory import VisibleDevice
from batchyard.wire.errors import Internal

CARDS = (
    VisibleDevice(0, UUID, "H100", 8192, UUID),
    VisibleDevice(1, "GPU-1", "H100", 8192, "GPU-1"),
)
CAP = 2048 * MIB
# Nothing is waited for in vain for long.
PATIENCE_S = 0.01


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Subject]:
    """Makes what is checked: workers that behave as is said."""

    def make(overhead: int | None = 300 * MIB, **behaviour: Any) -> Subject:
        card = PlayedCard(**behaviour)
        monkeypatch.setattr(check_memory, "running", play(card))
        monkeypatch.setattr(
            check_binding, "_environment", lambda pid: {"CUDA_VISIBLE_DEVICES": UUID}
        )
        monkeypatch.setattr(check_memory, "_RETURN_S", PATIENCE_S)
        # Whatever is installed where this runs.
        for module in (check_binding, check_memory):
            monkeypatch.setattr(module, "has_binding", lambda: True)
        allocation = python_allocation(str(Path("m.py:allocate")))
        return Subject("played", allocation, CARDS[0], CARDS, card, overhead)

    return make


def failed(verdicts: list[Verdict]) -> set[str]:
    return {verdict.check for verdict in verdicts if verdict.outcome == "FAILED"}


def growth(subject: Subject) -> list[Verdict]:
    return list(check_growth(subject, may_break=True))


@pytest.mark.parametrize("how", [{}, {"pid_offset": 5000}, {"lists": False}, {"sizes": False}])
def test_workers_that_behave_fail_nothing(subject: Callable[..., Subject], how: Any) -> None:
    """Also where NVML has other process ids, lists no processes, or tells nothing of them."""
    of_growth = subject(None, **how)
    assert failed(growth(of_growth)) == set()
    assert of_growth.overhead == 300 * MIB
    assert (
        failed(list(check_cap(subject(**how), "fraction", {"gpu_memory_limit_mb": 2048}, CAP)))
        == set()
    )
    for workers in (2, 4):
        assert failed(list(check_sharing(subject(**how), workers))) == set()


@pytest.mark.parametrize(
    ("behaviour", "checks"),
    [
        ({"devices_seen": 2}, {"sees only its card"}),
        ({"on_cards": (UUID, "GPU-1")}, {"uses only its card"}),
        ({"on_cards": ("GPU-1",)}, {"uses only its card"}),
        ({"on_cards": (UUID, "GPU-1"), "pid_offset": 5000}, {"uses only its card"}),
        ({"page_lock": "arena_not_page_locked"}, {"arena page-locked"}),
        ({"page_lock": ""}, {"arena page-locked"}),
        ({"context": 4000 * MIB}, {"overhead"}),
        ({"grows": 1.2}, {"growth"}),
        ({"grows": 0.5}, {"growth"}),
        ({"leaks": True}, {"killed: memory returns"}),
        ({"leaks": True, "lists": False}, {"killed: memory returns"}),
        ({"loses": 3}, {"broken context"}),
    ],
)
def test_a_worker_with_growth_that_misbehaves(
    subject: Callable[..., Subject], behaviour: dict[str, Any], checks: set[str]
) -> None:
    assert failed(growth(subject(None, **behaviour))) >= checks


@pytest.mark.parametrize(
    ("behaviour", "checks"),
    [
        ({"over": 1.5}, {"limit", "beyond limit"}),
        ({"over": 0.5}, {"limit"}),
        ({"beyond": None}, {"beyond limit"}),
        ({"beyond": Internal}, {"beyond limit"}),
        ({"dies_beyond": True}, {"beyond limit"}),
    ],
)
def test_a_cap_that_does_not_hold(
    subject: Callable[..., Subject], behaviour: dict[str, Any], checks: set[str]
) -> None:
    verdicts = list(check_cap(subject(**behaviour), "limit", {"gpu_memory_limit_mb": 2048}, CAP))
    assert failed(verdicts) == checks


def test_sharers_that_take_too_much(subject: Callable[..., Subject]) -> None:
    assert failed(list(check_sharing(subject(over=4.0), 4))) == {"4 workers × 1/4"}


@pytest.mark.parametrize(
    ("overhead", "behaviour", "why"),
    [
        (None, {}, "overhead is not known"),
        (300 * MIB, {"others": 1000 * MIB}, "others use 1000 MiB"),
        (1900 * MIB, {}, "the contexts leave"),
    ],
)
def test_what_cannot_be_shared_is_skipped(
    subject: Callable[..., Subject], overhead: int | None, behaviour: dict[str, Any], why: str
) -> None:
    (verdict,) = check_sharing(subject(overhead, **behaviour), 4)
    assert (verdict.outcome, why in verdict.found) == ("skipped", True)
