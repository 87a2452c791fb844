"""The messages that TensorFlow Serving's configuration files are written in, and their text format.

The package tensorflow-serving-api publishes only ``ModelServerConfig``. The others are described
here, field for field as they are in TensorFlow Serving, so that its files are read as they stand:
https://github.com/tensorflow/serving/tree/master/tensorflow_serving/config and
``servables/tensorflow/session_bundle_config.proto``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, text_format

from batchyard.wire.errors import ConfigurationError
from batchyard.wire.tensorflow_serving import messages

_PACKAGE = "tensorflow.serving"
_WRAPPERS = "google/protobuf/wrappers.proto"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
}
_UNKNOWN_FIELD = re.compile(r'^Message type "([\w.]+)" has no field named "(\w+)"')
_INT64_VALUE = ".google.protobuf.Int64Value"
_BOOL_VALUE = ".google.protobuf.BoolValue"
_STRING_VALUE = ".google.protobuf.StringValue"

# Message -> field -> type. The order numbers the fields, which the text format does not write.
_MESSAGES: Mapping[str, Mapping[str, str]] = {
    "BatchingParameters": {
        "max_batch_size": _INT64_VALUE,
        "batch_timeout_micros": _INT64_VALUE,
        "max_enqueued_batches": _INT64_VALUE,
        "num_batch_threads": _INT64_VALUE,
        "thread_pool_name": _STRING_VALUE,
        "allowed_batch_sizes": "repeated int64",
        "pad_variable_length_inputs": "bool",
        "enable_large_batch_splitting": _BOOL_VALUE,
        "max_execution_batch_size": _INT64_VALUE,
    },
    "PrometheusConfig": {"enable": "bool", "path": "string"},
    "MonitoringConfig": {"prometheus_config": f".{_PACKAGE}.PrometheusConfig"},
    "SSLConfig": {
        "server_key": "string",
        "server_cert": "string",
        "custom_ca": "string",
        "client_verify": "bool",
    },
}


def _describe() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="batchyard/tensorflow_serving_files.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[_WRAPPERS],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field_name, type_name) in enumerate(fields.items(), start=1):
            field = message.field.add(name=field_name, number=number)
            is_repeated = type_name.startswith("repeated ")
            field.label = _Field.LABEL_REPEATED if is_repeated else _Field.LABEL_OPTIONAL
            if type_name.startswith("."):
                field.type, field.type_name = _Field.TYPE_MESSAGE, type_name
            else:
                field.type = _SCALARS[type_name.removeprefix("repeated ")]
    return file


messages.POOL.Add(_describe())

BatchingParameters = messages.message_class(f"{_PACKAGE}.BatchingParameters")
MonitoringConfig = messages.message_class(f"{_PACKAGE}.MonitoringConfig")
SSLConfig = messages.message_class(f"{_PACKAGE}.SSLConfig")
# TensorFlow's own, of --tensorflow_session_config_file.
SessionConfig = messages.message_class("tensorflow.ConfigProto")


def parse(path: Path | str, message_class: Any) -> Any:
    """The message in a file of protobuf's text format.

    Raises ConfigurationError that names the file, the line and the column.
    """
    name = message_class.DESCRIPTOR.name
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path}: not UTF-8 at byte {error.start}: needs a {name} as text protobuf"
        ) from None
    try:
        return text_format.Parse(text, message_class(), descriptor_pool=messages.POOL)
    except text_format.ParseError as error:
        # As TensorFlow Serving begins it.
        what = f"Error parsing text-format {message_class.DESCRIPTOR.full_name}"
        raise ConfigurationError(f"{_place(path, error)}: {what}: {_reason(error)}") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: not a {name}: it is nested too deeply") from None


def _place(path: Path | str, error: text_format.ParseError) -> str:
    line, column = error.GetLine(), error.GetColumn()
    return f"{path}" if line is None else f"{path}:{line}:{column}"


def _reason(error: text_format.ParseError) -> str:
    line, column = error.GetLine(), error.GetColumn()
    reason = str(error).removeprefix(f"{line}:{column} : ").strip()
    unknown = _UNKNOWN_FIELD.search(reason)
    if unknown is None:
        return reason
    message = messages.POOL.FindMessageTypeByName(unknown[1])
    fields = ", ".join(field.name for field in message.fields)
    return f"there is no {unknown[2]} in {message.name}; it has {fields}"
