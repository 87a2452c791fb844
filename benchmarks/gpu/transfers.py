"""The bus: what the arena's page-locked mapping has of what CUDA's own page-locked memory has."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.gpu.guarded import GuardedChild
from batchyard.benchmarks.gpu.options import Options
from batchyard.benchmarks.gpu.tolerance import Found, run_tolerant_rounds
from batchyard.benchmarks.results import Figure

GOAL = 0.95
_MIB = 2**20
# An image, a few of them, a batch of 64, and what no start-up cost is left of.
SIZES = {"0.6 MB": 602_112, "4.8 MB": 8 * 602_112, "38.5 MB": 64 * 602_112, "256 MB": 256 * 10**6}
_DIRECTIONS = {"in": "host to device", "out": "device to host"}
_MEMORIES = {
    "pinned": "cuMemAllocHost",
    "arena": "the arena, page-locked",
    "pageable": "pageable memory",
}


def figures() -> Iterator[Figure]:
    """A line a direction, a size and a kind of memory."""
    for direction, where in _DIRECTIONS.items():
        for size in SIZES:
            for memory, what in _MEMORIES.items():
                reference = None if memory == "pinned" else _key(direction, "pinned", size)
                goal = GOAL if memory == "arena" else None
                title = f"{where}, {size}, from {what}"
                if direction == "out":
                    title = f"{where}, {size}, to {what}"
                yield Figure(_key(direction, memory, size), title, "GB/s", reference, goal)


def _key(direction: str, memory: str, size: str) -> str:
    return f"transfer_{direction}_{memory}_{SIZES[size]}"


def measure(options: Options) -> Found:
    """All lines, in one process, in turn."""
    if options.card is None:
        raise BenchmarkFailed("there is no bus to a card without a card")
    with GuardedChild("batchyard.benchmarks.gpu.transfer_loop", options.card.uuid) as child:
        why_not = child.ask("open", nbytes=max(SIZES.values()))
        if why_not:
            raise BenchmarkFailed(why_not)
        measurements = {
            f"{_DIRECTIONS[direction]}, {size}, {_MEMORIES[memory]}": partial(
                _gb_per_s, child, direction, memory, size, options.seconds / len(_MEMORIES)
            )
            for direction in _DIRECTIONS
            for size in SIZES
            for memory in _MEMORIES
        }
        return run_tolerant_rounds(measurements, options.repeat)


def _gb_per_s(
    child: GuardedChild, direction: str, memory: str, size: str, seconds: float
) -> dict[str, float]:
    how = {"direction": direction, "memory": memory, "nbytes": SIZES[size], "seconds": seconds}
    return {_key(direction, memory, size): float(child.ask("gb_per_s", **how))}
