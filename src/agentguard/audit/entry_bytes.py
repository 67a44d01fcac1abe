"""What the bytes of an entry say before the entry is parsed.

To parse all entries of a long log would take minutes. A function here may take an entry for one
that is looked for, so the caller then parses the entry, which decides.
"""

from __future__ import annotations

import re
from binascii import Error, a2b_base64
from collections.abc import Collection
from typing import Final

_PAYLOAD: Final = re.compile(rb'"payload":"([A-Za-z0-9+/=]+)"')

_DIGEST: Final = re.compile(rb'(?<=")[0-9a-f]{64}(?=")')


def may_be_kind(body: bytes, kind: str) -> bool:
    """Return whether an entry may be of a kind, without the cost of parsing the entry."""
    return f'"kind":"{kind}"'.encode() in body


def may_be_call(body: bytes) -> bool:
    """Return whether an entry may be that of a call; a configuration may hold the same text."""
    return may_be_kind(body, "call") and not may_be_kind(body, "config")


def payload_contains(body: bytes, text: bytes) -> bool:
    """Return whether the payload of a statement in an entry contains ``text``."""
    return any(text in _decode_payload(payload) for payload in _PAYLOAD.findall(body))


def payload_contains_any(body: bytes, digests: Collection[bytes]) -> bool:
    """Return whether the payload of a statement in an entry contains one of ``digests`` (hex)."""
    payloads = map(_decode_payload, _PAYLOAD.findall(body))
    return any(one in digests for payload in payloads for one in _DIGEST.findall(payload))


def _decode_payload(payload: bytes) -> bytes:
    try:
        return a2b_base64(payload)
    except Error:  # the entry is malformed
        return b""
