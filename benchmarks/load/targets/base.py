"""What the generator needs of a server, whichever interface it is asked by."""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy.typing as npt

from batchyard.benchmarks.load.plan import MixEntry
from batchyard.wire.signatures import TensorSpec

Array = npt.NDArray[Any]
# Sends one prepared request with so many seconds left until its deadline (None: it has none), and
# is awaited for the answer. What is awaited raises a BatchyardError for an answer that is none.
Send = Callable[[float | None], Awaitable[object]]


class Target(abc.ABC):
    """One connection, or pool of connections, to a server; for one event loop.

    Every error of the server is a BatchyardError: its code is what the request is counted under.
    """

    @abc.abstractmethod
    async def connect(self) -> None:
        """Raises Unavailable when nobody answers."""

    @abc.abstractmethod
    async def inputs(self, entry: MixEntry) -> tuple[TensorSpec, ...]:
        """What the entry's requests have to hold; none for a signature that declares nothing.

        Raises NotFound, or what else the server says.
        """

    @abc.abstractmethod
    def prepare(self, entry: MixEntry, inputs: Mapping[str, Array]) -> Send:
        """A request that can be sent again and again.

        All that can be done before sending is done here, such as encoding: it must not take time
        when requests are due. Raises InvalidArgument for inputs that the model does not take.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Ends the connection. Idempotent."""


def make_target(address: str | None) -> Target:
    """The target at an address as ``LoadPlan.target`` has it; not connected yet.

    Raises ConfigurationError for what is no address.
    """
    # Imported when asked for: HTTP and gRPC need libraries that Batchyard's own clients do not.
    if address is not None and address.startswith("http://"):
        from batchyard.benchmarks.load.targets.rest import RestTarget

        return RestTarget(address)
    if address is not None and address.startswith("grpc://"):
        from batchyard.benchmarks.load.targets.grpc import GrpcTarget

        return GrpcTarget(address)
    from batchyard.benchmarks.load.targets.batchyard import BatchyardTarget

    return BatchyardTarget(address)


def is_batchyard(address: str | None) -> bool:
    """Whether the server at an address tells what ``client.stats()`` does."""
    return address is None or not address.startswith(("http://", "grpc://"))
