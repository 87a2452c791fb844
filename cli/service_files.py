"""The files of a systemd service, for this environment and for who is to run it. Writes nothing."""

from __future__ import annotations

import os
import re
import stat
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

UNIT, TEMPLATE = "batchyard.service", "batchyard@.service"
SYSUSERS = "batchyard.sysusers.conf"
# As the shipped files have it: where docs/service.md has an environment made.
_SHIPPED_COMMAND = "/opt/batchyard/bin/batchyard"
# What ProtectHome= and PrivateTmp= hide.
_HOMES = ("/home", "/root", "/run/user")
_TEMPORARY = ("/tmp", "/var/tmp")
# A part of a dynamic user's name, of which Linux takes 31 characters, after "batchyard-".
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,20}")


@dataclass(frozen=True, slots=True)
class Reader:
    """Who is to read the environment; ``uid`` -1 is a user made for the service."""

    uid: int = -1
    gids: tuple[int, ...] = ()

    def can_enter(self, path: Path) -> bool:
        """Whether it may read this file, or look things up in this folder."""
        status = path.stat()
        bit = stat.S_IXOTH if path.is_dir() else stat.S_IROTH
        if self.uid == 0:
            return True
        if status.st_uid == self.uid:
            bit <<= 6
        elif status.st_gid in self.gids:
            bit <<= 3
        return bool(status.st_mode & bit)


def shipped(name: str) -> str:
    """A file of ``batchyard.deploy``."""
    return resources.files("batchyard.deploy").joinpath(name).read_text()


def is_name(name: str) -> bool:
    """Whether ``batchyard@NAME`` may be called so."""
    return _NAME.fullmatch(name) is not None


def command() -> list[str]:
    """How this environment runs the command line."""
    script = Path(sysconfig.get_path("scripts"), "batchyard")
    # -P: what lies in the working directory must not stand in for an installed module.
    return [str(script)] if script.exists() else [sys.executable, "-P", "-m", "batchyard.cli"]


def unit(name: str, words: Sequence[str], user: str | None = None) -> str:
    """The text of UNIT or TEMPLATE that runs ``words``, as ``user`` or one made for the service."""
    text = shipped(name).replace(_SHIPPED_COMMAND, " ".join(map(_quoted, words)))
    if user is not None:
        text = re.sub(r"^DynamicUser=yes\nUser=.*$", f"User={user}", text, flags=re.MULTILINE)
    if any(_lies_in(path, _HOMES) for path in needed(words)):
        text = text.replace("\nProtectHome=yes\n", "\nProtectHome=read-only\n")
    return text


def needed(words: Sequence[str]) -> list[Path]:
    """What a server reads of its environment, each with all that leads there."""
    here = Path(__file__).resolve().parent
    paths = [words[0], sys.executable, sys.prefix, sys.base_prefix, sysconfig.get_path("purelib")]
    return [*dict.fromkeys([*map(Path, paths), Path(sys.executable).resolve(), here])]


def obstacles(words: Sequence[str], reader: Reader) -> list[str]:
    """Why a service could not run this environment; empty if it can."""
    found = {}
    for path in needed(words):
        if _lies_in(path, _TEMPORARY):
            found[path] = f"{path} is hidden from a service, which has a {path.parts[1]} of its own"
            continue
        for step in [*reversed(path.parents), path]:
            if not reader.can_enter(step):
                found[step] = f"{step} cannot be read by the service's user"
                break
    return list(found.values())


def _lies_in(path: Path, folders: Sequence[str]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _quoted(word: str) -> str:
    """A word of ExecStart=."""
    word = word.replace("%", "%%").replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{word}"' if re.search(r"[\s\"';\\]", word) else word


def reader_of(user: str | None) -> Reader:
    """The reader that ``user`` is. Raises KeyError when there is no such user."""
    if user is None:
        return Reader()
    import pwd

    entry = pwd.getpwnam(user)
    return Reader(entry.pw_uid, tuple(os.getgrouplist(user, entry.pw_gid)))
