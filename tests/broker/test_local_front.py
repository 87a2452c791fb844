"""The front for clients on this machine, over real sockets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.descriptors import no_descriptors_leak
from support.local_fronts import REGION_NBYTES, WELCOME, Client, Fronts

from batchyard.wire import local
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.local import LocalSocket


@pytest.fixture
def fronts(tmp_path: Path) -> Iterator[Fronts]:
    with no_descriptors_leak():
        with ExitStack() as stack:
            yield Fronts(tmp_path, stack)
        # No path either.
        assert list(tmp_path.iterdir()) == []


# Coming


def test_a_client_is_welcomed_with_its_region(fronts: Fronts) -> None:
    front = fronts.front()
    accepted, client = fronts.connect(front)
    assert client.read() == (WELCOME, [])
    assert client.region is not None
    assert client.region.nbytes == REGION_NBYTES
    assert accepted.region is not None
    client.region.memory[100:105] = b"hello"
    assert bytes(accepted.region.memory[100:105]) == b"hello"
    assert front.knows(accepted.key)
    assert front.find(accepted.key) is accepted
    assert not front.knows(b"other")
    assert front.find(b"other") is None


def test_each_client_has_a_region_and_a_key_of_its_own(fronts: Fronts) -> None:
    front = fronts.front()
    one, first = fronts.connect(front)
    two, second = fronts.connect(front)
    first.read()
    second.read()
    assert one.key != two.key
    assert one.region is not None
    assert two.region is not None
    assert one.region.id != two.region.id
    assert 0 not in (one.region.id, two.region.id)
    assert first.region is not None
    assert second.region is not None
    first.region.memory[0] = 1
    assert second.region.memory[0] == 0
    # Longer than any routing id that a client of ZeroMQ may choose.
    assert min(len(one.key), len(two.key)) > 255


def test_a_region_cannot_be_resized(fronts: Fronts) -> None:
    front = fronts.front()
    accepted, _ = fronts.connect(front)
    for nbytes in (0, REGION_NBYTES - 1, 2 * REGION_NBYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(accepted.region_fd, nbytes)


@pytest.mark.parametrize(("region_nbytes", "regions_max"), [(0, 2), (REGION_NBYTES, 0)])
def test_regions_can_be_off(fronts: Fronts, region_nbytes: int, regions_max: int) -> None:
    front = fronts.front(region_nbytes, regions_max)
    accepted, client = fronts.connect(front)
    assert client.read() == (WELCOME, [])
    assert (accepted.region, client.region) == (None, None)
    assert front.send(accepted.key, b"answer", [b"frame"])
    assert client.read() == (b"answer", [b"frame"])


def test_beyond_so_many_regions_clients_have_none_until_one_goes(fronts: Fronts) -> None:
    front = fronts.front(regions_max=1)
    first, _ = fronts.connect(front)
    second, other = fronts.connect(front)
    other.read()
    assert (first.region is None, second.region, other.region) == (False, None, None)
    front.drop(first)
    third, last = fronts.connect(front)
    last.read()
    assert third.region is not None
    assert last.region is not None


def test_a_region_that_the_machine_cannot_give_is_none(fronts: Fronts) -> None:
    front = fronts.front(region_nbytes=1 << 62)
    accepted, client = fronts.connect(front)
    assert client.read() == (WELCOME, [])
    assert accepted.region is None


def test_clients_come_by_the_abstract_name_too(fronts: Fronts) -> None:
    front = fronts.front(endpoints=["tcp://127.0.0.1:1"])
    assert len(front.listener_filenos()) == 1
    _, client = fronts.connect(front, f"\0{front.name}")
    client.read()
    assert client.region is not None


def test_two_servers_have_two_names(fronts: Fronts) -> None:
    assert fronts.front(endpoints=[]).name != fronts.front(endpoints=[]).name


def test_beside_a_path_that_is_too_long_there_is_the_name_only(fronts: Fronts) -> None:
    front = fronts.front(endpoints=["ipc:///" + "x" * 105])
    assert len(front.listener_filenos()) == 1


@pytest.mark.parametrize("uid", ["ours", "root", "other"])
@pytest.mark.parametrize("by_name", [True, False])
def test_by_the_name_only_our_user_and_root_may_come(
    fronts: Fronts, monkeypatch: pytest.MonkeyPatch, uid: str, by_name: bool
) -> None:
    front = fronts.front()
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    peer = {"ours": 4242, "root": 0, "other": 4243}[uid]
    monkeypatch.setattr(LocalSocket, "peer_uid", lambda _: peer)
    client = Client(f"\0{front.name}" if by_name else fronts.path())
    accepted = fronts.accept(front)
    if uid == "other" and by_name:
        assert accepted is None
        with pytest.raises(local.LocalClosed):
            client.read()
    else:
        # A path has a mode that says who may.
        assert accepted is not None
        assert client.read() == (WELCOME, [])
    client.close()


def test_a_path_has_the_endpoints_mode(fronts: Fronts) -> None:
    fronts.front()
    assert os.stat(fronts.path()).st_mode & 0o777 == 0o600


def test_a_client_that_is_gone_already(fronts: Fronts) -> None:
    front = fronts.front()
    client = Client(fronts.path())
    client.close()
    accepted = fronts.accept(front)
    if accepted is not None:
        front.drop(accepted)
    # Woken for nothing: whoever knocked has been let in.
    assert front.accept(front.listener_filenos()[-1], WELCOME) is None


def test_what_cannot_be_bound_is_a_configuration_error(fronts: Fronts, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot bind .*no folder"):
        fronts.front(endpoints=[f"ipc://{tmp_path}/no folder/broker"])
