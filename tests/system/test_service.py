"""The service in a real systemd, with its own user and the hardening on: an operator's day."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import service_environment
from support.service import BATCHYARD, PYTHON, Service, as_user
from support.systemd_container import Container, skip_without_systemd
from support.waiting import wait_until

SUPPORT = Path(__file__).parent.parent / "support"
TCP = "tcp://127.0.0.1:8600"
BROKER, WORKER = "batchyard.broker", "batchyard.pool.worker"
CONFIGURATION = "/etc/batchyard/batchyard.toml"
ANSWER = '{"y": [[2.0, 4.0, 6.0, 8.0]]}\n'
CLIENT = 65534
WATCHDOG_S = 5
METRICS = 9090
KEYS = "/etc/batchyard/keys"
WITH_KEYS = ("--server-key", f"{KEYS}/server.key", "--secret-key-file", f"{KEYS}/laptop.key_secret")
# The second pool: the same machine, other ports, and keys.
SECOND_TCP = "tcp://127.0.0.1:8601"
SECOND_BROKER = f"""
[broker]
bind = ["{SECOND_TCP}", "ipc:///run/batchyard-second/broker"]
curve_secret_key_file = "${{CREDENTIALS_DIRECTORY}}/batchyard-second.key_secret"
curve_clients = "{KEYS}/clients"
"""
CODE = """
import time
def double(inputs):
    return {"y": inputs["x"] * 2}
def slow(inputs):
    time.sleep(1)
    return double(inputs)
"""
# Without a signature it is not warmed up.
SLOW = """
[[models]]
name = "slow"
runtime = "python"
path = "/srv/models.py:slow"
"""


# Its loading takes long enough for a reload that does not wait to be found out.
LATE = """
import time
time.sleep(0.5)
def double(inputs):
    return {"y": inputs["x"] * 2}
"""


def model(name: str, path: str = "/srv/models.py") -> str:
    return f"""
[[models]]
name = "{name}"
runtime = "python"
path = "{path}:double"
[models.signature]
inputs = {{ x = {{ dtype = "float32", shape = [-1, 4] }} }}
outputs = {{ y = {{ dtype = "float32", shape = [-1, 4] }} }}
"""


def configuration(*models: str, head: str = f"[metrics]\nport = {METRICS}\n[broker]\n") -> str:
    return (
        f'{head}ipc_group = "batchyard-clients"\n'
        + "".join(models)
        + '[[pool.workers]]\ndevice = "cpu"\ncount = 2\n'
    )


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    skip_without_systemd()
    folder = tmp_path_factory.mktemp("container")
    binds = {**service_environment.binds(), "/opt/tests": SUPPORT}
    for place, version in (("/opt/batchyard", "1.0"), ("/opt/batchyard-2", "2.0")):
        (folder / version).mkdir()
        binds[place] = service_environment.make(folder / version, place, version)
    with Container(folder, binds) as container:
        for path, target in service_environment.links():
            container.run("ln", "-sfn", target, path)
        container.write("/srv/models.py", CODE)
        container.write("/srv/late.py", LATE)
        container.run(BATCHYARD, "install-service", "--start")
        container.write(CONFIGURATION, configuration(model("double")))
        drop_in = "/etc/systemd/system/batchyard.service.d/test.conf"
        container.write(drop_in, "[Service]\nRestartSec=100ms\n")
        yield container


@pytest.fixture(scope="module")
def service(container: Container) -> Service:
    """batchyard.service, installed and started."""
    container.run(BATCHYARD, "install-service", "--start")
    return Service(container)


def test_it_is_installed_and_verified_and_installing_again_changes_nothing(
    service: Service,
) -> None:
    container = service.container
    said = container.run(BATCHYARD, "install-service")
    assert said.count("unchanged ") == 3
    assert f"kept       {CONFIGURATION}" in said
    assert service.systemctl("is-enabled").strip() == "enabled"
    for unit in ("batchyard.service", "batchyard@.service"):
        path = f"/etc/systemd/system/{unit}"
        assert not container.run("systemd-analyze", "verify", "--man=no", path)
        container.run(*("systemd-analyze", "security", "--offline=true", "--threshold=20", path))


def test_it_is_ready_when_every_model_is_and_says_so(service: Service) -> None:
    status = "Serving 1 model on 2 of 2 workers, rows waiting: 0"
    assert status in service.systemctl("status")
    assert "event=ready" in service.journal()
    url = f"http://127.0.0.1:{METRICS}/readyz"
    fetch = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).status)"
    assert service.container.run(PYTHON, "-c", fetch, url) == "200\n"
    uid = service.container.run("stat", "-c", "%u %U", f"/proc/{service.pid()}").split()
    assert int(uid[0]) >= 61184, "not a dynamic user"
    # Nobody but the supervisor may speak to systemd.
    for module in (BROKER, WORKER):
        pid = service.children(module)[0]
        environment = service.container.run("cat", f"/proc/{pid}/environ").split("\0")
        names = {variable.partition("=")[0] for variable in environment}
        assert not names & {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}


def test_other_users_predict_by_tcp_and_by_the_socket_if_they_are_in_its_group(
    service: Service,
) -> None:
    assert service.predict("double", TCP, uid=CLIENT) == ANSWER
    assert service.predict("double", service.ipc, uid=CLIENT, group="batchyard-clients") == ANSWER
    for socket in ("broker", "broker.local"):
        path = f"{service.folder}/{socket}"
        service.container.run(*as_user(CLIENT, "batchyard-clients"), "test", "-w", path)
        service.container.run(*as_user(CLIENT), "test", "-w", path, code=1)


def test_a_reload_under_load_waits_for_the_new_model_and_fails_no_request(
    service: Service,
) -> None:
    models = [model("double"), model("new", "/srv/late.py")]
    service.container.write(CONFIGURATION, configuration(*models))
    with service.load("double", service.ipc, TCP) as result:
        service.systemctl("reload")
        assert service.predict("new", TCP) == ANSWER
    assert set(result["outcomes"]) == {"OK"}, result
    service.wait_for_status("Serving 2 models on 2 of 2 workers")


def test_a_configuration_that_cannot_work_is_refused_at_reload_with_its_reason(
    service: Service,
) -> None:
    before = service.container.run("cat", CONFIGURATION)
    try:
        service.container.write(CONFIGURATION, before + "[pool]\narena_mb = -1\n")
        service.systemctl("reload", code=1)
        assert "arena_mb" in service.journal()
        assert service.predict("double", TCP) == ANSWER
        # By who does not ask systemd, too.
        service.signal(signal.SIGHUP, service.pid())
        service.wait_for_status("Serving 2 models", "the last reload was refused", "arena_mb")
        assert service.shown("ActiveState") == "active"
    finally:
        service.container.write(CONFIGURATION, before)
    service.systemctl("reload")
    assert "refused" not in service.shown("StatusText")


@pytest.mark.parametrize(("module", "event"), [(WORKER, "worker_died"), (BROKER, "broker_died")])
def test_a_process_that_is_killed_is_replaced_without_a_lost_request(
    service: Service, module: str, event: str
) -> None:
    before = service.children(module)
    restarts = service.shown("NRestarts")
    with service.load("double", service.ipc, TCP) as result:
        service.signal(signal.SIGKILL, before[0])
        wait_until(
            lambda: len(set(service.children(module)) - {before[0]}) == len(before),
            lambda: f"another {module}\n{service.journal()}",
        )
        service.wait_for_status("2 of 2 workers", "rows waiting: 0")
    assert set(result["outcomes"]) == {"OK"}, result
    assert service.shown("NRestarts") == restarts
    errors = service.journal("--priority=err")
    assert f"event={event}" in errors
    assert "event=worker_restarting" not in errors


def test_systemd_starts_it_again_when_the_supervisor_is_killed(service: Service) -> None:
    pid = service.pid()
    restarts = int(service.shown("NRestarts"))
    service.signal(signal.SIGKILL, pid)
    wait_until(lambda: int(service.shown("NRestarts")) == restarts + 1, service.journal)
    wait_until(lambda: service.shown("ActiveState") == "active", service.journal)
    assert service.predict("double", TCP) == ANSWER


def test_a_stop_under_load_answers_what_was_accepted(service: Service) -> None:
    container = service.container
    container.write(CONFIGURATION, configuration(model("double"), SLOW))
    service.systemctl("reload")
    words = [BATCHYARD, "predict", "--endpoint", TCP, "slow", '{"x": [[1, 2, 3, 4]]}']
    with service.load("double", service.ipc, TCP, reconnect_timeout_s=0.2) as result:
        asked = container.start(*words)
        wait_until(
            lambda: next(m for m in service.stats()["models"] if m["name"] == "slow")["requests"],
            "the slow request arrives",
        )
        service.systemctl("stop")
        assert json.loads(asked.communicate(timeout=20)[0]) == {"y": [[2, 4, 6, 8]]}
    assert set(result["outcomes"]) == {"OK", "UNAVAILABLE"}, result
    assert service.shown("Result") == "success"
    assert service.shown("ExecMainStatus") == "0"
    assert "event=draining" in service.journal()
    assert container.run("ls", "/run/batchyard", code=2)


def test_a_configuration_error_at_the_start_is_told_and_does_not_loop(service: Service) -> None:
    service.container.write(CONFIGURATION, configuration(model("double"), "[pol]\n"))
    service.systemctl("start", code=1)
    assert service.shown("ActiveState") == "failed"
    assert service.shown("NRestarts") == "0"
    assert "pol: there is no such key" in service.systemctl("status", code=3)
    service.container.write(CONFIGURATION, configuration(model("double")))
    service.systemctl("reset-failed")


def test_another_environment_takes_over_at_the_upgrade(service: Service) -> None:
    service.systemctl("start")
    said = service.container.run("/opt/batchyard-2/bin/batchyard", "install-service", "--start")
    assert "batchyard.service.old" in said
    command = service.container.run("cat", f"/proc/{service.pid()}/cmdline")
    assert command.startswith("/opt/batchyard-2/bin/python")
    assert service.predict("double", TCP) == ANSWER


@pytest.fixture(scope="module")
def watched(container: Container) -> Iterator[Service]:
    """A second pool, with keys, whose watchdog is impatient."""
    container.write(
        "/etc/batchyard/second.toml", configuration(model("double"), head=SECOND_BROKER)
    )
    for words in (("new", "server"), ("new", "laptop"), ("allow", "laptop")):
        container.run(BATCHYARD, "keys", "--dir", KEYS, *words)
    secret = "/etc/credstore/batchyard-second.key_secret"
    container.run("install", "-D", "--mode=600", f"{KEYS}/server.key_secret", secret)
    drop_in = "/etc/systemd/system/batchyard@second.service.d/test.conf"
    container.write(drop_in, f"[Service]\nWatchdogSec={WATCHDOG_S}\nRestartSec=100ms\n")
    container.run(BATCHYARD, "install-service", "second", "--start")
    service = Service(container, "batchyard@second")
    yield service
    service.systemctl("stop")


def test_a_second_pool_runs_beside_the_first(service: Service, watched: Service) -> None:
    service.systemctl("start")
    assert watched.predict("double", watched.ipc) == ANSWER
    assert watched.predict("double", SECOND_TCP, *WITH_KEYS) == ANSWER
    watched.systemctl("stop")
    assert service.predict("double", service.ipc) == ANSWER
    watched.systemctl("start")


def test_who_has_no_key_or_is_revoked_stays_out_after_a_reload_also_of_what_cannot_work(
    watched: Service,
) -> None:
    container, path = watched.container, "/etc/batchyard/second.toml"
    before = container.run("cat", path)
    assert "asks for keys" in watched.predict("double", SECOND_TCP)
    container.run(BATCHYARD, "keys", "--dir", KEYS, "revoke", "laptop")
    container.write(path, before + model("gone", "/srv/gone.py"))
    try:
        watched.systemctl("reload", code=1)
    finally:
        container.write(path, before)
    assert "/srv/gone.py" in watched.journal()
    wait_until(lambda: "event=key_revoked" in watched.journal(), watched.journal)
    said = watched.predict("double", SECOND_TCP, *WITH_KEYS)
    assert "does not know this client's key" in said
    # Who is on this machine needs none.
    assert watched.predict("double", watched.ipc) == ANSWER
    container.run(BATCHYARD, "keys", "--dir", KEYS, "allow", "laptop")
    watched.systemctl("reload")
    wait_until(lambda: watched.predict("double", SECOND_TCP, *WITH_KEYS) == ANSWER, watched.journal)


def test_a_broker_that_hangs_is_replaced_by_the_server_with_the_models_kept(
    watched: Service,
) -> None:
    supervisor, workers = watched.pid(), watched.children(WORKER)
    (broker,) = watched.children(BROKER)
    watched.signal(signal.SIGSTOP, broker)
    wait_until(lambda: watched.children(BROKER) not in ([], [broker]), watched.journal)
    wait_until(lambda: "event=broker_restarted" in watched.journal(), watched.journal)
    assert watched.predict("double", watched.ipc) == ANSWER
    assert (watched.pid(), watched.children(WORKER)) == (supervisor, workers)
    assert "event=broker_hung" in watched.journal()


def test_systemd_restarts_a_supervisor_that_hangs(watched: Service) -> None:
    supervisor = watched.pid()
    # The watchdog is fed while all is well.
    wait_until(lambda: watched.age_s() > WATCHDOG_S + 1, "it is older than its watchdog bears")
    assert "Watchdog timeout" not in watched.journal()
    watched.signal(signal.SIGSTOP, supervisor)
    wait_until(lambda: watched.pid() not in (0, supervisor), watched.journal)
    wait_until(lambda: watched.shown("ActiveState") == "active", watched.journal)
    assert watched.predict("double", watched.ipc) == ANSWER
    assert "Watchdog timeout" in watched.journal()


def test_a_supervisor_that_a_watchdog_ends_says_where_it_hung(watched: Service) -> None:
    supervisor = watched.pid()
    # One that SIGSTOP held up goes on while it is asked: any of its threads may take the signal.
    watched.signal(signal.SIGABRT, supervisor)
    wait_until(lambda: watched.pid() not in (0, supervisor), watched.journal)
    wait_until(lambda: watched.shown("ActiveState") == "active", watched.journal)
    journal = watched.journal()
    assert "Fatal Python error: Aborted" in journal
    assert "in _turn" in journal
