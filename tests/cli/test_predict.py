"""``batchyard predict``: JSON in, JSON out."""

from __future__ import annotations

import json
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.server import Server

from batchyard.cli import connecting
from batchyard.cli.predict import command
from batchyard.clients import Client


def predict(server: Server | None, *arguments: str, stdin: str = "") -> Result:
    endpoint = ["--endpoint", server.endpoint] if server is not None else []
    return CliRunner().invoke(command, [*endpoint, *arguments], input=stdin)


def outputs(result: Result) -> Any:
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_inputs_by_name_or_bare(server: Server) -> None:
    for text in ('{"x": [[1, 2], [3, 4.5]]}', "[[1, 2], [3, 4.5]]"):
        assert outputs(predict(server, "double", text)) == {"y": [[2.0, 4.0], [6.0, 9.0]]}


def test_inputs_from_a_file_or_standard_input(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "inputs.json"
    path.write_text('{"x": [[1, 2]]}')
    assert outputs(predict(server, "double", f"@{path}")) == {"y": [[2.0, 4.0]]}
    assert outputs(predict(server, "double", "-", stdin="[[3, 4]]")) == {"y": [[6.0, 8.0]]}


def test_bytes_are_base64(server: Server) -> None:
    text = '["abc", "é", {"b64": "YQA="}]'
    assert outputs(predict(server, "upper", text)) == {"y": ["ABC", "é", "A\0"]}
    text = '{"x": [{"b64": "/2E="}, {"b64": ""}]}'
    assert outputs(predict(server, "upper", text)) == {"y": [{"b64": "/0E="}, ""]}


def test_choices_reach_the_server(server: Server) -> None:
    choices = ("--version=1", "--label=stable", "--signature=serving_default", "--request-id=a b")
    for choice in choices:
        assert outputs(predict(server, choice, "--timeout=9", "double", "[[1, 2]]"))
    assert predict(server, "--timeout=0", "double", "[[1, 2]]").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody", "[1]"], "batchyard: NOT_FOUND: "),
        (["--version=2", "double", "[[1, 2]]"], "batchyard: NOT_FOUND: "),
        (["--signature=other", "double", "[[1, 2]]"], "batchyard: NOT_FOUND: "),
        (["double", "[[1]]"], "batchyard: INVALID_ARGUMENT: model 'double'"),
        (["double", '{"z": 1}'], "batchyard: INVALID_ARGUMENT: model 'double'"),
        (["--request-id=é", "double", "[[1, 2]]"], "batchyard: INVALID_ARGUMENT: request_id must"),
    ],
)
def test_errors_are_a_line_and_exit_with_1(
    server: Server, arguments: list[str], message: str
) -> None:
    result = predict(server, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["[1,", "@/dev/null", '{"x": {"b64": "*"}}'])
def test_inputs_that_are_no_json_exit_with_2(text: str) -> None:
    result = predict(None, "double", text)
    assert result.exit_code == 2
    assert result.stderr.startswith("batchyard: the inputs are no JSON: ")


def test_inputs_in_no_file_exit_with_2() -> None:
    result = predict(None, "double", "@/no/such/file")
    assert result.exit_code == 2
    assert result.stderr == "batchyard: the inputs' file /no/such/file: No such file or directory\n"


def test_b64_that_is_no_text_exits_with_2() -> None:
    assert predict(None, "double", '{"x": {"b64": 1}}').exit_code == 2


def test_no_server_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "Client", partial(Client, connect_timeout=0.2))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    result = predict(None, "--endpoint", endpoint, "double", "[1]")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"batchyard: UNAVAILABLE: no server answered at {endpoint}")
    assert "there is no host" not in result.stderr

    def unknown(host: str, port: None) -> None:
        raise socket.gaierror(host)

    # A real name would be asked of the network.
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    result = predict(None, "--endpoint", endpoint, "double", "[1]")
    assert result.exit_code == 1
    assert "there is no host 127.0.0.1, as far as is known here" in result.stderr


def test_what_is_no_endpoint_exits_with_2() -> None:
    result = predict(None, "--endpoint", "localhost", "double", "[1]")
    assert result.exit_code == 2
    assert "must be tcp://HOST:PORT or ipc:///PATH" in result.stderr
