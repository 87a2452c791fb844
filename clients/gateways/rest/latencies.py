"""How long requests took here, by model and verb, as TensorFlow Serving counts it. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

# TensorFlow Serving's, in microseconds: from 10 us to some 20 minutes.
BOUNDS_US = tuple(10 * 1.8**i for i in range(33))


class Latencies:
    """Of requests that were answered with what they asked for."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], list[int]] = {}
        self._sums: dict[tuple[str, str], float] = {}

    def add(self, model: str, verb: str, microseconds: float) -> None:
        """A request took so long."""
        key = model, verb
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [0] * (len(BOUNDS_US) + 1)
            self._sums[key] = 0.0
        counts[bisect_right(BOUNDS_US, microseconds)] += 1
        self._sums[key] += microseconds

    def __iter__(self) -> Iterator[tuple[tuple[str, str], list[int], float]]:
        """Model and verb, how many took how long, and the sum."""
        for key, counts in self._counts.items():
            yield key, counts, self._sums[key]
