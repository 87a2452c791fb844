"""The GPUs of a server on this machine, as NVML sees them: for ``batchyard top``.

The metrics gateway tells of them too, but a server need not have one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from batchyard.clients.gateways.devices import Devices
from batchyard.pool.inventory import read_inventory, visible_devices

_BROKER = b"batchyard.broker"
_VARIABLE = "CUDA_VISIBLE_DEVICES"
# A few milliseconds a card, unless its driver hangs, as when a card fell off the bus.
_ANSWER_S = 2.0


class LocalDevices:
    """Looks for GPUs when a server first says that it uses any.

    Where a driver hangs nothing is told of GPUs until it answers: all else is worth seeing then.
    """

    def __init__(self) -> None:
        self._devices: Devices | None = None
        self._reading: Future[list[dict[str, Any]]] | None = None

    def beside(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        """An answer of ``Client.metrics()`` with what the gateway adds to it: ``devices``."""
        used = {worker["device"] for worker in metrics["workers"]} - {"cpu"}
        if not used:
            return metrics
        reading = self._reading
        if reading is None:
            reading = self._reading = self._begin(used, metrics["broker"]["pid"])
            wait([reading], _ANSWER_S)
        if not reading.done():
            return metrics
        self._reading = None
        return {**metrics, "devices": reading.result()}

    def _begin(self, used: set[str], broker_pid: int) -> Future[list[dict[str, Any]]]:
        """Reads on a thread of its own, which the process does not wait for at its end."""
        found: Future[list[dict[str, Any]]] = Future()

        def read() -> None:
            try:
                if self._devices is None:
                    self._devices = Devices(_named(used, broker_pid))
                found.set_result(self._devices.read())
            except Exception as error:
                found.set_exception(error)

        threading.Thread(target=read, name="nvml", daemon=True).start()
        return found


def _named(used: set[str], broker_pid: int) -> list[tuple[str, str]]:
    """Name and UUID of each GPU that the server uses; none when it is on another machine."""
    environment = _environment(broker_pid)
    if environment is None:
        return []
    visible = visible_devices(read_inventory(), environment).devices
    return [
        (name, device.uuid)
        for device in visible
        for name in (device.label, device.uuid)
        if name in used
    ]


def _environment(broker_pid: int) -> Mapping[str, str] | None:
    """What the server was started with, as far as it matters here; ours where it may not be read.

    GPUs are numbered by it. None when the broker is no process of this machine.
    """
    process = Path(f"/proc/{broker_pid}")
    try:
        if _BROKER not in (process / "cmdline").read_bytes():
            return None
        pairs = (process / "environ").read_bytes().split(b"\0")
    except PermissionError:
        return os.environ
    except OSError:
        return None
    found = dict(pair.decode(errors="replace").partition("=")[::2] for pair in pairs if pair)
    return {_VARIABLE: found[_VARIABLE]} if _VARIABLE in found else {}
