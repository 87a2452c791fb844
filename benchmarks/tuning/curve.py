"""l(b): how long a batch of b rows takes, and what follows from it alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from batchyard.benchmarks.tuning.bench import Execution

# A size that runs for the first time is slow everywhere; compiled for it, by this much more.
_COMPILES_FROM = 8.0


class Curve:
    """Measured at some sizes, on the line between them at others."""

    def __init__(self, executions: Sequence[Execution]) -> None:
        self.executions = sorted(executions, key=lambda execution: execution.rows)
        self.sizes = [execution.rows for execution in self.executions]
        # A larger batch is never quicker: where it was measured so, that was noise.
        self._seconds: list[float] = []
        for execution in self.executions:
            self._seconds.append(max(execution.median_s, *self._seconds[-1:], 1e-7))

    def seconds(self, rows: int) -> float:
        """l(rows)."""
        sizes, seconds = self.sizes, self._seconds
        i = bisect_left(sizes, rows)
        if i < len(sizes) and sizes[i] == rows:
            return seconds[i]
        if i == 0:
            return seconds[0]
        if len(sizes) == 1:
            return seconds[0] * rows / sizes[0]
        i = min(i, len(sizes) - 1)
        slope = (seconds[i] - seconds[i - 1]) / (sizes[i] - sizes[i - 1])
        return seconds[i - 1] + slope * (rows - sizes[i - 1])

    def rows_per_s(self, rows: int) -> float:
        """What one batch thread makes of batches of that size."""
        return rows / self.seconds(rows)

    @property
    def fastest(self) -> int:
        """The measured size that makes most rows a second."""
        return max(self.sizes, key=self.rows_per_s)

    def smallest_within(self, share: float) -> int:
        """The smallest measured size that makes this share of the most rows a second."""
        least = share * self.rows_per_s(self.fastest)
        return next(rows for rows in self.sizes if self.rows_per_s(rows) >= least)

    @property
    def compiles(self) -> bool:
        """Whether every new size costs much when it comes for the first time."""
        later = self.executions[1:]
        slow = [e for e in later if e.first_s > _COMPILES_FROM * e.median_s and e.first_s > 0.02]
        return len(slow) * 2 > len(later)
