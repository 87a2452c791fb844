"""Files of keys, and what is said of those that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.keys import Keyring

from batchyard.wire import keys
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.keys import (
    SECRET_KEY_FILE_VARIABLE,
    SERVER_KEY_VARIABLE,
    client_curve,
    fingerprint,
    public_key,
    read_folder,
    read_key_pair,
    read_public_key,
)


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "keys", "alice")


def test_fingerprint_is_the_beginning_of_sha256_of_the_key_itself() -> None:
    # 32 zero bytes: printf '\0%.0s' {1..32} | sha256sum
    assert fingerprint(b"0" * 40) == "66687aadf862bd77"


def test_pairs_do_not_show_their_secret(ring: Keyring) -> None:
    curve = client_curve(ring.server_key, ring.secret_file("alice"), {})
    assert curve is not None
    for shown in (repr(curve), str(curve), repr(curve.own), f"{curve.own}"):
        assert curve.own.secret.decode() not in shown
        assert repr(curve.own.public) in shown


def refusal(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_key_pair(path)
    assert str(path) in str(caught.value)
    # Nothing of the file is quoted, not even by what caused the error.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o644, 0o666, 0o601])
def test_a_secret_that_others_may_read_is_none(ring: Keyring, mode: int) -> None:
    path = ring.secret_file("alice")
    path.chmod(mode)
    assert f"{mode:04o}" in refusal(path)
    assert "make a new pair (batchyard keys new NAME)" in refusal(path)
    assert f"chmod 600 {path}" in refusal(path)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_group_may_be_given_a_secret(ring: Keyring, mode: int) -> None:
    """0440 is how a credential of systemd looks, whose list of access rights says who."""
    path = ring.secret_file("alice")
    path.chmod(mode)
    assert read_key_pair(path) == ring.pair("alice")


def test_what_is_no_secret_key(ring: Keyring, tmp_path: Path) -> None:
    public = ring.folder / "alice.key"
    public.chmod(0o600)
    assert "public key only" in refusal(public)
    assert "No such file" in refusal(tmp_path / "nowhere")
    assert "is no file" in refusal(tmp_path)
    path = ring.secret_file("alice")
    text = path.read_text()
    other = ring.public("bob").decode()
    for damaged, reason in (
        ("", "no file of a key"),
        ("public-key\n", "no file of a key"),
        ("\x00\xff" * 50, "no file of a key"),
        (text.replace('key = "', 'key = "!'), "40 characters"),
        (text.replace('secret-key = "', 'secret-key = "short" #'), "is no key"),
        (text.replace(ring.public("alice").decode(), "#" * 40), "is no key"),
        (text.replace(ring.public("alice").decode(), other), "not that of the secret key"),
    ):
        path.write_text(damaged)
        assert reason in refusal(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(ring: Keyring) -> None:
    path = ring.secret_file("alice")
    path.chmod(0o000)
    assert "Permission denied" in refusal(path)


def test_public_keys_are_files_or_text(ring: Keyring) -> None:
    public = ring.public("alice")
    assert public_key(str(ring.folder / "alice.key")) == public
    assert public_key(public.decode()) == public
    with pytest.raises(ConfigurationError, match=r"has a secret key; give the file .*\.key$"):
        read_public_key(ring.secret_file("alice"))
    for wrong in ("x" * 39, "\x7f" * 40, "ä" * 40, "#" * 40, "a\0b"):
        with pytest.raises(ConfigurationError):
            public_key(wrong)
    with pytest.raises(ConfigurationError, match="'nope' is neither a file nor a key, which"):
        public_key("nope")


def test_a_folder_has_the_keys_that_can_be_read(ring: Keyring) -> None:
    (ring.clients / "broken.key").write_text("nothing")
    (ring.clients / "notes.txt").write_text("ignored")
    (ring.clients / "mistake.key").write_bytes(ring.secret_file("bob").read_bytes())
    found, complaints = read_folder(ring.clients)
    assert found == {ring.public("alice"): "alice"}
    assert len(complaints) == 2
    assert "broken.key" in complaints[0]
    assert "mistake.key: has a secret key" in complaints[1]
    with pytest.raises(ConfigurationError, match=r"nowhere: No such file"):
        read_folder(ring.folder / "nowhere")


def test_a_client_has_both_keys_or_none(ring: Keyring) -> None:
    secret = str(ring.secret_file("alice"))
    assert client_curve(None, None, {}) is None
    assert client_curve(None, None, {SERVER_KEY_VARIABLE: ""}) is None
    expected = keys.ClientCurve(ring.public("server"), ring.pair("alice"))
    assert client_curve(ring.server_key, secret, {}) == expected
    environ = {SERVER_KEY_VARIABLE: ring.server_key, SECRET_KEY_FILE_VARIABLE: secret}
    assert client_curve(None, None, environ) == expected
    # What is given goes before what is around.
    other = client_curve(None, ring.secret_file("bob"), environ)
    assert other == keys.ClientCurve(ring.public("server"), ring.pair("bob"))
    with pytest.raises(ConfigurationError, match=r"--server-key.* needs secret_key_file"):
        client_curve(ring.server_key, None, {})
    with pytest.raises(ConfigurationError, match=r"--secret-key-file.* needs server_key"):
        client_curve(None, secret, {})
