"""Keys and groups that a configuration names: what is found, and what is said of the rest."""

from __future__ import annotations

import grp
import os
from pathlib import Path
from typing import Any

import pytest
from support.keys import Keyring
from support.virtual_server import VirtualServer, config

from batchyard.pool import access, events
from batchyard.pool.config import Config, validate
from batchyard.pool.inventory import Inventory
from batchyard.pool.plan import ServerPlan, make_plan
from batchyard.wire.control import Kind
from batchyard.wire.errors import ConfigurationError

MODELS: list[dict[str, Any]] = [{"name": "m", "path": "a:b", "runtime": "python"}]
ANYWHERE = "tcp://0.0.0.0:8600"


def configuration(**broker: Any) -> Config:
    return validate({"models": MODELS, "broker": broker}, "test")


def plan(environ: dict[str, str] | None = None, **broker: Any) -> ServerPlan:
    made, _ = make_plan(configuration(**broker), Inventory((), ""), environ or {}, [0])
    return made


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "keys", "alice")


def test_keys_allow_addresses_that_others_reach(ring: Keyring) -> None:
    with pytest.raises(ConfigurationError, match="curve_secret_key_file"):
        configuration(bind=[ANYWHERE])
    paths = {
        "curve_secret_key_file": str(ring.secret_file("server")),
        "curve_clients": str(ring.clients),
    }
    made = plan(bind=[ANYWHERE], **paths)
    assert {name: getattr(made.broker, name) for name in paths} == paths
    # The file is named; the secret itself is in nothing that is sent or shown.
    assert ring.pair("server").secret.decode() not in repr(made)


def test_either_key_setting_needs_the_other(ring: Keyring) -> None:
    for alone in ("curve_secret_key_file", "curve_clients"):
        with pytest.raises(ConfigurationError, match="need each other"):
            configuration(**{alone: "x"})


def test_credentials_of_systemd(ring: Keyring) -> None:
    folder = str(ring.folder)
    paths = {
        "curve_secret_key_file": "${CREDENTIALS_DIRECTORY}/server.key_secret",
        "curve_clients": str(ring.clients),
    }
    made = plan({"CREDENTIALS_DIRECTORY": folder}, **paths)
    assert made.broker.curve_secret_key_file == f"{folder}/server.key_secret"
    # What ExecReload= runs, or a person, is not shown it; all else is checked.
    for environ in ({}, {"CREDENTIALS_DIRECTORY": f"{folder}/hidden"}):
        assert plan(environ, **paths).broker.curve_secret_key_file.endswith("/server.key_secret")
        with pytest.raises(ConfigurationError, match="nowhere: No such file"):
            plan(environ, **{**paths, "curve_clients": f"{folder}/nowhere"})
    ring.secret_file("server").chmod(0o644)
    with pytest.raises(ConfigurationError, match="0644"):
        plan({"CREDENTIALS_DIRECTORY": folder}, **paths)
    assert access.place("/a/${HOME}/b", {"HOME": "/root"}) == "/a/${HOME}/b"


@pytest.mark.parametrize(
    ("secret", "clients", "reason"),
    [
        ("server.key", "clients", "broker.curve_secret_key_file: .* public key only"),
        ("nothing", "clients", "broker.curve_secret_key_file: .*/nothing: No such file"),
        ("server.key_secret", "nothing", "broker.curve_clients: .*/nothing: No such file"),
        ("alice.key_secret", "clients", "server's own key"),
    ],
)
def test_keys_that_cannot_work_are_told_before_the_start(
    ring: Keyring, secret: str, clients: str, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        plan(
            curve_secret_key_file=str(ring.folder / secret),
            curve_clients=str(ring.folder / clients),
        )


def test_groups_by_name_and_number() -> None:
    group = grp.getgrgid(os.getgid())
    for name in (group.gr_name, str(group.gr_gid)):
        made = plan(ipc_group=name)
        assert (made.broker.ipc_gid, made.broker.ipc_mode) == (group.gr_gid, 0o660)
    assert plan(ipc_group="0", ipc_mode="0666").broker.ipc_mode == 0o666
    assert (plan().broker.ipc_gid, plan().broker.ipc_mode) == (None, 0o600)
    with pytest.raises(ConfigurationError, match="lets the group write, such as 0660, not 0600"):
        configuration(ipc_group="0", ipc_mode="0600")
    for wrong in ("no such group", "-1", "9" * 30):
        with pytest.raises(ConfigurationError, match="has no group"):
            plan(ipc_group=wrong)


def test_sighup_has_the_keys_read_before_anything_else_and_whatever_that_says() -> None:
    with_keys = config(MODELS).model_copy(
        update={"broker": configuration(curve_secret_key_file="x", curve_clients="y").broker}
    )
    for made, expected in ((with_keys, 1), (config(MODELS), 0)):
        server = VirtualServer(config=made)
        server.happens(events.ReloadRequested())
        assert len(server.of_kind(Kind.KEYS)) == expected
        server.happens(events.ConfigurationRefused("a typo"))
        assert len(server.of_kind(Kind.KEYS)) == expected
