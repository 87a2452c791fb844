"""What NVML says of the GPUs that workers may use."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any


class Devices:
    """Read by one thread at a time: NVML may take a while to answer.

    ``named`` has the name, such as ``gpu:0``, and the UUID of each.
    """

    def __init__(self, named: Sequence[tuple[str, str]]) -> None:
        self._named = named
        self._is_open = not named
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}

    def _open(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:
            # Not installed, or no driver: workers say so where they need it.
            return
        self._nvml = pynvml
        for name, uuid in self._named:
            with contextlib.suppress(pynvml.NVMLError):
                self._handles[name] = pynvml.nvmlDeviceGetHandleByUUID(uuid)

    def read(self) -> list[dict[str, Any]]:
        """For each GPU: ``device``, ``name``, ``utilization`` from 0 to 1 (None where NVML does not
        tell, as of MIG instances), ``memory_used_bytes``, ``memory_bytes``."""
        if not self._is_open:
            # Not before: it may hang, and whoever made this must not.
            self._open()
            self._is_open = True
        found = []
        for device, handle in self._handles.items():
            with contextlib.suppress(self._nvml.NVMLError):
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                found.append(
                    {
                        "device": device,
                        "name": _text(self._nvml.nvmlDeviceGetName(handle)),
                        "utilization": self._utilization(handle),
                        "memory_used_bytes": int(memory.used),
                        "memory_bytes": int(memory.total),
                    }
                )
        return found

    def _utilization(self, handle: Any) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
        except self._nvml.NVMLError:
            return None


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
