"""Copies to the card and back from three kinds of memory, asked over a pipe.

``python -m batchyard.benchmarks.gpu.transfer_loop CUDA_VISIBLE_DEVICES`` is a ``benchmarks.child``.
It copies as workers do, by ``pool/gpu/driver.py``, and its arena is made as theirs is.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any

import numpy as np

from batchyard.benchmarks.gpu.guarded import answer_guarded
from batchyard.pool.gpu.driver import Driver, NoCuda
from batchyard.wire.arena import Mapping, create_memfd
from batchyard.wire.control import die_with_parent

# So many copies are enqueued before they are waited for: the bus never waits for the host.
_COPIES_AT_ONCE = 8


class Transfers:
    """What the parent's questions are put to."""

    def open(self, nbytes: int) -> str:
        """Takes each kind of memory. Why it cannot; empty if it can."""
        try:
            self._driver = Driver.open()
        except NoCuda as error:
            return str(error)
        self._device = self._driver.allocate(nbytes)
        self._stream = self._driver.stream()
        self._mapping = Mapping(create_memfd(nbytes, "batchyard-bench"))
        arena = np.frombuffer(self._mapping.memory, np.uint8)
        # Pages are there when they were touched.
        self._pageable = np.ones(nbytes, np.uint8)
        arena[:] = 1
        self._addresses = {
            "pinned": _allocate_host(nbytes),
            "arena": _address(arena),
            "pageable": _address(self._pageable),
        }
        self._driver.page_lock(self._addresses["arena"], nbytes)
        return ""

    def gb_per_s(self, direction: str, memory: str, nbytes: int, seconds: float) -> float:
        """How many 10⁹ bytes a second, in copies of so many."""
        address = self._addresses[memory]
        # The first takes what a first one takes.
        self._copy(direction, address, nbytes, 1)
        copied = 0
        started = time.perf_counter()
        while True:
            self._copy(direction, address, nbytes, _COPIES_AT_ONCE)
            copied += _COPIES_AT_ONCE * nbytes
            elapsed_s = time.perf_counter() - started
            if elapsed_s >= seconds:
                return copied / elapsed_s / 1e9

    def _copy(self, direction: str, host: int, nbytes: int, times: int) -> None:
        driver = self._driver
        for _ in range(times):
            if direction == "in":
                driver.copy_in(self._device, host, nbytes, self._stream)
            else:
                driver.copy_out(host, self._device, nbytes, self._stream)
        driver.synchronize_stream(self._stream)


def _address(array: np.ndarray[Any, Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _allocate_host(nbytes: int) -> int:
    """Memory that CUDA itself took and page-locked: workers never do, so ``Driver`` cannot."""
    from cuda.bindings import driver

    code, address = driver.cuMemAllocHost(nbytes)
    if code:
        raise MemoryError(f"cuMemAllocHost of {nbytes} bytes: {code.name}")
    ctypes.memset(address, 1, nbytes)
    return int(address)


if __name__ == "__main__":
    die_with_parent(os.getppid())
    os.environ["CUDA_VISIBLE_DEVICES"] = sys.argv[1]
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    transfers = Transfers()
    answer_guarded({"open": transfers.open, "gb_per_s": transfers.gb_per_s})
