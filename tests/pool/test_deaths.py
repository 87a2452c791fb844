"""Workers and brokers that die: when others come, and when the server ends. In virtual time."""

from __future__ import annotations

import pytest
from support.virtual_server import KILLED, VirtualServer

from batchyard.pool import events
from batchyard.pool.events import Death
from batchyard.pool.standing import Phase
from batchyard.wire import control
from batchyard.wire.control import Kind

NO_MODEL = Death("model 'm' does not load", control.EXIT_MODEL, ("m", 1), True)
NO_DEVICE = Death("TensorFlow sees no GPU", control.EXIT_DEVICE, None, True)


def test_a_worker_that_died_is_replaced_at_once() -> None:
    server = VirtualServer()
    server.passes(5)
    server.dies(0)
    assert server.of_kind(Kind.REAPED) == [[Kind.REAPED, 0, "signal SIGKILL", True]]
    (worker,) = server.of_slot(0)
    assert (worker.id, worker.loads_quietly) == (2, True)
    server.ready(worker.id)
    assert server.loaded() == {0: [1], 1: [1]}
    assert server.logs == ["worker_died", "worker_restarting"]


def test_restarts_are_told_and_ids_are_never_used_again() -> None:
    server = VirtualServer(beside=(True,))
    for count in range(1, 4):
        server.passes(2)
        (worker,) = server.of_slot(0)
        server.dies(worker.id)
        (started,) = server.of_slot(0)
        assert started.id == count
        # Nobody else serves: it need not be quiet.
        assert not started.loads_quietly
        assert server.state.workers.slots[0].restarts == count
        server.ready(started.id)


def test_one_that_dies_young_is_replaced_after_a_pause() -> None:
    server = VirtualServer()
    server.dies(0)
    server.dies(server.of_slot(0)[0].id)
    assert not server.of_slot(0)
    server.passes(0.09)
    assert not server.of_slot(0)
    server.passes(0.02)
    assert server.of_slot(0)


def test_ten_young_deaths_fail_a_slot_and_the_others_serve_on() -> None:
    server = VirtualServer()
    server.passes(30)
    # The first one lived.
    for _ in range(11):
        server.passes(30)
        (worker,) = server.of_slot(0)
        server.dies(worker.id)
    assert server.of_kind(Kind.REAPED)[-1][3] is False
    server.passes(50)
    assert not server.of_slot(0)
    assert server.loaded() == {1: [1]}
    assert server.logs[-1] == "worker_given_up"


def test_a_slot_that_was_given_up_is_tried_again_after_a_minute() -> None:
    server = VirtualServer()
    server.passes(5)
    server.dies(0)
    server.dies(server.of_slot(0)[0].id, NO_MODEL)
    assert server.of_kind(Kind.REAPED)[-1] == [Kind.REAPED, 2, NO_MODEL.reason, False]
    server.passes(59)
    assert not server.of_slot(0)
    server.passes(2)
    server.rolls_on()
    assert server.loaded() == {0: [1], 1: [1]}


def test_a_lasting_reason_fails_a_slot_and_sighup_tries_again() -> None:
    server = VirtualServer()
    server.passes(5)
    server.dies(0)
    server.dies(server.of_slot(0)[0].id, NO_DEVICE)
    assert server.of_kind(Kind.REAPED)[-1] == [Kind.REAPED, 2, NO_DEVICE.reason, False]
    assert not server.of_slot(0)
    server.happens(events.ConfigurationRead(server.config, server.found))
    server.rolls_on()
    assert server.loaded() == {0: [1], 1: [1]}


def test_when_all_slots_have_failed_the_server_ends_as_the_last_did() -> None:
    server = VirtualServer()
    server.passes(5)
    for slot in (0, 1):
        server.dies(server.of_slot(slot)[0].id)
        assert server.failure is None
        server.dies(server.of_slot(slot)[0].id, NO_DEVICE)
    assert server.failure == events.Fail(control.EXIT_DEVICE, NO_DEVICE.reason)
    assert server.phase is Phase.STOPPED


@pytest.mark.parametrize("death", [KILLED, NO_MODEL])
def test_any_death_at_the_start_ends_the_server(death: Death) -> None:
    server = VirtualServer(serving=False)
    server.dies(1, death)
    assert server.failure == events.Fail(death.exit_code, death.of("worker-1"))


def test_a_hung_worker_is_killed_and_replaced() -> None:
    server = VirtualServer()
    server.passes(5)
    server.happens(events.WorkerHung(1, "a batch of model 'm' ran for 120 s"))
    assert server.workers[1].is_killed
    server.dies(1)
    assert server.of_kind(Kind.REAPED)[-1][2] == "a batch of model 'm' ran for 120 s"
    assert server.of_slot(1)
    # It is gone already.
    server.happens(events.WorkerHung(1, "again"))


def test_the_broker_is_started_again_where_it_was() -> None:
    server = VirtualServer()
    server.passes(5)
    server.broker_dies()
    assert server.broker is not None
    assert server.broker.endpoints == ["tcp://127.0.0.1:1"]
    assert server.broker.awaited == server.links == [0, 1]
    server.happens(events.BrokerListening(["tcp://127.0.0.1:1"]))
    assert server.logs == ["broker_died", "broker_restarted"]


def test_who_loads_when_the_broker_dies_gets_a_link_but_is_not_waited_for() -> None:
    server = VirtualServer()
    server.passes(5)
    server.dies(0)
    server.broker_dies()
    assert server.broker is not None
    assert server.broker.awaited == [1]
    assert sorted(server.links) == [1, 2]
    server.ready(2)
    assert server.loaded() == {0: [1], 1: [1]}


def test_one_that_was_killed_is_waited_for_and_gets_no_link() -> None:
    server = VirtualServer()
    server.passes(5)
    server.happens(events.WorkerHung(0, "hung"))
    server.broker_dies()
    assert server.broker is not None
    assert server.broker.awaited == [0, 1]
    assert server.links == [1]
    server.dies(0)
    assert server.of_kind(Kind.REAPED) == [[Kind.REAPED, 0, "hung", True]]


def test_workers_that_die_while_there_is_no_broker_are_replaced_when_there_is() -> None:
    server = VirtualServer()
    server.broker_dies()
    server.broker_dies()
    assert server.broker is None
    server.dies(0)
    assert not server.of_slot(0)
    server.passes(0.2)
    assert server.broker is not None
    assert server.of_slot(0)
    assert server.broker.awaited == [1]


def test_a_broker_that_cannot_bind_again_ends_the_server() -> None:
    server = VirtualServer()
    server.passes(5)
    server.broker_dies()
    server.broker_dies(Death("cannot bind", control.EXIT_CONFIGURATION, None, True))
    assert server.failure == events.Fail(control.EXIT_FAILURE, "cannot bind")


def test_a_broker_that_dies_ten_times_young_ends_the_server() -> None:
    server = VirtualServer()
    for _ in range(10):
        assert server.failure is None
        server.passes(30)
        if server.brokers == 1:
            # The first one lived.
            server.happens(events.BrokerAnswered())
            server.passes(1)
            server.broker_dies()
        server.broker_dies()
    assert server.failure == events.Fail(control.EXIT_FAILURE, "broker ended: signal SIGKILL")


@pytest.mark.parametrize("answers", [0, 1])
def test_brokers_that_listen_and_hang_end_the_server(answers: int) -> None:
    """Each is killed when it has been waited for, long after it was young."""
    server = VirtualServer()
    for _ in range(2):
        server.happens(events.BrokerAnswered())
        server.passes(2)
    for _ in range(10):
        server.passes(60)
        server.broker_dies()
        # There may be a pause before the next is started.
        server.passes(15)
        assert server.failure is None
        server.happens(events.BrokerListening(["tcp://127.0.0.1:1"]))
        for _ in range(answers):
            server.happens(events.BrokerAnswered())
    server.passes(60)
    server.broker_dies()
    assert server.failure is not None
    assert server.logs.count("broker_hung") == 11


def test_workers_that_die_while_it_drains_are_replaced() -> None:
    server = VirtualServer()
    server.passes(5)
    server.happens(events.StopRequested())
    assert server.of_kind(Kind.DRAIN)
    server.dies(0)
    server.rolls_on()
    assert server.loaded() == {0: [1], 1: [1]}
    server.happens(events.BrokerDrained())
    assert server.phase is Phase.STOPPED
    assert server.failure is None


def test_a_broker_that_dies_while_it_drains_is_replaced_by_one_that_drains() -> None:
    server = VirtualServer()
    server.happens(events.StopRequested())
    server.broker_dies()
    assert server.failure is None
    server.passes(1)
    assert server.of_kind(Kind.DRAIN) == [[Kind.DRAIN]] * 2


def test_draining_without_a_broker_waits_for_the_next() -> None:
    server = VirtualServer()
    server.broker_dies()
    server.broker_dies()
    server.happens(events.StopRequested())
    server.passes(0.2)
    assert server.packets[-1] == [Kind.DRAIN]


def test_draining_has_an_end() -> None:
    server = VirtualServer()
    server.happens(events.StopRequested())
    server.passes(31)
    assert server.failure is not None
    assert "drain_timeout_s = 30.0" in server.failure.message


def test_a_second_signal_ends_it_hard() -> None:
    server = VirtualServer()
    server.happens(events.StopRequested())
    # As `timeout` sends it: to the process, and to its group.
    server.happens(events.StopRequested())
    server.passes(0.2)
    server.happens(events.StopRequested())
    assert server.failure is None
    server.passes(0.1)
    server.happens(events.StopRequested())
    assert server.failure is not None


def test_a_signal_while_it_starts_ends_it() -> None:
    server = VirtualServer(serving=False)
    server.happens(events.StopRequested())
    assert (server.phase, server.failure) == (Phase.STOPPED, None)


def test_a_process_that_never_loads_is_killed_and_replaced() -> None:
    server = VirtualServer()
    server.passes(5)
    server.dies(0)
    (worker,) = server.of_slot(0)
    server.passes(server.config.pool.load_timeout - 0.1)
    assert not worker.is_killed
    server.passes(0.2)
    assert worker.is_killed
    server.dies(worker.id)
    reason = "it did not load within load_timeout = 1800 s"
    assert server.of_kind(Kind.REAPED)[-1] == [Kind.REAPED, worker.id, reason, True]
    server.rolls_on()
    assert server.loaded() == {0: [1], 1: [1]}


def test_a_version_that_never_loads_is_given_up() -> None:
    server = VirtualServer()
    server.passes(5)
    server.finds(1, 2)
    (worker,) = server.loading
    server.passes(server.config.pool.load_timeout + 0.1)
    assert worker.is_killed
    server.dies(worker.id)
    assert "version_failed" in server.logs
    assert server.loaded() == {0: [1], 1: [1]}
