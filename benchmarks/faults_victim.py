"""A client that is to be killed or stopped while its requests are under way.

``python -m batchyard.benchmarks.faults_victim ENDPOINT`` prints a line when it has some, and goes
on for as long as it is let.
"""

from __future__ import annotations

import sys
from collections import deque

import numpy as np

from batchyard.benchmarks.faults_mix import LARGE, LARGE_COLUMNS, SMALL
from batchyard.clients import Client
from batchyard.wire.control import die_with_parent
from batchyard.wire.errors import BatchyardError

_IN_FLIGHT = 64
# Its requests are nobody's: the ledger leaves id 0 out.
_NOBODY = 0


def main(endpoint: str, parent: int) -> None:
    """Keeps requests in flight, one in eight of them large."""
    die_with_parent(parent)
    client = Client(endpoint)
    small = {"id": np.array([_NOBODY]), "act": np.zeros(1, np.int32), "x": np.zeros(1, np.float32)}
    large = {"id": np.array([_NOBODY]), "x": np.zeros((1, LARGE_COLUMNS), np.float32)}
    under_way: deque[object] = deque()
    for i in range(1 << 40):
        model, inputs = (LARGE, large) if i % 8 == 0 else (SMALL, small)
        try:
            under_way.append(client.submit(model, inputs))
            if i >= _IN_FLIGHT:
                under_way.popleft().exception()  # type: ignore[attr-defined]
        except BatchyardError:
            # The server has troubles of its own.
            continue
        if i == _IN_FLIGHT:
            print("under way", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
