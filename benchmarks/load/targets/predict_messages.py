"""The protobuf messages of ``tensorflow.serving.PredictionService``, as far as they are used.

They are described by hand, with the public numbers of their fields, so that neither TensorFlow nor
tensorflow-serving-api has to be there: https://github.com/tensorflow/serving, ``apis/model.proto``,
``apis/predict.proto``, ``apis/get_model_metadata.proto``; https://github.com/tensorflow/tensorflow,
``core/framework/tensor.proto``, ``tensor_shape.proto``, ``core/protobuf/meta_graph.proto``. Only
numbers and types travel, so that all of them stand in one package here, in a pool of their own,
beside which TensorFlow's can be loaded.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FILE = "batchyard/predict_messages.proto"
_PACKAGE = "batchyard.tensorflow"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
}
# Name: (number, type). ``[]`` behind a type is a repeated field, ``{}`` a map from strings. Enums
# are numbers on the wire.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Int64Value": {"value": (1, "int64")},
    "Any": {"type_url": (1, "string"), "value": (2, "bytes")},
    "ModelSpec": {
        "name": (1, "string"),
        "version": (2, "Int64Value"),
        "signature_name": (3, "string"),
        "version_label": (4, "string"),
    },
    "Dim": {"size": (1, "int64"), "name": (2, "string")},
    "TensorShapeProto": {"dim": (2, "Dim[]"), "unknown_rank": (3, "bool")},
    "TensorProto": {
        "dtype": (1, "int32"),
        "tensor_shape": (2, "TensorShapeProto"),
        "version_number": (3, "int32"),
        "tensor_content": (4, "bytes"),
        "string_val": (8, "bytes[]"),
    },
    "PredictRequest": {"model_spec": (1, "ModelSpec"), "inputs": (2, "TensorProto{}")},
    "PredictResponse": {"outputs": (1, "TensorProto{}"), "model_spec": (2, "ModelSpec")},
    "GetModelMetadataRequest": {
        "model_spec": (1, "ModelSpec"),
        "metadata_field": (2, "string[]"),
    },
    "GetModelMetadataResponse": {"model_spec": (1, "ModelSpec"), "metadata": (2, "Any{}")},
    "TensorInfo": {
        "name": (1, "string"),
        "dtype": (2, "int32"),
        "tensor_shape": (3, "TensorShapeProto"),
    },
    "SignatureDef": {
        "inputs": (1, "TensorInfo{}"),
        "outputs": (2, "TensorInfo{}"),
        "method_name": (3, "string"),
    },
    "SignatureDefMap": {"signature_def": (1, "SignatureDef{}")},
}
PREDICT = "/tensorflow.serving.PredictionService/Predict"
GET_MODEL_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
SIGNATURE_DEF = "signature_def"
"""The one field of the metadata that there is, and its name in the answer."""


def _described() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(message, field, number, kind, f".{_PACKAGE}.{name}")
    return file


def _add_field(message: Any, name: str, number: int, kind: str, inside: str) -> None:
    label = _Field.LABEL_OPTIONAL if kind[-2:] not in ("[]", "{}") else _Field.LABEL_REPEATED
    field = message.field.add(name=name, number=number, label=label)
    plain = kind.removesuffix("[]").removesuffix("{}")
    if kind.endswith("{}"):
        # A map is a repeated message of a key and a value, on the wire and here.
        entry_name = "".join(part.title() for part in name.split("_")) + "Entry"
        entry = message.nested_type.add(name=entry_name)
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string", inside)
        _add_field(entry, "value", 2, plain, inside)
        field.type, field.type_name = _Field.TYPE_MESSAGE, f"{inside}.{entry_name}"
    elif plain in _SCALARS:
        field.type = _SCALARS[plain]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{plain}"


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_described())


def _class(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


ModelSpec = _class("ModelSpec")
TensorProto = _class("TensorProto")
PredictRequest = _class("PredictRequest")
PredictResponse = _class("PredictResponse")
GetModelMetadataRequest = _class("GetModelMetadataRequest")
GetModelMetadataResponse = _class("GetModelMetadataResponse")
SignatureDefMap = _class("SignatureDefMap")
