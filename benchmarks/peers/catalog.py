"""The peers: servers that a user would pick instead, and that install from the package index.

How each is set up and tuned stands in ``servers/NAME_server.py``, what it needs in
``requirements/NAME.txt``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from batchyard.benchmarks.peers.formats import Format, Octets, Triton, TritonSharedMemory

MOSEC = "mosec"
_SERVERS = Path(__file__).parent / "servers"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server, and the ways to talk to it."""

    name: str
    """Of its environment, its requirements and its script."""
    title: str
    distribution: str
    """Its package, whose version is shown."""
    format: Format
    shared_memory: Format | None = None
    """Another way, for large rows."""
    may_be_held: bool = True
    """Whether it bears to be held still for a while."""

    @property
    def script(self) -> Path:
        """What starts it."""
        return _SERVERS / f"{self.name}_server.py"

    def formats(self, large_rows: bool) -> Mapping[str, tuple[str, Format]]:
        """The ways to talk to it: title and format by key."""
        ways = {self.name: (self.title, self.format)}
        if self.shared_memory is not None and large_rows:
            title = f"{self.title}, system shared memory"
            ways[f"{self.name}_shared_memory"] = (title, self.shared_memory)
        return ways


PEERS = (
    Peer(MOSEC, "mosec", "mosec", Octets("/inference")),
    Peer(
        "pytriton",
        "PyTriton",
        "nvidia-pytriton",
        Triton(),
        TritonSharedMemory(),
        # Triton crashes (lock_exception in its Python backend) when it was held for a second or
        # two. While it rests it takes about 0.01 of a core.
        may_be_held=False,
    ),
    Peer("litserve", "LitServe", "litserve", Octets("/predict")),
    Peer("bentoml", "BentoML", "bentoml", Octets("/infer")),
    Peer("ray", "Ray Serve", "ray", Octets("/")),
)
