"""Whether the broker hangs. Pure."""

from __future__ import annotations

# How often it is asked, and how often in vain before it hangs: far longer than its longest turn.
# Counted by questions, not by time: when the whole machine stood still, the broker did too.
PAUSE_S = 2.0
UNANSWERED_MAX = 10


class Pulse:
    """One broker's, from when it listens until it ends."""

    def __init__(self) -> None:
        self.ask_at = float("inf")
        self._unanswered = 0

    def begin(self, now: float) -> None:
        """It listens."""
        self.ask_at = now + PAUSE_S
        self._unanswered = 0

    def end(self) -> None:
        """It is gone."""
        self.ask_at = float("inf")

    def answered(self) -> None:
        """It does not hang."""
        self._unanswered = 0

    def ask(self, now: float) -> bool:
        """It is asked again; False when that has no use any more: it hangs."""
        self.ask_at = now + PAUSE_S
        self._unanswered += 1
        return self._unanswered <= UNANSWERED_MAX
