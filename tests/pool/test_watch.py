"""Models' folders are looked at, and the configuration is read, beside the supervisor's loop."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.waiting import DEADLINE_S

from batchyard.pool import events
from batchyard.pool.config import Config, validate
from batchyard.pool.events import Cause
from batchyard.pool.versions import find_all
from batchyard.pool.watch import Reload, Watch
from batchyard.wire.errors import ConfigurationError


def add(folder: Path, version: int) -> None:
    path = folder / str(version)
    path.mkdir()
    (path / "saved_model.pb").touch()


def config(folder: Path, poll_s: float = 0.01) -> Config:
    pool = {"file_system_poll_wait_seconds": poll_s}
    return validate({"models": [{"name": "m", "path": str(folder)}], "pool": pool}, "test")


Watching = Callable[[Config, Reload], Watch]


@pytest.fixture
def watching() -> Iterator[Watching]:
    watches: list[Watch] = []

    def start(first: Config, reload: Reload) -> Watch:
        watch = Watch(first, find_all(first.models), reload)
        watches.append(watch)
        watch.start()
        return watch

    yield start
    for watch in watches:
        watch.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "watch"]


def next_event(watch: Watch) -> events.Event:
    assert select.select([watch], [], [], DEADLINE_S)[0], "it says nothing"
    (event,) = watch.events()
    return event


def never(models: object) -> Config:
    raise AssertionError("nobody asked")


def test_versions_that_come_and_go_are_told(tmp_path: Path, watching: Watching) -> None:
    add(tmp_path, 1)
    watch = watching(config(tmp_path), never)
    add(tmp_path, 2)
    event = next_event(watch)
    assert isinstance(event, events.VersionsFound)
    assert set(event.found["m"]) == {1, 2}
    (tmp_path / "1").rename(tmp_path / "gone")
    event = next_event(watch)
    assert isinstance(event, events.VersionsFound)
    assert set(event.found["m"]) == {2}


def test_the_configuration_is_read_when_asked_for(tmp_path: Path, watching: Watching) -> None:
    add(tmp_path, 1)
    answers: list[Config | Exception] = [
        ConfigurationError("wrong"),
        config(tmp_path, 7.0),
        config(tmp_path / "none"),
        OSError("disk"),
    ]

    def reload(models: object) -> Config:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    # Folders are looked at only then.
    watch = watching(config(tmp_path, 0), reload)
    watch.ask_for_reload()
    assert next_event(watch) == events.ConfigurationRefused("wrong")
    add(tmp_path, 2)
    watch.ask_for_reload()
    event = next_event(watch)
    assert isinstance(event, events.ConfigurationRead)
    assert event.config.pool.file_system_poll_wait_seconds == 7.0
    assert set(event.found["m"]) == {1, 2}
    for reason in ("is no folder", "disk"):
        watch.ask_for_reload()
        event = next_event(watch)
        assert isinstance(event, events.ConfigurationRefused)
        assert reason in event.message


def test_models_that_a_gateway_asks_for_are_read(tmp_path: Path, watching: Watching) -> None:
    add(tmp_path, 1)
    first = config(tmp_path, 0)
    asked_for = []

    def reload(models: object) -> Config:
        asked_for.append(models)
        return first

    watch = watching(first, reload)
    tables = [{"name": "m", "path": "/m"}]
    watch.ask_for_models(tables)
    event = next_event(watch)
    assert isinstance(event, events.ConfigurationRead)
    assert event.cause is Cause.GATEWAY
    watch.resume_polls()
    watch.ask_for_reload()
    event = next_event(watch)
    assert isinstance(event, events.ConfigurationRead)
    assert event.cause is Cause.SIGNAL
    assert asked_for == [tables, None]


def polled(folder: Path, **more: object) -> Config:
    pool = {"file_system_poll_wait_seconds": 0, "model_config_poll_wait_seconds": 0.01}
    return validate({"models": [{"name": "m", "path": str(folder), **more}], "pool": pool}, "test")


def test_a_poll_tells_what_differs_once(tmp_path: Path, watching: Watching) -> None:
    add(tmp_path, 1)
    first, second = polled(tmp_path), polled(tmp_path, version_policy="all")
    # What is read, poll by poll; then the last for ever.
    reads: list[Config | str] = [first, "bad", "bad", "worse", second, second, "bad", second]
    over = threading.Event()

    def reload(models: object) -> Config:
        assert models is None
        if len(reads) == 1:
            over.set()
        read = reads.pop(0) if len(reads) > 1 else reads[0]
        if isinstance(read, str):
            raise ConfigurationError(read)
        return read

    watch = watching(first, reload)
    assert over.wait(DEADLINE_S)
    assert watch.events() == [
        events.ConfigurationRefused("bad", Cause.POLL),
        events.ConfigurationRefused("worse", Cause.POLL),
        events.ConfigurationRead(second, find_all(second.models), Cause.POLL),
        events.ConfigurationRefused("bad", Cause.POLL),
    ]


def test_no_poll_replaces_what_a_gateway_waits_for(tmp_path: Path, watching: Watching) -> None:
    add(tmp_path, 1)
    own, other = polled(tmp_path), polled(tmp_path, version_policy="all")
    polls = []

    def reload(models: object) -> Config:
        if models is None:
            polls.append(models)
        return own if models is None else other

    watch = watching(own, reload)
    watch.ask_for_models([])
    assert next_event(watch) == events.ConfigurationRead(
        other, find_all(other.models), Cause.GATEWAY
    )
    count = len(polls)
    assert not select.select([watch], [], [], 0.05)[0]
    assert len(polls) == count
    watch.resume_polls()
    event = next_event(watch)
    assert event == events.ConfigurationRead(own, find_all(own.models), Cause.POLL)
