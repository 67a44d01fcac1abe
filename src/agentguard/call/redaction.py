"""Redaction: which parts of a call's data are not kept beside the log, and what stands there.

A redaction is a JSON Pointer (RFC 6901) into a call's record: its first token is ``args``,
``result``, or the name of an attribute or fact of the policy's input; ``*`` stands for every member
or element. It reads through the tags of ``arguments.py``, so that ``/args/customer/ssn`` finds a
model's field. What the agent signs commits to the whole data all the same. The copies that are kept
of a call with redactions have salts and commitments of their own, which stand in the entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Final

from agentguard.call.tool import RESERVED
from agentguard.errors import DecodeError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON

Redaction = tuple[str, ...]
"""The tokens of a pointer, unescaped; at least one."""

_MARK: Final[Mapping[str, JSON]] = {"$redacted": True}
"""What stands in place of a value; no argument looks like it, since a real key's ``$`` is doubled
(``arguments.py``)."""


_ROOT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN: Final = re.compile(r"(?:[^~/]|~[01])*")
_FIELDS: Final = frozenset({"fields", "extra", "private", "unset"})


def parse(pointer: str) -> Redaction:
    """Read a pointer such as ``/args/customer/ssn``; raises ``DecodeError``.

    What an entry of the log states by itself (``/resource``, ``/agent``, ...) can't be redacted.
    """
    slash, *tokens = pointer.split("/")
    if (
        slash
        or not tokens
        or not _ROOT.fullmatch(tokens[0])
        or not all(map(_TOKEN.fullmatch, tokens))
    ):
        message = f"{pointer!r} is no JSON Pointer into a call's record, such as '/args/password'"
        raise DecodeError(message, code="redaction.malformed")
    if tokens[0] in RESERVED - {"args"}:
        message = (
            f"{pointer!r} can't be redacted: a call's {tokens[0]} is signed and logged as it is; "
            "redact arguments, attributes, facts or the result"
        )
        raise DecodeError(message, code="redaction.malformed")
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in tokens)


def dumps(redaction: Redaction) -> str:
    """Write a redaction as the pointer that ``parse`` reads."""
    return "".join(f"/{token.replace('~', '~0').replace('/', '~1')}" for token in redaction)


def with_attributes(
    redactions: Iterable[Redaction], attributes: Mapping[str, str]
) -> tuple[Redaction, ...]:
    """Add what else holds the same: an attribute is an argument, lifted under another name.

    ``attributes`` is the tool's, the arguments' names by the attributes'.
    """
    asked = list(redactions)
    asked += [("args", attributes[root], *below) for root, *below in asked if root in attributes]
    asked += [
        (name, *below[1:])
        for root, *below in asked
        for name, argument in attributes.items()
        if root == "args" and (not below or below[0] in (argument, "*"))
    ]
    return tuple(dict.fromkeys(asked))


def cover(redactions: Iterable[Redaction], argument: str) -> bool:
    """Tell whether an argument is redacted whole, so that nothing may tell its value."""
    whole = {("args",), ("args", "*"), ("args", argument)}
    return any(redaction in whole for redaction in redactions)


def redact(member: str, encoded: bytes, redactions: Iterable[Redaction]) -> bytes:
    """Return a member of the record (canonical JSON) without what the redactions name.

    ``member`` is ``args`` or ``result``.
    """
    return _redacted(encoded, [below for root, *below in redactions if root == member])


def redact_input(document: bytes, redactions: Iterable[Redaction]) -> bytes:
    """Return the policy's input (canonical JSON) without what the redactions name."""
    return _redacted(document, [list(tokens) for tokens in redactions if tokens[0] != "result"])


def salt_of(salt: bytes) -> bytes:
    """Return the salt with which the copies of a call that has redactions are kept.

    The call's own is kept with none of them: with that, a short secret could be found again, by
    trying, from what the agent has signed.
    """
    return sha256(b"agentguard copy" + salt).digest()


def _redacted(encoded: bytes, wanted: list[list[str]]) -> bytes:
    if not wanted:
        return encoded
    try:
        value = canonical.loads(encoded, limit=len(encoded))
    except DecodeError:  # facts may be nested deeper than is read: then none of it is kept
        return canonical.dumps(dict(_MARK))
    return canonical.dumps(_without(value, wanted))


def _without(value: JSON, paths: list[list[str]]) -> JSON:
    if any(not path for path in paths):
        return dict(_MARK)
    if isinstance(value, dict):
        return {name: _member(name, held, value, paths) for name, held in value.items()}
    if isinstance(value, list):
        return [_below(str(place), held, paths) for place, held in enumerate(value)]
    return value


def _member(name: str, held: JSON, whole: Mapping[str, JSON], paths: list[list[str]]) -> JSON:
    """Follow the paths into a member; through a tag, as if what is in it stood in its place."""
    if name == "$dict" and isinstance(held, list):
        return [_pair(pair, paths) for pair in held]
    if name in ("$tuple", "$set") or ("$object" in whole and name in _FIELDS):
        return _without(held, [*paths, *(path[1:] for path in paths if path[0] == name)])
    if name.startswith("$$"):  # a key that begins with a $, which is doubled
        return _below(name[1:], _below(name, held, paths), paths)
    return _below(name, held, paths)


def _pair(pair: JSON, paths: list[list[str]]) -> JSON:
    """Follow the paths into an entry of a dict whose keys are not all strings."""
    match pair:
        case [key, held]:
            name = key if isinstance(key, str) else canonical.dumps(key).decode()
            return [key, _below(name, held, paths)]
    return pair


def _below(token: str, value: JSON, paths: list[list[str]]) -> JSON:
    below = [path[1:] for path in paths if path[0] in (token, "*")]
    return _without(value, below) if below else value
