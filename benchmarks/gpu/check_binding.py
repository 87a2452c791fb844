"""Whether a worker uses its card, and no other, and has page-locked the arena."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from batchyard.benchmarks.gpu.card_memory import CardMemory
from batchyard.benchmarks.gpu.check_subject import Subject
from batchyard.benchmarks.gpu.pools import Pool, running, wait
from batchyard.benchmarks.gpu.verdicts import Verdict, held, skipped

_LOCKED = "arena_page_locked"
_NOT_LOCKED = "arena_not_page_locked"


def check_one(subject: Subject, pool: Pool, memory: CardMemory) -> Iterator[Verdict]:
    """Of a pool with one worker: what it was told, what CUDA shows it, and where NVML sees it."""
    framework, card = subject.framework, subject.card
    pid, devices, uuid = pool.sight()
    told_uuid = _environment(pid).get("CUDA_VISIBLE_DEVICES", "")
    holds = told_uuid == card.uuid and devices == 1 and _is_same(uuid, card.uuid)
    shown = f"CUDA shows {devices} device{'s' * (devices != 1)}, {uuid}"
    yield held(framework, "sees only its card", holds, shown, f"1, {card.uuid}")
    yield _check_place(subject, [pid], memory)


def check_each(subject: Subject) -> Iterator[Verdict]:
    """Of a pool with one worker on each card that is visible."""
    framework, check = subject.framework, "each on its own card"
    if len(subject.cards) == 1:
        yield skipped(framework, check, "one card is visible here")
        return
    settings = {"device": "auto", "gpu_memory_growth": True}
    with running(subject.allocation, settings) as pool:
        wait(lambda: len(pool.pids) == len(subject.cards), "a worker on each card")
        pids = set(pool.pids)
        pool.allocate_everywhere(1, lambda: _seen(pool, pids), "each worker has answered")
        places = {
            pid: [card.label for card in subject.cards if _is_listed(subject, card.uuid, pid)]
            for pid in pids
        }
        if not any(places.values()):
            yield skipped(framework, check, "NVML does not list these processes (PID namespace)")
            return
        holds = sorted(places.values()) == sorted([card.label] for card in subject.cards)
        found = ", ".join(f"process {pid}: {'+'.join(on)}" for pid, on in places.items())
        yield held(framework, check, holds, found, "one card for each")


def check_page_lock(subject: Subject, pool: Pool) -> Verdict:
    """What the worker's log says of the arena."""
    check = "arena page-locked"
    locked, refused = pool.events(_LOCKED), pool.events(_NOT_LOCKED)
    if locked:
        return held(subject.framework, check, True, "the worker's log says so")
    reason = refused[-1].get("reason", "no reason") if refused else "the worker's log says nothing"
    return held(subject.framework, check, False, str(reason))


def _check_place(subject: Subject, pids: list[int], memory: CardMemory) -> Verdict:
    framework, check = subject.framework, "uses only its card"
    here = all(memory.has(pid) for pid in pids)
    others = [card for card in subject.cards if card.uuid != subject.card.uuid]
    elsewhere = [
        card.label for card in others if any(_is_listed(subject, card.uuid, pid) for pid in pids)
    ]
    if not here and not elsewhere:
        return skipped(framework, check, "NVML does not list this process (PID namespace)")
    found = f"NVML lists it on {', '.join([subject.card.label] * here + elsewhere)}"
    bound = f"{subject.card.label} alone of {len(subject.cards)}"
    return held(framework, check, here and not elsewhere, found, bound)


def _is_listed(subject: Subject, uuid: str, pid: int) -> bool:
    return CardMemory(subject.nvml, uuid).has(pid)


def _seen(pool: Pool, pids: set[int]) -> bool:
    """Asks for a worker's sight as often as there are workers; whether that reached each."""
    return {pool.sight()[0] for _ in range(4 * len(pids))} >= pids


def _is_same(digits: str, uuid: str) -> bool:
    """Whether CUDA's UUID is NVML's; ``MIG-GPU-…/1/0``, of old drivers, has none of its own."""
    return "/" in uuid or digits == uuid.partition("-")[2].replace("-", "")


def _environment(pid: int) -> dict[str, str]:
    """What the process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(entry.decode(errors="replace").partition("=")[::2] for entry in entries if entry)
