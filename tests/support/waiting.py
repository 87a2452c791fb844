"""Waiting for a condition, with a deadline: never for a time that is hoped to be enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Generous: it is only used up by a test that fails.
DEADLINE_S = 15.0
_STEP_S = 0.005


def wait_until(
    condition: Callable[[], T | None], what: str | Callable[[], str], timeout_s: float = DEADLINE_S
) -> T:
    """The first true value that ``condition`` gives; AssertionError, naming ``what``, if late."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            text = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {timeout_s:g} s: {text}")
        time.sleep(_STEP_S)
