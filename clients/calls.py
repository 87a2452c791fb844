"""Calls: what a caller waits for, how calls share messages, and how answers find them."""

from __future__ import annotations

import concurrent.futures
import copy
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from batchyard.clients.inputs import Array, Route
from batchyard.clients.placement import Placement
from batchyard.clients.tracing import Label
from batchyard.wire.arena import align
from batchyard.wire.dtypes import to_numpy
from batchyard.wire.errors import BatchyardError
from batchyard.wire.protocol import LARGE_FRAME_NBYTES, OutputHeader

NEVER = float("inf")
# Requests that travel as one message. Enough to make the cost of a message small beside them;
# more would only make the first of them wait for the last.
_REQUESTS_PER_MESSAGE = 1024

Outputs = dict[str, Array]


class Promise(Protocol):
    """Where an answer goes: a ``concurrent.futures.Future`` or an ``asyncio.Future``."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...


class PassedOn:
    """A promise that another server is to keep than the one that was asked first."""

    __slots__ = ("_promise",)

    def __init__(self, promise: Promise) -> None:
        self._promise = promise

    def done(self) -> bool:
        return self._promise.done()

    def set_result(self, result: Any, /) -> None:
        self._promise.set_result(result)

    def set_exception(self, exception: BaseException, /) -> None:
        self._promise.set_exception(exception)


class Answer:
    """A promise that one thread waits for.

    A ``Future`` can do more, costs more, and its lock may stay taken when Ctrl-C comes while
    somebody waits.
    """

    __slots__ = ("_done", "_error", "_lock", "_result")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._done = False
        self._result: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self._done

    def set_result(self, result: Any, /) -> None:
        """Ends the waiting."""
        self._result = result
        self._done = True
        self._lock.release()

    def set_exception(self, exception: BaseException, /) -> None:
        """Ends the waiting."""
        self._error = exception
        self._done = True
        self._lock.release()

    def wait(self, timeout: float | None = None) -> Any:
        """The result; raises the error, or TimeoutError after so many seconds."""
        if not self._done and not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._result


class Call:
    """Requests of one caller that end together: one, or as many as ``predict_many`` was given.

    ``rows`` has the rows of each request; None where a signature is not batched.
    ``deadline`` is a time, infinity for none. ``arrays`` are those of all requests, joined;
    with ``placement`` some of them lie in the client's region.
    """

    __slots__ = (
        "arrays",
        "cancelled",
        "count",
        "deadline",
        "first",
        "input_dtypes",
        "keeper",
        "label",
        "message_id",
        "outputs",
        "placement",
        "promise",
        "route",
        "rows",
        "target",
        "total_rows",
        "unanswered",
        "was_refused",
    )

    def __init__(
        self,
        route: Route,
        target: bytes,
        arrays: list[Array],
        rows: list[int] | None,
        total_rows: int,
        deadline: float,
        promise: Promise,
        placement: Placement | None = None,
        label: Label | None = None,
    ) -> None:
        self.route = route
        self.target = target
        self.input_dtypes = route.input_dtypes(arrays)
        self.arrays = arrays
        self.placement = placement
        self.rows = rows
        self.count = 1 if rows is None else len(rows)
        self.total_rows = total_rows
        self.deadline = deadline
        self.promise = promise
        self.label = label
        self.cancelled = False
        # Whether a server of several did not take it, and another got it.
        self.was_refused = False
        # Who ends it when its deadline has passed: the session that has it.
        self.keeper: object = None
        # Where it travelled: the message, and its first request there.
        self.message_id = -1
        self.first = 0
        # Of several requests: how many have no answer yet, and the answers so far.
        self.unanswered = self.count
        self.outputs: list[Outputs | None] = []

    def lacks(self, first: int, requests: int) -> bool:
        """Whether any of these of its requests has no answer: one may be answered twice, when
        its message was sent twice."""
        return not self.outputs or None in self.outputs[first : first + requests]

    def left_behind(self) -> Call:
        """What stands for this call in a message that it is in no more: nobody waits for it."""
        ghost = copy.copy(self)
        ghost.promise = _NOBODY
        ghost.label = None
        ghost.outputs = []
        return ghost


class _Nobody:
    """The promise of those who were told otherwise."""

    def done(self) -> bool:
        return True

    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...


_NOBODY = _Nobody()


class SentMessage:
    """A message that is not answered whole."""

    __slots__ = ("calls", "count", "singles", "unanswered")

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls
        self.count = sum(call.count for call in calls)
        self.unanswered = self.count
        # Whether request i is call i.
        self.singles = self.count == len(calls)

    def check_version(self, version: int) -> None:
        """Tells the calls' routes which version answered."""
        calls = self.calls
        calls[0].route.check_version(version)
        if calls[-1].route is not calls[0].route:
            # The server was asked anew between these calls what the model takes.
            for call in calls:
                call.route.check_version(version)


def coalesce(calls: list[Call]) -> Iterator[list[Call]]:
    """Splits calls for one target into messages. Large tensors are not joined with others."""
    together: list[Call] = []
    requests = nbytes = 0
    for call in calls:
        size = _frames_nbytes(call)
        alone = call.rows is None or size >= LARGE_FRAME_NBYTES
        full = requests >= _REQUESTS_PER_MESSAGE or nbytes + size > LARGE_FRAME_NBYTES
        if together and (alone or full):
            yield together
            together, requests, nbytes = [], 0, 0
        together.append(call)
        requests += call.count
        nbytes += size
        if alone:
            yield together
            together, requests, nbytes = [], 0, 0
    if together:
        yield together


def _frames_nbytes(call: Call) -> int:
    """Bytes of a call's tensors that are to be sent."""
    if call.placement is None:
        return sum([array.nbytes for array in call.arrays])
    placed = zip(call.arrays, call.placement.offsets, strict=True)
    return sum(array.nbytes for array, offset in placed if offset is None)


def calls_of(sent: SentMessage, first: int, requests: int) -> Iterator[tuple[Call, int, int]]:
    """The calls that a segment touches, with the first request in the call and their number."""
    if sent.singles:
        for call in sent.calls[first : first + requests]:
            yield call, 0, 1
        return
    stop = first + requests
    for call in sent.calls:
        start, end = max(first, call.first), min(stop, call.first + call.count)
        if start < end:
            yield call, start - call.first, end - start


def hand_out(sent: SentMessage, first: int, requests: int, outputs: Outputs, row: int) -> int:
    """Gives a segment's rows of ``outputs``, which begin at ``row``, to its calls."""
    for call, start, number in calls_of(sent, first, requests):
        if call.rows is None:
            resolve(call.promise, outputs)
        elif call.count == 1:
            stop = row + call.total_rows
            # The one place that every request passes: a comprehension is a call.
            mine = {}
            for name, array in outputs.items():
                mine[name] = array[row:stop]
            row = stop
            resolve(call.promise, mine)
        else:
            row = _collect_run(call, start, number, outputs, row)
    return row


def _collect_run(call: Call, start: int, number: int, outputs: Outputs, row: int) -> int:
    """Some of several requests of a call are answered; the row after theirs."""
    rows = call.rows or ()
    if not call.outputs:
        call.outputs = [None] * call.count
    answers = call.outputs
    for request in range(start, start + number):
        stop = row + rows[request]
        if answers[request] is None:
            mine = {}
            for name, array in outputs.items():
                mine[name] = array[row:stop]
            answers[request] = mine
            call.unanswered -= 1
        row = stop
    if not call.unanswered:
        resolve(call.promise, answers)
    return row


def outputs_in_region(call: Call, headers: Sequence[OutputHeader], alone: bool) -> Outputs:
    """The outputs that a worker wrote into the reply space of a call: views of it.

    ``headers`` have the rows of all requests that were answered together, unless it was answered
    ``alone``.
    """
    if call.placement is None or call.placement.reply is None:
        raise ValueError("outputs were written for a request that named no place for them")
    outputs: Outputs = {}
    offset = 0
    for name, dtype, shape in headers:
        if not alone:
            shape = (call.total_rows, *shape[1:])
        array: Array = np.ndarray(shape, to_numpy(dtype), call.placement.reply, offset)
        outputs[name] = array
        offset += align(array.nbytes)
    return outputs


def collect(call: Call, request: int, outputs: Outputs) -> None:
    """One of several requests of a call is answered."""
    if not call.outputs:
        call.outputs = [None] * call.count
    if call.outputs[request] is None:
        call.outputs[request] = outputs
        call.unanswered -= 1
    if not call.unanswered:
        resolve(call.promise, call.outputs)


def resolve(promise: Promise, result: Any) -> None:
    if not promise.done():
        try:
            promise.set_result(result)
        except _settled_errors():
            # Another thread cancelled it at this very moment.
            pass


def fail(call: Call, error: BatchyardError) -> None:
    """Ends a call with an error."""
    reject(call.promise, error, None if call.label is None else call.label.request_id)


def reject(promise: Promise, error: BatchyardError, request_id: str | None = None) -> None:
    if not promise.done():
        # One exception object must not be raised in several places: each adds to its traceback.
        own = type(error)(error.message)
        own.request_id = request_id
        try:
            promise.set_exception(own)
        except _settled_errors():
            pass


def _settled_errors() -> tuple[type[Exception], ...]:
    """What a promise raises that was kept already; asked for when one has raised something.

    Importing asyncio takes 20 ms, and many programs do without.
    """
    import asyncio

    return concurrent.futures.InvalidStateError, asyncio.InvalidStateError
