"""What happened between two answers of ``Client.metrics()``: rates, latencies, and what changed.

Pure: maps in, numbers out. The status page does the same in ``gateways/page/interval.js``, and a
test holds one against the other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OK = "OK"
# A model's name and version.
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Distribution:
    """How often something took how long.

    ``counts[i]`` is of what took more than ``bounds_s[i - 1]`` and at most ``bounds_s[i]`` seconds;
    the last is of what is beyond all bounds.
    """

    bounds_s: Sequence[float]
    counts: Sequence[int]
    sum_s: float

    @property
    def count(self) -> int:
        """How many."""
        return sum(self.counts)

    @property
    def mean_s(self) -> float | None:
        """None when there were none."""
        return self.sum_s / self.count if self.count else None

    def quantile(self, q: float) -> float | None:
        """The seconds that a share ``q`` of them did not pass; None when there were none.

        Inside of a bucket they are taken to lie evenly, as Prometheus' ``histogram_quantile`` does.
        Beyond the last bound it is inf: all that is known is that it is more.
        """
        if not self.count:
            return None
        rank, below, low = q * self.count, 0, 0.0
        for bound, count in zip(self.bounds_s, self.counts, strict=False):
            if count and below + count >= rank:
                return low + (bound - low) * (rank - below) / count
            below, low = below + count, bound
        return math.inf


@dataclass(frozen=True, slots=True)
class ModelInterval:
    """One version of a model, or several together. Counts are those of the interval."""

    name: str
    version: int
    state: str
    is_current: bool
    error: str
    queue_rows: int
    batches: int
    rows: int
    padding_rows: int
    batch_rows: Mapping[int, int]
    """How many batches had so many rows."""
    codes: Mapping[str, int]
    """Requests by the code of their answer."""
    misses: Mapping[str, int]
    """Requests that missed their deadline: ``refused``, ``dropped``, ``expired``, ``late``."""
    request: Distribution
    """From a request's arrival to its outputs."""
    queue: Distribution
    execution: Distribution
    """Of batches."""
    prediction_error: float | None
    """Half of the last thousand predictions of execution times were off by less than this share."""

    @property
    def requests(self) -> int:
        """Answered, well or not."""
        return sum(self.codes.values())

    @property
    def good(self) -> int:
        """Answered with outputs, in time."""
        return max(0, self.codes.get(OK, 0) - self.misses.get("late", 0))

    @property
    def errors(self) -> dict[str, int]:
        """Those that were not answered with outputs, by code; the most frequent first."""
        errors = {code: count for code, count in self.codes.items() if code != OK and count}
        return dict(sorted(errors.items(), key=lambda item: (-item[1], item[0])))

    @property
    def mean_rows(self) -> float | None:
        """Of a batch; None when there were none."""
        return self.rows / self.batches if self.batches else None

    @property
    def padding(self) -> float:
        """Which share of what devices were given was padding."""
        padded = self.rows + self.padding_rows
        return self.padding_rows / padded if padded else 0.0


@dataclass(frozen=True, slots=True)
class WorkerInterval:
    """One slot of the pool."""

    id: int
    pid: int
    device: str
    state: str
    restarts: int
    busy: float
    """Which share of the time batches ran."""
    batches: int


@dataclass(frozen=True, slots=True)
class Interval:
    """The time between two samples of one server."""

    seconds: float
    uptime_s: float
    pid: int
    clients: int
    draining: bool
    cpu: float
    """Which share of a core the broker used."""
    models: tuple[ModelInterval, ...]
    workers: tuple[WorkerInterval, ...]
    arena_bytes: int
    arena_used_bytes: int
    devices: tuple[Mapping[str, Any], ...]
    """Of the gateway's answer, as it gives them."""

    @property
    def total(self) -> ModelInterval:
        """All models together."""
        return together(self.models)

    @property
    def busy(self) -> float:
        """Which share of the workers' time batches ran."""
        shares = [worker.busy for worker in self.workers]
        return sum(shares) / len(shares) if shares else 0.0


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> Interval | None:
    """What happened from one answer to a later one; None if no time passed.

    Time is the broker's own, so it does not matter how long an answer was under way. Of a broker
    that was started in between it is all that it did.
    """
    if before["broker"]["epoch"] != after["broker"]["epoch"]:
        before = {"broker": {}, "models": [], "workers": []}
    broker, old_broker = after["broker"], before["broker"]
    seconds = broker["uptime_s"] - old_broker.get("uptime_s", 0.0)
    if seconds <= 0:
        return None
    old_models = {_key(model): model for model in before["models"]}
    old_workers = {worker["id"]: worker for worker in before["workers"]}
    bounds = after["bounds"]["seconds"]
    return Interval(
        seconds=seconds,
        uptime_s=broker["uptime_s"],
        pid=broker["pid"],
        clients=broker["clients"],
        draining=broker["draining"],
        cpu=_grown(old_broker.get("cpu_s", 0.0), broker["cpu_s"]) / seconds,
        models=tuple(_model(old_models.get(_key(m), {}), m, bounds) for m in after["models"]),
        workers=tuple(_worker(old_workers.get(w["id"], {}), w, seconds) for w in after["workers"]),
        arena_bytes=after["arena"]["bytes"],
        arena_used_bytes=after["arena"]["used_bytes"],
        devices=tuple(after.get("devices", ())),
    )


def together(models: Sequence[ModelInterval]) -> ModelInterval:
    """The sum of several; it has no name, and no prediction error."""
    return ModelInterval(
        name="",
        version=0,
        state="",
        is_current=True,
        error="",
        queue_rows=sum(model.queue_rows for model in models),
        batches=sum(model.batches for model in models),
        rows=sum(model.rows for model in models),
        padding_rows=sum(model.padding_rows for model in models),
        batch_rows=_summed(model.batch_rows for model in models),
        codes=_summed(model.codes for model in models),
        misses=_summed(model.misses for model in models),
        request=_added([model.request for model in models]),
        queue=_added([model.queue for model in models]),
        execution=_added([model.execution for model in models]),
        prediction_error=None,
    )


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What a person who watches should see between two answers, in words."""
    if before["broker"]["epoch"] != after["broker"]["epoch"]:
        return ["the broker was started again"]
    found = []
    if after["broker"]["draining"] and not before["broker"]["draining"]:
        found.append("the server is draining: it takes no more requests")
    old_workers = {worker["id"]: worker for worker in before["workers"]}
    for worker in after["workers"]:
        old = old_workers.get(worker["id"], worker)
        if worker["restarts"] > old["restarts"]:
            found.append(f"worker {worker['id']} was started again")
        elif worker["state"] == "FAILED" != old["state"]:
            found.append(f"worker {worker['id']} failed")
    old_models = {_key(model): model["state"] for model in before["models"]}
    new_models = {_key(model): model["state"] for model in after["models"]}
    for key, state in new_models.items():
        if state != old_models.get(key):
            found.append(f"{key[0]} version {key[1]} is {state}")
    found += [f"{n} version {v} is gone" for n, v in old_models.keys() - new_models.keys()]
    return found


def _model(old: Mapping[str, Any], new: Mapping[str, Any], bounds: list[float]) -> ModelInterval:
    olds = {measure["signature"]: measure for measure in old.get("measures", ())}
    measures = [(olds.get(measure["signature"], {}), measure) for measure in new["measures"]]

    def distribution(what: str) -> Distribution:
        each = [_difference(old.get(what), new[what], bounds) for old, new in measures]
        return _added(each) if each else Distribution(bounds, [0] * (len(bounds) + 1), 0.0)

    prediction = new["prediction"]
    return ModelInterval(
        name=new["name"],
        version=new["version"],
        state=new["state"],
        is_current=new["is_current"],
        error=new["error"],
        queue_rows=new["queue_rows"],
        batches=_grown(old.get("batches", 0), new["batches"]),
        rows=_grown(old.get("rows", 0), new["rows"]),
        padding_rows=_grown(old.get("padding_rows", 0), new["padding_rows"]),
        batch_rows={
            int(size): count
            for size, count in _counted(old.get("batch_rows", {}), new["batch_rows"]).items()
            if count
        },
        codes=_summed(_counted(old.get("codes", {}), new["codes"]) for old, new in measures),
        misses=_counted(old.get("deadline_misses", {}), new["deadline_misses"]),
        request=distribution("request_seconds"),
        queue=distribution("queue_seconds"),
        execution=distribution("execution_seconds"),
        prediction_error=prediction["p50"] if prediction["count"] else None,
    )


def _worker(old: Mapping[str, Any], new: Mapping[str, Any], seconds: float) -> WorkerInterval:
    # A batch is counted when it ends: one that is longer than the interval would be more than all.
    busy = min(1.0, _grown(old.get("busy_s", 0.0), new["busy_s"]) / seconds)
    return WorkerInterval(
        id=new["id"],
        pid=new["pid"],
        device=new["device"],
        state=new["state"],
        restarts=new["restarts"],
        busy=busy,
        batches=_grown(old.get("batches", 0), new["batches"]),
    )


def _key(model: Mapping[str, Any]) -> Key:
    return model["name"], model["version"]


def _grown(old: Any, new: Any) -> Any:
    """By how much a counter grew; one that is less than before began anew."""
    return new - old if new >= old else new


def _counted(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    return {key: _grown(old.get(key, 0), count) for key, count in new.items()}


def _difference(
    old: Mapping[str, Any] | None, new: Mapping[str, Any], bounds: list[float]
) -> Distribution:
    began_anew = old is None or any(
        now < before for before, now in zip(old["counts"], new["counts"], strict=True)
    )
    if old is None or began_anew:
        return Distribution(bounds, new["counts"], new["sum"])
    counts = [now - before for before, now in zip(old["counts"], new["counts"], strict=True)]
    return Distribution(bounds, counts, max(0.0, new["sum"] - old["sum"]))


def _added(each: Sequence[Distribution]) -> Distribution:
    if not each:
        return Distribution((), (0,), 0.0)
    counts = [sum(column) for column in zip(*(one.counts for one in each), strict=True)]
    return Distribution(each[0].bounds_s, counts, sum(one.sum_s for one in each))


def _summed(each: Iterable[Mapping[Any, int]]) -> dict[Any, int]:
    total: Counter[Any] = Counter()
    for counts in each:
        total.update(counts)
    return dict(total)
