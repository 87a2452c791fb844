"""A configuration that was written is the same when it is read."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard.cli.tensorflow_serving.toml_text import toml_text
from batchyard.pool.config import Config, validate

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
_MODELS = st.fixed_dictionaries(
    {"name": _TEXT, "path": _TEXT},
    optional={
        "version_policy": st.sampled_from(["all", {"latest": 2}, {"specific": [1, 3]}]),
        "version_labels": st.dictionaries(_TEXT, st.integers(0, 3), max_size=2),
        "batching": st.sampled_from(
            [{"enable_batching": False}, {"max_batch_size": 4, "allowed_batch_sizes": [2, 4]}]
        ),
    },
)


@settings(max_examples=40)
@given(
    models=st.lists(_MODELS, min_size=1, max_size=3, unique_by=lambda model: model["name"]),
    arguments=st.dictionaries(_TEXT, _TEXT | st.integers(-5, 5), max_size=2),
    workers=st.integers(1, 3),
    drain_timeout_s=st.floats(0.1, 100),
)
def test_it_is_read_as_it_was(
    models: list[dict[str, Any]],
    arguments: dict[str, str | int],
    workers: int,
    drain_timeout_s: float,
) -> None:
    config = validate(
        {
            "broker": {"bind": []},
            "grpc": {"port": 8500, "channel_arguments": arguments},
            "pool": {"workers": [{"count": workers}], "drain_timeout_s": drain_timeout_s},
            "models": models,
        },
        "test",
    )

    assert validate(tomllib.loads(toml_text(config)), "test") == config


def test_defaults_are_left_away() -> None:
    config = Config.model_validate({"models": [{"name": "m", "path": "/m"}]})

    assert toml_text(config) == '[[models]]\nname = "m"\npath = "/m"\n'
