"""What ``models.config`` says of models, as tables of ``[[models]]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from batchyard.pool.config_models import Model
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.tensorflow_serving import file_messages, messages, model_config

_AS_FOUND = """\
# two generations of one model, and a helper
model_config_list: {
  config: {
    name: "ranker",
    base_path: "/models/ranker",
    model_platform: "tensorflow",
    model_version_policy: {
      specific: {
        versions: 42
        versions: 43
      }
    }
    version_labels { key: 'stable' value: 42 }
    version_labels { key: 'canary', value: 43 }
  },
  config {
    name: 'old'
    base_path: 'file:///models/old/'
    model_type: TENSORFLOW
    model_version_policy { latest { num_versions: 2 } }
  }
  config <
    name: "every" base_path: "models/" "every" model_platform: "tensorflow"
    model_version_policy { all {} }
  >
  config { name: "plain" base_path: "/models/plain" model_platform: "tensorflow" }
}
"""


def test_a_file_as_found(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(_AS_FOUND)

    tables = model_config.model_tables(file_messages.parse(file, messages.ModelServerConfig))

    assert tables == [
        {
            "name": "ranker",
            "path": "/models/ranker",
            "version_policy": {"specific": [42, 43]},
            "version_labels": {"stable": 42, "canary": 43},
        },
        {"name": "old", "path": "/models/old/", "version_policy": {"latest": 2}},
        {"name": "every", "path": "models/every", "version_policy": "all"},
        {"name": "plain", "path": "/models/plain"},
    ]
    for table in tables:
        Model.model_validate(table)


def _tables(text: str) -> list[dict[str, Any]]:
    return model_config.model_tables(text_format.Parse(text, messages.ModelServerConfig()))


def _one(text: str) -> list[dict[str, Any]]:
    return _tables(f"model_config_list {{ config {{ {text} }} }}")


@pytest.mark.parametrize("policy", ["", "latest {}", "latest { num_versions: 0 }"])
def test_latest_is_one_version_unless_said_otherwise(policy: str) -> None:
    named = 'name: "m" base_path: "/m" model_platform: "tensorflow"'

    [table] = _one(f"{named} model_version_policy {{ {policy} }}")

    assert table["version_policy"] == {"latest": 1}


_MODEL = 'name: "m" base_path: "/m" '
_SERVED = _MODEL + 'model_platform: "tensorflow" '


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_MODEL, 'has no model_platform: needs model_platform: "tensorflow"'),
        (_MODEL + 'model_platform: "caffe"', "model_platform 'caffe' is not served here"),
        (_MODEL + "model_type: OTHER", "model_type 2 is not served here"),
        (_SERVED + "model_type: TENSORFLOW", "has both model_type"),
        (_SERVED + "logging_config {}", "requests are not recorded here"),
        (_SERVED + "model_version_policy { specific {} }", "specific names no versions"),
        ('base_path: "/m" model_platform: "tensorflow"', "has no name: base_path '/m'"),
        ('name: "m" model_platform: "tensorflow"', "model 'm': base_path is missing"),
    ],
)
def test_what_is_not_served_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        _one(text)


@pytest.mark.parametrize(
    ("base_path", "message"),
    [
        ("gs://bucket/m", r"'gs://bucket/m': models are read from folders .* mount gs:// "),
        ("S3://bucket/m", "mount S3://"),
        ("file://host/m", "names a host: needs file:///FOLDER"),
        ("file://", "names a host"),
        ("", "base_path is missing"),
    ],
)
def test_a_base_path_is_a_folder_of_this_machine(base_path: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        model_config.folder(base_path)


def test_a_list_is_needed() -> None:
    with pytest.raises(InvalidArgument, match="no model_config_list"):
        _tables("")
    with pytest.raises(InvalidArgument, match="custom_model_config is for sources"):
        _tables("custom_model_config {}")
    with pytest.raises(InvalidArgument, match="model_config_list is empty"):
        _tables("model_config_list {}")
    empty = text_format.Parse("model_config_list {}", messages.ModelServerConfig())
    assert model_config.model_tables(empty, may_be_empty=True) == []


def test_names_differ() -> None:
    with pytest.raises(InvalidArgument, match="Illegal to list model m multiple times"):
        _tables(f"model_config_list {{ config {{ {_SERVED} }} config {{ {_SERVED} }} }}")
