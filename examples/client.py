"""Sends single rows with a deadline and counts what came back in time.

For a server of examples/simulated_gpu.toml: batchyard serve examples/simulated_gpu.toml
"""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np

from batchyard.clients import Client, errors


def main(endpoints: list[str]) -> None:
    """Prints how the requests ended, and how many batches they became."""
    outcomes: Counter[str] = Counter()
    with Client(endpoints or None) as client:
        row = np.ones((1, 4), np.float32)
        try:
            client.predict("double", row)
        except (errors.NotFound, errors.InvalidArgument) as error:
            sys.exit(f"not the model of examples/simulated_gpu.toml: {error}")
        before = client.stats()["models"][0]["batches"]
        futures = [client.submit("double", row, timeout=1.0) for _ in range(1000)]
        for future in futures:
            try:
                future.result()
                outcomes["in time"] += 1
            except errors.BatchyardError as error:
                outcomes[error.code] += 1
        batches = client.stats()["models"][0]["batches"] - before
    print(f"{dict(outcomes)}, {batches} batches")


if __name__ == "__main__":
    main(sys.argv[1:])
