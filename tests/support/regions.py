"""Regions for tests of the client's side, and who has which of them mapped."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy.typing as npt
from support.server import Server

from batchyard.clients import Client
from batchyard.clients.region import ClientRegion
from batchyard.wire import local
from batchyard.wire.arena import create_memfd

_NAME = "memfd:batchyard-region"


@contextlib.contextmanager
def made_region(nbytes: int) -> Iterator[ClientRegion]:
    """A region that no broker knows of."""
    fd = create_memfd(nbytes, "batchyard-test")
    try:
        region = ClientRegion(fd)
    finally:
        os.close(fd)
    yield region
    region.close()


@contextlib.contextmanager
def far_client(server: Server) -> Iterator[Client]:
    """A client that finds no local socket: its tensors travel as frames."""
    with mock.patch.object(local, "connect", return_value=None), server.client() as client:
        yield client


def regions_mapped(pid: int) -> int:
    """How many regions a process has mapped."""
    try:
        return Path(f"/proc/{pid}/maps").read_text().count(_NAME)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def offset_in_region(array: npt.NDArray[Any]) -> int | None:
    """Where an array of this process lies in a region that a broker made; None when elsewhere."""
    address: int = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        if _NAME in line:
            addresses, _, offset, *_ = line.split()
            start, end = (int(word, 16) for word in addresses.split("-"))
            if start <= address < end:
                return address - start + int(offset, 16)
    return None
