"""The card that is measured: what NVML says of it, before and while it works."""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

_INTERVAL_S = 0.5
_MILLI = 1e-3


class CardWatch:
    """Asks NVML twice a second, which costs the card nothing; what it cannot say is left out."""

    def __init__(self, uuid: str | None) -> None:
        """Of the card with this UUID; None: there is none, and nothing to say."""
        self._uuid = uuid
        self._nvml: Any = None
        self._handle: Any = None
        self._clocks: list[int] = []
        self._watts: list[float] = []
        self._slowed: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        if self._uuid is not None:
            with contextlib.suppress(Exception):
                import pynvml  # only where there is a card

                pynvml.nvmlInit()
                self._nvml = pynvml
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
                self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._nvml is not None:
            with contextlib.suppress(Exception):
                self._nvml.nvmlShutdown()

    def facts(self) -> dict[str, str]:
        """The driver, the bus, clocks and power: what it may, and what it did so far."""
        if self._handle is None:
            return {}
        nvml, handle = self._nvml, self._handle
        found: dict[str, str] = {}

        def add(name: str, read: Callable[[], str]) -> None:
            # Not every card says everything.
            with contextlib.suppress(Exception):
                found[name] = read()

        add("driver", lambda: _text(nvml.nvmlSystemGetDriverVersion()))
        add("driver's CUDA", lambda: _version(nvml.nvmlSystemGetCudaDriverVersion_v2()))
        add(
            "PCIe",
            lambda: (
                f"gen {nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)} "
                f"x{nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)}"
            ),
        )
        add(
            "SM clock at most",
            lambda: f"{nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)} MHz",
        )
        add(
            "power limit",
            lambda: f"{nvml.nvmlDeviceGetEnforcedPowerLimit(handle) * _MILLI:.0f} W",
        )
        if self._clocks:
            low, high = min(self._clocks), max(self._clocks)
            found["SM clock"] = f"{statistics.median(self._clocks):.0f} ({low} – {high}) MHz"
        if self._watts:
            found["power"] = (
                f"{statistics.median(self._watts):.0f}, at most {max(self._watts):.0f} W"
            )
        found["clocks were slowed by"] = ", ".join(sorted(self._slowed)) or "nothing"
        return found

    def _run(self) -> None:
        nvml, handle = self._nvml, self._handle
        while not self._stopping.wait(_INTERVAL_S):
            with contextlib.suppress(Exception):
                # An idle card has its clocks lowered: what counts is what it has while it works.
                if not nvml.nvmlDeviceGetUtilizationRates(handle).gpu:
                    continue
                self._clocks.append(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
                self._watts.append(nvml.nvmlDeviceGetPowerUsage(handle) * _MILLI)
                self._slowed |= _reasons(
                    nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
                )


def _reasons(nvml: Any, bits: int) -> set[str]:
    """Of those that matter: power, and heat."""
    names = {
        "power": "nvmlClocksThrottleReasonSwPowerCap",
        "heat": "nvmlClocksThrottleReasonSwThermalSlowdown",
        "hardware": "nvmlClocksThrottleReasonHwSlowdown",
    }
    return {name for name, constant in names.items() if bits & getattr(nvml, constant, 0)}


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
