"""mosec: a Rust front, one Python worker behind a Unix socket.

Tuned as its documentation of dynamic batching says: ``max_batch_size`` and ``max_wait_time`` of
the worker; bodies are bytes (``deserialize`` and ``serialize`` overridden) instead of JSON.
https://mosecorg.github.io/mosec/reference/concept.html
"""

from __future__ import annotations

import os
from typing import Any

from mosec import Server, Worker  # type: ignore[import-not-found]
from served_model import ServedModel, arguments  # type: ignore[import-not-found]


class ModelWorker(Worker):  # type: ignore[misc]
    """Rows in, outputs out. Lives in a process of its own."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._model = ServedModel(arguments().model)

    def deserialize(self, data: bytes) -> bytes:
        """A request's body as it is."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """An answer's body as it is."""
        return data

    def forward(self, data: Any) -> Any:
        """A list of bodies where it batches, else one."""
        if self.max_batch_size > 1:
            return self._model.answers(data)
        return self._model.answers([data])[0]


if __name__ == "__main__":
    options = arguments()
    # What mosec's own command line has; the port it takes from there.
    os.environ |= {
        "MOSEC_ADDRESS": "127.0.0.1",
        "MOSEC_LOG_LEVEL": "warning",
        "MOSEC_TIMEOUT": "60000",
    }
    server = Server()
    server.append_worker(
        ModelWorker,
        # It cannot wait for less than a millisecond: the shortest way is not to batch.
        max_batch_size=options.max_batch_size if options.batch_timeout_micros else 1,
        max_wait_time=max(1, options.batch_timeout_micros // 1000),
    )
    server.run()
