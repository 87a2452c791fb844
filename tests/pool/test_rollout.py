"""Other versions are to be served: workers are replaced one after the other. In virtual time."""

from __future__ import annotations

import pytest
from support.virtual_server import PATH, VirtualServer, config, versions

from batchyard.pool import events
from batchyard.pool.config import validate
from batchyard.pool.events import Death
from batchyard.wire import control
from batchyard.wire.control import Kind

BAD = Death("model 'm' does not load: no", control.EXIT_MODEL, ("m", 2), True)


def rolling(**options: object) -> VirtualServer:
    """A server that lived a while and just found version 2."""
    server = VirtualServer(**options)  # type: ignore[arg-type]
    server.passes(5)
    server.finds(1, 2)
    return server


def test_slots_are_replaced_one_after_the_other_and_then_all_is_switched() -> None:
    server = rolling()
    assert server.told() == {1: "current", 2: ""}
    for slot in (0, 1):
        (fresh,) = server.loading
        assert fresh.slot == slot
        assert fresh.loads_quietly
        assert sorted(fresh.sources) == [("m", 1), ("m", 2)]
        assert server.told() == {1: "current", 2: ""}
        server.ready(fresh.id)
        # The old one finishes first.
        assert not server.loading
        assert server.packets[-1] == [Kind.RETIRE, slot]
        server.happens(events.WorkerRetired(slot))
        assert server.workers[slot].is_told_to_end
        server.dies(slot, Death("exit code 0"))
        assert server.of_kind(Kind.REAPED)[-1] == [Kind.REAPED, slot, "exit code 0", True]
    assert server.told() == {2: "current"}
    assert server.loaded() == {0: [1, 2], 1: [1, 2]}
    assert server.logs == ["roll_started", "version_switched"]
    assert all(not slot.restarts for slot in server.state.workers.slots)


def test_it_is_switched_before_the_last_old_one_retires() -> None:
    server = rolling(beside=(True,))
    server.ready(1)
    assert [packet[0] for packet in server.packets[-2:]] == [Kind.MODELS, Kind.RETIRE]


def test_the_old_version_is_loaded_until_it_is_unloaded() -> None:
    server = rolling()
    server.rolls_on()
    server.passes(5)
    server.dies(server.of_slot(0)[0].id)
    assert sorted(server.loading[0].sources) == [("m", 1), ("m", 2)]
    server.rolls_on()
    server.happens(events.VersionUnloaded(("m", 1)))
    server.passes(5)
    server.dies(server.of_slot(0)[0].id)
    assert sorted(server.loading[0].sources) == [("m", 2)]


def test_a_version_that_was_unloaded_is_loaded_again() -> None:
    server = rolling()
    server.rolls_on()
    server.unloads(1)
    server.finds(1)
    assert all(("m", 1) in worker.sources for worker in server.loading)
    assert server.loading
    server.rolls_on()
    assert server.told() == {1: "current"}
    assert server.loaded() == {0: [1, 2], 1: [1, 2]}


def test_a_version_that_comes_back_while_it_is_unloaded_is_loaded_again() -> None:
    server = rolling()
    server.rolls_on()
    server.finds(1)
    assert server.told() == {1: "current"}
    # The broker had not read that yet.
    server.unloads(1)
    assert server.loading
    server.rolls_on()
    assert server.told() == {1: "current"}
    assert all(1 in versions for versions in server.loaded().values())


def test_without_room_beside_the_old_one_goes_first() -> None:
    server = rolling(beside=(False, False))
    assert not server.loading
    assert server.packets[-1] == [Kind.RETIRE, 0]
    assert server.loaded() == {1: [1]}
    server.happens(events.WorkerRetired(0))
    server.dies(0)
    (fresh,) = server.loading
    assert sorted(fresh.sources) == [("m", 1), ("m", 2)]
    server.rolls_on()
    assert server.told() == {2: "current"}


def test_without_room_beside_it_waits_until_others_serve() -> None:
    server = VirtualServer(beside=(False, False))
    server.passes(5)
    server.dies(1)
    server.finds(1, 2)
    assert server.workers[0].serves
    server.ready(server.loading[0].id)
    assert server.workers[0].is_retired
    server.rolls_on()
    assert server.loaded() == {0: [1, 2], 1: [1, 2]}


def test_without_room_and_alone_there_is_no_other_way() -> None:
    server = rolling(beside=(False,))
    server.rolls_on()
    assert server.told() == {2: "current"}


@pytest.mark.parametrize("death", [BAD, Death("signal SIGSEGV")])
@pytest.mark.parametrize("beside", [True, False])
def test_a_version_that_does_not_load_changes_nothing(death: Death, beside: bool) -> None:
    server = rolling(beside=(beside, beside))
    if not beside:
        server.happens(events.WorkerRetired(0))
        server.dies(0)
    server.dies(server.loading[0].id, death)
    assert server.told() == {1: "current", 2: "error"}
    assert server.models[-1].error == death.reason
    server.rolls_on()
    assert server.loaded() == {0: [1], 1: [1]}
    assert "version_failed" in server.logs
    assert "worker_died" not in server.logs
    # Nothing is tried again before its files change.
    server.finds(1, 2)
    server.passes(100)
    assert not server.loading
    server.finds(1, 2, files=1)
    server.rolls_on()
    assert server.told() == {2: "current"}


def test_sighup_tries_a_version_again() -> None:
    server = rolling()
    server.dies(server.loading[0].id, BAD)
    server.happens(events.ConfigurationRead(server.config, server.found | versions(1, 2)))
    server.rolls_on()
    assert server.told() == {2: "current"}


def test_a_version_that_loads_in_one_worker_only_is_given_up() -> None:
    server = rolling()
    server.ready(server.loading[0].id)
    server.happens(events.WorkerRetired(0))
    server.dies(0)
    server.dies(server.loading[0].id, BAD)
    assert server.told() == {1: "current", 2: "error"}
    server.passes(100)
    assert not server.loading
    assert server.loaded() == {0: [1, 2], 1: [1]}


def test_versions_that_came_with_another_are_served_though_that_one_fails() -> None:
    settings = config([{"name": "m", "path": PATH, "version_policy": "all"}])
    server = VirtualServer(config=settings)
    server.passes(5)
    server.finds(1, 2, 3)
    server.dies(server.loading[0].id, BAD)
    assert sorted(server.loading[0].sources) == [("m", 1), ("m", 3)]
    server.rolls_on()
    assert server.told() == {1: "", 3: "current", 2: "error"}


def test_what_loads_is_served_before_what_came_meanwhile() -> None:
    server = rolling()
    first = server.loading[0]
    server.finds(1, 2, 3)
    server.finds(2, 3, 4)
    assert server.loading == [first]
    server.rolls_on()
    assert server.told() == {4: "current"}
    # Not one by one, nor was one given up.
    assert server.logs == ["roll_started", "version_switched"] * 2


def test_versions_that_come_faster_than_they_load_are_served_all_the_same() -> None:
    server = rolling()
    newest = 2
    served: list[int] = []
    while len(served) < 3:
        newest += 1
        server.finds(1, *range(2, newest + 1))
        # Somebody finishes something, or a process is ready.
        worker = next(w for w in server.workers.values() if not w.serves or w.is_retired)
        if worker.is_told_to_end:
            server.dies(worker.id, Death("exit code 0"))
        elif worker.is_retired:
            server.happens(events.WorkerRetired(worker.id))
        else:
            server.ready(worker.id)
        current = [version for version, state in server.told().items() if state == "current"]
        assert len(current) == 1
        if current[0] != 1 and current[0] not in served:
            served.append(current[0])
    assert served == sorted(served)


@pytest.mark.parametrize("files", [0, 1], ids=["taken away", "changed"])
def test_what_loads_is_given_up_when_it_is_no_longer_there(files: int) -> None:
    server = rolling()
    first = server.loading[0]
    server.finds(*((1, 2, 3) if files else (1, 3)), files=files)
    assert first.is_killed
    server.dies(first.id)
    assert ("m", 3) in server.loading[0].sources
    server.rolls_on()
    assert server.told() == {3: "current"}
    assert "version_failed" not in server.logs


def test_what_came_meanwhile_is_tried_when_what_loads_fails() -> None:
    server = rolling()
    server.finds(1, 2, 3)
    server.dies(server.loading[0].id, BAD)
    assert sorted(server.loading[0].sources) == [("m", 1), ("m", 3)]
    server.rolls_on()
    assert server.told() == {3: "current"}


def test_a_reload_gives_up_what_loads_for_what_is_there() -> None:
    server = rolling()
    server.finds(1, 2, 3)
    first = server.loading[0]
    found = versions(1, 2, 3)
    server.happens(events.ConfigurationRead(config(), found, events.Cause.SIGNAL))
    assert first.is_killed
    server.dies(first.id)
    assert sorted(server.loading[0].sources) == [("m", 1), ("m", 3)]


def test_all_models_may_go_and_come() -> None:
    nothing = validate({"models": []}, "test", may_serve_none=True)
    server = VirtualServer(config=nothing, found={})
    assert server.told() == {}
    server.happens(events.ConfigurationRead(config(), versions(1), events.Cause.SIGNAL))
    server.rolls_on()
    assert server.told() == {1: "current"}
    server.happens(events.ConfigurationRead(nothing, {}, events.Cause.SIGNAL))
    assert server.told() == {}
    server.rolls_on()
    assert len(server.workers) == 2


def test_a_version_that_goes_while_it_is_loaded_is_not_served() -> None:
    server = rolling()
    server.finds(1)
    server.rolls_on()
    assert server.told() == {1: "current"}


def test_the_old_process_dies_while_the_new_one_loads() -> None:
    server = rolling()
    fresh = server.loading[0]
    server.dies(0)
    assert server.loading == [fresh]
    assert server.of_kind(Kind.REAPED) == [[Kind.REAPED, 0, "signal SIGKILL", True]]
    server.rolls_on()
    assert server.told() == {2: "current"}
    assert server.state.workers.slots[0].restarts == 1


def test_both_die_while_the_new_one_loads() -> None:
    server = rolling()
    fresh = server.loading[0]
    server.dies(0)
    server.dies(fresh.id)
    (again,) = server.of_slot(0)
    assert sorted(again.sources) == [("m", 1)]
    server.rolls_on()
    assert server.loaded() == {0: [1], 1: [1]}


def test_the_new_process_dies_after_it_was_ready() -> None:
    server = rolling()
    fresh = server.loading[0]
    server.ready(fresh.id)
    server.dies(fresh.id)
    # What one process loaded, the next may.
    assert not server.of_slot(0) or server.workers[0].is_retired
    server.rolls_on()
    assert server.told() == {2: "current"}


def test_the_old_process_dies_while_it_retires() -> None:
    server = rolling()
    server.ready(server.loading[0].id)
    server.dies(0)
    assert server.of_kind(Kind.REAPED) == [[Kind.REAPED, 0, "signal SIGKILL", True]]
    server.rolls_on()
    assert server.told() == {2: "current"}


def test_another_worker_dies_while_it_rolls() -> None:
    server = rolling()
    server.dies(1)
    assert sorted(server.of_slot(1)[0].sources) == [("m", 1)]
    server.rolls_on()
    assert server.loaded() == {0: [1, 2], 1: [1, 2]}
    assert server.told() == {2: "current"}


def test_an_old_process_that_does_not_end_is_killed() -> None:
    server = rolling(beside=(True,))
    server.ready(server.loading[0].id)
    server.happens(events.WorkerRetired(0))
    server.passes(4)
    assert not server.workers[0].is_killed
    server.passes(2)
    assert server.workers[0].is_killed


def test_the_broker_dies_while_it_rolls() -> None:
    server = rolling()
    server.ready(server.loading[0].id)
    server.packets.clear()
    server.broker_dies()
    assert server.broker is not None
    assert server.broker.awaited == [2, 0, 1]
    assert [model.version for model in server.broker.models] == [1, 2]
    # The one that retires is to retire again.
    assert server.packets == [[Kind.RETIRE, 0]]
    server.happens(events.WorkerRetired(0))
    server.dies(0)
    # Nobody is replaced before the others have said that they work for the new broker.
    assert not server.loading
    for worker in list(server.workers):
        server.ready(worker)
    server.rolls_on()
    assert server.told() == {2: "current"}


def test_draining_ends_a_roll() -> None:
    server = rolling()
    fresh = server.loading[0]
    server.happens(events.StopRequested())
    assert fresh.is_killed
    server.rolls_on()
    assert server.loaded() == {0: [1], 1: [1]}


def test_files_of_the_version_that_is_replaced_are_gone() -> None:
    server = VirtualServer()
    server.passes(5)
    server.finds(2)
    gone = Death("no such folder", control.EXIT_MODEL, ("m", 1), True)
    server.dies(server.loading[0].id, gone)
    assert sorted(server.loading[0].sources) == [("m", 2)]
    server.rolls_on()
    assert server.told() == {2: "current"}
    assert server.loaded() == {0: [2], 1: [2]}


def test_a_model_whose_versions_all_went_keeps_what_it_has() -> None:
    server = VirtualServer()
    server.happens(events.VersionsFound({"m": {}}))
    assert server.told() == {1: "current"}
    assert not server.packets


def test_a_version_comes_back_that_is_not_unloaded_yet() -> None:
    settings = config([{"name": "m", "path": PATH}])
    server = VirtualServer(beside=(False, False), config=settings)
    server.finds(1, 2, 3)
    server.rolls_on()
    server.passes(5)
    server.dies(server.of_slot(0)[0].id)
    everything = config([{"name": "m", "path": PATH, "version_policy": "all"}])
    server.happens(events.ConfigurationRead(everything, versions(1, 2, 3)))
    server.rolls_on()
    assert server.told() == {1: "", 2: "", 3: "current"}
