"""Whether the broker hangs. Pure."""

from __future__ import annotations

# How often it is asked, and how often in vain before it hangs: far longer than its longest turn.
# Counted by questions, not by time: when the whole machine stood still, the broker did too.
PAUSE_S = 2.0
UNANSWERED_MAX = 10
# A service manager that hears nothing of the broker for its watchdog's time ends the whole server,
# with every loaded model. Before that there must be time to replace the broker alone.
_SHARE_OF_WATCHDOG = 2 / 3


class Pulse:
    """One broker's, from when it listens until it ends."""

    def __init__(self, watchdog_s: float = float("inf")) -> None:
        """``watchdog_s``: how long a service manager bears to hear nothing of the broker."""
        # From its last answer to the question that is one too many.
        self._pause_s = min(PAUSE_S, _SHARE_OF_WATCHDOG * watchdog_s / (UNANSWERED_MAX + 1))
        self.ask_at = float("inf")
        self._unanswered = 0
        self._first_answer: float | None = None
        self._last_answer = 0.0

    @property
    def patience_s(self) -> float:
        """How long one that hangs was waited for."""
        return self._pause_s * UNANSWERED_MAX

    def begin(self, now: float) -> None:
        """It starts, or listens. It is asked at once: its first answer says that it works."""
        self.ask_at = now
        self._unanswered = 0
        self._first_answer = None

    def end(self) -> None:
        """It is gone."""
        self.ask_at = float("inf")

    def answered(self, now: float) -> None:
        """It does not hang."""
        self._unanswered = 0
        self._last_answer = now
        if self._first_answer is None:
            self._first_answer = now

    def lived_s(self, now: float) -> float | None:
        """How long one that ends now worked; None: it never answered.

        One that hung did not live as long as it was waited for.
        """
        if self._first_answer is None:
            return None
        end = self._last_answer if self._unanswered > UNANSWERED_MAX else now
        return end - self._first_answer

    def ask(self, now: float) -> bool:
        """It is asked again; False when that has no use any more: it hangs."""
        self.ask_at = now + self._pause_s
        self._unanswered += 1
        return self._unanswered <= UNANSWERED_MAX
