"""A request that a server is busy with until the test lets it go on."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
from support.server import Server

from batchyard.clients import Client


class HeldUp:
    """A request that the server is working on until the gate is opened."""

    # Those of gates that nobody has used.
    numbers = count(1)

    def __init__(self, server: Server, client: Client, **options: Any) -> None:
        self._server = server
        self._number = next(self.numbers)
        # Of a shape that never ran: the broker cannot predict when it ends.
        rows = np.full((1, 1000 + self._number), self._number)
        self.future = client.submit("gated", {"gate": rows}, **options)
        server.gates.wait_until_reached(self._number)

    def open(self) -> None:
        self._server.gates.open(self._number)

    def __enter__(self) -> HeldUp:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
