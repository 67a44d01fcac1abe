"""Frames: the unit of the guard server's protocol, as bytes and as values.

A frame is the number of bytes that follow (4 bytes, big-endian), the number of bytes of the header
(4 bytes), the header (a JSON object), and the blobs one after another. The header's member
``blobs`` has the length of each blob. Blobs are what is signed, hashed or stored as it is:
arguments, results, chains. The functions do no I/O; ``stream.py`` reads and writes frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from agentguard.errors import DecodeError, EncodeError

PROTOCOL: Final = 1
"""The version of the protocol, which client and server must share."""

PREFIX: Final = 8
"""The bytes before the header: the length of the rest, and the length of the header."""

MAX_FRAME: Final = 24 << 20
"""The longest frame, in bytes: a result of 8 MiB goes to the log and to the journal."""

MAX_HEADER: Final = 1 << 20
"""The longest header, in bytes."""

MAX_BLOBS: Final = 16
"""The most blobs of a frame."""


class Frame(NamedTuple):
    """A message: a JSON object, and the blobs that belong to the object."""

    header: Mapping[str, Any]
    blobs: Sequence[bytes] = ()


def encode(frame: Frame) -> bytes:
    """Return the bytes of a frame.

    Raises ``EncodeError`` (``frame.too_large``) past the limits, and (``frame.malformed``) for a
    header that is no JSON.
    """
    header = {**frame.header, "blobs": [len(blob) for blob in frame.blobs]}
    try:
        encoded = orjson.dumps(header if frame.blobs else frame.header)
    except (TypeError, ValueError) as error:
        raise EncodeError(f"a message is no JSON: {error}", code="frame.malformed") from error
    size = 4 + len(encoded) + sum(map(len, frame.blobs))
    if size > MAX_FRAME or len(encoded) > MAX_HEADER or len(frame.blobs) > MAX_BLOBS:
        message = f"a message of {size} bytes is too long for the guard server"
        raise EncodeError(message, code="frame.too_large")
    prefix = size.to_bytes(4, "big") + len(encoded).to_bytes(4, "big")
    return b"".join((prefix, encoded, *frame.blobs))


def rest_of(prefix: bytes, at_most: int = MAX_FRAME) -> tuple[int, int]:
    """Return the number of bytes after the prefix, and of those the bytes of the header.

    Raises ``DecodeError`` (``frame.too_large``, ``frame.malformed``).
    """
    size, header = int.from_bytes(prefix[:4], "big") - 4, int.from_bytes(prefix[4:], "big")
    if size + 4 > at_most or header > MAX_HEADER:
        raise DecodeError("a frame is longer than the limit", code="frame.too_large")
    if not len(b"{}") <= header <= size:
        raise _malformed("its lengths do not fit together")
    return size, header


def decode(data: bytes, header_size: int) -> Frame:
    """Return the frame whose bytes after the prefix are ``data``; raises ``DecodeError``."""
    try:
        header = orjson.loads(data[:header_size])
    except ValueError as error:
        raise _malformed("its header is no JSON") from error
    if not isinstance(header, dict):
        raise _malformed("its header is no object")
    sizes, blobs, at = header.pop("blobs", ()), [], header_size
    if not isinstance(sizes, list | tuple) or len(sizes) > MAX_BLOBS:
        raise _malformed("its blobs are no short list of lengths")
    for size in sizes:
        if type(size) is not int or not 0 <= size <= len(data) - at:
            raise _malformed("a blob is longer than the frame")
        blobs.append(data[at : at + size])
        at += size
    if at != len(data):
        raise _malformed("it has bytes that belong to no blob")
    return Frame(header, blobs)


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a frame: {problem}", code="frame.malformed")
