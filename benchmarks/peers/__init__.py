"""``batchyard bench peers``: the servers that a user would pick instead, at the same work."""

from __future__ import annotations

from batchyard.benchmarks.results import Results


def run(seconds: float, repeat: int) -> Results:
    """See ``comparison.run``."""
    # Imported here: keepers, of which one runs beside every server, are light without it.
    from batchyard.benchmarks.peers import comparison

    return comparison.run(seconds, repeat)
