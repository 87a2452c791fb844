"""A pool of GPU workers and NVML, played: no process and no card is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from batchyard.wire.errors import Internal, ResourceExhausted, Unavailable

MIB = 1 << 20
UUID = "GPU-00000000-0000-4000-8000-000000000000"


class PlayedError(Exception):
    """As ``pynvml.NVMLError``."""


@dataclass
class PlayedCard:
    """A card, and how its workers behave; by default as they should.

    ``over`` is by how much a cap is exceeded; ``beyond`` what a model gets that needs more than its
    cap: nothing (``None``) is the memory.
    """

    total: int = 8192 * MIB
    context: int = 300 * MIB
    others: int = 0
    lists: bool = True
    sizes: bool = True
    pid_offset: int = 0
    on_cards: tuple[str, ...] = (UUID,)
    devices_seen: int = 1
    over: float = 1.0
    grows: float = 1.0
    beyond: type[Exception] | None = ResourceExhausted
    dies_beyond: bool = False
    leaks: bool = False
    page_lock: str = "arena_page_locked"
    loses: int = 0
    held: dict[int, int] = field(default_factory=dict)
    leaked: int = 0
    next_pid: int = 100

    NVMLError = PlayedError

    # What is asked of NVML.

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802 - NVML's names
        return uuid

    def nvmlDeviceGetMemoryInfo(self, uuid: str) -> Any:  # noqa: N802
        used = self.others + (sum(self.held.values()) + self.leaked) * (uuid == UUID)
        return SimpleNamespace(total=self.total, used=used)

    def nvmlDeviceGetComputeRunningProcesses(self, uuid: str) -> list[Any]:  # noqa: N802
        if not self.lists:
            raise PlayedError
        if uuid not in self.on_cards:
            return []
        return [
            SimpleNamespace(pid=pid + self.pid_offset, usedGpuMemory=nbytes if self.sizes else None)
            for pid, nbytes in self.held.items()
        ]

    # Workers.

    def start(self) -> int:
        self.next_pid += 1
        self.held[self.next_pid] = self.context
        return self.next_pid


class PlayedPool:
    """See ``benchmarks.gpu.pools.Pool``."""

    def __init__(self, card: PlayedCard, cap: int | None, workers: int) -> None:
        self._card = card
        self._cap = cap
        self._pids = [card.start() for _ in range(workers)]

    @property
    def pids(self) -> list[int]:
        return list(self._pids)

    def allocate(self, mib: float) -> None:
        self._allocate(self.pids[0], mib)

    def _allocate(self, pid: int, mib: float) -> None:
        card, nbytes = self._card, round(mib * MIB)
        if self._cap is not None and nbytes > self._cap:
            if card.dies_beyond:
                self.kill(pid)
            if card.beyond is not None:
                raise card.beyond("no memory left")
        more = nbytes * (card.grows if self._cap is None else card.over)
        card.held[pid] = max(card.held[pid], card.context + round(more))

    def allocate_everywhere(self, mib: float, is_done: Callable[[], bool], why: str) -> None:
        for pid in self.pids:
            self._allocate(pid, mib)
        assert is_done(), why

    def sights(self, workers: int) -> set[tuple[int, int, str]]:
        digits = UUID.removeprefix("GPU-").replace("-", "")
        return {(pid, self._card.devices_seen, digits) for pid in self.pids}

    def kill(self, pid: int) -> None:
        freed = self._card.held.pop(pid)
        self._card.leaked += freed * self._card.leaks
        self._pids[self._pids.index(pid)] = self._card.start()

    def submit(self, mib: float) -> Any:
        self._card.loses -= 1
        error = Unavailable("lost") if self._card.loses >= 0 else None
        return SimpleNamespace(exception=lambda: error, result=lambda: None)

    def break_context(self) -> None:
        self.kill(self.pids[0])
        raise Internal("an illegal access")

    def events(self, name: str) -> list[dict[str, Any]]:
        return [{"event": name, "reason": "no such call"}] if name == self._card.page_lock else []


def play(card: PlayedCard) -> Callable[..., contextlib.AbstractContextManager[PlayedPool]]:
    """What stands for ``benchmarks.gpu.pools.running`` with that card."""

    @contextlib.contextmanager
    def running(
        allocation: object, worker: Mapping[str, Any], workers: int = 1, may_break: bool = False
    ) -> Iterator[PlayedPool]:
        share = worker.get("per_process_gpu_memory_fraction")
        cap = round(share * card.total) if share else worker.get("gpu_memory_limit_mb", 0) * MIB
        pool = PlayedPool(card, cap or None, workers)
        try:
            yield pool
        finally:
            card.held.clear()

    return running
