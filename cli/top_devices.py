"""The GPUs of a server on this machine, as NVML sees them: for ``batchyard top``.

The metrics gateway tells of them too, but a server need not have one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchyard.clients.gateways.devices import Devices
from batchyard.pool.inventory import read_inventory, visible_devices

_BROKER = b"batchyard.broker"
_VARIABLE = "CUDA_VISIBLE_DEVICES"


class LocalDevices:
    """Looks for GPUs when a server first says that it uses any."""

    def __init__(self) -> None:
        self._devices: Devices | None = None

    def beside(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        """An answer of ``Client.metrics()`` with what the gateway adds to it: ``devices``."""
        used = {worker["device"] for worker in metrics["workers"]} - {"cpu"}
        if not used:
            return metrics
        if self._devices is None:
            self._devices = Devices(_named(used, metrics["broker"]["pid"]))
        return {**metrics, "devices": self._devices.read()}


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
