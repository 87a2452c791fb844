"""With what a server ends that does not begin; the rest is for tests with processes."""

from __future__ import annotations

from typing import Any

import pytest

from batchyard.cli import running
from batchyard.wire import control
from batchyard.wire.errors import ConfigurationError, DeviceAbsent
from batchyard.wire.log import LogSettings


@pytest.mark.parametrize(
    ("kind", "code"),
    [(ConfigurationError, control.EXIT_CONFIGURATION), (DeviceAbsent, control.EXIT_DEVICE)],
)
def test_a_service_is_started_again_for_a_card_that_may_come(
    kind: type[Exception],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(config: Any) -> Any:
        raise kind("gpu:0 is not there")

    monkeypatch.setattr(running, "plan", refuse)
    with pytest.raises(SystemExit) as ended:
        running.run(lambda _: None, LogSettings())  # type: ignore[arg-type,return-value]
    assert ended.value.code == code
    assert capsys.readouterr().err == "batchyard: gpu:0 is not there\n"
