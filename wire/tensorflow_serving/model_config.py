"""TensorFlow Serving's ``ModelServerConfig``, as tables of ``[[models]]``.

The rules are those of its ``model_servers/server_core.cc``; what is refused beyond them says what
to do instead.
"""

from __future__ import annotations

import re
from typing import Any

from batchyard.wire.errors import InvalidArgument

# What `model_platform` is for SavedModels, and the same of the deprecated `model_type`.
_PLATFORM = "tensorflow"
_MODEL_TYPE = 1
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def model_tables(config: Any, *, may_be_empty: bool = False) -> list[dict[str, Any]]:
    """The models that a ``ModelServerConfig`` lists, each as a table of ``[[models]]``.

    A table has ``name`` and ``path``, and ``version_policy`` and ``version_labels`` where the
    message has them. Raises InvalidArgument.
    """
    match config.WhichOneof("config"):
        case "model_config_list":
            models = config.model_config_list.config
        case "custom_model_config":
            raise InvalidArgument(
                "custom_model_config is for sources of models built into TensorFlow Serving: list "
                "the models in model_config_list"
            )
        case _:
            raise InvalidArgument("there is no model_config_list, which names the models to serve")
    if not (models or may_be_empty):
        raise InvalidArgument("model_config_list is empty: at least one model must be in it")
    names: set[str] = set()
    for model in models:
        if model.name in names:
            raise InvalidArgument(
                f"Illegal to list model {model.name} multiple times in config list: each needs a "
                "name of its own"
            )
        names.add(model.name)
    return [_table(model) for model in models]


def _table(model: Any) -> dict[str, Any]:
    if not model.name:
        raise InvalidArgument(f"a model has no name: base_path {model.base_path!r}")
    _check_platform(model)
    if model.HasField("logging_config"):
        raise InvalidArgument(
            f"model {model.name!r}: logging_config: requests are not recorded here; remove it"
        )
    try:
        path = folder(model.base_path)
    except InvalidArgument as error:
        raise InvalidArgument(f"model {model.name!r}: {error.message}") from None
    table: dict[str, Any] = {"name": model.name, "path": path}
    if model.HasField("model_version_policy"):
        table["version_policy"] = _version_policy(model)
    if model.version_labels:
        table["version_labels"] = dict(model.version_labels)
    return table


def folder(base_path: str) -> str:
    """The local folder that a base path means. Raises InvalidArgument when it is not local."""
    scheme = _SCHEME.match(base_path)
    path = base_path.removeprefix(scheme[0]) if scheme else base_path
    if scheme and scheme[1].lower() != "file":
        raise InvalidArgument(
            f"base_path {base_path!r}: models are read from folders of this machine: mount "
            f"{scheme[1]}:// (gcsfuse, mountpoint-s3, blobfuse, a volume) or copy the model, and "
            "give that folder"
        )
    if scheme and not path.startswith("/"):
        raise InvalidArgument(
            f"base_path {base_path!r}: names a host: needs file:///FOLDER, or the folder alone"
        )
    if not path:
        raise InvalidArgument("base_path is missing: the folder of the model's version folders")
    return path


def _check_platform(model: Any) -> None:
    if model.model_type and model.model_platform:
        raise InvalidArgument(
            f"model {model.name!r}: has both model_type, which is deprecated, and model_platform: "
            "remove model_type"
        )
    if model.model_type == _MODEL_TYPE or model.model_platform == _PLATFORM:
        return
    if model.model_type or model.model_platform:
        given = (
            f"model_platform {model.model_platform!r}"
            if model.model_platform
            else f"model_type {model.model_type}"
        )
        raise InvalidArgument(
            f"model {model.name!r}: {given} is not served here: needs model_platform: "
            f'"{_PLATFORM}", a SavedModel'
        )
    raise InvalidArgument(
        f'model {model.name!r}: has no model_platform: needs model_platform: "{_PLATFORM}"'
    )


def _version_policy(model: Any) -> str | dict[str, Any]:
    policy = model.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return "all"
        case "specific":
            if not policy.specific.versions:
                raise InvalidArgument(
                    f"model {model.name!r}: model_version_policy specific names no versions"
                )
            return {"specific": list(policy.specific.versions)}
        case _:
            # An unset number is 0, and stands for one version.
            return {"latest": max(policy.latest.num_versions, 1)}
