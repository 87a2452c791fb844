"""Whether workers keep to their share of a card's memory, and what a death gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.gpu.card_memory import MIB, CardMemory
from batchyard.benchmarks.gpu.check_binding import check_one, check_page_lock
from batchyard.benchmarks.gpu.check_subject import TOLERANCE, Subject, mib, told
from batchyard.benchmarks.gpu.pools import Pool, has_binding, running, wait
from batchyard.benchmarks.gpu.verdicts import Verdict, held, skipped
from batchyard.wire.errors import BatchyardError, ResourceExhausted

# Of a cap: what a model takes that fits, and one that does not.
_FITS, _EXCEEDS = 0.9, 1.2
# Of each cap where they sum to 1, at most; and of what the last worker finds: allocators that take
# all at once take less in steps of a tenth (kBackpedalFactor in XLA's and TensorFlow's).
_SHARED, _OF_THE_LAST = 0.8, 0.85
# With memory growth a worker that needs nothing takes no more than that of the card, or this.
_IDLE_SHARE, _IDLE_NBYTES = 0.1, 1536 * MIB
# Of the card: what others may use while shares that sum to 1 are checked.
_OTHERS = 0.1
# How soon the driver has taken a dead process's memory back.
_RETURN_S = 30.0


def check_growth(subject: Subject, may_break: bool) -> Iterator[Verdict]:
    """A worker with memory growth: its card, its overhead, that it grows, and that it may die."""
    cards = subject.memories()
    memory = cards[subject.card.label]
    settings = {"device": subject.card.label, "gpu_memory_growth": True}
    with running(subject.allocation, settings, may_break=may_break) as pool:
        pool.allocate(1)
        yield from check_one(subject, pool, cards)
        yield check_page_lock(subject, pool)
        yield _measure_overhead(subject, pool, memory)
        if subject.overhead is None:
            return
        free = memory.total - memory.used
        # A power of two: allocators that grow in powers take just that.
        asked = 1 << int(math.log2(free / MIB / 8))
        pool.allocate(asked)
        reading = memory.read(pool.pids)
        grown = reading.total - subject.overhead
        found = f"took {mib(grown)} for {asked} MiB{told(reading)}"
        holds = abs(grown - asked * MIB) <= TOLERANCE * asked * MIB
        yield held(subject.framework, "growth", holds, found, f"± {TOLERANCE:.0%}")
        yield from _check_death(subject, pool, memory, asked * MIB)
        if may_break and has_binding():
            yield _check_broken_context(subject, pool)


def _measure_overhead(subject: Subject, pool: Pool, memory: CardMemory) -> Verdict:
    reading = memory.read(pool.pids)
    if reading.total:
        subject.overhead = max(0, reading.total - MIB)
    most = max(_IDLE_SHARE * memory.total, _IDLE_NBYTES)
    found = f"{mib(reading.total)} of context, kernels and buffers{told(reading)}"
    holds = 0 < reading.total <= most
    return held(subject.framework, "overhead", holds, found, f"above 0, at most {mib(most)}")


def _check_death(subject: Subject, pool: Pool, memory: CardMemory, taken: int) -> Iterator[Verdict]:
    """A worker that took much is killed."""
    framework = subject.framework
    (pid,) = pool.pids
    pool.kill(pid)
    (successor,) = wait(
        lambda: [other for other in pool.pids if other != pid], "another worker is ready"
    )
    pool.allocate(1)
    yield held(framework, "killed: another comes", True, f"process {successor} answers after {pid}")
    most = (subject.overhead or 0) + taken // 2

    def returned() -> bool:
        return not memory.has(pid) and memory.used - memory.used_before < most

    def found() -> str:
        used = mib(max(0, memory.used - memory.used_before))
        return f"{used} more in use than at first, with the next worker" + (
            f", and process {pid} still listed" * memory.has(pid)
        )

    came_back = _holds_in_time(returned)
    bound = f"below {mib(most)}; it had taken {mib(taken)} besides"
    yield held(framework, "killed: memory returns", came_back, found(), bound)


def _check_broken_context(subject: Subject, pool: Pool) -> Verdict:
    check = "broken context"
    before = pool.pids
    beside = [pool.submit(1) for _ in range(8)]
    try:
        pool.break_context()
    except BatchyardError as error:
        answer = error.code
    else:
        return held(subject.framework, check, False, "the illegal access was answered")
    beside += [pool.submit(1) for _ in range(8)]
    lost = sum(request.exception() is not None for request in beside)
    wait(lambda: pool.pids and not set(pool.pids) & set(before), "the worker is replaced")
    found = f"answered {answer}; the worker is another; {lost} of {len(beside)} beside it lost"
    return held(subject.framework, check, not lost, found, "none lost")


def check_cap(
    subject: Subject, name: str, setting: Mapping[str, float], cap: int
) -> Iterator[Verdict]:
    """One worker whose memory has a limit of ``cap`` bytes, by a setting of that name."""
    if subject.overhead is None:
        yield skipped(subject.framework, name, "the overhead is not known")
        return
    memory = subject.memory()
    if memory.total - memory.used < subject.most(cap):
        yield skipped(subject.framework, name, f"only {mib(memory.total - memory.used)} are free")
        return
    with running(subject.allocation, {"device": subject.card.label, **setting}) as pool:
        (pid,) = pool.pids
        pool.allocate(math.floor(_FITS * cap / MIB))
        reading = memory.read([pid])
        holds = _FITS * cap * (1 - TOLERANCE) <= reading.total <= subject.most(cap)
        bound = f"at most {mib(subject.most(cap))} = {1 + TOLERANCE:g} × {mib(cap)} + overhead"
        found = f"{mib(reading.total)} with {_FITS:.0%} of it taken{told(reading)}"
        for event in pool.events("memory_not_capped"):
            found += f"; {event.get('framework')} is not capped: {event.get('reason')}"
        yield held(subject.framework, name, holds, found, bound)
        yield _check_excess(subject, pool, memory, name, cap)


def _check_excess(subject: Subject, pool: Pool, memory: CardMemory, name: str, cap: int) -> Verdict:
    """A model that needs more than its worker may have."""
    check = f"beyond {name}"
    (pid,) = pool.pids
    try:
        pool.allocate(math.ceil(_EXCEEDS * cap / MIB))
    except ResourceExhausted:
        answer = ResourceExhausted.code
    except BatchyardError as error:
        answer = error.code
    else:
        answer = "the memory"
    pool.allocate(1)
    reading = memory.read(pool.pids)
    lives = pool.pids == [pid]
    found = f"{_EXCEEDS:.0%} got {answer}; {'it lives' if lives else 'IT DIED'} and answers"
    holds = answer == ResourceExhausted.code and lives and reading.total <= subject.most(cap)
    return held(subject.framework, check, holds, found, "RESOURCE_EXHAUSTED, and it lives")


def check_sharing(subject: Subject, workers: int) -> Iterator[Verdict]:
    """Workers whose fractions sum to 1, all at once.

    A fraction bounds what a framework allocates; each process's context comes on top. So they
    cannot all have the whole of their shares: where the others took all of theirs at once, as
    TensorFlow and JAX do, the last finds its share less all contexts. What can be asserted is that
    nobody takes more than its own, and that all get what is left to the last at the same time. The
    line says what an even share would leave room for.
    """
    framework, check = subject.framework, f"{workers} workers × 1/{workers}"
    memory = subject.memory()
    if subject.overhead is None:
        yield skipped(framework, check, "the overhead is not known")
        return
    if memory.used_before > _OTHERS * memory.total:
        yield skipped(framework, check, f"others use {mib(memory.used_before)} of the card")
        return
    cap = memory.total // workers
    room = (memory.total - memory.used_before) / workers - subject.overhead
    left_to_last = cap - memory.used_before - workers * subject.overhead
    each = math.floor(min(_SHARED * cap, _OF_THE_LAST * left_to_last) / MIB)
    if each * MIB < cap / 4:
        yield skipped(framework, check, f"the contexts leave {mib(left_to_last)} to the last")
        return
    settings = {"device": subject.card.label, "per_process_gpu_memory_fraction": 1 / workers}
    with running(subject.allocation, settings, workers=workers) as pool:
        pids = pool.pids
        for request in [pool.submit(1) for _ in pids]:
            request.result()
        pool.allocate_everywhere(
            each,
            lambda: memory.read(pids).least >= each * MIB,
            f"each of {workers} workers has {each} MiB",
        )
        reading = memory.read(pids)
        holds = pool.pids == pids and reading.most <= subject.most(cap)
        found = f"{mib(reading.least)} to {mib(reading.most)} each at once{told(reading)}"
        bound = (
            f"{each} MiB to {mib(subject.most(cap))}; with {workers} × {mib(subject.overhead)} of "
            f"overhead, {room / memory.total:.3f} each is what there is room for"
        )
        yield held(framework, check, holds, found, bound)


def _holds_in_time(condition: Callable[[], bool]) -> bool:
    try:
        wait(condition, "", _RETURN_S)
    except BenchmarkFailed:
        return False
    return True
