"""Which versions are served, which are to be, and what a process that is started loads. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from batchyard.pool.config import Config
from batchyard.pool.events import Death
from batchyard.pool.model_set import Key, LoadFailure, ModelSet, lacking, loads_as, wanted_models
from batchyard.pool.slots import Process
from batchyard.pool.versions import Found
from batchyard.wire.control import ModelSettings, ModelSource

Sources = Mapping[Key, ModelSource]


class Offer:
    """The versions of a server, now and next."""

    def __init__(self, config: Config, found: Found) -> None:
        self._config = config
        self.found = found
        self._failures: dict[Key, LoadFailure] = {}
        # Not served any more, but some requests may still be for it.
        self._lingering: dict[Key, ModelSource] = {}
        # Being replaced, and its files are gone already.
        self._gone: set[Key] = set()
        self.served = wanted_models(config, found, {}, ModelSet())
        self.target = self.served
        # What there was when the target was chosen.
        self._chosen_of = found

    @property
    def load_timeout_s(self) -> float:
        """How long a process may take to load what it is to serve."""
        return self._config.pool.load_timeout

    def find(self, found: Found, config: Config | None = None) -> None:
        """Other versions are there. With a configuration, which is new, all get another try.

        Without, what is being loaded goes on, unless it is gone: versions that come faster than
        they load would give up each other for ever.
        """
        self.found = found
        if config is not None:
            self._config = config
            self._failures.clear()
        elif self.needs_loading and self._has_unchanged(self.missing):
            return
        self._choose()

    def _has_unchanged(self, keys: Iterable[Key]) -> bool:
        """Whether versions are there as they were when they were chosen."""
        now, then = (
            [found.get(name, {}).get(version) for name, version in keys]
            for found in (self.found, self._chosen_of)
        )
        return now == then

    def _choose(self) -> None:
        self._chosen_of = self.found
        self.target = wanted_models(self._config, self.found, self._failures, self.served)
        self._gone -= self.target.served.keys()

    @property
    def is_settled(self) -> bool:
        """Whether what is served is all that is to be."""
        return self.target == self.served

    @property
    def needs_loading(self) -> bool:
        """Whether processes of now lack something."""
        return bool(self.missing)

    @property
    def missing(self) -> set[Key]:
        """What processes of now lack: new versions, and those that are to be loaded otherwise."""
        return lacking(self.served.sources, self.target.sources)

    def switch(self) -> None:
        """From now on the target is what is served, and there may be another."""
        old = self.served.sources
        self.served = self.target
        self._lingering = {
            key: source
            for key, source in {**self._lingering, **old}.items()
            if key not in self.served.served and key not in self._gone
        }
        self._gone.clear()
        # What came meanwhile is next.
        self._choose()

    def unloaded(self, key: Key) -> None:
        """No process has a version any more that was served once.

        If it is wanted again by now, it is to be loaded again.
        """
        self._lingering.pop(key, None)
        if key in self.served.served:
            kept = {k: served for k, served in self.served.served.items() if k != key}
            self.served = replace(self.served, served=kept)

    def broker_lost(self) -> None:
        """The next broker knows of no request for an old version."""
        self._lingering.clear()

    def to_load(self, serving: Iterable[Process], *, tries_target: bool) -> dict[Key, ModelSource]:
        """What a process that is started now loads.

        Of the target only what a process has loaded before; all of it if it ``tries_target``.
        """
        loads = {**self._lingering, **self.served.sources}
        proven = self._proven(serving)
        for key, source in self.target.sources.items():
            if tries_target or key in proven:
                loads[key] = source
        for key in self._gone:
            loads.pop(key, None)
        return loads

    def on_trial(self, process: Process) -> set[Key]:
        """What a process loads that is not served now."""
        target = self.target.served
        lingering = {key: s for key, s in self._lingering.items() if key not in target}
        served = {**lingering, **self.served.sources}
        return {
            key
            for key, source in process.sources.items()
            if key not in served or not loads_as(source, served[key])
        }

    def load_failed(
        self, process: Process, death: Death, serving: Iterable[Process]
    ) -> dict[Key, str] | None:
        """A process died before it was ready: the versions that are given up for it, and why.

        None if its death has nothing to do with what is to be served.
        """
        trial = self.on_trial(process)
        named = death.model
        if named is not None and named in process.sources and named not in self.target.served:
            # Its files may be gone already: the next process does without.
            self._lingering.pop(named, None)
            self._gone.add(named)
            return {}
        blamed = {named} if named in trial else trial - self._proven(serving)
        if not blamed:
            return None
        for key in blamed:
            version = process.found.get(key[0], {}).get(key[1])
            if version is not None:
                self._failures[key] = LoadFailure(version, death.reason)
        self._choose()
        return dict.fromkeys(sorted(blamed), death.reason)

    def _proven(self, serving: Iterable[Process]) -> set[Key]:
        """What of the target some process has loaded."""
        target = self.target.sources
        return {
            key
            for process in serving
            for key, source in process.sources.items()
            if key in target and loads_as(source, target[key])
        }

    def to_tell(self) -> list[ModelSettings]:
        """What the broker is to know: what is served, what is being loaded, what does not load.

        Until the switch, requests are served as before.
        """
        settings = [served.settings for served in self.served.served.values()]
        settings += [
            replace(served.settings, is_current=False, labels=[])
            for key, served in self.target.served.items()
            if key not in self.served.served
        ]
        settings += [
            refused for key, refused in self.target.refused.items() if key not in self.served.served
        ]
        return settings
