"""What callers call their requests, and what they are told of where the time went.

A ``Tag`` goes with a PREDICT message and names some of its requests, in logs and traces. A
``Timing`` comes back with the RESULT for those that are traced.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from batchyard.wire.errors import InvalidArgument

REQUEST_ID_MAX = 128
# Of W3C Trace Context: version 00, trace id, parent id, flags. Ids of zeros mean none.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SAMPLED = 1


class Tag(NamedTuple):
    """Of some ``requests`` of a message from ``first``: the caller's id, and its trace."""

    first: int
    # Not ``count``: tuples have a method of that name.
    requests: int
    request_id: str | None
    traceparent: str | None

    @property
    def is_traced(self) -> bool:
        """Whether the caller wants to know where the time went."""
        return self.traceparent is not None and bool(int(self.traceparent[-2:], 16) & _SAMPLED)

    @property
    def trace_id(self) -> str | None:
        """The trace's id, in hex."""
        return None if self.traceparent is None else self.traceparent.split("-")[1]


class Timing(NamedTuple):
    """Where the time of requests went, in microseconds, in the order in which it passed.

    ``segment`` is the number of a RESULT's segment. ``gather_us``: their rows were put side by
    side. ``wait_us``: they were with the worker, but not run. The batch had ``batch_rows`` rows
    and ran as ``padded_rows``.
    """

    segment: int
    queue_us: int
    gather_us: int
    wait_us: int
    execute_us: int
    batch_rows: int
    padded_rows: int
    worker: int


def is_request_id(value: Any) -> bool:
    """Whether it is a string of 1 to ``REQUEST_ID_MAX`` printable ASCII characters."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= REQUEST_ID_MAX
        and value.isascii()
        and value.isprintable()
    )


def check_request_id(request_id: str) -> str:
    """Raises InvalidArgument for what cannot be one."""
    if not is_request_id(request_id):
        raise InvalidArgument(
            f"request_id must be a string of 1 to {REQUEST_ID_MAX} printable ASCII characters"
        )
    return request_id


def decode_tags(value: Any, count: int) -> tuple[Tag, ...]:
    """The tags of a message of ``count`` requests; InvalidArgument when it holds anything else."""
    if value is None:
        return ()
    if type(value) is not list or len(value) > count:
        raise InvalidArgument(
            f"PREDICT header: tags must be nil or list at most {count}, one for each request"
        )
    tags: list[Tag] = []
    after = 0
    for item in value:
        if (
            type(item) is not list
            or len(item) != 4
            or type(item[0]) is not int
            or type(item[1]) is not int
            or not after <= item[0] < item[0] + item[1] <= count
        ):
            raise InvalidArgument(
                "PREDICT header: a tag needs [first, count, request_id, traceparent]; its requests "
                f"come after those of the tag before, and are some of the {count} of the message"
            )
        first, number, request_id, traceparent = item
        if request_id is not None and not is_request_id(request_id):
            raise InvalidArgument(
                f"PREDICT header: a tag's request_id must be nil or 1 to {REQUEST_ID_MAX} "
                "printable ASCII characters"
            )
        if traceparent is not None and not _is_traceparent(traceparent):
            raise InvalidArgument(
                "PREDICT header: a tag's traceparent must be nil or as W3C Trace Context has it, "
                "version 00"
            )
        tags.append(Tag(first, number, request_id, traceparent))
        after = first + number
    return tuple(tags)


def tags_of(tags: Sequence[Tag], first: int, count: int) -> list[Tag]:
    """Those that are about any of ``count`` requests from ``first``."""
    # In order, and none about a request of another: a message of 65,536 requests, which run one by
    # one, is looked at 65,536 times.
    begin = bisect_right(tags, first, key=_end)
    end = bisect_left(tags, first + count, lo=begin, key=_first)
    return list(tags[begin:end])


_first: Callable[[Tag], int] = attrgetter("first")


def _end(tag: Tag) -> int:
    return tag.first + tag.requests


def decode_timings(value: Any) -> tuple[Timing, ...]:
    """The timings of a RESULT. They may get more elements."""
    return tuple(Timing(*item[:8]) for item in value)


def _is_traceparent(value: Any) -> bool:
    return isinstance(value, str) and _TRACEPARENT.fullmatch(value) is not None
