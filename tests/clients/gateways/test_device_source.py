"""Reads of GPUs: once for all who ask, and not waited for where the driver hangs."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.log_lines import parse_text
from support.waiting import DEADLINE_S

from batchyard.clients.gateways import device_source
from batchyard.clients.gateways.device_source import DeviceSource
from batchyard.clients.gateways.devices import Devices

CARD = {"device": "gpu:0", "name": "a card"}


class Driver(Devices):
    """Answers when it may."""

    def __init__(self) -> None:
        super().__init__([])
        self.may_answer = threading.Event()
        self.reads = 0

    def read(self) -> list[dict[str, Any]]:
        self.reads += 1
        assert self.may_answer.wait(DEADLINE_S)
        return [CARD]


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.may_answer.set()
    for thread in threading.enumerate():
        if thread.name == "nvml":
            thread.join(DEADLINE_S)


@pytest.fixture
def lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("batchyard"), "propagate", True)
    caplog.set_level(logging.INFO, "batchyard")
    return caplog


def test_all_who_look_at_once_share_one_read(driver: Driver) -> None:
    async def main() -> None:
        source = DeviceSource(driver)
        looks = [asyncio.create_task(source.read()) for _ in range(10)]
        while not driver.reads:
            await asyncio.sleep(0)
        # One goes away again, and takes nobody's answer along.
        looks.pop().cancel()
        driver.may_answer.set()
        assert await asyncio.gather(*looks) == [[CARD]] * 9
        assert driver.reads == 1
        assert await source.read() == [CARD]
        assert driver.reads == 2

    asyncio.run(main())


def test_a_driver_that_hangs_is_not_waited_for(
    driver: Driver, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_source, "ANSWER_TIMEOUT_S", 0.01)

    async def main() -> None:
        source = DeviceSource(driver)
        assert await asyncio.gather(source.read(), source.read()) == [[], []]
        monkeypatch.setattr(device_source, "ANSWER_TIMEOUT_S", float(DEADLINE_S))
        # Those who come later do not wait at all, nor for a thread each.
        for _ in range(100):
            assert await source.read() == []
        assert driver.reads == 1
        driver.may_answer.set()
        async with asyncio.timeout(DEADLINE_S):
            while await source.read() != [CARD]:
                await asyncio.sleep(0.001)

    asyncio.run(main())
    said = [parse_text(record.getMessage())["event"] for record in lines.records]
    assert said == ["devices_silent", "devices_answer"]


def test_a_driver_that_hangs_keeps_nobody_from_ending(driver: Driver) -> None:
    """``asyncio.run`` would wait for threads of its own."""

    async def main() -> None:
        source = DeviceSource(driver)
        asking = asyncio.create_task(source.read())
        while not driver.reads:
            await asyncio.sleep(0)
        asking.cancel()
        source.close()

    asyncio.run(main())
    assert not driver.may_answer.is_set()


def test_making_it_asks_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway must answer also where the first question hangs."""
    asked = []
    monkeypatch.setattr(Devices, "_open", lambda self: asked.append(self))
    devices = Devices([("gpu:0", "GPU-1")])
    assert not asked
    devices.read()
    devices.read()
    assert len(asked) == 1
