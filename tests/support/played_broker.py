"""A broker that a thread plays for a client: it welcomes, describes its one model, and keeps the
requests for the test to answer."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import zmq
from support.fake_broker import FakeBroker
from support.waiting import wait_until

from batchyard.wire import protocol
from batchyard.wire.errors import BatchyardError, Unavailable
from batchyard.wire.protocol import MessageType, Predict, Result
from batchyard.wire.tensors import Buffer

MODEL = "double"
_DRAINING = protocol.encode(MessageType.DRAINING, [])
_epochs = itertools.count(1)


class Asked:
    """A PREDICT that has come: one float32 input, rows of one number."""

    def __init__(
        self, broker: PlayedBroker, client: bytes, predict: Predict, frame: Buffer
    ) -> None:
        self.predict = predict
        self.client = client
        self.values: list[float] = np.frombuffer(frame, np.float32).tolist()
        self._broker = broker

    @property
    def resent(self) -> bool:
        return self.predict.resent

    def answer(self, queued_rows: int = 0, version: int = 1) -> None:
        """Twice what was asked, for all requests of the message."""
        self._broker.send(self.client, *self.result(queued_rows, version))

    def result(self, queued_rows: int, version: int) -> tuple[bytes, bytes]:
        """The header and the frame of the answer."""
        segments = [(self.predict.message_id, 0, self.predict.count)]
        outputs: list[protocol.OutputHeader] = [("y", "float32", (len(self.values),))]
        result = Result(segments, version, outputs, queued_rows=queued_rows)
        return protocol.encode_result(result), (np.array(self.values, np.float32) * 2).tobytes()

    def refuse(self, error: BatchyardError) -> None:
        """One error for all requests of the message."""
        header = protocol.encode_error([(self.predict.message_id, 0, 0)], error)
        self._broker.send(self.client, header)


class PlayedBroker:
    """Has one model, ``double``. ``asked`` has what came and was not taken by the test."""

    def __init__(self, *, answers: bool = False, retry: bool = True, starts: bool = True) -> None:
        """``answers``: each request at once. ``starts``: otherwise it begins to listen by
        ``start``."""
        self.asked: queue.Queue[Asked] = queue.Queue()
        self.cancelled: list[list[Any]] = []
        self.count = 0
        self.answers = answers
        self.queued_rows = 0
        self.version = 1
        self.retry = retry
        self.refusal: BatchyardError | None = None
        # Otherwise it says so only when a request comes.
        self.tell_draining = True
        self._commands: queue.Queue[Callable[[], object]] = queue.Queue()
        self._drains = False
        self._ending = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._fake = FakeBroker(self._context, next(_epochs))
        self.endpoint = self._fake.endpoint
        self._listens = True
        self._clients: list[bytes] = []
        if not starts:
            self._stop()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> PlayedBroker:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending = True
        self._thread.join()

    # What the test has it do

    def next(self) -> Asked:
        """The next request; waits for it."""
        return self.asked.get(timeout=15)

    def send(self, client: bytes, header: bytes, *frames: bytes) -> None:
        """Sends a message to one client."""
        self._do(lambda: self._fake._router.send_multipart([client, header, *frames]))

    def drain(self) -> None:
        """Says that it takes no more requests, and takes none."""

        def say() -> None:
            self.refusal = Unavailable("the server is shutting down")
            self._drains = True
            for client in self._clients if self.tell_draining else ():
                self._fake._router.send_multipart([client, _DRAINING])

        self._do(say)

    def kill(self) -> None:
        """Is gone, with all that it knew."""
        self._do(self._stop)

    def start(self) -> None:
        """Listens again, as another process."""

        def start() -> None:
            self._fake.epoch = next(_epochs)
            self.refusal = None
            self._drains = False
            self._fake.bind()
            self._listens = True

        self._do(start)

    def _do(self, command: Callable[[], object]) -> None:
        done = threading.Event()
        self._commands.put(lambda: (command(), done.set()))
        wait_until(done.is_set, "the broker does what it is told")

    # Its thread

    def _stop(self) -> None:
        self._listens = False
        self._clients = []
        self._fake.unbind()

    def _run(self) -> None:
        try:
            while not self._ending:
                while not self._commands.empty():
                    self._commands.get()()
                if not self._listens or not self._step():
                    time.sleep(0.001)
        finally:
            self._fake.close()
            self._context.destroy(linger=0)

    def _step(self) -> bool:
        received = self._fake.receive()
        if received is None:
            return False
        type_, body, frames = received
        if type_ is MessageType.HELLO:
            self._clients.append(self._fake.client)
            self._fake.send(self._fake.welcome())
        elif type_ is MessageType.QUERY:
            answer = {"broker": {"epoch": self._fake.epoch}}
            if body[1] == "metadata":
                answer = self._metadata()
            self._fake.send(protocol.encode(MessageType.ANSWER, [body[0], 0, "", answer]))
        elif type_ is MessageType.CANCEL:
            self.cancelled += body
        elif type_ is MessageType.PREDICT:
            self._predict(Asked(self, self._fake.client, protocol.decode_predict(body), frames[0]))
        return True

    def _predict(self, asked: Asked) -> None:
        self.count += asked.predict.count
        if self._drains:
            self._fake.send(_DRAINING)
        if self.refusal is not None:
            segments = [(asked.predict.message_id, 0, 0)]
            self._fake.send(protocol.encode_error(segments, self.refusal))
        elif self.answers:
            header, frame = asked.result(self.queued_rows, self.version)
            self._fake.send(header, [frame])
        else:
            self.asked.put(asked)

    def _metadata(self) -> dict[str, Any]:
        tensor = ["float32", [None]]
        signature = {
            "name": "serving_default",
            "inputs": [["x", *tensor]],
            "outputs": [["y", *tensor]],
            "batched": True,
            "open": False,
            "method_name": "",
        }
        return {
            "name": MODEL,
            "version": self.version,
            "labels": [],
            "state": "AVAILABLE",
            "max_batch_size": 64,
            "max_enqueued_batches": 100,
            "retry": self.retry,
            "signatures": {"serving_default": signature},
        }
