"""When a trial has been long enough to say that a share of all requests is in time, or is not.

The rule is that of MLPerf Inference's LoadGen for the Server scenario (``early_stopping.cc``,
``MinPassingQueriesFinder``; ``results.cc``, ``EarlyStopping``;
https://github.com/mlcommons/inference/tree/master/loadgen): with ``late`` requests late, a run
passes once so many were in time that, if the true share were no better than the one asked for,
so few late ones would be seen with a probability of at most 1 - confidence:

    P(Binomial(in_time + late, 1 - share) <= late) = I_share(in_time, late + 1) <= 1 - confidence

LoadGen fixes the confidence at 0.99 and the tolerance at 0, as here, and looks once, at the end.
That a trial has failed is told by the other tail in the same way.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

_NEGLIGIBLE = 1e-18
# A trial is long enough to pass with so many late.
_LATE_ALLOWED = 5


@dataclass(frozen=True, slots=True)
class Counts:
    """What is known of a trial, at its end or on the way."""

    in_time: int
    late: int
    """Late, failed, refused or never answered."""
    seconds: float
    """For how long it has been counted."""
    in_flight: int = 0
    """Sent, and not known to be the one or the other."""

    @property
    def share(self) -> float:
        """In time, of those whose end is known."""
        return self.in_time / max(1, self.in_time + self.late)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a trial must show, and how long it may take to."""

    share: float = 0.99
    confidence: float = 0.99
    least_s: float = 2.0
    """A queue needs time to grow: nothing passes before."""
    most_s: float = 60.0
    """What has not passed by then has not been shown to hold; see ``at``."""

    def __post_init__(self) -> None:
        for name in ("share", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if not 0 <= self.least_s <= self.most_s:
            raise ValueError(f"least_s {self.least_s} must lie between 0 and most_s {self.most_s}")

    def at(self, rate: float) -> Rule:
        """The rule for a rate: where requests are rare, a trial must last until there are enough.

        Else no rate could pass, however low.
        """
        needed = least_in_time(_LATE_ALLOWED, self.share, self.confidence) + _LATE_ALLOWED
        return replace(self, most_s=max(self.most_s, needed / rate))

    def passed(self, counts: Counts) -> bool:
        """Whether the trial has shown, with confidence, that the share holds."""
        # Those on the way count as late as often as may be, and one more, so that those that come
        # in after the end do not turn the judgement.
        doubtful = round(counts.in_flight * (1 - self.share)) + 1 if counts.in_flight else 0
        needed = least_in_time(counts.late + doubtful, self.share, self.confidence)
        return counts.seconds >= self.least_s and counts.in_time >= needed

    def failed(self, counts: Counts) -> bool:
        """Whether the trial has shown, with confidence, that the share does not hold."""
        if not counts.late:
            return False
        fewer = at_most(counts.late - 1, counts.in_time + counts.late, 1 - self.share)
        return 1 - fewer <= 1 - self.confidence

    def decided(self, counts: Counts) -> bool:
        """Whether the trial may stop."""
        return counts.seconds >= self.most_s or self.failed(counts) or self.passed(counts)


@functools.lru_cache(maxsize=4096)
def least_in_time(late: int, share: float, confidence: float) -> int:
    """How many requests must be in time for a trial with so many late ones to pass.

    459 without any late, and 661 with one, for a share and a confidence of 0.99.
    """
    allowed = 1 - confidence

    def passes(in_time: int) -> bool:
        return at_most(late, in_time + late, 1 - share) <= allowed

    high = 1
    while not passes(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def at_most(events: int, draws: int, probability: float) -> float:
    """P(Binomial(draws, probability) <= events)."""
    if events >= draws:
        return 1.0
    # The tail that does not hold the mean: its terms only shrink, and none of them overflows.
    if events < draws * probability:
        return _tail(events, draws, probability)
    return 1 - _tail(draws - events - 1, draws, 1 - probability)


def _tail(events: int, draws: int, probability: float) -> float:
    """P(Binomial(draws, probability) <= events), for events below the mean."""
    term = math.exp(
        math.lgamma(draws + 1)
        - math.lgamma(events + 1)
        - math.lgamma(draws - events + 1)
        + events * math.log(probability)
        + (draws - events) * math.log1p(-probability)
    )
    total = term
    odds = (1 - probability) / probability
    for k in range(events, 0, -1):
        term *= k / (draws - k + 1) * odds
        total += term
        if term <= total * _NEGLIGIBLE:
            break
    return total
