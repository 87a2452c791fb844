"""What both ends decode: headers, tensors, packets, signatures, endpoints."""

from __future__ import annotations

import os
import socket
import struct
from functools import cache
from itertools import pairwise
from typing import Any

import msgpack
from fuzz.documents import NotADocument, fields, list_of, pack, refused
from support.local_ends import pair

from batchyard.wire import arena, dtypes, endpoints, protocol, tensors
from batchyard.wire.errors import (
    BatchyardError,
    ConfigurationError,
    Internal,
    InvalidArgument,
    Unimplemented,
)
from batchyard.wire.link import Link, LinkClosed
from batchyard.wire.local import LocalClosed, LocalSocket
from batchyard.wire.protocol import DIM_MAX, MessageType, Predict, Target
from batchyard.wire.signatures import SignatureSpec

UINT64 = 1 << 64


def check_header(document: Any) -> None:
    """``[header]``: a frame that claims to be one."""
    (header,) = fields(document, bytes)
    try:
        type_, body = protocol.decode(header)
    except BatchyardError as error:
        refused(error, InvalidArgument, Unimplemented)
        protocol.encode_error([], error)
        return
    # As text, in which not-a-numbers are equal.
    assert repr(protocol.decode(protocol.encode(type_, body))) == repr((type_, body))
    try:
        if type_ is MessageType.PREDICT:
            _check_predict(protocol.decode_predict(body))
        elif type_ is MessageType.CANCEL:
            segments = protocol.decode_segments(body)
            assert all(0 <= n < UINT64 for segment in segments for n in segment)
            assert protocol.decode(protocol.encode(type_, segments)) == (type_, body)
    except BatchyardError as error:
        refused(error, InvalidArgument, naming=f"{type_.name} header: ")


def _check_predict(predict: Predict) -> None:
    assert 0 <= predict.message_id < UINT64
    assert 1 <= predict.count <= protocol.REQUESTS_MAX
    if isinstance(predict.rows, list):
        assert all(1 <= rows <= DIM_MAX for rows in predict.rows)
    if isinstance(predict.timeouts_us, list):
        assert len(predict.timeouts_us) == predict.count
    if predict.region is not None:
        for offsets in predict.region.inputs:
            assert offsets is None or len(offsets) == predict.count
            assert all(0 <= offset <= DIM_MAX for offset in offsets or ())
        replies = predict.region.replies
        assert replies is None or len(replies) == predict.count
        assert all(0 <= n <= DIM_MAX for reply in replies or () for n in reply)
    after = 0
    for tag in predict.tags:
        assert after <= tag.first < tag.first + tag.requests <= predict.count
        assert tag.request_id is None or (tag.request_id.isascii() and tag.request_id.isprintable())
        after = tag.first + tag.requests
    again = protocol.encode_predict(
        predict.message_id,
        predict.target,
        predict.rows,
        predict.timeouts_us,
        predict.region,
        predict.resent,
        predict.tags,
    )
    assert protocol.decode_predict(protocol.decode(again)[1]) == predict


def check_target(document: Any) -> None:
    """``[target]``, or ``[fields of a target]``."""
    (data,) = fields(document, (bytes, list))
    data = pack(data) if isinstance(data, list) else data
    try:
        target = Target.decode(data)
    except BatchyardError as error:
        refused(error, InvalidArgument)
        return
    names = [target.model, target.signature, *(i.name for i in target.inputs)]
    assert all(len(name) <= protocol.NAME_MAX for name in [*names, target.label or ""])
    assert len(target.inputs) <= protocol.INPUTS_MAX
    for header in target.inputs:
        assert dtypes.is_known(header.dtype)
        assert len(header.shape) <= protocol.RANK_MAX
        assert all(0 <= (dim or 0) <= DIM_MAX for dim in header.shape)
        assert None not in header.shape[1:]
    assert Target.decode(target.encode()) == target


def check_tensor(document: Any) -> None:
    """``[dtype, shape, frame, start, stop]``: a frame, of which rows are cut out."""
    dtype, shape, frame, start, stop = fields(document, str, list, bytes, int, int)
    shape = tuple(list_of(int, shape, protocol.RANK_MAX))
    if not dtypes.is_known(dtype) or not all(0 <= dim <= DIM_MAX for dim in shape):
        raise NotADocument
    try:
        tensors.check_frame(frame, dtype, shape, "the input")
    except BatchyardError as error:
        refused(error, InvalidArgument, naming="the input: ")
        return
    count = 1
    for dim in shape:
        count *= dim
    # A model of the frame: its elements, each as bytes.
    if dtype == dtypes.STRING:
        offsets = struct.unpack_from(f"<{count + 1}I", frame)
        items = [frame[a:b] for a, b in pairwise(offsets)]
        assert offsets[0] + sum(map(len, items)) == len(frame)
    else:
        size = dtypes.itemsize(dtype)
        items = [frame[i * size : (i + 1) * size] for i in range(count)]
        assert b"".join(items) == frame
        assert dtype != "bool" or set(frame) <= {0, 1}
    _check_rows(frame, dtype, shape, items, start, stop)


def _check_rows(
    frame: bytes, dtype: str, shape: tuple[int, ...], items: list[bytes], start: int, stop: int
) -> None:
    if items:
        decoded = tensors.decode(frame, dtype, shape)
        assert decoded.shape == shape
        assert bytes(tensors.encode(decoded, dtype)) == frame
    if not shape or not 0 <= start <= stop <= shape[0]:
        return
    width = len(items) // shape[0] if shape[0] else 0
    cut = items[start * width : stop * width]
    want = tensors.encode_strings(cut) if dtype == dtypes.STRING else b"".join(cut)
    if width:
        assert bytes(tensors.slice_frame(frame, dtype, shape[1:], start, stop)) == want
    if dtype == dtypes.STRING and width:
        runs = [(frame, 0, start * width), (frame, start * width, len(items))]
        assert tensors.join_strings(runs) == frame
        nbytes = tensors.string_nbytes(frame, start * width, stop * width)
        assert nbytes == len(want)


# Packets


@cache
def descriptors() -> list[int]:
    """What may come with a packet: memory, sealed or not, of several sizes, and other things."""
    unsealed = os.memfd_create("fuzz", os.MFD_CLOEXEC)
    os.ftruncate(unsealed, 4096)
    body = os.memfd_create("fuzz", os.MFD_CLOEXEC)
    os.write(body, pack([1, "two", [3.0, None], b"5" * 80]))
    garbage = os.memfd_create("fuzz", os.MFD_CLOEXEC)
    os.write(garbage, b"\x93\x01\xc1")
    sealed = [arena.create_memfd(nbytes, "fuzz") for nbytes in (0, 64, 200, 4096)]
    others = [os.open(os.devnull, os.O_RDWR), *os.pipe(), os.open("/", os.O_RDONLY)]
    return [*sealed, unsealed, body, garbage, *others]


def _next_descriptor() -> int:
    """The lowest that is free: another one after than before means that one was left open."""
    fd = os.dup(0)
    os.close(fd)
    return fd


def _send(sender: socket.socket, packet: bytes, which: list[int]) -> list[int]:
    known = descriptors()
    fds = [known[i % len(known)] for i in list_of(int, which, 20)]
    if not packet or len(packet) > 200_000:
        raise NotADocument
    socket.send_fds(sender, [packet], fds)
    return fds


@cache
def _local_ends() -> tuple[socket.socket, LocalSocket]:
    sender, receiver = pair()
    end = LocalSocket(receiver)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return sender, end


def check_local(document: Any) -> None:
    """``[packet, descriptors, whether they are taken]``, as client (who takes) and broker read."""
    packet, which, takes = fields(document, bytes, list, bool)
    sender, end = _local_ends()
    descriptors()
    free = _next_descriptor()
    sent = _send(sender, packet, which)
    fd = None
    try:
        if takes:
            message = end.receive_with_fd()
            assert message is not None
            header, frames, fd = message
        else:
            got = end.receive()
            assert got is not None
            header, frames = got
    except LocalClosed:
        assert _next_descriptor() == free
        return
    if fd is not None:
        os.close(fd)
    assert _next_descriptor() == free
    count, *lengths = struct.unpack_from(f"<{2 + len(frames)}Q", packet)
    assert count == 1 + len(frames)
    assert [len(header), *map(len, frames)] == lengths
    place = 8 * (count + 1)
    assert packet[place : place + len(header)] == header
    if takes and sent and frames:
        assert place + len(header) == len(packet)
        assert sum(map(arena.align, lengths[1:])) - os.fstat(sent[0]).st_size < arena.ALIGNMENT
    else:
        assert packet[place:] == b"".join([header, *frames])


@cache
def _link_ends() -> tuple[socket.socket, Link]:
    sender, receiver = pair()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return sender, Link(receiver)


def check_link(document: Any) -> None:
    """``[packet, descriptors]``, as broker, workers and supervisor read them of each other."""
    packet, which = fields(document, bytes, list)
    sender, end = _link_ends()
    descriptors()
    free = _next_descriptor()
    sent = _send(sender, packet, which)
    try:
        value, fds = end.receive()
    except LinkClosed:
        assert _next_descriptor() == free
        return
    for fd in fds:
        os.close(fd)
    assert _next_descriptor() == free
    if packet != b"\xc1":
        assert len(fds) == min(len(sent), 16)
        assert repr(msgpack.unpackb(packet)) == repr(value)


# Signatures, endpoints


def check_signature(document: Any) -> None:
    """``[map]``: what a broker says of a signature."""
    (body,) = fields(document, object)
    try:
        spec = SignatureSpec.from_wire(body)
    except BatchyardError as error:
        # A server said it, not a caller.
        refused(error, Internal)
        return
    assert isinstance(spec.name, str)
    assert isinstance(spec.batched, bool)
    for tensor in (*spec.inputs, *spec.outputs):
        assert isinstance(tensor.name, str)
        assert isinstance(tensor.dtype, str)
        for dim in tensor.shape or ():
            assert dim is None or (type(dim) is int and dim >= 0)
    wire = msgpack.unpackb(pack(spec.to_wire()))
    assert SignatureSpec.from_wire(wire) == spec


def check_endpoint(document: Any) -> None:
    """``[endpoint, whether it is to be bound, insecure]``."""
    endpoint, binding, insecure = fields(document, str, bool, bool)
    try:
        assert endpoints.check(endpoint, binding=binding, insecure=insecure) == endpoint
    except ConfigurationError as error:
        refused(error, ConfigurationError, naming=repr(endpoint))
        return
    scheme, _, rest = endpoint.partition("://")
    assert "\0" not in endpoint
    if scheme == "ipc":
        assert rest.startswith("/")
        assert len(rest.encode()) <= endpoints.IPC_PATH_MAX
        return
    assert scheme == "tcp"
    host, _, port = rest.rpartition(":")
    assert host
    assert (binding and port == "*") or 0 <= int(port) <= 65535
