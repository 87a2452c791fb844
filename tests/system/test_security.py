"""A real server with keys: who gets in by which door, what a reload changes, what nobody sees."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq
from support.documented_client import HELLO, DocumentedClient
from support.keys import Keyring
from support.server import BROKER, Server, callable_path, model_table, refused
from support.waiting import wait_until

from batchyard.clients import Client
from batchyard.clients.errors import Unauthenticated
from batchyard.wire import control

ECHO = model_table("echo", callable_path("echo"))
ROW = {"x": np.ones((1, 4), np.float32)}
_COMMAND = [sys.executable, "-P", "-c", "from batchyard.cli.main import main; main()"]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root and setpriv, to be other users",
)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring(tmp_path_factory.mktemp("keys") / "keys", "alice", "bob")


@pytest.fixture(scope="module")
def server(ring: Keyring) -> Iterator[Server]:
    options = ring.options("alice")
    with Server(config=ring.table() + ECHO, ipc=True, client_options=options) as server:
        yield server


def test_the_command_line_takes_keys(ring: Keyring, server: Server) -> None:
    secret = str(ring.secret_file("alice"))
    ended = subprocess.run(
        [
            *(*_COMMAND, "status", "--json", "--endpoint", server.endpoint),
            *("--server-key", ring.server_key, "--secret-key-file", secret),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["models"][0]["name"] == "echo"


def test_load_takes_keys_too(ring: Keyring, server: Server, tmp_path: Path) -> None:
    pytest.importorskip("hdrh")
    words = [
        *("load", "echo", "--connect", server.endpoint, "--concurrency", "2"),
        *("--duration", "0.1", "--warmup", "0", "--quiet"),
        *("--inputs", '{"x": [[1.0]]}', "--json", str(tmp_path / "found.json")),
        *("--server-key", ring.server_key, "--secret-key-file", str(ring.secret_file("bob"))),
    ]
    ended = subprocess.run(
        [*_COMMAND, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads((tmp_path / "found.json").read_text())


def test_by_tcp_there_is_no_way_around_keys(ring: Keyring, server: Server) -> None:
    """Who was let in by keys stays on that way: the local socket asks for none."""
    with Client(server.endpoint, **ring.options("alice")) as client:
        assert client.predict("echo", ROW)["x"].tolist() == ROW["x"].tolist()
        large = np.ones((1, 1 << 18), np.float32)
        assert (client.predict("echo", {"x": large})["x"] == large).all()
        assert client._io.region is None
    with zmq.Context() as context:
        raw = DocumentedClient(context, server.endpoints[-1])
        raw.send(HELLO, [])
        _, welcome, _ = raw.receive()
        raw.close()
    assert welcome[2] == ""
    with Client(server.endpoints[-1]) as client:
        assert client._io.region is not None


def reload(server: Server) -> None:
    before = server.log.count("event=keys_read")
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.log.count("event=keys_read") > before, lambda: server.log_tail)


def test_revoked_and_allowed_while_others_are_served(ring: Keyring, server: Server) -> None:
    with (
        Client(server.endpoint, **ring.options("bob")) as bob,
        Client(server.endpoint, **ring.options("alice")) as alice,
    ):
        waiting = [bob.submit("echo", ROW) for _ in range(100)]
        assert all(future.result(10) for future in waiting)
        ring.revoke("bob")
        reload(server)
        with pytest.raises(Unauthenticated, match="not know this client's key any more"):
            bob.predict("echo", ROW)
        with pytest.raises(Unauthenticated):
            bob.stats()
        assert alice.predict("echo", ROW)
        with pytest.raises(Unauthenticated, match="does not know this client's key"):
            Client(server.endpoint, **ring.options("bob"))
        assert "event=key_revoked name=bob" in server.log
        ring.allow("bob")
        reload(server)
        assert bob.predict("echo", ROW)
        assert alice.predict("echo", ROW)


def test_a_broker_that_is_started_anew_has_the_keys_of_then(ring: Keyring, server: Server) -> None:
    with Client(server.endpoint, **ring.options("alice")) as alice:
        (broker,) = server.processes(BROKER)
        os.kill(broker, signal.SIGKILL)
        assert alice.predict("echo", ROW)
        server.forget_client()
        with pytest.raises(Unauthenticated):
            Client(server.endpoint, **ring.options("mallory"))


def test_secrets_are_in_files_alone(ring: Keyring, server: Server) -> None:
    """Not in what other processes of the user, or people who read logs, can see."""
    pids = [server.pid, *server.processes()]
    assert len(pids) >= 3
    seen = [server.log.encode()]
    for pid in pids:
        seen += [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    for name in ("server", "alice", "mallory"):
        for text in seen:
            assert ring.pair(name).secret not in text
    # The supervisor has read the file, but keeps nothing of it.
    assert str(ring.secret_file("server")).encode() not in b"".join(seen)


def test_keys_that_cannot_work_end_the_start(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys", "alice")
    ring.secret_file("server").chmod(0o644)
    with refused(config=ring.table() + ECHO) as (code, log):
        assert code == control.EXIT_CONFIGURATION
        assert "its mode 0644 lets others" in log
        assert "Traceback" not in log


GROUP, OTHER_GROUP, USER = 4711, 4712, 4713
_ASK = """
import sys, numpy as np
from batchyard.clients import Client
from batchyard.clients.errors import BatchyardError
try:
    with Client(sys.argv[1], connect_timeout=float(sys.argv[2])) as client:
        x = np.ones((1, 4), np.float32)
        assert (client.predict("echo", {"x": x})["x"] == x).all()
        print("answered", "region" if client._io.region is not None else "")
except BatchyardError as error:
    print(error.code)
"""


def ask_as(user: int, groups: str, endpoint: str, timeout_s: float) -> str:
    """What a process of another user and its groups gets."""
    ended = subprocess.run(
        [
            *("setpriv", f"--reuid={user}", f"--regid={user}"),
            *([f"--groups={groups}"] if groups else ["--clear-groups"]),
            *(sys.executable, "-c", _ASK, endpoint, str(timeout_s)),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@needs_root
def test_members_of_the_group_connect_and_others_do_not() -> None:
    config = f'[broker]\nipc_group = "{GROUP}"\n{ECHO}'
    with Server(config=config, ipc=True) as server:
        # The folder that tests made is theirs alone; the one below is the server's.
        for path in (server.folder, server.runtime_folder):
            path.chmod(0o711)
        ipc, tcp = server.endpoints[-1], server.endpoints[0]
        for path in (server.ipc_path, Path(f"{server.ipc_path}.local")):
            found = path.stat()
            assert (found.st_gid, found.st_mode & 0o777) == (GROUP, 0o660)
        folder = server.ipc_path.parent.stat()
        assert (folder.st_gid, folder.st_mode & 0o777) == (GROUP, 0o710)
        assert ask_as(USER, str(GROUP), ipc, 10) == "answered region"
        assert ask_as(USER, str(OTHER_GROUP), ipc, 0.5) == "UNAVAILABLE"
        # By TCP anybody of this machine is let in, as there are no keys; but not to the abstract
        # name that they are told, and so to no shared memory.
        assert ask_as(USER, "", tcp, 10) == "answered"


@needs_root
def test_another_user_with_keys_comes_by_tcp_alone(ring: Keyring, server: Server) -> None:
    shared = server.folder / "shared.key_secret"
    shutil.copy(ring.secret_file("alice"), shared)
    os.chown(shared, USER, USER)
    server.folder.chmod(0o711)
    variables = {"BATCHYARD_SERVER_KEY": ring.public("server").decode()}
    variables["BATCHYARD_SECRET_KEY_FILE"] = str(shared)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        assert ask_as(USER, "", server.endpoint, 10) == "answered"
    assert ask_as(USER, "", server.endpoint, 10) == "UNAUTHENTICATED"
