"""CURVE keys, in certificate files as ``zmq.auth`` writes them.

A pair is two files: ``NAME.key`` with the public key, for everybody, and ``NAME.key_secret`` with
both. On the wire and in the files keys are Z85: 40 characters for 32 bytes.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from batchyard.wire.errors import ConfigurationError

PUBLIC_SUFFIX = ".key"
SECRET_SUFFIX = ".key_secret"
# Where the SDK and the command line look for a client's keys that they are not given.
SERVER_KEY_VARIABLE = "BATCHYARD_SERVER_KEY"
SECRET_KEY_FILE_VARIABLE = "BATCHYARD_SECRET_KEY_FILE"
_Z85_CHARACTERS = 40
_FINGERPRINT_DIGITS = 16


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Both keys of one who proves who it is, as Z85."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientCurve:
    """What a client needs: whom it means to talk to, and who it is."""

    server: bytes
    own: KeyPair

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Has a socket that is not connected yet use the keys."""
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.own.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.own.secret)


def fingerprint(public: bytes) -> str:
    """What a person compares: the beginning of SHA-256 over the 32 bytes of a key, given as Z85."""
    return hashlib.sha256(z85.decode(public)).hexdigest()[:_FINGERPRINT_DIGITS]


def read_key_pair(path: str | Path) -> KeyPair:
    """The pair in a secret key's file. Raises ConfigurationError, which never quotes the file.

    The file must not be open to other users. Its group may read it: that is how a service's
    account is given a key of root's, and what a systemd credential's mode looks like.
    """
    mode = _mode(path)
    public, secret = _read(path)
    if secret is None:
        raise ConfigurationError(
            f"{path}: has a public key only; the secret key is in the file that ends in "
            f"{SECRET_SUFFIX}"
        )
    if mode & 0o027:
        raise ConfigurationError(
            f"{path}: its mode {stat.S_IMODE(mode):04o} lets others at the secret key, which is "
            "no secret any more: make a new pair (batchyard keys new NAME). If nobody else can "
            f"have read it, chmod 600 {path}"
        )
    if zmq.curve_public(secret) != public:
        raise ConfigurationError(f"{path}: the public key is not that of the secret key")
    return KeyPair(public, secret)


def read_public_key(path: str | Path) -> bytes:
    """The public key in a file. Raises ConfigurationError; also for a secret key's file, which
    does not belong where public ones do."""
    _mode(path)
    public, secret = _read(path)
    if secret is not None:
        raise ConfigurationError(
            f"{path}: has a secret key; give the file that ends in {PUBLIC_SUFFIX}"
        )
    return public


def public_key(text: str) -> bytes:
    """The public key that ``text`` is, as 40 characters of Z85, or the one in the file of that
    name. Raises ConfigurationError."""
    if len(text) == _Z85_CHARACTERS and not os.path.exists(text):
        return _checked(text.encode(errors="replace"), "the server's key")
    if not os.path.exists(text):
        raise ConfigurationError(
            f"the server's key: {text!r} is neither a file nor a key, which has "
            f"{_Z85_CHARACTERS} characters"
        )
    return read_public_key(text)


def read_folder(folder: str | Path) -> tuple[dict[bytes, str], list[str]]:
    """The public keys of a folder's ``*.key`` files, with their names, and what is wrong with
    files that have none. Raises ConfigurationError when the folder cannot be read."""
    keys: dict[bytes, str] = {}
    complaints: list[str] = []
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(PUBLIC_SUFFIX))
    except OSError as error:
        raise ConfigurationError(f"{folder}: {error.strerror}; it is to hold *.key files") from None
    for name in names:
        try:
            keys[read_public_key(Path(folder) / name)] = name.removesuffix(PUBLIC_SUFFIX)
        except ConfigurationError as error:
            complaints.append(str(error))
    return keys, complaints


def nobody_allowed(folder: str) -> str:
    """What to do about a folder without a client's key."""
    return (
        f"{folder}: holds no client's public key (*.key), so nobody can connect by TCP; "
        "allow one: batchyard keys allow FILE"
    )


def client_curve(
    server_key: str | None,
    secret_key_file: str | os.PathLike[str] | None,
    environ: Mapping[str, str] = os.environ,
) -> ClientCurve | None:
    """A client's keys, from what it was given, else from the environment; None without any.

    Raises ConfigurationError when only one of the two is there, or it cannot be read.
    """
    server_key = server_key or environ.get(SERVER_KEY_VARIABLE) or None
    secret_file = secret_key_file or environ.get(SECRET_KEY_FILE_VARIABLE) or None
    if server_key is None and secret_file is None:
        return None
    if server_key is None:
        raise ConfigurationError(
            "secret_key_file (--secret-key-file) needs server_key (--server-key) too: the server's "
            "public key"
        )
    if secret_file is None:
        raise ConfigurationError(
            "server_key (--server-key) needs secret_key_file (--secret-key-file) too: the client's "
            "own keys"
        )
    return ClientCurve(public_key(server_key), read_key_pair(Path(secret_file)))


def _mode(path: str | Path) -> int:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"{path}: {reason}") from None
    if not stat.S_ISREG(mode):
        raise ConfigurationError(f"{path}: is no file")
    return mode


def _read(path: str | Path) -> tuple[bytes, bytes | None]:
    # Not at the top: clients without keys need none of it.
    from zmq.auth import load_certificate

    try:
        public, secret = load_certificate(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except (ValueError, IndexError):
        # Without its cause: that may quote the file.
        reason = "is no file of a key, as `batchyard keys new` writes it"
        raise ConfigurationError(f"{path}: {reason}") from None
    return _checked(public, path), None if secret is None else _checked(secret, path)


def _checked(key: bytes, path: str | Path) -> bytes:
    try:
        is_key = len(key) == _Z85_CHARACTERS and len(z85.decode(key)) == 32
    except (ValueError, KeyError, struct.error):
        is_key = False
    if not is_key:
        raise ConfigurationError(f"{path}: is no key: that is 40 characters of Z85")
    return key
