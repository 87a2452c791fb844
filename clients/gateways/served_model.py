"""A model as its clients may ask about it: the version that answers, and its signatures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchyard.wire.signatures import SignatureSpec, TensorSpec
from batchyard.wire.tensorflow_serving.messages import SignatureDefMap
from batchyard.wire.tensorflow_serving.tensor_proto import dtype_enum


@dataclass(frozen=True)
class ServedModel:
    """``signature_def`` is a ``tensorflow.serving.SignatureDefMap``: the SavedModel's own, where
    there is one, otherwise made of ``signatures``, which are here by name."""

    version: int
    signature_def: SignatureDefMap
    signatures: dict[str, SignatureSpec]

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> ServedModel:
        """The model that ``AsyncClient.metadata`` describes."""
        signatures = {
            name: _signature(name, described) for name, described in metadata["signatures"].items()
        }
        blob = metadata.get("signature_def") or b""
        return cls(
            metadata["version"],
            SignatureDefMap.FromString(blob) if blob else _signature_def(signatures),
            signatures,
        )


def _signature(name: str, described: Mapping[str, Any]) -> SignatureSpec:
    return SignatureSpec(
        name,
        _tensors(described["inputs"]),
        _tensors(described["outputs"]),
        described["batched"],
        described["method_name"],
        described["open"],
    )


def _tensors(described: Mapping[str, Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, tensor["dtype"], None if tensor["shape"] is None else (*tensor["shape"],))
        for name, tensor in described.items()
    )


def _signature_def(signatures: Mapping[str, SignatureSpec]) -> SignatureDefMap:
    made = SignatureDefMap()
    for name, spec in signatures.items():
        signature = made.signature_def[name]
        signature.method_name = spec.method_name
        for tensors, infos in ((spec.inputs, signature.inputs), (spec.outputs, signature.outputs)):
            for tensor in tensors:
                _describe(infos[tensor.name], tensor)
    return made


def _describe(info: Any, tensor: TensorSpec) -> None:
    info.name = f"{tensor.name}:0"
    info.dtype = dtype_enum(tensor.dtype)
    if tensor.shape is None:
        info.tensor_shape.unknown_rank = True
        return
    info.tensor_shape.SetInParent()
    for size in tensor.shape:
        info.tensor_shape.dim.add(size=-1 if size is None else size)
