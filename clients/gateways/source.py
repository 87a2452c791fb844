"""What the broker says of itself, for everybody who asks the gateway at once."""

from __future__ import annotations

import asyncio
from typing import Any

from batchyard.clients.async_client import AsyncClient
from batchyard.clients.errors import BatchyardError
from batchyard.wire import log

# The broker answers in a millisecond, unless it is being replaced or the machine stands still.
ANSWER_TIMEOUT_S = 2.0


class BrokerSource:
    """Used by one event loop. Asks once for all who want to know at the same time.

    The broker being down is an ordinary thing to be told here: then it is asked by a new client
    the next time, so that no question waits for a broker that comes back.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._client: AsyncClient | None = None
        self._asking: asyncio.Task[dict[str, Any] | None] | None = None
        self._is_down = False

    async def read(self) -> dict[str, Any] | None:
        """What the query ``metrics`` tells; None when the broker does not answer."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        # One who goes away must not cancel it for the others.
        return await asyncio.shield(self._asking)

    async def close(self) -> None:
        """Closes the connection."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._forget_client()

    async def _ask(self) -> dict[str, Any] | None:
        try:
            if self._client is None:
                self._client = AsyncClient(self._endpoint, connect_timeout=ANSWER_TIMEOUT_S)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer = await self._client.metrics()
        except (BatchyardError, TimeoutError, OSError) as error:
            if not self._is_down:
                log.warning("broker_silent", reason=str(error) or type(error).__name__)
            self._is_down = True
            await self._forget_client()
            return None
        if self._is_down:
            log.info("broker_answers")
        self._is_down = False
        return answer

    async def _forget_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()
