"""Whatever is measured at a workload: a peer, a call of Batchyard's SDK, bare TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class ContestantFailed(Exception):
    """A server did not start, or did not answer as it should; the message says how."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to have the workload done."""

    key: str
    """Among those at the same workload."""
    title: str
    measure: Callable[[float], float]
    """Seconds in, its figure out. Raises ContestantFailed."""
    gateway_cpu_us: Callable[[], float | None] | None = None
    """Of those that come through a gateway: what each request of the last measurement cost it."""
