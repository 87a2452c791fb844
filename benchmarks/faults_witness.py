"""Requests without the SDK, which would drop a second answer without a word."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Self

import numpy as np
import zmq

from batchyard.benchmarks.callables import expected
from batchyard.benchmarks.faults_server import OBEDIENT
from batchyard.wire import protocol
from batchyard.wire.protocol import InputHeader, MessageType, Target

# Slow beside the load: it is there to see, not to ask.
_EVERY_S = 0.02
_GRACE_S = 10.0
# Far from the ids of loads.
_FIRST_ID = 1 << 40
_HEADERS = (
    InputHeader("act", "int32", (None,)),
    InputHeader("id", "int64", (None,)),
    InputHeader("x", "float32", (None,)),
)
_TARGET = Target(OBEDIENT, None, None, "serving_default", 0, _HEADERS).encode()


class Witness:
    """Sends one request after the other while the block runs, and counts answers to each.

    It does not send again what a broker that died has lost.
    """

    def __init__(self, endpoint: str) -> None:
        self.sent = 0
        self.right = 0
        self.answers: Counter[int] = Counter()
        self._endpoint = endpoint
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @property
    def duplicates(self) -> int:
        """Answers beyond the first."""
        return sum(count - 1 for count in self.answers.values())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._endpoint)
            while not self._ends.is_set():
                self.sent += 1
                ids = np.array([_FIRST_ID + self.sent])
                header = protocol.encode_predict(self.sent, _TARGET, 1, None)
                act, x = np.zeros(1, np.int32), np.array([self.sent], np.float32)
                socket.send_multipart([header, act.tobytes(), ids.tobytes(), x.tobytes()])
                self._receive(socket, time.monotonic() + _EVERY_S)
            deadline = time.monotonic() + _GRACE_S
            while len(self.answers) < self.sent and time.monotonic() < deadline:
                self._receive(socket, time.monotonic() + _EVERY_S)
            # A second answer may still come.
            self._receive(socket, time.monotonic() + 10 * _EVERY_S)

    def _receive(self, socket: zmq.Socket[bytes], until: float) -> None:
        while (left_s := until - time.monotonic()) > 0:
            if socket.poll(int(left_s * 1000) + 1):
                self._answered(socket.recv_multipart())

    def _answered(self, message: list[bytes]) -> None:
        type_, body = protocol.decode(message[0])
        if type_ is MessageType.ERROR:
            for message_id, *_ in protocol.decode_error(body).segments:
                self.answers[message_id] += 1
        elif type_ is MessageType.RESULT:
            y = np.frombuffer(message[1], np.float32)
            for at, (message_id, *_) in enumerate(protocol.decode_result(body).segments):
                self.answers[message_id] += 1
                number = np.array([message_id])
                right = expected(number.astype(np.float32), number + _FIRST_ID)[0]
                self.right += bool(y[at] == right)
