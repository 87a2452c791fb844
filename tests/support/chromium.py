"""A headless Chromium that tests drive by its DevTools protocol, over a pair of pipes.

with Chromium(tmp_path) as browser:
    page = browser.open("http://127.0.0.1:9090/", width=390)
    wait_until(lambda: page.evaluate("document.title"), "a title")
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

_PROGRAM = shutil.which("chromium")
_ANSWER_S = 30.0
_FLAGS = [
    "--headless",
    "--no-sandbox",  # its own does not work for root, and all that it opens are our pages
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]

needs_chromium = pytest.mark.skipif(_PROGRAM is None, reason="needs Debian's package chromium")


class Chromium:
    """One browser process; ``folder`` is for its profile."""

    def __init__(self, folder: Path) -> None:
        """Not started yet."""
        self._folder = folder
        self._pid = 0
        self._writer = self._reader = -1
        self._buffer = b""
        self._ids = 0
        # What pages complained of: exceptions, and what their security policy refused.
        self.complaints: list[str] = []

    def __enter__(self) -> Chromium:
        assert _PROGRAM is not None
        # Above those that the browser is to find them at.
        pairs = [[_high(fd) for fd in os.pipe()] for _ in range(2)]
        (theirs_in, self._writer), (self._reader, theirs_out) = pairs
        actions = [
            (os.POSIX_SPAWN_DUP2, theirs_in, 3),
            (os.POSIX_SPAWN_DUP2, theirs_out, 4),
            (
                os.POSIX_SPAWN_OPEN,
                2,
                str(self._folder / "chromium.log"),
                os.O_CREAT | os.O_RDWR,
                0o600,
            ),
        ]
        arguments = [
            _PROGRAM,
            *_FLAGS,
            f"--user-data-dir={self._folder / 'profile'}",
            "about:blank",
        ]
        environment = {**os.environ, "HOME": str(self._folder)}
        self._pid = os.posix_spawn(
            _PROGRAM, arguments, environment, file_actions=actions, setsid=True
        )
        os.close(theirs_in)
        os.close(theirs_out)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self.ask("Browser.close")
        os.close(self._writer)
        os.close(self._reader)
        with contextlib.suppress(ProcessLookupError):
            # All of its processes: they are a session of their own.
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def open(
        self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False
    ) -> ChromiumPage:
        """A page of that size, that begins to load."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = ChromiumPage(self, target, session)
        for domain in ("Page", "Runtime", "Log"):
            page.ask(f"{domain}.enable")
        page.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.ask("Emulation.setEmulatedMedia", features=[scheme])
        page.ask("Page.navigate", url=url)
        return page

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """What DevTools answers."""
        self._ids += 1
        question = {"id": self._ids, "method": method, "params": parameters}
        if session is not None:
            question["sessionId"] = session
        os.write(self._writer, json.dumps(question).encode() + b"\0")
        deadline = time.monotonic() + _ANSWER_S
        while True:
            message = self._read(deadline)
            if message.get("id") == self._ids:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._heard(message)

    def _heard(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"])[:1000])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            # That nobody answered is no fault of the page.
            if parameters["entry"]["source"] != "network":
                self.complaints.append(parameters["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.complaints.append(f"dialog: {parameters['message']}")

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            is_there = left > 0 and select.select([self._reader], [], [], left)[0]
            assert is_there, "Chromium is silent"
            read = os.read(self._reader, 1 << 20)
            assert read, f"Chromium ended: {(self._folder / 'chromium.log').read_text()[-2000:]}"
            self._buffer += read
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


class ChromiumPage:
    """One page of a browser."""

    def __init__(self, browser: Chromium, target: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session

    def __enter__(self) -> ChromiumPage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # It asks nobody any more.
        self._browser.ask("Target.closeTarget", targetId=self._target)

    def ask(self, method: str, **parameters: Any) -> Any:
        """What DevTools answers for this page."""
        return self._browser.ask(method, self._session, **parameters)

    def resize(self, width: int, height: int) -> None:
        """As on a screen of so many pixels; a narrow one is a phone's."""
        size = {"width": width, "height": height}
        self.ask(
            "Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=width < 600
        )

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript, or of what its promise comes to."""
        options = {"returnByValue": True, "awaitPromise": True}
        answer = self.ask("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """What a person reads of an element; empty when there is none."""
        found: str = self.evaluate(
            f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"
        )
        return found

    def press(self, key: str) -> None:
        """A key, where the focus is."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """As PNG; ``whole``: also what is below the window's end."""
        taken = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))


def _high(fd: int) -> int:
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return high
