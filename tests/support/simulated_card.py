"""Cards that are none: stand-ins for NVIDIA's driver libraries, for machines without a GPU.

``libcuda.so.1`` and ``libnvidia-ml.so.1`` are built from the C files in ``simulated_card/``, so
that NVIDIA's own bindings, and real servers, run on them: "device memory" is memory of the
process, streams are threads. What processes use of which card is kept in one file
(``simulated_card/state.h``).
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_SOURCES = Path(__file__).parent / "simulated_card"
# Library by the file that it is made of.
_LIBRARIES = {"cuda.c": "libcuda.so.1", "nvml.c": "libnvidia-ml.so.1"}
_MAGIC = 0x53434152
_CARDS_MAX = 8
_USES_MAX = 128
MIB = 1 << 20


class _Card(ctypes.Structure):
    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 64),
        ("total", ctypes.c_uint64),
        ("context_bytes", ctypes.c_uint64),
        ("bytes_per_s", ctypes.c_uint64),
    )


class _Use(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_int32), ("card", ctypes.c_int32), ("bytes", ctypes.c_uint64))


class _State(ctypes.Structure):
    _fields_ = (
        ("magic", ctypes.c_uint32),
        ("cards", ctypes.c_uint32),
        ("card", _Card * _CARDS_MAX),
        ("use", _Use * _USES_MAX),
    )


@dataclass(frozen=True, slots=True)
class SimulatedCards:
    """Cards that processes see which are started with ``environment``."""

    environment: Mapping[str, str]
    uuids: Sequence[str]
    _state: _State

    def used(self, card: int = 0) -> dict[int, int]:
        """Bytes by process that living processes use of a card, their contexts included."""
        uses = [use for use in self._state.use if use.card == card and use.pid > 0]
        return {use.pid: use.bytes for use in uses if Path(f"/proc/{use.pid}").exists()}

    def set_total(self, nbytes: int, card: int = 0) -> None:
        """Has the card have that much memory from now on."""
        self._state.card[card].total = nbytes

    def split(self, *memory_mb: int) -> list[str]:
        """Has the last card consist of MIG instances with that much memory; their UUIDs."""
        first, parent = self._state.cards, self._state.card[self._state.cards - 1]
        uuids = [f"MIG-00000000-0000-4000-8000-{first + i:012d}" for i in range(len(memory_mb))]
        for i, (uuid, mb) in enumerate(zip(uuids, memory_mb, strict=True)):
            self._state.card[first + i] = _Card(
                uuid.encode(), parent.name, mb * MIB, parent.context_bytes, parent.bytes_per_s
            )
        self._state.cards += len(memory_mb)
        return uuids

    def set_bytes_per_s(self, bytes_per_s: int, card: int = 0) -> None:
        """How fast copies over the bus are from now on; 0 is as fast as this machine copies."""
        self._state.card[card].bytes_per_s = bytes_per_s


def simulated_card(
    folder: Path,
    cards: int = 1,
    total_mb: int = 16384,
    context_mb: int = 300,
    bytes_per_s: int = 0,
    name: str = "Simulated H100",
) -> SimulatedCards:
    """Cards with that much memory each; their state is a file in ``folder``.

    Skips the test where there is no C compiler.
    """
    libraries = build()
    path = folder / "simulated_cards"
    with path.open("w+b") as file:
        file.truncate(ctypes.sizeof(_State))
        state = _State.from_buffer(mmap.mmap(file.fileno(), ctypes.sizeof(_State)))
    uuids = [f"GPU-00000000-0000-4000-8000-{card:012d}" for card in range(cards)]
    for card, uuid in enumerate(uuids):
        state.card[card] = _Card(
            uuid.encode(), name.encode(), total_mb * MIB, context_mb * MIB, bytes_per_s
        )
    state.cards = cards
    state.magic = _MAGIC
    environment = {"LD_LIBRARY_PATH": _first_in_path(libraries), "SIMULATED_CARD": str(path)}
    return SimulatedCards(environment, uuids, state)


def build() -> Path:
    """The folder with the libraries, built once a process. Skips the test without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the simulated card with")
    return Path(_build(compiler).name)


@functools.cache
def _build(compiler: str) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="simulated_card_")
    for source, library in _LIBRARIES.items():
        if (_SOURCES / source).exists():
            subprocess.run(
                [
                    *(compiler, "-O1", "-g", "-std=gnu11", "-Wall", "-Wextra"),
                    *("-fPIC", "-shared", "-pthread", f"-Wl,-soname,{library}"),
                    *("-o", f"{folder.name}/{library}", _SOURCES / source),
                ],
                check=True,
                timeout=60,
            )
    return folder


def _first_in_path(folder: Path) -> str:
    others = os.environ.get("LD_LIBRARY_PATH")
    return f"{folder}:{others}" if others else str(folder)
