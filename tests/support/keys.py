"""Keys for tests: a server's, those of clients, and the list of whom the server lets in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batchyard.cli.keys import CLIENTS_FOLDER, make_pair
from batchyard.wire.keys import KeyPair, read_key_pair, read_public_key


class Keyring:
    """A folder as ``batchyard keys`` keeps it."""

    def __init__(self, folder: Path, *allowed: str) -> None:
        """With the pair ``server``, and those of the clients that are ``allowed``."""
        self.folder = folder
        self.clients = folder / CLIENTS_FOLDER
        self.clients.mkdir(parents=True)
        self.server_key = str(make_pair(folder, "server")[0])
        for name in allowed:
            self.allow(name)

    def secret_file(self, name: str) -> Path:
        """The file of a pair, which is made if it is not there."""
        path = self.folder / f"{name}.key_secret"
        return path if path.exists() else make_pair(self.folder, name)[1]

    def pair(self, name: str) -> KeyPair:
        """Both keys of one."""
        return read_key_pair(self.secret_file(name))

    def public(self, name: str) -> bytes:
        """The public key of one."""
        self.secret_file(name)
        return read_public_key(self.folder / f"{name}.key")

    def allow(self, name: str) -> None:
        """A server that reads the folder lets this client in."""
        self.secret_file(name)
        (self.clients / f"{name}.key").write_bytes((self.folder / f"{name}.key").read_bytes())

    def revoke(self, name: str) -> None:
        """It does not any more."""
        (self.clients / f"{name}.key").unlink()

    def options(self, name: str) -> dict[str, Any]:
        """What ``Client`` needs to be this client."""
        return {"server_key": self.server_key, "secret_key_file": self.secret_file(name)}

    def table(self) -> str:
        """``[broker]`` of the server."""
        secret = self.secret_file("server")
        return f'[broker]\ncurve_secret_key_file = "{secret}"\ncurve_clients = "{self.clients}"\n'
