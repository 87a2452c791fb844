"""Changes documents as a person would who knows what they are: values, not only bytes.

A mutator of bytes alone would hardly get past msgpack, whose lengths it breaks.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

from fuzz.documents import NotADocument, pack, unpack

# What a fuzzer of bytes makes of some.
RawMutator = Callable[[bytes], bytes]

_EDGES = (0, 1, 7, 8, 31, 32, 63, 64, 127, 128, 255, 512, 1024, 4096, 1 << 16, 1 << 20, 1 << 22)
_LARGE = (1 << 31, 1 << 32, 1 << 40, 1 << 53, 1 << 62, 1 << 63, (1 << 64) - 1)
INTERESTING_NUMBERS = [n for edge in (*_EDGES, *_LARGE) for n in (edge - 1, edge, edge + 1, -edge)]
_NUMBERS = [n for n in INTERESTING_NUMBERS if -(1 << 63) <= n < 1 << 64]
_OTHERS: list[Any] = [None, True, False, 0.5, float("nan"), float("inf"), "", b"", [], {}, "x"]
_WORDS = ["float32", "string", "bool", "bfloat16", "m", "p", "x", "models", "metadata", "\0", "é"]
_MAGIC = b"BY"
_DEPTH_MAX = 24
# Of what is made longer: several times in a row, that is without end.
_TEXT_MAX = 1 << 14


def mutate(data: bytes, most: int, seed: int, raw: RawMutator) -> bytes:
    """Bytes of another document, at most ``most``; now and then of none."""
    chance = random.Random(seed)
    if chance.random() < 0.05:
        return raw(data)[:most]
    try:
        document = unpack(data)
    except NotADocument:
        return raw(data)[:most]
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
        document = _changed(document, chance, raw, 0)
    try:
        packed = pack(document)
    except (ValueError, OverflowError, RecursionError, UnicodeEncodeError):
        return data
    return packed if len(packed) <= most else data


def _changed(value: Any, chance: random.Random, raw: RawMutator, depth: int) -> Any:
    if depth > _DEPTH_MAX or chance.random() < 0.04:
        return _other(chance)
    if isinstance(value, list):
        return _changed_list(value, chance, raw, depth)
    if isinstance(value, dict):
        return _changed_dict(value, chance, raw, depth)
    if isinstance(value, bytes):
        return _changed_bytes(value, chance, raw, depth)
    if isinstance(value, str):
        return _changed_text(value, chance)
    if isinstance(value, bool) or value is None:
        return _other(chance)
    if isinstance(value, int):
        return _changed_number(value, chance)
    return _other(chance)


def _other(chance: random.Random) -> Any:
    return chance.choice((chance.choice(_NUMBERS), chance.choice(_OTHERS), chance.choice(_WORDS)))


def _changed_list(value: list[Any], chance: random.Random, raw: RawMutator, depth: int) -> Any:
    if not value:
        return [_other(chance)]
    i = chance.randrange(len(value))
    what = chance.random()
    if what < 0.8:
        value[i] = _changed(value[i], chance, raw, depth + 1)
    elif what < 0.85:
        del value[i]
    elif what < 0.92:
        value.insert(i, value[chance.randrange(len(value))])
    elif what < 0.95:
        value.insert(i, _other(chance))
    elif what < 0.98:
        j = chance.randrange(len(value))
        value[i], value[j] = value[j], value[i]
    else:
        value *= 2 if len(value) < _TEXT_MAX else 1
    return value


def _changed_dict(value: dict[Any, Any], chance: random.Random, raw: RawMutator, depth: int) -> Any:
    if not value:
        return {chance.choice(_WORDS): _other(chance)}
    key = chance.choice(list(value))
    what = chance.random()
    if what < 0.8:
        value[key] = _changed(value[key], chance, raw, depth + 1)
    elif what < 0.9:
        del value[key]
    else:
        value[chance.choice(_WORDS)] = value[key]
    return value


def _changed_bytes(value: bytes, chance: random.Random, raw: RawMutator, depth: int) -> bytes:
    """Of a header or a target the values that it has; of other bytes lengths and offsets."""
    head = value[:4] if value[:2] == _MAGIC else b""
    if chance.random() < 0.7 and len(value) > len(head):
        try:
            inner = unpack(value[len(head) :])
            if isinstance(inner, list | dict):
                return head + pack(_changed(inner, chance, raw, depth + 1))
        except (NotADocument, ValueError, OverflowError, RecursionError):
            pass
    what = chance.random()
    if what < 0.4 or not value:
        return raw(value)
    if what < 0.8:
        form = chance.choice(("<I", "<Q", ">I", "<B"))
        size = struct.calcsize(form)
        place = chance.randrange(len(value)) // size * size
        word = int.from_bytes(value[place : place + size], "little") + chance.choice((-1, 1, 4, 8))
        word = chance.choice((word, chance.choice(_NUMBERS))) % (1 << 8 * size)
        return value[:place] + struct.pack(form, word) + value[place + size :]
    if what < 0.9:
        return value[: chance.randrange(len(value))]
    return value + value[: chance.randrange(1, len(value) + 1)]


def _changed_text(value: str, chance: random.Random) -> str:
    i = chance.randrange(len(value) + 1)
    what = chance.random()
    if what < 0.3:
        return chance.choice(_WORDS)
    if what < 0.5:
        return value[:i] + value[i + 1 :]
    if what < 0.6:
        return value[:i] + value[: chance.randrange(len(value) + 1)] * 2 + value[i:]
    if what < 0.65:
        return (value * chance.choice((2, 10, 600)))[:_TEXT_MAX]
    if what < 0.75:
        return value[:i] + str(chance.choice(_NUMBERS)) + value[i:]
    character = chance.choice('0123456789[]{}=:"*/.\\,-\n\0\x7f\ud7ff\u0660\u2028') or "0"
    return value[:i] + character + value[i:]


def _changed_number(value: int, chance: random.Random) -> int:
    what = chance.random()
    if what < 0.35:
        changed = value + chance.choice((-64, -8, -4, -2, -1, 1, 2, 4, 8, 64))
    elif what < 0.5:
        changed = value ^ 1 << chance.randrange(63)
    elif what < 0.6:
        changed = value * chance.choice((-1, 2, 3, 1000))
    elif what < 0.8:
        changed = chance.randrange(10)
    else:
        changed = chance.choice(_NUMBERS)
    return changed if -(1 << 63) <= changed < 1 << 64 else value
