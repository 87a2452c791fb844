"""Requests for a model that is still loading wait for it, within bounds.

In TensorFlow Serving a model that a changed configuration adds is there a second later; here a
process starts for it first. Clients that ask in between would take the difference for a failure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from batchyard.wire.errors import STILL_LOADING, Unavailable

# How long one may wait, and how many may at once: each holds its tensors.
LONGEST_WAIT_S = 10.0
WAITING_MAX = 256
_LOOK_S = 0.1

_Result = TypeVar("_Result")


class Loading:
    """Those who wait; for one event loop."""

    def __init__(self) -> None:
        self._waiting = 0

    async def once_loaded(
        self, ask: Callable[[float | None], Awaitable[_Result]], timeout: float | None
    ) -> _Result:
        """What ``ask`` returns, of the seconds that it has left; it is asked again while it raises
        that the model is still loading. Then raises that."""
        try:
            return await ask(timeout)
        except Unavailable as error:
            if not error.message.endswith(STILL_LOADING) or self._waiting >= WAITING_MAX:
                raise
        self._waiting += 1
        try:
            return await self._keep_asking(ask, timeout)
        finally:
            self._waiting -= 1

    async def _keep_asking(
        self, ask: Callable[[float | None], Awaitable[_Result]], timeout: float | None
    ) -> _Result:
        began = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_S)
            waited = time.monotonic() - began
            try:
                return await ask(None if timeout is None else max(timeout - waited, 0.0))
            except Unavailable as error:
                longest = LONGEST_WAIT_S if timeout is None else min(timeout, LONGEST_WAIT_S)
                if not error.message.endswith(STILL_LOADING) or waited + _LOOK_S >= longest:
                    raise
