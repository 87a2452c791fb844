"""Who may listen at an ipc path: one server at a time, which leaves nothing behind.

Binding alone would take the path from a server that is still running. A lock file beside the
socket says that one is; the kernel lets go of the lock whoever is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from batchyard.wire.access import Access
from batchyard.wire.endpoints import check
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.local import LOCAL_SUFFIX

_PRIVATE_PREFIX = "batchyard-"
_PRIVATE_NAME = "broker"
# A server that starts beside this one has made its lock's file, and is about to take the lock.
_YOUNG_S = 60.0


@contextlib.contextmanager
def claimed(endpoints: Sequence[str], access: Access) -> Iterator[None]:
    """Claims the paths of all ipc endpoints, makes their folders, and removes the sockets.

    Who has ``access`` to the sockets can reach them in a folder that is made here.

    Raises ConfigurationError when another server holds one, or it cannot be made.
    """
    with contextlib.ExitStack() as claims:
        for endpoint in endpoints:
            if endpoint.startswith("ipc://"):
                path = endpoint.removeprefix("ipc://")
                claims.enter_context(claimed_path(path, access, endpoint))
        yield


@contextlib.contextmanager
def private_endpoint() -> Iterator[str]:
    """An ipc endpoint that nobody else knows, in a folder that nobody else may enter.

    Raises ConfigurationError when there is no room for one.
    """
    try:
        _remove_orphans(Path(tempfile.gettempdir()))
        folder = tempfile.TemporaryDirectory(prefix=_PRIVATE_PREFIX, ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfigurationError(
            f"no temporary folder for a socket: {error.strerror}; set TMPDIR, or bind an ipc:// "
            "endpoint"
        ) from error
    with folder as path:
        yield check(f"ipc://{path}/{_PRIVATE_NAME}", binding=True)


def _remove_orphans(temporary: Path) -> None:
    """Removes the folders of this user's servers that were killed, which nobody else would."""
    for lock_path in temporary.glob(f"{_PRIVATE_PREFIX}*/{_PRIVATE_NAME}.lock"):
        with contextlib.suppress(OSError):
            folder = lock_path.parent.lstat()
            is_ours = stat.S_ISDIR(folder.st_mode) and folder.st_uid == os.geteuid()
            if not is_ours or time.time() - lock_path.lstat().st_mtime < _YOUNG_S:
                continue
            lock = _lock(lock_path)
            if lock is not None:
                shutil.rmtree(lock_path.parent, ignore_errors=True)
                os.close(lock)


@contextlib.contextmanager
def claimed_path(name: str, access: Access, endpoint: str) -> Iterator[None]:
    """The same for one path; ``endpoint`` is what errors call it."""
    path = Path(name)
    lock_path = Path(f"{path}.lock")
    try:
        if not path.parent.parent.is_dir():
            # Folders that nobody asked for are a typing error's.
            raise ConfigurationError(
                f"cannot bind {endpoint}: there is no folder {path.parent.parent}, in which "
                f"{path.parent.name} could be made"
            )
        _make_folder(path.parent, access)
        lock = _lock(lock_path)
        beside = Path(f"{path}{LOCAL_SUFFIX}")
        is_other = any(p.exists() and not stat.S_ISSOCK(p.stat().st_mode) for p in (path, beside))
    except OSError as error:
        raise ConfigurationError(f"cannot bind {endpoint}: {error.strerror}") from error
    if lock is None:
        raise ConfigurationError(
            f"cannot bind {endpoint}: another server is running there; stop it, or bind "
            "another endpoint"
        )
    try:
        if is_other:
            raise ConfigurationError(f"cannot bind {endpoint}: a file that is no socket is there")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            # A broker that was killed leaves this one too.
            beside.unlink(missing_ok=True)
    finally:
        lock_path.unlink(missing_ok=True)
        os.close(lock)


def _make_folder(folder: Path, access: Access) -> None:
    """Makes a folder that others cannot look into, if it is not there."""
    if folder.exists():
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    # To reach a socket takes the right to pass through its folder, and nothing more.
    passage = 0o010 * bool(access.mode & 0o020) | 0o001 * bool(access.mode & 0o002)
    # The group first, so that no other gets through meanwhile.
    Access(0o700 | passage, access.gid).give(str(folder))
    folder.chmod(0o700 | passage)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock; None when another process does."""
    while True:
        lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        # Whoever held it before may have removed the file meanwhile: then this lock is nobody's.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        os.close(lock)
