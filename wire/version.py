"""The version of Batchyard, which stands in ``setup.cfg`` alone."""

from __future__ import annotations

# Where it runs from files that are not installed.
UNKNOWN = "0+unknown"


def version() -> str:
    """The version of the package that is installed, such as ``0.1.0``."""
    # It takes 20 ms to import, and few ask.
    from importlib import metadata

    try:
        return metadata.version("batchyard")
    except metadata.PackageNotFoundError:
        return UNKNOWN
