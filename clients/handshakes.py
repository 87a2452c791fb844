"""Why a server that is there does not let a client in: what libzmq tells of handshakes."""

from __future__ import annotations

import zmq

from batchyard.wire.errors import BatchyardError, Unauthenticated, Unavailable
from batchyard.wire.keys import ClientCurve, fingerprint

FAILED = int(
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


def explain(
    event: int, value: int, endpoint: str, curve: ClientCurve | None
) -> BatchyardError | str:
    """An error where trying again does not help, else what may be the reason, or nothing.

    After an error libzmq does not connect again by itself; otherwise it does.
    """
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return _unknown_key(endpoint, curve)
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            return _other_mechanism(endpoint, curve)
        return Unavailable(f"what listens at {endpoint} is no Batchyard server")
    if curve is None:
        return ""
    # Whoever cannot read what was encrypted for another key closes the connection without a word.
    return (
        f"a server is there and ended the handshake: is {fingerprint(curve.server)} the "
        f"fingerprint of the key of the server at {endpoint}?"
    )


def _unknown_key(endpoint: str, curve: ClientCurve | None) -> BatchyardError:
    who = "this client" if curve is None else f"this client's key {fingerprint(curve.own.public)}"
    return Unauthenticated(
        f"the server at {endpoint} does not know {who}; there, `batchyard keys allow` its public "
        "key and have the server reload"
    )


def _other_mechanism(endpoint: str, curve: ClientCurve | None) -> BatchyardError:
    if curve is None:
        return Unauthenticated(
            f"the server at {endpoint} asks for keys: give server_key and secret_key_file"
        )
    return Unauthenticated(
        f"the server at {endpoint} has no keys (curve_secret_key_file under [broker]): it cannot "
        "show that it is the one that server_key means"
    )
