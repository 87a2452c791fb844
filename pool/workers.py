"""The workers of a server: their starts, deaths and replacement. Pure: no process, no clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace

from batchyard.pool.events import (
    Action,
    Death,
    EndWorker,
    Fail,
    KillWorker,
    LinkWorker,
    Log,
    StartWorker,
    TellBroker,
)
from batchyard.pool.model_set import Key, has_all
from batchyard.pool.offer import Offer
from batchyard.pool.slots import Process, Slot, Stage, is_everywhere, next_to_replace
from batchyard.wire.control import Kind, ModelSettings

# How long a worker without batches may take to end before it is killed.
_END_S = 5.0
# A slot that was given up is tried again this seldom, while others serve: files, memory or a device
# that were not there may be.
_TRY_AGAIN_S = 60.0


class Workers:
    """Every slot of the pool and its processes.

    What is to be done goes to ``do``. While ``replaces`` is false nothing is replaced that serves:
    the server starts, or ends. ``is_starting``: any death ends the server.
    """

    def __init__(
        self, replaced_beside: Sequence[bool], offer: Offer, do: Callable[[Action], None]
    ) -> None:
        self.slots = [Slot(index, beside) for index, beside in enumerate(replaced_beside)]
        self.is_starting = True
        self.replaces = False
        self._offer = offer
        self._do = do
        self._ids = itertools.count()
        self._told = offer.to_tell()
        self._is_rolling = False

    # What happened

    def start(self, now: float) -> None:
        """Every slot gets its first process."""
        for slot in self.slots:
            slot.start_at = now

    def ready(self, id: int, now: float) -> None:
        """A process can take batches: it takes its slot."""
        slot, process = self._find(id)
        if slot is None or process is None or process.stage is Stage.KILLED or process.why:
            return
        process.is_linked = True
        if process.stage is not Stage.LOADING:
            return
        process.stage, process.ready_at = Stage.READY, now
        process.kill_at = float("inf")
        slot.successor = None
        slot.current, old = process, slot.current
        slot.tries_target = False
        # Before the last of the old ones retires: there is no moment without a current version.
        self._switch()
        if old is not None:
            self._retire(slot, old)

    def served(self, id: int) -> None:
        """A process was given its first batch."""
        _, process = self._find(id)
        if process is not None:
            process.has_served = True

    def retired(self, id: int, now: float) -> None:
        """A process has no batches left."""
        _, process = self._find(id)
        if process is not None and process.stage is Stage.RETIRING:
            process.stage = Stage.ENDING
            process.kill_at = now + _END_S
            self._do(EndWorker(id))

    def unloaded(self, key: Key) -> None:
        """Every process was told to forget a version."""
        for process in self._processes():
            process.sources = {k: source for k, source in process.sources.items() if k != key}

    def hung(self, id: int, why: str) -> None:
        """A batch runs too long."""
        _, process = self._find(id)
        if process is not None and not process.why:
            process.why = why
            self._do(Log("error", "worker_hung", {"worker": id, "reason": why}))
            self._do(KillWorker(id))

    def ended(self, id: int, death: Death, now: float) -> None:
        """A process was reaped."""
        slot, process = self._find(id)
        if slot is None or process is None:
            return
        reason = process.why or death.reason
        death = replace(death, reason=reason)
        if self.is_starting:
            self._do(Fail(death.exit_code, death.of(f"worker-{id}")))
            return
        if process is slot.leaving:
            slot.leaving = None
            if process.stage is Stage.RETIRING:
                self._log_death(slot, process, reason)
            self._fill(slot, now)
        elif process is slot.successor:
            slot.successor = None
            if process.stage is Stage.KILLED or self._gives_versions_up(slot, process, death):
                self._fill(slot, now)
            else:
                self._died(slot, process, death, reason, now)
        else:
            slot.current = None
            self._died(slot, process, death, reason, now)
        self._do(TellBroker([Kind.REAPED, id, reason, not slot.has_failed]))
        if all(slot.has_failed for slot in self.slots):
            self._do(Fail(death.exit_code, death.of(f"worker-{id}")))

    def broker_lost(self) -> None:
        """No process has a broker."""
        for process in self._processes():
            process.is_linked = False

    def awaited(self) -> list[int]:
        """Those that may still use what the last broker gave them."""
        return [process.id for process in self._processes() if process.ready_at is not None]

    def broker_started(self, models: list[ModelSettings]) -> None:
        """There is another broker, which knows ``models``: whoever may work for it gets a link."""
        self._told = models
        for slot in self.slots:
            for process in slot.processes:
                if process.stage in (Stage.ENDING, Stage.KILLED) or process.why:
                    continue
                self._do(LinkWorker(process.id, slot.index, slot.restarts))
                if process.stage is Stage.RETIRING:
                    self._do(TellBroker([Kind.RETIRE, process.id]))

    def try_failed(self, now: float) -> None:
        """Slots that were given up get another process."""
        for slot in self.slots:
            if slot.has_failed:
                slot.deaths.forgive()
                self._try_again(slot, now)

    def _try_again(self, slot: Slot, now: float) -> None:
        slot.has_failed = False
        slot.try_again_at = float("inf")
        self._fill(slot, now)

    def stop_replacing(self) -> None:
        """The server ends: what merely loads to replace another is not needed."""
        self.replaces = False
        for slot in self.slots:
            slot.tries_target = False
            if slot.current is not None:
                self._supersede(slot)

    # What is to be done

    @property
    def are_ready(self) -> bool:
        """Whether every slot serves."""
        return all(slot.current is not None for slot in self.slots)

    @property
    def serving_count(self) -> int:
        """How many slots serve."""
        return sum(slot.current is not None for slot in self.slots)

    def next_deadline(self) -> float:
        """When ``advance`` is to be called at the latest."""
        times = [slot.start_at for slot in self.slots if slot.start_at is not None]
        times += [process.kill_at for process in self._processes()]
        times += [slot.try_again_at for slot in self.slots]
        return min(times, default=float("inf"))

    def advance(self, now: float) -> None:
        """Does what is due, while there is a broker."""
        for slot in self.slots:
            if slot.try_again_at <= now:
                self._try_again(slot, now)
            if slot.start_at is not None and slot.start_at <= now:
                self._start(slot, now)
            if slot.successor is not None and slot.successor.kill_at <= now:
                self._stop_loading(slot.successor)
            if slot.leaving is not None and slot.leaving.kill_at <= now:
                slot.leaving.kill_at = float("inf")
                self._do(KillWorker(slot.leaving.id))
        if self.replaces:
            self._drop_outdated()
            self._switch()
        # What is to be loaded is known before it is.
        self._tell()
        if self.replaces:
            self._replace_next(now)

    def _switch(self) -> None:
        """What is to be served is served, once every slot has it."""
        offer = self._offer
        if not self.replaces or offer.is_settled:
            return
        if offer.needs_loading and not is_everywhere(self.slots, offer.target.sources):
            return
        new = offer.target.served.keys() - offer.served.served.keys()
        old = offer.served.served.keys() - offer.target.served.keys()
        offer.switch()
        self._is_rolling = False
        if new or old:
            fields = {"added": _names(new), "removed": _names(old)}
            self._do(Log("info", "version_switched", fields))
        self._tell()

    def _tell(self) -> None:
        models = self._offer.to_tell()
        if models != self._told:
            self._told = models
            self._do(TellBroker([Kind.MODELS, [asdict(model) for model in models]]))

    def _replace_next(self, now: float) -> None:
        offer = self._offer
        if not offer.needs_loading:
            return
        slot = next_to_replace(self.slots, offer.target.sources)
        if slot is None or slot.current is None:
            return
        if not self._is_rolling:
            self._is_rolling = True
            self._do(Log("info", "roll_started", {"versions": _names(offer.missing)}))
        slot.tries_target = True
        if slot.replaced_beside:
            self._start(slot, now)
        else:
            old, slot.current = slot.current, None
            self._retire(slot, old)

    def _drop_outdated(self) -> None:
        """Kills what loads to replace another, and lacks what is to be served by now."""
        for slot in self.slots:
            successor = slot.successor
            if (
                successor is not None
                and successor.tries_target
                and not has_all(successor.sources, self._offer.target.sources)
            ):
                self._supersede(slot)

    # One slot

    def _supersede(self, slot: Slot) -> None:
        successor = slot.successor
        if successor is not None and successor.stage is Stage.LOADING:
            successor.stage = Stage.KILLED
            self._do(KillWorker(successor.id))

    def _retire(self, slot: Slot, process: Process) -> None:
        slot.leaving = process
        process.stage = Stage.RETIRING
        self._do(TellBroker([Kind.RETIRE, process.id]))

    def _stop_loading(self, process: Process) -> None:
        process.kill_at = float("inf")
        process.why = f"it did not load within load_timeout = {self._offer.load_timeout_s:g} s"
        self._do(KillWorker(process.id))

    def _start(self, slot: Slot, now: float) -> None:
        slot.start_at = None
        serving = [s.current for s in self.slots if s.current is not None]
        sources = self._offer.to_load(serving, tries_target=slot.tries_target)
        process = Process(next(self._ids), sources, self._offer.found, slot.tries_target)
        process.kill_at = now + self._offer.load_timeout_s
        slot.successor = process
        # With nobody else serving, there is nobody to be quiet for.
        quietly = bool(serving)
        if slot.restarts and slot.current is None:
            fields = {"slot": slot.index, "worker": process.id, "restarts": slot.restarts}
            self._do(Log("info", "worker_restarting", fields))
        self._do(StartWorker(process.id, slot.index, sources, quietly, slot.restarts))

    def _fill(self, slot: Slot, now: float) -> None:
        """A slot that has nobody, and expects nobody, gets a process at once."""
        is_empty = slot.current is None and slot.successor is None
        if is_empty and slot.start_at is None and not slot.has_failed:
            slot.start_at = now

    def _gives_versions_up(self, slot: Slot, process: Process, death: Death) -> bool:
        serving = [s.current for s in self.slots if s.current is not None]
        given_up = self._offer.load_failed(process, death, serving)
        if given_up is None:
            return False
        for (name, version), reason in given_up.items():
            fields = {"model": name, "version": version, "reason": reason}
            self._do(Log("error", "version_failed", fields))
        if given_up:
            self._is_rolling = False
            slot.tries_target = False
        return True

    def _died(self, slot: Slot, process: Process, death: Death, reason: str, now: float) -> None:
        self._log_death(slot, process, reason)
        lived_s = None if process.ready_at is None else now - process.ready_at
        told_code = death.exit_code if death.was_told else 0
        pause_s = slot.deaths.pause_after(lived_s, told_code, process.has_served)
        slot.restarts += 1
        if slot.current is not None or slot.successor is not None:
            return
        if pause_s is None:
            slot.has_failed = True
            slot.try_again_at = now + _TRY_AGAIN_S
            self._do(Log("error", "worker_given_up", {"slot": slot.index, "reason": reason}))
        else:
            slot.start_at = now + pause_s

    def _log_death(self, slot: Slot, process: Process, reason: str) -> None:
        left = self.serving_count
        fields = {"slot": slot.index, "worker": process.id, "reason": reason, "workers_left": left}
        self._do(Log("error", "worker_died", fields))

    def _processes(self) -> list[Process]:
        return [process for slot in self.slots for process in slot.processes]

    def _find(self, id: int) -> tuple[Slot | None, Process | None]:
        for slot in self.slots:
            for process in slot.processes:
                if process.id == id:
                    return slot, process
        return None, None


def _names(keys: Iterable[Key]) -> str:
    return ",".join(f"{name}:{version}" for name, version in sorted(keys)) or "none"
