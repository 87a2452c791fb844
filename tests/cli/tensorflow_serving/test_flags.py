"""The flags are TensorFlow Serving's, and none is ignored without a word."""

from __future__ import annotations

import tomllib
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from batchyard.cli import tfs
from batchyard.cli.tensorflow_serving import flags
from batchyard.cli.tensorflow_serving.flags import FLAGS, OWN, Flag, Treatment
from batchyard.wire.errors import ConfigurationError

_BOOLEANS = [flag.name for flag in FLAGS if isinstance(flag.default, bool)]


def _invoke(*arguments: str) -> tuple[Result, dict[str, Any]]:
    taken: dict[str, Any] = {}

    @click.command()
    @flags.options
    def command(**given: Any) -> None:
        taken.update({name: value for name, value in given.items() if value is not None})

    return CliRunner().invoke(command, arguments), taken


def _given(*arguments: str) -> dict[str, Any]:
    result, taken = _invoke(*arguments)
    assert result.exit_code == 0, result.output
    return {flag.name: None for flag in (*FLAGS, *OWN)} | taken


def _other(flag: Flag) -> str:
    """A value that is not the default."""
    if isinstance(flag.default, bool):
        return str(not flag.default).lower()
    return {int: "7", float: "0.5", str: "other"}[type(flag.default)]


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_each_flag_takes_a_value_of_its_type(flag: Flag) -> None:
    _, taken = _invoke(f"--{flag.name}={_other(flag)}")

    assert type(taken[flag.name]) is type(flag.default)
    assert taken[flag.name] != flag.default
    assert _invoke(f"--{flag.name}", _other(flag))[1] == taken


@pytest.mark.parametrize("name", _BOOLEANS)
def test_booleans_need_no_value(name: str) -> None:
    assert _invoke(f"--{name}", "--port=1")[1] == {name: True, "port": 1}
    assert _invoke(f"--{name}=true")[1] == _invoke(f"--{name}=1")[1] == {name: True}
    assert _invoke(f"--{name}=false")[1] == _invoke(f"--{name}=0")[1] == {name: False}


def test_the_last_of_several_holds() -> None:
    assert _invoke("--port=8500", "--port=9")[1] == {"port": 9}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model_nam=x", "No such option '--model_nam'. (Did you mean"),
        ("--port=x", "'x' is not a valid integer"),
        ("--enable_batching=maybe", "'maybe' is not a valid boolean"),
        ("models", "unexpected extra argument (models)"),
    ],
)
def test_what_is_no_flag_is_refused(argument: str, message: str) -> None:
    result, _ = _invoke(argument)

    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    "flag", [f for f in FLAGS if f.treatment is Treatment.REFUSED], ids=lambda flag: flag.name
)
def test_a_refusal_says_what_to_do_instead(flag: Flag) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        flags.values(_given(f"--{flag.name}={_other(flag)}"))

    assert str(refusal.value) == f"--{flag.name}: {flag.here}"
    # What TensorFlow Serving does without it is never refused.
    flags.values(_given(f"--{flag.name}={str(flag.default).lower()}"))


def test_what_has_no_effect_is_told() -> None:
    given = _given("--num_load_threads=0", "--flush_filesystem_caches", "--port=3")

    assert [name for name, _ in flags.without_effect(given)] == [
        "num_load_threads",
        "flush_filesystem_caches",
    ]
    assert not flags.without_effect(_given())


def test_defaults_are_tensorflow_servings() -> None:
    values = flags.values(_given())

    assert (values["port"], values["rest_api_port"], values["host"]) == (8500, 0, "0.0.0.0")
    assert (values["model_name"], values["model_base_path"]) == ("default", "")
    assert not values["enable_batching"]
    assert values["file_system_poll_wait_seconds"] == 1
    assert values["rest_api_timeout_in_ms"] == 30_000
    assert values["enable_model_warmup"]


def test_help_tells_of_every_flag() -> None:
    shown = CliRunner().invoke(tfs.command, "--help").output

    for flag in (*FLAGS, *OWN):
        assert f"--{flag.name} " in shown
    assert "[default: 8500]" in shown


def test_the_same_as_a_configuration() -> None:
    arguments = ("--model_base_path=/models/m", "--print_config")

    printed = CliRunner().invoke(tfs.command, arguments)
    refused = CliRunner().invoke(tfs.command, "--print_config")

    tables = tomllib.loads(printed.output)
    assert (tables["models"][0]["path"], tables["grpc"]["port"]) == ("/models/m", 8500)
    assert refused.exit_code == 2
    assert "no model to serve" in refused.output


def test_version() -> None:
    result = CliRunner().invoke(tfs.command, "--version")

    assert result.exit_code == 0
    assert result.output.startswith("Batchyard: ")
