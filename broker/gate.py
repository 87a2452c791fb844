"""Who may connect by TCP: answers libzmq's question whose public key is known.

The ZeroMQ Authentication Protocol (https://rfc.zeromq.org/spec/27/): for each handshake that got
as far as to prove a client's key, libzmq asks a socket of this process. It is served by the
broker's own poller. ``zmq.auth`` would need an event loop, or a thread that competes with the
broker for the interpreter; here it takes a turn of the loop, less than half of what libzmq's thread
spends on the same handshake, so that strangers cannot ask faster than they are answered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import zmq
from zmq.utils import z85

from batchyard.wire import log
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.keys import fingerprint, nobody_allowed, read_folder

# Without a domain, or with one that is not enforced, libzmq lets everybody in when nobody answers.
ZAP_DOMAIN = b"batchyard"
_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_KEY_NBYTES = 32


class Gate:
    """Made, used and closed by one thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: str) -> None:
        """Lets in the public keys of ``folder``. Raises ConfigurationError when there is none."""
        self._folder = folder
        self._names, complaints = read_folder(folder)
        self._known = _by_bytes(self._names)
        # Keys that were let in once, by their names, and those of them that are not known any more.
        self._let_in: set[bytes] = set()
        self.revoked: frozenset[bytes] = frozenset()
        # Handshakes with a key that is not known.
        self.refused = 0
        self._socket = socket = context.socket(zmq.REP)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(_ENDPOINT)
        self._tell(complaints)

    def reload(self) -> None:
        """Reads the folder again, at 60 µs a key. One that cannot be read changes nothing."""
        try:
            names, complaints = read_folder(self._folder)
        except ConfigurationError as error:
            log.error("keys_not_reloaded", reason=error)
            return
        before, self._names = self._names, names
        self._known = _by_bytes(names)
        self.revoked = frozenset(self._let_in - names.keys())
        self._tell(complaints)
        for key in before.keys() - names.keys():
            log.info("key_revoked", name=before[key], key=fingerprint(key))

    def _tell(self, complaints: list[str]) -> None:
        for complaint in complaints:
            log.warning("key_not_read", reason=complaint)
        log.info("keys_read", folder=self._folder, keys=len(self._names))
        if not self._names:
            # No error: who revokes the last key is to be able to reload, and to start again.
            log.warning("no_keys", reason=nobody_allowed(self._folder))

    def fileno(self) -> int:
        """Becomes readable when libzmq asks; then ``serve`` is to be called."""
        return int(self._socket.getsockopt(zmq.FD))

    def serve(self) -> None:
        """Answers all that was asked: until there is nothing, or the descriptor would not tell."""
        with contextlib.suppress(zmq.Again):
            while True:
                request = self._socket.recv_multipart(zmq.NOBLOCK)
                self._socket.send_multipart(self._answer(request), zmq.NOBLOCK)

    def _answer(self, request: list[bytes]) -> list[bytes]:
        """Version, request id, status, its text, user id, metadata."""
        version, request_id, domain, address, _, mechanism, *credentials = [*request, *[b""] * 6][
            : max(len(request), 6)
        ]
        if version != _VERSION or domain != ZAP_DOMAIN or mechanism != b"CURVE":
            return [_VERSION, request_id, b"500", b"Not asked rightly", b"", b""]
        if len(credentials) != 1 or len(credentials[0]) != _KEY_NBYTES:
            return [_VERSION, request_id, b"400", b"No key", b"", b""]
        key = self._known.get(credentials[0])
        if key is None:
            self.refused += 1
            stranger = fingerprint(z85.encode(credentials[0]))
            where = address.decode("ascii", "replace")
            log.limited("warning", "stranger_refused", address=where, key=stranger)
            return [_VERSION, request_id, b"400", b"Unknown key", b"", b""]
        self._let_in.add(key)
        # libzmq puts it beside each of the connection's messages.
        return [_VERSION, request_id, b"200", b"OK", key, b""]

    def is_revoked(self, frame: zmq.Frame) -> bool:
        """Whether a frame came by a connection whose key was revoked since. Takes 0.3 µs: ask only
        while any is ``revoked``."""
        try:
            return str(frame.get("User-Id")).encode() in self.revoked
        except (zmq.ZMQError, UnicodeDecodeError):
            # It came by ipc; there a client may set the property itself, to any bytes.
            return False

    def close(self) -> None:
        """Nobody is let in any more."""
        self._socket.close()


def _by_bytes(keys: Iterable[bytes]) -> dict[bytes, bytes]:
    """Keys as libzmq has them, and as they are written."""
    return {z85.decode(key): key for key in keys}
