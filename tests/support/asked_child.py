"""A ``benchmarks.child`` for tests: ``python -m support.asked_child``."""

from __future__ import annotations

import os
import signal
import sys

from batchyard.benchmarks.child import answer


def shout(text: str) -> str:
    """Prints as well, as libraries do."""
    print(text)
    return text.upper()


if __name__ == "__main__":
    answer(
        {
            "add": lambda a, b: a + b,
            "divide": lambda a, b: a / b,
            "shout": shout,
            "pid": os.getpid,
            "leave": lambda: sys.exit(3),
            "forever": signal.pause,
        }
    )
