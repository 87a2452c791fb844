"""What is checked: a framework on a card; and what its checks have found so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.gpu.card_memory import MIB, CardMemory, How, Reading
from batchyard.benchmarks.gpu.verdicts import Outcome, Verdict
from batchyard.benchmarks.served import Model
from batchyard.cli.local_server import ServerDidNotStart
from batchyard.pool.inventory import VisibleDevice
from batchyard.wire.errors import BatchyardError

# What a cap may be off by.
TOLERANCE = 0.05
_MESSAGE_MAX = 300


@dataclass(slots=True)
class Subject:
    """``cards`` are all that are visible, ``card`` the one that is filled.

    ``overhead`` is what a worker takes for its context, its framework's kernels and its transfer
    buffers when its model takes 1 MiB; None until it was measured.
    """

    framework: str
    allocation: Model
    card: VisibleDevice
    cards: tuple[VisibleDevice, ...]
    nvml: Any
    overhead: int | None = None

    def memory(self) -> CardMemory:
        """The card's memory; what uses it now does not belong to the check."""
        return CardMemory(self.nvml, self.card.uuid)

    def memories(self) -> dict[str, CardMemory]:
        """The same of all visible cards, by their labels."""
        return {card.label: CardMemory(self.nvml, card.uuid) for card in self.cards}

    def most(self, cap: int) -> int:
        """The most bytes that a worker with that cap may use."""
        return round((1 + TOLERANCE) * cap) + (self.overhead or 0)


def verdicts_of(
    subject: Subject, check: str, part: Callable[[], Iterator[Verdict]]
) -> Iterator[Verdict]:
    """What a part of the check finds; FAILED where it breaks off."""
    try:
        yield from part()
    except (BatchyardError, BenchmarkFailed, ServerDidNotStart, subject.nvml.NVMLError) as error:
        yield Verdict(subject.framework, check, Outcome.FAILED, _words(error))


def _words(error: Exception) -> str:
    """One line; of a server's log the end says most."""
    text = " ".join(str(error).split())
    if len(text) > _MESSAGE_MAX:
        half = _MESSAGE_MAX // 2
        text = f"{text[:half]} … {text[-half:]}"
    return f"{type(error).__name__}: {text}"


def mib(nbytes: float) -> str:
    """``1536 MiB``."""
    return f"{nbytes / MIB:.0f} MiB"


def told(reading: Reading) -> str:
    """How the figure came about, where it is not the plain way."""
    return "" if reading.how is How.PROCESS else f", {reading.how}"
