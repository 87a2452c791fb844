"""A real systemd: this machine's root in a container, under a layer that is thrown away.

    with Container(folder, {"/opt/batchyard": environment}) as container:
        container.run("systemctl", "start", "batchyard")

All of it lives in a mount namespace of its own and dies with the tests, so that nothing is left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import pytest
from support.waiting import wait_until

_BOOT_S = 30.0
_NAMESPACES = ("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child")
_BOOT = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
root=$1/root
shift
# Nothing of this machine's own starts in there.
rm -f "$root"/etc/systemd/system/*.wants/*
systemd-nspawn --quiet --directory="$root" --machine=batchyard --register=no --keep-unit \
    --private-network "$@" --boot systemd.unit=basic.target
"""


def skip_without_systemd() -> None:
    """Skips the test where there can be no container."""
    if os.geteuid() != 0:
        pytest.skip("a container with systemd needs root")
    if shutil.which("systemd-nspawn") is None:
        pytest.skip("needs systemd-nspawn (Debian: apt-get install systemd-container)")
    # Within another container it may be root, and still not be allowed to.
    tried = subprocess.run(
        [*_NAMESPACES, "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        pytest.skip(f"nobody may make a container here: {tried.stderr.strip()}")


class Container:
    """A booted container; its commands run as root in it, from the tests."""

    def __init__(self, folder: Path, binds: Mapping[str, Path]) -> None:
        """``binds`` are folders of the tests that are at these paths in it, read-only."""
        self._layer = folder / "layer"
        self._layer.mkdir()
        self._console = folder / "console"
        self._binds = [f"--bind-ro={outside}:{inside}" for inside, outside in binds.items()]
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Container:
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                # It dies with the tests, however they end.
                [
                    *("setpriv", "--pdeathsig", "KILL"),
                    *_NAMESPACES,
                    *("sh", "-c", _BOOT, "sh", str(self._layer), *self._binds),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={"PATH": os.environ["PATH"]},
                start_new_session=True,
            )
        try:
            self._leader = wait_until(self._find_leader, self._said, _BOOT_S)
            wait_until(self._is_booted, self._said, _BOOT_S)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all that is in it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Starts a command in it, which dies with the process that is returned."""
        enter = ["nsenter", "--target", str(self._leader), "--all"]
        return subprocess.Popen(
            [*enter, "setpriv", "--pdeathsig", "KILL", "env", "--chdir=/", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )

    def run(self, *words: str, code: int | None = 0, timeout_s: float = 60) -> str:
        """What a command in it says; asserts that it ends with ``code``, if that is not None."""
        process = self.start(*words)
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            raise AssertionError(f"{words} did not end\n{output}") from None
        assert code is None or process.returncode == code, (
            f"{words}: {process.returncode}\n{output}"
        )
        return output

    def write(self, path: str, text: str) -> None:
        """Writes a file in it, with its folders."""
        script = 'mkdir -p "$(dirname "$1")" && printf %s "$2" >"$1"'
        self.run("sh", "-c", script, "sh", path, text)

    def _find_leader(self) -> int:
        """The process that is number 1 in the container, as it is numbered here."""
        assert self._process is not None
        assert self._process.poll() is None, self._said()
        todo = [self._process.pid]
        while todo:
            pid = todo.pop()
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                status = Path(f"/proc/{pid}/status").read_text()
                numbers = next(x for x in status.splitlines() if x.startswith("NSpid:")).split()[1:]
                if len(numbers) == 3 and numbers[-1] == "1":
                    return pid
                todo += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return 0

    def _is_booted(self) -> bool:
        return self.run("systemctl", "is-active", "basic.target", code=None).strip() == "active"

    def _said(self) -> str:
        return f"the container did not boot\n{self._console.read_text(errors='replace')[-3000:]}"
