"""Folders that a service's user has to get at, made by a person of whatever umask."""

from __future__ import annotations

from pathlib import Path


def make(folder: Path) -> None:
    """Makes a folder, and those above it that are missing, for all to read. Raises OSError.

    A umask of 077 or 027, which hardened machines have, would keep the service out of what root
    makes for it.
    """
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(exist_ok=True)
        missing.chmod(0o755)
