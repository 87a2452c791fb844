"""What aiohttp, asyncio and gRPC log becomes events, one line each: callers may cause it as they
like."""

from __future__ import annotations

import logging
import sys

from batchyard.wire import log

_LOGGERS = ("aiohttp", "asyncio", "grpc")


def to_events() -> None:
    """From now on, in this process. Python itself would write each in many lines."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [_Handler()]
        logger.propagate = False
    # There, aiohttp tells of some requests that were none.
    logging.getLogger("aiohttp").setLevel(logging.DEBUG)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        exception = record.exc_info[1] if record.exc_info else None
        what, *_ = record.getMessage().splitlines() or [""]
        if _is_refusal(exception):
            reason = f"{what}: {' '.join(getattr(exception, 'message', '').split())}"
            log.limited("debug", "http_refused", reason=reason)
        elif record.levelno >= logging.ERROR:
            if exception is None:
                log.limited("error", "gateway_erred", reason=what)
            else:
                reason = f"{what}: {type(exception).__name__}: {exception}"
                trace = log.traceback_of(exception)
                log.limited("error", "gateway_erred", reason=reason, traceback=trace)


def _is_refusal(exception: BaseException | None) -> bool:
    # It takes a quarter of a second to import, and not every gateway needs it. Who logs one has.
    aiohttp = sys.modules.get("aiohttp.http_exceptions")
    return aiohttp is not None and isinstance(exception, aiohttp.HttpProcessingError)
