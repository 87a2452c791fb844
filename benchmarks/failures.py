"""Why a benchmark ends without results."""

from __future__ import annotations


class BenchmarkFailed(Exception):
    """Something cannot be measured, or answers wrongly; the message says what."""
