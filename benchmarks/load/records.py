"""What became of each request of one generator, in memory that its parent reads meanwhile.

    planned   float64   seconds from the start; negative: warm-up, not counted
    sent      float64   seconds of CLOCK_MONOTONIC; 0: not yet
    done      float64   the same
    kind      uint16    of the mix
    outcome   uint8     PENDING, ANSWERED, SKIPPED, FAILED + the number of the error's code

Each is an array of ``capacity`` elements, one behind the other. The generator only writes numbers
to places that it knows beforehand; all counting is the parent's, in a process of its own. The
memory is a memfd of the parent's: nothing is left of it, whoever is killed.
"""

from __future__ import annotations

import bisect
import mmap
import os
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

PENDING, ANSWERED = 0, 1
# Its deadline had passed before the generator got to send it.
SKIPPED = 2
FAILED = 16

_FIELDS: dict[str, Any] = {"planned": "d", "sent": "d", "done": "d", "kind": "H", "outcome": "B"}
_RECORD_NBYTES = 27


class Records:
    """The generator's end: each field by index."""

    def __init__(self, path: str, capacity: int) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), capacity * _RECORD_NBYTES)
        views: dict[str, memoryview[Any]] = {}
        with memoryview(self._map) as whole:
            for name, (code, start, stop) in _places(capacity).items():
                views[name] = whole[start:stop].cast(code)
        self.capacity = capacity
        self.planned = views["planned"]
        self.sent = views["sent"]
        self.done = views["done"]
        self.kind = views["kind"]
        self.outcome = views["outcome"]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Requests of all generators, counted from now on; times in seconds from the start."""

    planned: npt.NDArray[np.float64]
    sent: npt.NDArray[np.float64]
    """NaN: not sent."""
    done: npt.NDArray[np.float64]
    kind: npt.NDArray[np.uint16]
    outcome: npt.NDArray[np.uint8]

    @classmethod
    def joined(cls, parts: list[Outcomes]) -> Outcomes:
        """Those of several generators together, in no order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS))

    def up_to(self, t: float) -> Outcomes:
        """Those planned before ``t``."""
        chosen = self.planned < t
        return Outcomes(*(getattr(self, name)[chosen] for name in _FIELDS))


class SharedRecords:
    """The parent's end: made for one generator, gone with the block."""

    def __init__(self, capacity: int) -> None:
        # mmap takes no length of 0.
        self.capacity = max(capacity, 1)

    def __enter__(self) -> Self:
        self._fd = os.memfd_create("batchyard-load", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, self.capacity * _RECORD_NBYTES)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    @property
    def path(self) -> str:
        """Where a process of the same user opens it."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def outcomes(self, start_at: float, count: int | None = None) -> Outcomes:
        """What is known by now, without the warm-up: of ``count`` requests, or of those sent."""
        if count is None:
            count = self._sent_count()
        columns = {name: self._column(name, count) for name in _FIELDS}
        counted = columns["planned"] >= 0
        columns = {name: column[counted] for name, column in columns.items()}
        for name in ("sent", "done"):
            values = columns[name]
            columns[name] = np.where(values > 0, values - start_at, np.nan)
        return Outcomes(**columns)

    def _sent_count(self) -> int:
        """How many callers of a closed loop have sent: they fill the arrays from the first on."""
        _, start, _ = _places(self.capacity)["sent"]
        return bisect.bisect_left(
            range(self.capacity),
            True,
            key=lambda i: not any(os.pread(self._fd, 8, start + 8 * i)),
        )

    def _column(self, name: str, count: int) -> npt.NDArray[Any]:
        code, start, _ = _places(self.capacity)[name]
        dtype = np.dtype(code)
        column = np.empty(count, dtype)
        raw = column.view(np.uint8)
        read = 0
        # One call reads 2 GiB at most.
        while read < raw.nbytes:
            read += os.preadv(self._fd, [raw[read:].data], start + read)
        return column


def _places(capacity: int) -> dict[str, tuple[Any, int, int]]:
    """Each field's type code, and where its array begins and ends."""
    places = {}
    start = 0
    for name, code in _FIELDS.items():
        stop = start + capacity * np.dtype(code).itemsize
        places[name] = code, start, stop
        start = stop
    return places
