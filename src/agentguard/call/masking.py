"""Finds released secrets in the data of a call, and masks them before the data are kept.

A secret is found as it is, and also in base64, in hex, with percent-encoding and with the escapes
of JSON and Python. A value that a tool has cut, reversed or encrypted is not found.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from typing import Final

from agentguard.call import redaction
from agentguard.errors import DecodeError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.signing.keys import Secret

_PERCENT: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_SHORTEST: Final = 6
"""Bytes of the shortest secret, or line of a secret, of which other spellings are looked for."""


class Masks:
    """Finds and masks the given secrets; a repr shows none of them."""

    __slots__ = ("_spellings",)

    def __init__(self, values: Sequence[Secret]) -> None:
        spelled = {form for value in values for form in _spellings(value.reveal())}
        self._spellings = tuple(Secret(form) for form in spelled)

    def find(self, data: bytes) -> bool:
        """Whether the data hold one of the secrets, in one of the spellings."""
        decoded = _PERCENT.sub(_byte, data) if b"%" in data else data
        # of a form, a space is a plus; hex may be in either case
        readings = {data, decoded, _PERCENT.sub(_byte, data.replace(b"+", b" ")), data.lower()}
        return any(one.reveal() in reading for one in self._spellings for reading in readings)

    def find_in(self, encoded: bytes) -> bool:
        """Whether canonical JSON holds one of the secrets."""
        if self.find(encoded):
            return True
        try:
            value = canonical.loads(encoded, limit=len(encoded))
        except DecodeError:  # too deep for the decoder
            return False
        return self._masked(value) != value

    def masked(self, encoded: bytes) -> bytes:
        """Return canonical JSON with the redaction's mark in the place of what holds a secret."""
        try:
            value = canonical.loads(encoded, limit=len(encoded))
        except DecodeError:  # too deep for the decoder
            return canonical.dumps(redaction.mark()) if self.find(encoded) else encoded
        masked = canonical.dumps(self._masked(value))
        return canonical.dumps(redaction.mark()) if self.find(masked) else masked

    def _masked(self, value: JSON) -> JSON:
        match value:
            case dict():
                if any(self.find(_text(name)) for name in value) or self._is_tag_with(value):
                    return redaction.mark()
                return {name: self._masked(member) for name, member in value.items()}
            case list():
                return [self._masked(item) for item in value]
            case bool() | None:
                return value
        return redaction.mark() if self.find(_text(value)) else value

    def _is_tag_with(self, value: dict[str, JSON]) -> bool:
        """Whether the value is one of the tags of ``arguments.py`` (``$bytes``) with a secret."""
        tagged = [member for name, member in value.items() if name[:1] == "$" and name[:2] != "$$"]
        return any(isinstance(one, str) and self.find(_text(one)) for one in tagged)


def _spellings(value: bytes) -> Iterator[bytes]:
    """Yield how a secret may stand in data: whole and, of a longer one, line by line."""
    yield value
    stripped = value.strip()
    if stripped:
        yield stripped
    for part in {stripped, *stripped.splitlines()}:
        if len(part) < _SHORTEST:
            continue
        yield part
        yield json.dumps(part.decode())[1:-1].encode()
        yield json.dumps(part.decode(), ensure_ascii=False)[1:-1].encode()
        yield repr(part)[2:-1].encode()
        yield ascii(part.decode())[1:-1].encode()
        yield part.hex().encode()
        for encode in (b64encode, urlsafe_b64encode):
            # at each offset: the first and the last characters depend on the bytes around
            yield encode(part)[: len(part) * 8 // 6]
            yield encode(b"\0" + part)[2 : (len(part) + 1) * 8 // 6]
            yield encode(b"\0\0" + part)[3 : (len(part) + 2) * 8 // 6]


def _text(value: JSON) -> bytes:
    return value.encode() if isinstance(value, str) else canonical.dumps(value)


def _byte(match: re.Match[bytes]) -> bytes:
    return bytes.fromhex(match[1].decode())
