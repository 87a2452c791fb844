"""Planned send times: pure, and the same for the same seed.

Varying rates are a Poisson process of rate 1 whose time is stretched: its k-th arrival is where
the planned rate's integral reaches it (inversion; Çinlar, Introduction to Stochastic Processes).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.benchmarks.load.plan import Arrivals, Constant, Poisson, Ramp, Steps, Trace
from batchyard.wire.errors import ConfigurationError

Times = npt.NDArray[np.float64]
# What the seed is used for; each use has random numbers of its own.
_RUN, _WARMUP = 0, 1


def send_times(arrivals: Arrivals, duration_s: float, seed: int) -> Times:
    """Seconds from the start, increasing, from 0 up to ``duration_s``.

    Steps and ramps that end before stay at their last rate; a trace is over when it is.
    """
    rng = np.random.default_rng([seed, _RUN])
    if isinstance(arrivals, Constant):
        times = np.arange(math.ceil(duration_s * arrivals.rate)) / arrivals.rate
    elif isinstance(arrivals, Poisson):
        times = _unit_poisson(rng, duration_s * arrivals.rate) / arrivals.rate
    elif isinstance(arrivals, Trace):
        times = trace_of(arrivals).times
    else:
        total, when = (
            _stepwise(arrivals, duration_s)
            if isinstance(arrivals, Steps)
            else _ramped(arrivals, duration_s)
        )
        times = when(_unit_poisson(rng, total))
    return times[times < duration_s]


def warmup_times(arrivals: Arrivals, warmup_s: float, seed: int) -> Times:
    """The same before the start, as negative times, at the rate that the run begins with."""
    if isinstance(arrivals, Constant):
        return -np.arange(math.floor(warmup_s * arrivals.rate), 0, -1) / arrivals.rate
    rate = first_rate(arrivals)
    if rate == 0:
        return np.empty(0)
    rng = np.random.default_rng([seed, _WARMUP])
    return _unit_poisson(rng, warmup_s * rate) / rate - warmup_s


def first_rate(arrivals: Arrivals) -> float:
    """Requests per second at the start; of a trace, over all of it."""
    if isinstance(arrivals, Poisson | Constant):
        return arrivals.rate
    if isinstance(arrivals, Ramp):
        return arrivals.from_rate
    if isinstance(arrivals, Steps):
        return arrivals.steps[0][1]
    times = trace_of(arrivals).times
    # Over a second at least: a burst's rate is none that lasts.
    return len(times) / max(float(times[-1]), 1.0) if len(times) else 0.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """A trace as it was read; lines that name no model or rows have None there."""

    times: Times
    models: list[str | None]
    rows: list[int | None]


def trace_of(trace: Trace) -> Recorded:
    """The arrivals of a trace, sorted. Raises ConfigurationError for a file that is none."""
    if isinstance(trace.times, str):
        return read_trace(Path(trace.times))
    times = np.sort(np.array(trace.times, np.float64))
    return Recorded(times, [None] * len(times), [None] * len(times))


def read_trace(path: Path) -> Recorded:
    """A file with seconds from the start, one arrival a line.

    A line is a number, or JSON: ``{"t": 0.25, "model": "resnet", "rows": 4}``, the last two if
    wanted. What comes after ``#`` is ignored. Raises ConfigurationError.
    """
    lines: list[tuple[float, str | None, int | None]] = []
    try:
        with path.open() as file:
            for number, text in enumerate(file, 1):
                try:
                    line = _trace_line(text)
                except (ValueError, TypeError, KeyError) as error:
                    raise ConfigurationError(f"{path} line {number}: {error}") from None
                if line is not None:
                    lines.append(line)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the trace {path} cannot be read: {error}") from None
    if not lines:
        raise ConfigurationError(f"the trace {path} has no arrivals")
    lines.sort(key=lambda line: line[0])
    times, models, rows = zip(*lines, strict=True)
    return Recorded(np.array(times, np.float64), list(models), list(rows))


def _trace_line(text: str) -> tuple[float, str | None, int | None] | None:
    text = text.strip()
    if not text or text.startswith("#"):
        return None
    if not text.startswith("{"):
        return _offset(float(text.partition("#")[0])), None, None
    values: dict[str, Any] = json.loads(text)
    if "t" not in values:
        raise ValueError("needs t, the seconds from the start")
    model, rows = values.get("model"), values.get("rows")
    if model is not None and not isinstance(model, str):
        raise ValueError(f"model must be a name, not {model!r}")
    if rows is not None and (type(rows) is not int or rows < 1):
        raise ValueError(f"rows must be a number from 1, not {rows!r}")
    return _offset(float(values["t"])), model, rows


def _offset(seconds: float) -> float:
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{seconds:g} is no number of seconds from the start")
    return seconds


def _unit_poisson(rng: np.random.Generator, until: float) -> Times:
    """Arrivals of rate 1 from 0 up to ``until``."""
    chunks: list[Times] = []
    last = 0.0
    while last < until:
        left = until - last
        chunk = last + np.cumsum(rng.exponential(size=int(left + 4 * math.sqrt(left)) + 16))
        chunks.append(chunk)
        last = float(chunk[-1])
    times = np.concatenate(chunks) if chunks else np.empty(0)
    return times[times < until]


# Where the integral of the rate reaches given values.
_Inverse = Callable[[Times], Times]


def _stepwise(arrivals: Steps, duration_s: float) -> tuple[float, _Inverse]:
    seconds = [step[0] for step in arrivals.steps]
    rates = [step[1] for step in arrivals.steps]
    seconds[-1] = max(seconds[-1], duration_s - sum(seconds[:-1]))
    ends = np.concatenate([[0.0], np.cumsum(seconds)])
    reached = np.concatenate([[0.0], np.cumsum(np.multiply(seconds, rates))])
    return float(reached[-1]), lambda values: np.interp(values, reached, ends)


def _ramped(arrivals: Ramp, duration_s: float) -> tuple[float, _Inverse]:
    first, last, seconds = arrivals.from_rate, arrivals.to_rate, arrivals.seconds
    growth = (last - first) / seconds
    reached = (first + last) / 2 * seconds

    def when(values: Times) -> Times:
        rising = np.minimum(values, reached)
        # Of first·t + growth·t²/2 = value, in the form that loses no digits for a small growth.
        root = np.sqrt(np.maximum(first**2 + 2 * growth * rising, 0.0))
        after = np.maximum(values - reached, 0.0) / last if last else 0.0
        return np.minimum(2 * rising / np.maximum(first + root, 1e-300), seconds) + after

    return reached + last * max(duration_s - seconds, 0.0), when
