"""When simulated requests are sent: the load test's arrivals, and bursty ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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


def send_times(arrivals: Arrivals, duration_s: float, draw: np.random.Generator) -> Floats:
    """The planned moments in ``[0, duration_s)``, increasing.

    Raises TypeError for a trace in a file: read it first (``load.arrivals.read_trace``).
    """
    match arrivals:
        case plan.Poisson(rate):
            return _poisson(rate, 0.0, duration_s, draw)
        case plan.Constant(rate):
            return np.arange(round(duration_s * rate)) / rate
        case plan.Trace(str()):
            raise TypeError("the simulation takes a trace's times, not its file")
        case plan.Trace(times):
            recorded = np.sort(np.asarray(times, np.float64))
            return recorded[(recorded >= 0) & (recorded < duration_s)]
        case plan.Steps(steps):
            return _steps(steps, duration_s, draw)
        case plan.Ramp():
            return _ramp(arrivals, duration_s, draw)
        case Gamma(rate, cv):
            shape = 1 / cv**2
            return _renewal(lambda n: draw.gamma(shape, 1 / (rate * shape), n), rate, duration_s)
        case Bursts():
            return _bursts(arrivals, duration_s, draw)


def _poisson(rate: float, start: float, stop: float, draw: np.random.Generator) -> Floats:
    count = draw.poisson(rate * (stop - start))
    return np.sort(draw.uniform(start, stop, count))


def _steps(steps: Any, duration_s: float, draw: np.random.Generator) -> Floats:
    pieces: list[Floats] = []
    start = 0.0
    for seconds, rate in steps:
        pieces.append(_poisson(rate, start, start + seconds, draw))
        start += seconds
    times = np.concatenate(pieces)
    return times[times < duration_s]


def _ramp(ramp: plan.Ramp, duration_s: float, draw: np.random.Generator) -> Floats:
    # Thinning (Lewis and Shedler, 1979): of the highest rate's arrivals each is kept by chance.
    highest = max(ramp.from_rate, ramp.to_rate)
    times = _poisson(highest, 0.0, min(ramp.seconds, duration_s), draw)
    rates = ramp.from_rate + (ramp.to_rate - ramp.from_rate) * times / ramp.seconds
    return times[draw.uniform(0.0, highest, len(times)) < rates]


def _renewal(gaps: Any, rate: float, duration_s: float) -> Floats:
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
        pieces.append(_poisson(rate, start, min(stop, duration_s), draw))
        start, is_burst = stop, not is_burst
    return np.concatenate(pieces)
