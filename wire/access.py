"""Who may connect to the Unix sockets of a server: their files' mode and group."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from batchyard.wire.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Access:
    """``gid`` None: the group that new files of this process have."""

    mode: int
    gid: int | None = None

    @contextlib.contextmanager
    def of_new_files(self) -> Iterator[None]:
        """Files that are made meanwhile have this mode from their first moment, so that nobody
        else can connect; for a group of its own, none but the owner before ``give``."""
        umask = os.umask(0o777 & ~(self.mode if self.gid is None else self.mode & 0o700))
        try:
            yield
        finally:
            os.umask(umask)

    def give(self, path: str) -> None:
        """Lets the group in. Raises ConfigurationError."""
        if self.gid is None:
            return
        try:
            os.chown(path, -1, self.gid)
            os.chmod(path, self.mode)
        except OSError as error:
            raise ConfigurationError(
                f"cannot give {path} to the group {self.gid} (ipc_group): {error.strerror}; "
                "the server's user must be a member of it"
            ) from error
