"""Logs: one line an event, which a person and a program can read."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.log_lines import parse_text

from batchyard.wire import log
from batchyard.wire.log import LogSettings
from batchyard.wire.log_format import as_json, as_text
from batchyard.wire.log_limit import EventLimit

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
ANY_TEXT = st.text(st.characters(codec="utf-8"))
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(-1e6, 1e6)


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logger = logging.getLogger("batchyard")
    before = logger.handlers, logger.level, logger.propagate
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(log, "_limit", EventLimit())
    yield
    logger.handlers, logger.level, logger.propagate = before


def in_the_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[], None]
) -> list[str]:
    """What ``write`` writes to a standard error that systemd says is the journal."""
    with path.open("w") as stream, monkeypatch.context() as patch:
        status = os.fstat(stream.fileno())
        patch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        patch.setattr(sys, "stderr", stream)
        write()
    return path.read_text().splitlines()


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("worker-2", LogSettings())
    log.info("ready", device="gpu:0", load_s=3.14159, batches=7)
    log.warning("lost", reason="no space left", where="")
    log.error("failed", message='first\nsecond "third"', known=False, worker=None)
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(f"time={TIME} ", line) for line in lines)
    assert [line.partition(" ")[2] for line in lines] == [
        "level=info process=worker-2 event=ready device=gpu:0 load_s=3.142 batches=7",
        'level=warning process=worker-2 event=lost reason="no space left" where=""',
        r'level=error process=worker-2 event=failed message="first\nsecond \"third\"" known=false'
        " worker=null",
    ]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("broker", LogSettings("json"))
    log.info("ready", load_s=3.5, batches=7, known=True, ids=["a", 1], why=ValueError("größer"))
    line = json.loads(capsys.readouterr().err)
    assert re.fullmatch(TIME, line.pop("time"))
    assert line == {
        "level": "info",
        "process": "broker",
        "pid": os.getpid(),
        "event": "ready",
        "load_s": 3.5,
        "batches": 7,
        "known": True,
        "ids": ["a", 1],
        "why": "größer",
    }


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", "debug info warning error"),
        ("info", "info warning error"),
        ("warning", "warning error"),
        ("error", "error"),
    ],
)
def test_levels(capsys: pytest.CaptureFixture[str], level: str, written: str) -> None:
    log.configure("broker", LogSettings(level=level))
    for each in log.LEVELS:
        getattr(log, each)("x")
    lines = [parse_text(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == written.split()
    assert log.is_debug() == (level == "debug")


def test_journal_has_priorities_and_no_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        log.configure("broker", LogSettings(level="debug"))
        log.debug("a")
        log.info("b", n=1)
        log.warning("c")
        log.error("d")

    assert in_the_journal(tmp_path / "journal", monkeypatch, write) == [
        "<7>process=broker event=a",
        "<6>process=broker event=b n=1",
        "<4>process=broker event=c",
        "<3>process=broker event=d",
    ]


def test_journal_has_priorities_before_json_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        log.configure("broker", LogSettings("json"))
        log.error("d")

    (line,) = in_the_journal(tmp_path / "journal", monkeypatch, write)
    assert line.startswith("<3>{")
    assert json.loads(line[3:])["event"] == "d"


@pytest.mark.parametrize("stream", ["", "8:1", "x:y", "8", ":"])
def test_other_streams_are_no_journal(monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    assert not log.is_journal()


@given(st.dictionaries(st.from_regex("[a-z_]{1,8}", fullmatch=True), ANY_TEXT, max_size=5))
def test_text_can_be_parsed_back(fields: dict[str, str]) -> None:
    line = as_text(fields)
    assert line.isprintable()
    assert parse_text(line) == fields


@given(st.text(st.characters(categories=["Cs", "Cc", "Ll"])) | st.binary())
def test_what_is_no_unicode_stays_in_its_line(value: str | bytes) -> None:
    for line in (as_text({"value": value}), as_json({"value": value})):
        line.encode()
        assert line.isprintable()
    as_read = parse_text(as_text({"value": value}))["value"]
    assert as_read == json.loads(as_json({"value": value}))["value"]
    if isinstance(value, str):
        assert as_read == value.encode(errors="backslashreplace").decode()


@given(st.dictionaries(ANY_TEXT, ANY_TEXT | PLAIN | st.lists(PLAIN | ANY_TEXT)))
def test_json_keeps_types(fields: dict[str, object]) -> None:
    line = as_json(fields)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == {
        key: [_rounded(v) for v in value] if isinstance(value, list) else _rounded(value)
        for key, value in fields.items()
    }


def _rounded(value: object) -> object:
    return round(value, 6) if isinstance(value, float) else value


def test_json_has_words_for_what_is_no_number() -> None:
    assert as_json({"a": float("nan"), "b": float("-inf")}) == '{"a": "nan", "b": "-inf"}'


def test_long_values_are_cut() -> None:
    assert len(as_text({"a": "x" * 100_000})) < 1100
    assert len(as_json({"a": b"x" * 100_000})) < 1100


class _WithoutWords(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def test_values_that_raise_are_written() -> None:
    assert as_text({"reason": _WithoutWords()}) == 'reason="_WithoutWords without words"'


def test_settings_travel_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = LogSettings("json", "error", 2.5)
    assert LogSettings.from_environment(settings.to_environment()) == settings
    monkeypatch.setenv("BATCHYARD_LOG", settings.to_environment()["BATCHYARD_LOG"])
    assert log.configure("broker") == settings


@pytest.mark.parametrize("value", ["", "{}", "3", '{"x": 1}'])
def test_environment_of_others_is_ignored(value: str) -> None:
    assert LogSettings.from_environment({"BATCHYARD_LOG": value}) == LogSettings()


def test_configuring_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("a", LogSettings())
    log.configure("b", LogSettings())
    log.info("ready")
    assert capsys.readouterr().err.endswith("level=info process=b event=ready\n")


def test_what_nobody_caught_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("worker-1", LogSettings())
    thread = threading.Thread(target=lambda: 1 // 0)
    thread.start()
    thread.join()
    line = parse_text(capsys.readouterr().err.removesuffix("\n"))
    assert (line["event"], line["level"]) == ("crashed", "error")
    assert line["reason"] == "ZeroDivisionError: integer division or modulo by zero"
    assert line["traceback"].startswith("Traceback")
    assert "test_log.py" in line["traceback"]
    thread = threading.Thread(target=sys.exit)
    thread.start()
    thread.join()
    assert not capsys.readouterr().err


def test_nobody_waits_for_who_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as reader, open(writing, "w") as stream:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            log.configure("broker", LogSettings())
        # More than a pipe holds: it would wait for ever.
        for _ in range(100):
            log.info("unread", text="x" * 1000)
        os.set_blocking(reading, False)
        read = reader.read(1 << 20).splitlines()
        log.info("read")
        lost, last = reader.read(1 << 20).splitlines()
        assert b"level=warning process=broker event=lines_lost" in lost
        assert lost.endswith(b" number=%d" % (100 - len(read)))
        assert last.endswith(b" event=read")


def test_a_flood_is_counted_instead(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("broker", LogSettings())
    for _ in range(1000):
        log.limited("warning", "flood", n=1)
        log.limited("debug", "unseen")
    assert len(capsys.readouterr().err.splitlines()) < 20


@given(st.lists(st.tuples(st.sampled_from("aab"), st.sampled_from((0.0, 0.1, 1.5))), max_size=80))
@example([*[("a", 0.0)] * 15, ("b", 0.0), ("a", 1.5)])
def test_limit(steps: list[tuple[str, float]]) -> None:
    """Each event has ten at once, one more a second, and every one that is left out is counted."""
    limit = EventLimit()
    now = 0.0
    admitted = {"a": 0, "b": 0}
    left_out = {"a": 0, "b": 0}
    for event, pause_s in steps:
        now += pause_s
        counted = limit.admit(event, now)
        if counted is None:
            left_out[event] += 1
        else:
            assert counted == left_out[event]
            left_out[event] = 0
            admitted[event] += 1
        assert admitted[event] <= 10 + now + 1e-6
