"""What is tuned: one model of a configuration, the requests for it, and the places to run it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from batchyard.benchmarks.tuning.bench import Placement, Setting
from batchyard.benchmarks.tuning.toml_file import batching_of
from batchyard.pool.config import Config
from batchyard.pool.config_models import Model

# Where each experiment's server differs from the last one's, its label does too.
MARK = "batchyard-tune-"
# More workers than cores do not help what computes; between one and all, one step is enough.
_MIDDLE_FROM_CORES = 8


@dataclass(frozen=True, slots=True)
class Subject:
    """``tables`` is the configuration as TOML has it, ``config`` the same, validated."""

    tables: Mapping[str, Any]
    config: Config
    model: str
    device: Literal["cpu", "gpu"]
    workers: int
    """That the configuration comes to on this machine."""
    cores: int
    workers_are_given: bool
    """The user said how many: that is not changed."""
    rows: int = 1
    """Of each request."""
    shape: tuple[int, ...] = ()
    """Fills the signature's open dimensions behind the first."""
    largest_batch: int | None = None

    @property
    def served(self) -> Model:
        """The model as it is configured."""
        return next(model for model in self.config.models if model.name == self.model)

    @property
    def now(self) -> Setting:
        """What the configuration says as it is."""
        batching = self.served.batching
        return Setting(
            placement=self._placement_now,
            max_batch_size=batching.max_batch_size,
            batch_timeout_micros=batching.batch_timeout_micros,
            max_enqueued_batches=batching.max_enqueued_batches,
            num_batch_threads=batching.num_batch_threads,
            allowed_batch_sizes=tuple(batching.allowed_batch_sizes),
        )

    @property
    def _placement_now(self) -> Placement:
        return Placement(self.workers, self.config.pool.workers[0].concurrent_batches)

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Those to choose from, the guide's first: on a CPU as many workers as cores."""
        if len(self.config.pool.workers) > 1:
            return (self._placement_now,)
        if self.device == "gpu":
            (group,) = self.config.pool.workers
            if "concurrent_batches" in group.model_fields_set:
                return (self._placement_now,)
            return Placement(self.workers), Placement(self.workers, 2)
        if self.workers_are_given:
            return (self._placement_now,)
        counts = [self.cores, 1]
        if self.cores >= _MIDDLE_FROM_CORES:
            counts.insert(1, self.cores // 4)
        return tuple(dict.fromkeys(Placement(count) for count in counts))

    def groups(self, placement: Placement) -> list[dict[str, Any]] | None:
        """``[[pool.workers]]`` for a placement; None: as they are."""
        if placement == self._placement_now:
            return None
        groups: list[dict[str, Any]] = copy.deepcopy(
            list(self.tables.get("pool", {}).get("workers", [{}]))
        )
        (group,) = groups
        if self.device == "cpu":
            group = {"device": "cpu", **group, "count": placement.workers}
        if placement.concurrent_batches != self._placement_now.concurrent_batches:
            group["concurrent_batches"] = placement.concurrent_batches
        return [group]

    def experiment(self, setting: Setting, version: int | None, number: int) -> dict[str, Any]:
        """The configuration of a server for one experiment: this model alone.

        Once its ``version`` is known, a label says which experiment the server is set up for.
        """
        tables = copy.deepcopy(dict(self.tables))
        model = next(m for m in tables["models"] if m["name"] == self.model)
        batching = {**model.get("batching", {}), **batching_of(setting)}
        model["batching"] = {key: value for key, value in batching.items() if value is not None}
        if version is not None:
            model["version_labels"] = {
                **model.get("version_labels", {}),
                f"{MARK}{number}": version,
            }
        tables["models"] = [model]
        groups = self.groups(setting.placement)
        if groups is not None:
            tables["pool"] = {**tables.get("pool", {}), "workers": groups}
        # Its endpoints are given on the command line.
        tables.get("broker", {}).pop("bind", None)
        return tables
