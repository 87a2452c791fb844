"""When a process that died is started again: at once, after a pause, or never. Pure."""

from __future__ import annotations

from batchyard.wire import control

# A process that dies sooner after it was ready died young.
YOUNG_S = 1.0
YOUNG_DEATHS_MAX = 10
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 30.0
# Of those that had served pauses grow to this, and no more: requests may be what kills them.
_LONGEST_PAUSE_AFTER_SERVICE_S = 1.0
# The next process would end in the same way.
LASTING_REASONS = (control.EXIT_CONFIGURATION, control.EXIT_DEVICE, control.EXIT_MODEL)


class Restarts:
    """The deaths of the processes that held one place, one after the other."""

    def __init__(self) -> None:
        self._young_deaths = 0

    def pause_after(
        self, lived_s: float | None, exit_code: int, has_served: bool = False
    ) -> float | None:
        """Seconds until the next process is started; None: it is given up.

        ``lived_s`` counts from when it was ready, None if it never was. ``exit_code`` is the one
        that it told as its reason. One that ``has_served`` is never given up, and not made to wait
        for long: what it was given may have killed it, and the others must not pay for that.
        """
        if exit_code in LASTING_REASONS:
            return None
        if lived_s is not None and lived_s >= YOUNG_S:
            self._young_deaths = 0
            return 0.0
        self._young_deaths += 1
        if has_served:
            self._young_deaths = min(self._young_deaths, YOUNG_DEATHS_MAX - 1)
        if self._young_deaths >= YOUNG_DEATHS_MAX:
            return None
        if self._young_deaths == 1:
            return 0.0
        longest = _LONGEST_PAUSE_AFTER_SERVICE_S if has_served else _LONGEST_PAUSE_S
        return min(_FIRST_PAUSE_S * 2.0 ** (self._young_deaths - 2), longest)

    def forgive(self) -> None:
        """Another try, as if it had never died."""
        self._young_deaths = 0
