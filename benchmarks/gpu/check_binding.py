"""Whether a worker uses its card, and no other, and has page-locked the arena."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from batchyard.benchmarks.gpu.card_memory import CardMemory
from batchyard.benchmarks.gpu.check_subject import Subject
from batchyard.benchmarks.gpu.pools import Pool, has_binding, running, wait
from batchyard.benchmarks.gpu.verdicts import Verdict, held, skipped

_NO_BINDING = "cuda-bindings, which would show what CUDA shows it, is not installed"
_LOCKED = "arena_page_locked"
_NOT_LOCKED = "arena_not_page_locked"


def check_one(subject: Subject, pool: Pool, cards: Mapping[str, CardMemory]) -> Iterator[Verdict]:
    """Of a pool with one worker: what it was told, what CUDA shows it, and where NVML sees it.

    ``cards`` are all, by their labels, as they were before it started.
    """
    (pid,) = pool.pids
    yield _check_sight(subject, pool, pid)
    yield _check_place(subject, pid, cards)


def _check_sight(subject: Subject, pool: Pool, pid: int) -> Verdict:
    framework, check, card = subject.framework, "sees only its card", subject.card
    told = _environment(pid).get("CUDA_VISIBLE_DEVICES", "")
    if not has_binding():
        return held(framework, check, told == card.uuid, f"told {told}; {_NO_BINDING}", card.uuid)
    ((_, devices, uuid),) = pool.sights(1)
    holds = told == card.uuid and devices == 1 and _is_same(uuid, card.uuid)
    shown = f"CUDA shows {devices} device{'s' * (devices != 1)}, {uuid}"
    return held(framework, check, holds, shown, f"1, {card.uuid}")


def check_each(subject: Subject) -> Iterator[Verdict]:
    """Of a pool with one worker on each card that is visible."""
    framework, check = subject.framework, "each on its own card"
    if len(subject.cards) == 1:
        yield skipped(framework, check, "one card is visible here")
        return
    cards = subject.memories()
    settings = {"device": "auto", "gpu_memory_growth": True}
    with running(subject.allocation, settings) as pool:
        wait(lambda: len(pool.pids) == len(subject.cards), "a worker on each card")
        pids = pool.pids
        seen = pool.sights(len(pids)) if has_binding() else set()
        wrong = [f"process {pid} sees {n} devices" for pid, n, _ in seen if n != 1]
        if wrong or len({uuid for _, _, uuid in seen}) != len(seen):
            yield held(framework, check, False, ", ".join(wrong) or "two see the same card")
            return
        yield _check_places(subject, pids, cards)


def check_page_lock(subject: Subject, pool: Pool) -> Verdict:
    """What the worker's log says of the arena."""
    check = "arena page-locked"
    locked, refused = pool.events(_LOCKED), pool.events(_NOT_LOCKED)
    if locked:
        return held(subject.framework, check, True, "the worker's log says so")
    reason = refused[-1].get("reason", "no reason") if refused else "the worker's log says nothing"
    return held(subject.framework, check, False, str(reason))


def _check_place(subject: Subject, pid: int, cards: Mapping[str, CardMemory]) -> Verdict:
    """On which cards NVML lists a process; where it has other ids, on which any came."""
    framework, check = subject.framework, "uses only its card"
    on = [label for label, memory in cards.items() if memory.has(pid)]
    how = ""
    if not on:
        on = [label for label, memory in cards.items() if memory.came()]
        how = f", by what came: to NVML it is not process {pid}"
    if not on:
        return skipped(framework, check, "NVML lists no processes here")
    found = f"NVML lists it on {', '.join(on)}{how}"
    bound = f"{subject.card.label}, of {len(cards)} visible"
    return held(framework, check, on == [subject.card.label], found, bound)


def _check_places(
    subject: Subject, pids: Sequence[int], cards: Mapping[str, CardMemory]
) -> Verdict:
    """Whether each process is on a card of its own; or, by what came, whether each card has one."""
    framework, check = subject.framework, "each on its own card"
    places = {pid: [label for label, card in cards.items() if card.has(pid)] for pid in pids}
    if any(places.values()):
        holds = sorted(places.values()) == sorted([label] for label in cards)
        found = ", ".join(f"process {pid}: {'+'.join(on) or '-'}" for pid, on in places.items())
        return held(framework, check, holds, found, "one card for each")
    came = {label: len(card.came()) for label, card in cards.items()}
    if not any(came.values()):
        return skipped(framework, check, "NVML lists no processes here")
    found = ", ".join(f"{label}: {number} came" for label, number in came.items())
    return held(framework, check, set(came.values()) == {1}, found, "one on each")


def _is_same(digits: str, uuid: str) -> bool:
    """Whether CUDA's UUID is NVML's; ``MIG-GPU-…/1/0``, of old drivers, has none of its own."""
    return "/" in uuid or digits == uuid.partition("-")[2].replace("-", "")


def _environment(pid: int) -> dict[str, str]:
    """What the process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(entry.decode(errors="replace").partition("=")[::2] for entry in entries if entry)
