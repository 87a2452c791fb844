"""Requests for a model that is still loading: they wait for it, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from batchyard.clients.gateways import loading
from batchyard.clients.gateways.loading import Loading
from batchyard.wire.errors import STILL_LOADING, BatchyardError, NotFound, Unavailable

COMING = Unavailable(f"model 'm' version 1 {STILL_LOADING}")


class Asked:
    """Raises these errors, then returns what is left of the time."""

    def __init__(self, errors: Sequence[BatchyardError]) -> None:
        self.errors = [*errors]
        self.times = 0

    async def __call__(self, left: float | None) -> float | None:
        self.times += 1
        if self.errors:
            raise self.errors.pop(0)
        return left


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_LOOK_S", 0.01)


def test_who_asks_too_early_waits() -> None:
    asked = Asked([COMING, COMING])
    left = asyncio.run(Loading().once_loaded(asked, 5.0))
    assert left is not None
    assert 0 < left < 5
    assert asked.times == 3


@pytest.mark.parametrize(
    "errors", [[NotFound("m")], [Unavailable("full")], [COMING, NotFound("m")]]
)
def test_other_errors_are_told_at_once(errors: list[BatchyardError]) -> None:
    asked = Asked([*errors, COMING])
    with pytest.raises(type(errors[-1])):
        asyncio.run(Loading().once_loaded(asked, 5.0))
    assert asked.times == len(errors)


@pytest.mark.parametrize(("timeout", "longest"), [(None, 0.05), (0.05, 10.0)])
def test_the_waiting_has_an_end(
    monkeypatch: pytest.MonkeyPatch, timeout: float | None, longest: float
) -> None:
    monkeypatch.setattr(loading, "LONGEST_WAIT_S", longest)
    with pytest.raises(Unavailable, match=STILL_LOADING):
        asyncio.run(Loading().once_loaded(Asked([COMING] * 100), timeout))


def test_so_many_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "WAITING_MAX", 2)

    async def main() -> list[object]:
        waiting = Loading()
        asks = [waiting.once_loaded(Asked([COMING]), None) for _ in range(3)]
        return list(await asyncio.gather(*asks, return_exceptions=True))

    first, second, third = asyncio.run(main())
    assert first is second is None
    assert isinstance(third, Unavailable)
