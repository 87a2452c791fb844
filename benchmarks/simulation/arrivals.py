"""When simulated requests are sent: the load test's arrivals, and bursty ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchyard.benchmarks.load import arrivals as load_arrivals
from batchyard.benchmarks.load import plan

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gamma:
    """Independent gaps from a gamma distribution; ``cv`` is their standard deviation ÷ mean.

    1 is Poisson; above, requests come in bursts; below, more evenly than by chance.
    """

    rate: float
    cv: float


@dataclass(frozen=True, slots=True)
class Bursts:
    """A Poisson process whose rate goes up and down by chance (Markov-modulated, two states).

    Calm and burst last exponentially long, ``calm_s`` and ``burst_s`` on average.
    """

    calm_rate: float
    burst_rate: float
    calm_s: float
    burst_s: float

    @property
    def rate(self) -> float:
        """The mean."""
        requests = self.calm_rate * self.calm_s + self.burst_rate * self.burst_s
        return requests / (self.calm_s + self.burst_s)


Arrivals = plan.Arrivals | Gamma | Bursts


def send_times(arrivals: Arrivals, duration_s: float, seed: int) -> Floats:
    """The planned moments in ``[0, duration_s)``, increasing.

    With the same seed a load test plans the same. Raises ConfigurationError for a trace's file
    that is none.
    """
    draw = np.random.default_rng(seed)
    if isinstance(arrivals, Gamma):
        shape = 1 / arrivals.cv**2
        scale = 1 / (arrivals.rate * shape)
        return _renewal(lambda n: draw.gamma(shape, scale, n), arrivals.rate, duration_s)
    if isinstance(arrivals, Bursts):
        return _bursts(arrivals, duration_s, draw)
    return load_arrivals.send_times(arrivals, duration_s, seed)


def _renewal(gaps: Callable[[int], Floats], rate: float, duration_s: float) -> Floats:
    times = np.empty(0)
    last = 0.0
    while last < duration_s:
        more = last + np.cumsum(gaps(int(rate * (duration_s - last)) + 100))
        times = np.concatenate([times, more])
        last = float(times[-1])
    return times[times < duration_s]


def _bursts(bursts: Bursts, duration_s: float, draw: np.random.Generator) -> Floats:
    pieces: list[Floats] = [np.empty(0)]
    start = 0.0
    is_burst = bool(draw.uniform() < bursts.burst_s / (bursts.calm_s + bursts.burst_s))
    while start < duration_s:
        mean_s, rate = (
            (bursts.burst_s, bursts.burst_rate) if is_burst else (bursts.calm_s, bursts.calm_rate)
        )
        stop = start + draw.exponential(mean_s)
        end = min(stop, duration_s)
        pieces.append(np.sort(draw.uniform(start, end, draw.poisson(rate * (end - start)))))
        start, is_burst = stop, not is_burst
    return np.concatenate(pieces)
