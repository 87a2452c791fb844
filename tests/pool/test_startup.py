"""How far the start of a server has come."""

from __future__ import annotations

from batchyard.pool.startup import Startup


def test_from_nothing_to_all() -> None:
    told: list[tuple[int, float, str]] = []
    startup = Startup(2, lambda s: told.append((s.ready_workers, s.share, s.what)))
    startup.loading(0, 0.0, "loading a")
    startup.loading(1, 0.5, "warming up a at 1 row")
    startup.ready(0)
    startup.ready(1)
    # A worker that is replaced later loads, too: that is no start.
    startup.loading(2, 0.5, "loading a")
    startup.ready(2)
    assert told == [
        (0, 0.0, "loading a"),
        (0, 0.25, "warming up a at 1 row"),
        (1, 0.75, "warming up a at 1 row"),
        (2, 1.0, "warming up a at 1 row"),
    ]
    assert startup.is_over
