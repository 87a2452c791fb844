"""Times, counted to three digits: HdrHistogram in microseconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# A microsecond to an hour.
_LOWEST_US = 1
_HIGHEST_US = 3_600_000_000
_DIGITS = 3


class Histogram:
    """How often which time was seen. Histograms of several processes are added.

    Its encoding is HdrHistogram's own (V2, compressed, base64), which other tools read too.
    """

    def __init__(self) -> None:
        # Of the extra `bench`: what only has a histogram among its types must not need it.
        from hdrh.histogram import HdrHistogram

        self._hdr: Any = HdrHistogram(_LOWEST_US, _HIGHEST_US, _DIGITS)

    @classmethod
    def of(cls, seconds: npt.NDArray[np.float64]) -> Histogram:
        """Counts each of an array's times; negative ones as 0."""
        histogram = cls()
        us = np.clip(np.rint(seconds * 1e6), 0, _HIGHEST_US).astype(np.int64)
        for value, count in zip(*np.unique(us, return_counts=True), strict=True):
            histogram._hdr.record_value(int(value), int(count))
        return histogram

    def record(self, seconds: float, count: int = 1) -> None:
        """Counts one time."""
        self._hdr.record_value(min(max(round(seconds * 1e6), 0), _HIGHEST_US), count)

    def add(self, other: Histogram) -> None:
        """Counts what the other counted too."""
        if other.count:
            self._hdr.add(other._hdr)

    @property
    def count(self) -> int:
        """How many times were counted."""
        return int(self._hdr.get_total_count())

    @property
    def mean(self) -> float:
        """In seconds; 0 when there are none."""
        return float(self._hdr.get_mean_value()) / 1e6

    @property
    def max(self) -> float:
        """In seconds; 0 when there are none."""
        return float(self._hdr.get_max_value()) / 1e6 if self.count else 0.0

    def quantile(self, q: float) -> float:
        """The time in seconds that a share ``q`` (0 to 1) does not pass; 0 when there are none."""
        return float(self._hdr.get_value_at_percentile(100 * q)) / 1e6

    def encode(self) -> str:
        """As text."""
        encoded = self._hdr.encode()
        return encoded.decode() if isinstance(encoded, bytes) else str(encoded)

    @classmethod
    def decode(cls, text: str) -> Histogram:
        """What ``encode`` gave."""
        histogram = cls()
        histogram._hdr.decode_and_add(text)
        return histogram

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.encode() == other.encode()

    def __repr__(self) -> str:
        return f"<Histogram of {self.count}: p50 {self.quantile(0.5):g} s>"

    __hash__ = None  # type: ignore[assignment]
