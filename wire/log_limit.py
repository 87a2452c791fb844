"""Which of many equal events are written: a few at once, then one a second. Pure: no clock here."""

from __future__ import annotations

import threading
from dataclasses import dataclass

# At once, of each event; and seconds for each that may follow.
_BURST = 10
_PAUSE_S = 1.0


@dataclass(slots=True)
class _Bucket:
    """How many of an event may be written at ``filled_at``, and how many were not lately."""

    tokens: float
    filled_at: float
    left_out: int = 0


class EventLimit:
    """Threads may share it."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def admit(self, event: str, now: float) -> int | None:
        """How many of this event were left out since the last that was written; None: this one
        is to be left out too."""
        with self._lock:
            bucket = self._buckets.setdefault(event, _Bucket(_BURST, now))
            gained = max(now - bucket.filled_at, 0.0) / _PAUSE_S
            bucket.tokens = min(bucket.tokens + gained, _BURST)
            bucket.filled_at = now
            if bucket.tokens < 1:
                bucket.left_out += 1
                return None
            bucket.tokens -= 1
            left_out, bucket.left_out = bucket.left_out, 0
            return left_out
