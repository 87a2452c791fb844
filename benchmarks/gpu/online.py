"""Single images at random: the highest rate in time, what is predicted, and twice too many.

One server a framework, for the way and the precision that count most there. Its batches are as
large as leaves two of them within the deadline, the one that runs when an image comes and its own:
in virtual time no other size has a higher rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.gpu.bare import BareLoop
from batchyard.benchmarks.gpu.feeding import Feeders
from batchyard.benchmarks.gpu.options import FRACTION, Options
from batchyard.benchmarks.gpu.server import serving
from batchyard.benchmarks.gpu.subjects import Group, served_model
from batchyard.benchmarks.gpu.tolerance import Found, run_tolerant_rounds
from batchyard.benchmarks.load import trials
from batchyard.benchmarks.load.plan import LoadPlan, MixEntry, Poisson
from batchyard.benchmarks.load.run import run_load
from batchyard.benchmarks.results import Figure
from batchyard.clients import Client

SERVER_GOAL, GOODPUT_GOAL, PREDICTION_GOAL = 0.90, 0.95, 0.05
_BATCHES_IN_DEADLINE = 2
# Batches are padded to the next of so many sizes, each of which XLA compiles, and PyTorch finds the
# fastest algorithms of. In virtual time a step of 4 rows costs nothing beside one of 1; one of 8
# costs 3 % of the rate.
_SIZES = 8
# Of the offline rate: where the search begins, the loads near the peak, and the overload.
_START = 0.8
_NEAR_PEAK = (0.9, 1.0, 1.25)
_TWICE = 2.0
# In lengths of a measurement: a trial, and the long one that confirms a rate.
_TRIAL, _CONFIRMATION = 3.0, 5.0
_WARM_UP_S = 1.0
# Of the deadline. A late generator takes from the time that the server has: it makes no figure
# better, and what it was is told.
_LAG_SHARE = 0.05


def figures(options: Options, group: Group) -> Iterator[Figure]:
    """The lines of a group."""
    name, at = f"{group.title}, {group.chief.title}", f"{1e3 * options.deadline_s:g} ms"
    key = _keys(group)
    is_card = group.on_card and options.card is not None
    yield Figure(key["offline"], f"{name}, offline", "images/s")
    title = f"{name}, highest Poisson rate, p99 ≤ {at}"
    goal = SERVER_GOAL if is_card and group.network.name == "resnet50" else None
    yield Figure(key["rate"], title, "images/s", key["offline"], goal)
    yield Figure(key["batch"], f"{name}, of batches of at most", "rows")
    yield Figure(
        key["prediction"],
        f"{name}, p99 of the prediction's error at 0.95 of it",
        "share",
        goal=PREDICTION_GOAL if is_card else None,
        lower_is_better=True,
    )
    yield Figure(key["peak"], f"{name}, peak goodput, deadline {at}", "images/s")
    title = f"{name}, goodput at twice the peak"
    yield Figure(key["twice"], title, "images/s", key["peak"], GOODPUT_GOAL if is_card else None)
    yield Figure(key["lag"], f"{name}, generator's lag, p99", "ms", lower_is_better=True)


def _keys(group: Group) -> dict[str, str]:
    names = ("offline", "rate", "batch", "prediction", "peak", "twice", "lag")
    return {name: f"{group.key}_server_{name}" for name in names}


def measure(options: Options, group: Group, exported: Path | None) -> Found:
    """All lines of a group; why one is not there, by its name."""
    with BareLoop(group.framework, options.visible_to(group), FRACTION) as bare:
        variant = group.chief
        bare.load("it", group, variant.xla, options.batch, exported)
        times = {size: bare.batch_s("it", size) for size in candidates(options.batch)}
    batch = largest_in_time(times, options.deadline_s)
    batching = {"max_batch_size": batch, "allowed_batch_sizes": allowed_sizes(batch)}
    model = served_model(group, variant, batching, exported)
    with serving([model], options, group) as endpoint, Feeders(options.clients) as feeders:
        feeders.connect(endpoint, (options.batch, *group.network.row))
        load = _Load(options, endpoint, model.name, _keys(group))
        load.batch = batch
        measurements = {
            f"{group.title}, offline": lambda: load.offline(feeders),
            f"{group.title}, server rate": load.server_rate,
            f"{group.title}, goodput": load.goodput,
        }
        return run_tolerant_rounds(measurements, options.repeat)


def candidates(batch: int) -> list[int]:
    """Sizes of which one is to be the largest: fractions of the offline batch."""
    return sorted({max(batch * eighths // 8, 1) for eighths in (2, 3, 4, 6, 8)})


def allowed_sizes(largest: int) -> list[int]:
    """Batch sizes up to the largest."""
    step = max(largest // _SIZES, 1)
    return sorted({1, *range(step, largest, step), largest})


def largest_in_time(times: Mapping[int, float], deadline_s: float) -> int:
    """The largest batch of which two are within the deadline; the smallest, where none is."""
    fit = [size for size, seconds in times.items() if _BATCHES_IN_DEADLINE * seconds <= deadline_s]
    return max(fit, default=min(times))


class _Load:
    """The loads of one server, each beside the offline rate of its round."""

    def __init__(self, options: Options, endpoint: str, model: str, keys: dict[str, str]) -> None:
        self._options = options
        self._endpoint = endpoint
        self._entry = MixEntry(model, deadline_s=options.deadline_s)
        self._keys = keys
        self._seed = 0
        self._offline = 0.0
        self.batch = 0

    def offline(self, feeders: Feeders) -> Mapping[str, float]:
        """All that it can do."""
        seconds = self._options.seconds
        self._offline = feeders.rows_per_s(self._entry.model, 1, seconds)
        return {self._keys["offline"]: self._offline, self._keys["batch"]: self.batch}

    def server_rate(self) -> Mapping[str, float]:
        """The highest rate at which 99 % are in time, and what is predicted a little below."""
        seconds = self._options.seconds
        found = trials.find(
            self._plan(Poisson(1.0), seconds),
            offline=False,
            start_rate=_START * self._need_offline(),
            most_s=_TRIAL * seconds,
            confirm_s=_CONFIRMATION * seconds,
        )
        if not found.rate:
            raise BenchmarkFailed(f"no rate was in time; last: {found.trials[-1].why}")
        steady = self._plan(Poisson(0.95 * found.rate), _TRIAL * seconds)
        lag_s = run_load(steady).send_lag.quantile(0.99)
        with Client(self._endpoint) as client:
            (model,) = client.stats()["models"]
        return {
            self._keys["rate"]: found.rate,
            self._keys["prediction"]: float(model["prediction"]["p99"]),
            self._keys["lag"]: 1e3 * lag_s,
        }

    def goodput(self) -> Mapping[str, float]:
        """What is answered in time near the peak, and at twice as much."""
        seconds, offline = _TRIAL * self._options.seconds, self._need_offline()

        def at(load: float) -> float:
            result = run_load(self._plan(Poisson(load * offline), seconds))
            return result.in_time / result.duration_s

        return {
            self._keys["peak"]: max(at(load) for load in _NEAR_PEAK),
            self._keys["twice"]: at(_TWICE),
        }

    def _need_offline(self) -> float:
        if not self._offline:
            raise BenchmarkFailed("the offline rate is not known: it could not be measured")
        return self._offline

    def _plan(self, arrivals: Poisson, seconds: float) -> LoadPlan:
        self._seed += 1000
        return LoadPlan(
            target=self._endpoint,
            mix=(self._entry,),
            arrivals=arrivals,
            concurrency=None,
            duration_s=seconds,
            warmup_s=_WARM_UP_S,
            processes=self._options.clients,
            seed=self._seed,
            lag_share=_LAG_SHARE,
        )
