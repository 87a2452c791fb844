"""Writes TFRecord files without TensorFlow: https://www.tensorflow.org/tutorials/load_data/tfrecord."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

_CASTAGNOLI = 0x82F63B78


def write_records(path: Path, records: Sequence[bytes]) -> None:
    """Each record behind its length, and the checksums of both."""
    path.write_bytes(b"".join(map(_record, records)))


def _record(body: bytes) -> bytes:
    length = struct.pack("<Q", len(body))
    return length + _masked_crc(length) + body + _masked_crc(body)


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ _CASTAGNOLI * (crc & 1)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF)
