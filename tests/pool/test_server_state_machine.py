"""Processes die and versions come as they like: what holds then, whatever happens."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.virtual_server import KILLED, PATH, VirtualServer, VirtualWorker, config

from batchyard.pool import events
from batchyard.pool.events import Cause, Death
from batchyard.pool.standing import Phase
from batchyard.wire import control

POLICIES = ["latest", "all", {"latest": 2}, {"specific": [1, 3, 5]}]
VERSIONS = st.sets(st.integers(1, 6), min_size=1, max_size=4)


class Servers(RuleBasedStateMachine):
    @initialize(
        beside=st.lists(st.booleans(), min_size=1, max_size=3),
        policy=st.sampled_from(POLICIES),
    )
    def start(self, beside: list[bool], policy: object) -> None:
        models = [{"name": "m", "path": PATH, "version_policy": policy}]
        self.server = VirtualServer(beside=tuple(beside), config=config(models))
        self.tickets = 0
        # What the watch was asked to read, and has read.
        self.has_read = 0

    def worker(self, data: st.DataObject, **needed: bool) -> VirtualWorker | None:
        fitting = [
            w
            for w in self.server.workers.values()
            if all(getattr(w, name) is value for name, value in needed.items())
        ]
        return data.draw(st.sampled_from(fitting)) if fitting else None

    @precondition(lambda self: self.server.phase is not Phase.STOPPED)
    @rule(data=st.data())
    def a_worker_loads(self, data: st.DataObject) -> None:
        worker = self.worker(data, is_killed=False)
        # Again for each broker.
        if worker is not None and self.server.broker is not None:
            self.server.ready(worker.id)

    @precondition(lambda self: self.server.phase is not Phase.STOPPED)
    @rule(data=st.data())
    def a_worker_does_not_load(self, data: st.DataObject) -> None:
        worker = self.worker(data, is_ready=False)
        if worker is None:
            return
        version = data.draw(st.sampled_from(sorted(worker.sources)))
        # Those that are served load, but for what happens to any process.
        if version in self.server.state.offer.served.served:
            self.server.dies(worker.id)
        else:
            self.server.dies(worker.id, Death("bad", control.EXIT_MODEL, version, True))

    @precondition(lambda self: self.server.phase is not Phase.STOPPED)
    @rule(data=st.data())
    def a_worker_dies(self, data: st.DataObject) -> None:
        worker = self.worker(data)
        if worker is not None:
            self.server.dies(worker.id, KILLED)

    @precondition(lambda self: self.server.phase is not Phase.STOPPED)
    @rule(data=st.data())
    def a_worker_hangs(self, data: st.DataObject) -> None:
        worker = self.worker(data, is_ready=True, is_told_to_end=False)
        if worker is not None and self.server.broker is not None:
            self.server.happens(events.WorkerHung(worker.id, "hung"))

    @precondition(lambda self: self.server.phase is not Phase.STOPPED)
    @rule(data=st.data())
    def a_worker_is_empty(self, data: st.DataObject) -> None:
        worker = self.worker(data, is_retired=True)
        if worker is not None and self.server.broker is not None:
            self.server.happens(events.WorkerRetired(worker.id))

    @precondition(lambda self: self.server.phase is Phase.SERVING)
    @rule(numbers=VERSIONS, files=st.integers(0, 1))
    def versions_are_found(self, numbers: set[int], files: int) -> None:
        self.server.finds(*numbers, files=files)

    @precondition(lambda self: self.server.phase is Phase.SERVING)
    @rule(policy=st.sampled_from(POLICIES))
    def the_configuration_is_read(self, policy: object) -> None:
        models = [{"name": "m", "path": PATH, "version_policy": policy}]
        found = self.server.state.offer.found
        self.server.happens(events.ConfigurationRead(config(models), found))

    @precondition(lambda self: self.server.phase is Phase.SERVING)
    @rule()
    def a_gateway_asks_for_models(self) -> None:
        self.server.happens(events.ModelsRequested(self.tickets, [{"name": "m", "path": PATH}]))
        self.tickets += 1

    @precondition(lambda self: self.server.phase is Phase.SERVING)
    @rule(policy=st.sampled_from(POLICIES), is_good=st.booleans())
    def models_are_read(self, policy: object, is_good: bool) -> None:
        if self.has_read == len(self.server.read_models):
            return
        self.has_read += 1
        models = [{"name": "m", "path": PATH, "version_policy": policy}]
        found = self.server.state.offer.found
        if is_good:
            self.server.happens(events.ConfigurationRead(config(models), found, Cause.GATEWAY))
        else:
            self.server.happens(events.ConfigurationRefused("bad", Cause.GATEWAY))

    @precondition(lambda self: self.server.phase is not Phase.STOPPED)
    @rule(version=st.integers(1, 6))
    def a_version_is_unloaded(self, version: int) -> None:
        told, before = self.server.models, self.server.models_before
        kept = {model.version for model in told} & {model.version for model in before}
        if self.server.broker is not None and version not in kept:
            self.server.unloads(version)

    @precondition(lambda self: self.server.broker is not None)
    @rule()
    def the_broker_dies(self) -> None:
        self.server.broker_dies()
        if self.server.broker is not None:
            self.server.happens(events.BrokerListening(["tcp://127.0.0.1:1"]))

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        # Always: one rule at least has to apply, also to a server that gave up.
        if self.server.phase is not Phase.STOPPED:
            self.server.passes(seconds)

    @precondition(lambda self: self.server.phase is Phase.SERVING)
    @rule()
    def it_comes_to_rest(self) -> None:
        """Left alone, it serves what is wanted in every slot that was not given up."""
        server = self.server
        for _ in range(3):
            server.passes(30)
            if server.phase is Phase.STOPPED:
                return
            for worker in list(server.workers.values()):
                if worker.is_ready and not worker.is_killed:
                    server.happens(events.WorkerReady(worker.id))
            server.rolls_on()
        assert server.state.offer.is_settled
        serving = server.loaded()
        for slot in server.state.workers.slots:
            assert (slot.index in serving) is not slot.has_failed
        current = [version for version, what in server.told().items() if what == "current"]
        assert current == [max(v for v, what in server.told().items() if what != "error")]
        # Of gateways' requests one is under way at most: it waits to be read.
        assert len(server.read_models) - self.has_read <= 1
        if len(server.read_models) == self.has_read:
            assert server.reloads.keys() == set(range(self.tickets)), "all were answered"

    @invariant()
    def slots_hold_no_more_than_fits(self) -> None:
        if not hasattr(self, "server"):
            return
        crowded = 0
        for slot, beside in enumerate(self.server.beside):
            count = len(self.server.of_slot(slot))
            assert count <= (2 if beside else 1)
            crowded += count == 2
        assert crowded <= 1

    @invariant()
    def what_is_served_is_loaded_everywhere(self) -> None:
        if not hasattr(self, "server"):
            return
        served = self.server.state.offer.served.served.keys()
        for worker in self.server.workers.values():
            if worker.serves:
                assert served <= worker.sources.keys()


TestServers = Servers.TestCase
TestServers.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
