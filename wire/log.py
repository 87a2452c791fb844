"""Logs: one line an event, with fields, to standard error: ``event=ready worker=2 load_s=3.1``.

``docs/logs.md`` lists the events, their levels and what they tell; a test keeps it current.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TextIO

from batchyard.wire.log_format import Fields, as_json, as_text, plain, timestamp
from batchyard.wire.log_limit import EventLimit

LEVELS = ("debug", "info", "warning", "error")
# The same in every process of a server: each child finds it in its environment, so that its first
# line is right already.
_VARIABLE = "BATCHYARD_LOG"
# What syslog, and so the journal, has for each level.
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}

_TRACEBACK_MAX = 900

_logger = logging.getLogger("batchyard")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """``[log]`` of the configuration. ``slow_request_ms`` is the broker's: 0 is off."""

    format: str = "text"
    level: str = "info"
    slow_request_ms: float = 0.0

    def to_environment(self) -> dict[str, str]:
        """For a child process: ``configure`` reads it there."""
        return {_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> LogSettings:
        """What a parent said, or the defaults."""
        try:
            return cls(**json.loads(environment[_VARIABLE]))
        except (KeyError, ValueError, TypeError):
            return cls()


@dataclass(frozen=True, slots=True)
class _Event:
    """The message of a record. As a string it is what a line says behind its process."""

    name: str
    fields: Fields

    def __str__(self) -> str:
        return as_text({"event": self.name, **self.fields})


class _Formatter(logging.Formatter):
    def __init__(self, process: str, is_json: bool, is_journal: bool) -> None:
        super().__init__()
        self._process = process
        self._is_json = is_json
        self._is_journal = is_journal

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        event = record.msg
        if not isinstance(event, _Event):
            event = _Event("message", {"text": record.getMessage()})
        line: dict[str, object] = {"process": self._process}
        if self._is_json or not self._is_journal:
            # The journal has its own time, and has the level from the prefix.
            line = {"time": timestamp(record.created), "level": level, **line}
        if self._is_json:
            line["pid"] = os.getpid()
        line |= {"event": event.name, **event.fields}
        text = as_json(line) if self._is_json else as_text(line)
        return f"<{_PRIORITIES.get(level, 6)}>{text}" if self._is_journal else text


class _Handler(logging.StreamHandler[TextIO]):
    """Waits for nobody: what standard error does not take at once is lost, and counted.

    Else a terminal that was stopped, or a pipe that nobody reads, would stop the broker.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock."""
        if not _takes_more(self.stream):
            self._lost += 1
            return
        if self._lost:
            event = _Event("lines_lost", {"number": self._lost})
            self._lost = 0
            super().emit(logging.makeLogRecord({"levelname": "WARNING", "msg": event}))
        super().emit(record)


def _takes_more(stream: TextIO) -> bool:
    """Whether a line can be written now; to a pipe, one of up to 4 KiB."""
    poll = select.poll()
    try:
        poll.register(stream, select.POLLOUT)
    except (OSError, ValueError):
        # It is none of the kernel's, or is closed.
        return True
    return bool(poll.poll(0))


def configure(process: str, settings: LogSettings | None = None) -> LogSettings:
    """Sends this process's events to standard error; so may be done again, with other settings.

    Without ``settings`` they are those of the process that started this one. Returns them.
    """
    if settings is None:
        settings = LogSettings.from_environment(os.environ)
    handler = _Handler(sys.stderr)
    handler.setFormatter(_Formatter(process, settings.format == "json", is_journal()))
    _logger.handlers = [handler]
    _logger.setLevel(settings.level.upper())
    _logger.propagate = False
    # What nobody caught is an event too; Python itself would write many lines.
    sys.excepthook = _crashed
    threading.excepthook = _thread_crashed
    return settings


def is_journal() -> bool:
    """Whether standard error is journald's own socket (see ``$JOURNAL_STREAM`` in systemd.exec)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(sys.stderr.fileno())
        return (int(device), int(inode)) == (status.st_dev, status.st_ino)
    except (ValueError, OSError, AttributeError):
        return False


def is_debug() -> bool:
    """Whether events of level debug are written; for what is costly to gather."""
    return _logger.isEnabledFor(logging.DEBUG)


def debug(event: str, /, **fields: object) -> None:
    """What only matters to somebody who looks for a fault."""
    _write(logging.DEBUG, event, fields)


def info(event: str, /, **fields: object) -> None:
    """Something went as it should."""
    _write(logging.INFO, event, fields)


def warning(event: str, /, **fields: object) -> None:
    """Something needs a look."""
    _write(logging.WARNING, event, fields)


def error(event: str, /, **fields: object) -> None:
    """Something failed."""
    _write(logging.ERROR, event, fields)


_limit = EventLimit()


def limited(level: str, event: str, /, **fields: object) -> None:
    """An event that others may cause as often as they like.

    A few of each name are written at once, then one a second; ``left_out`` counts the others.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    if not _logger.isEnabledFor(number):
        return
    left_out = _limit.admit(event, time.monotonic())
    if left_out is None:
        return
    if left_out:
        fields["left_out"] = left_out
    _write(number, event, fields)


def _write(level: int, event: str, fields: Fields) -> None:
    if _logger.isEnabledFor(level):
        # Not the values themselves: an exception keeps alive what its frames had.
        _logger.log(level, _Event(event, {key: plain(value) for key, value in fields.items()}))


def crashed(exception: BaseException) -> None:
    """Tells of an exception that nobody expected, and where it came from, in one line."""
    reason = f"{type(exception).__name__}: {exception}"
    error("crashed", reason=reason, traceback=traceback_of(exception))


def traceback_of(exception: BaseException) -> str:
    """Where it came from, as a field."""
    lines = "".join(traceback.format_exception(exception))
    if len(lines) > _TRACEBACK_MAX:
        # Its end says most.
        return f"Traceback: … {lines[-_TRACEBACK_MAX:]}"
    return lines


def _crashed(
    kind: type[BaseException], exception: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, exception, trace)
    else:
        crashed(exception)


def _thread_crashed(crash: threading.ExceptHookArgs) -> None:
    # By SystemExit a thread ends without a word.
    if crash.exc_value is not None and not issubclass(crash.exc_type, SystemExit):
        crashed(crash.exc_value)
