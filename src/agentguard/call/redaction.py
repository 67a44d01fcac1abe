"""Redaction: the parts of a call's data that are never stored beside the log.

A redaction is a JSON Pointer (RFC 6901) into a call's record. The first token is ``args``,
``result``, or the name of an attribute or fact of the policy's input; ``*`` stands for every member
or element. A pointer passes through the tags of ``arguments.py``, so that ``/args/customer/ssn``
names a model's field. The agent's signature commits to the whole data nevertheless. Each stored
copy of a redacted call has a salt and a commitment of its own, which the log's entry states.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Final

from agentguard.call.vocabulary import STATED
from agentguard.errors import DecodeError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON

Redaction = tuple[str, ...]
"""The tokens of a pointer, unescaped: one or more."""


_ROOT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN: Final = re.compile(r"(?:[^~/]|~[01])*")
_FIELDS: Final = frozenset({"fields", "extra", "private", "unset"})


def mark() -> JSON:
    """Return the value in place of a redacted one.

    No argument can look like the mark, since ``arguments.py`` doubles the ``$`` of a key.
    """
    return {"$redacted": True}


def parse(pointer: str) -> Redaction:
    """Parse a pointer such as ``/args/customer/ssn``.

    Raises ``DecodeError`` (``redaction.malformed``), also for a value that the log's entry states
    itself (``/resource``, ``/agent``, ...), which can't be redacted.
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
    if tokens[0] in STATED - {"args"}:
        message = (
            f"{pointer!r} can't be redacted: a call's {tokens[0]} is signed and logged as it is; "
            "redact arguments, attributes, facts or the result"
        )
        raise DecodeError(message, code="redaction.malformed")
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in tokens)


def dumps(redaction: Redaction) -> str:
    """Return a redaction as a JSON Pointer; the inverse of ``parse``."""
    return "".join(f"/{token.replace('~', '~0').replace('/', '~1')}" for token in redaction)


def with_attributes(
    redactions: Iterable[Redaction], attributes: Mapping[str, str]
) -> tuple[Redaction, ...]:
    """Add the redactions of equal values: an attribute is an argument under another name.

    ``attributes`` maps the tool's attributes to argument names.
    """
    pointers = list(redactions)
    pointers += [
        ("args", attributes[root], *below) for root, *below in pointers if root in attributes
    ]
    pointers += [
        (name, *below[1:])
        for root, *below in pointers
        for name, argument in attributes.items()
        if root == "args" and (not below or below[0] in (argument, "*"))
    ]
    return tuple(dict.fromkeys(pointers))


def cover(redactions: Iterable[Redaction], argument: str) -> bool:
    """Whether the redactions cover a whole argument, so that no text may quote it."""
    whole = {("args",), ("args", "*"), ("args", argument)}
    return any(redaction in whole for redaction in redactions)


def redact(member: str, encoded: bytes, redactions: Iterable[Redaction]) -> bytes:
    """Return a member of the record (canonical JSON) without the redacted parts.

    ``member`` is ``args`` or ``result``.
    """
    return _without_paths(encoded, [below for root, *below in redactions if root == member])


def redact_input(document: bytes, redactions: Iterable[Redaction]) -> bytes:
    """Return the policy's input (canonical JSON) without the redacted parts."""
    return _without_paths(
        document, [list(tokens) for tokens in redactions if tokens[0] != "result"]
    )


def salt_of(salt: bytes) -> bytes:
    """Return the salt for the stored copies of a redacted call.

    The call's own salt is not stored: with that salt, anybody could find a short secret by trial
    from the commitment that the agent has signed.
    """
    return sha256(b"agentguard copy" + salt).digest()


def _without_paths(encoded: bytes, paths: list[list[str]]) -> bytes:
    if not paths:
        return encoded
    try:
        value = canonical.loads(encoded, limit=len(encoded))
    except DecodeError:  # facts may be too deep for the decoder: then nothing is stored
        return canonical.dumps(mark())
    return canonical.dumps(_without(value, paths))


def _without(value: JSON, paths: list[list[str]]) -> JSON:
    if any(not path for path in paths):
        return mark()
    if isinstance(value, dict):
        return {name: _member(name, member, value, paths) for name, member in value.items()}
    if isinstance(value, list):
        return [_below(str(index), item, paths) for index, item in enumerate(value)]
    return value


def _member(name: str, value: JSON, whole: Mapping[str, JSON], paths: list[list[str]]) -> JSON:
    """Follow the paths into a member, with or without a token for a tag."""
    if name == "$dict" and isinstance(value, list):
        return [_pair(pair, paths) for pair in value]
    if name in ("$tuple", "$set") or ("$object" in whole and name in _FIELDS):
        return _without(value, [*paths, *(path[1:] for path in paths if path[0] == name)])
    if name.startswith("$$"):  # a key that begins with a $, which is doubled
        return _below(name[1:], _below(name, value, paths), paths)
    return _below(name, value, paths)


def _pair(pair: JSON, paths: list[list[str]]) -> JSON:
    """Follow the paths into an entry of a dict whose keys are not all strings."""
    match pair:
        case [key, value]:
            name = key if isinstance(key, str) else canonical.dumps(key).decode()
            return [key, _below(name, value, paths)]
    return pair


def _below(token: str, value: JSON, paths: list[list[str]]) -> JSON:
    below = [path[1:] for path in paths if path[0] in (token, "*")]
    return _without(value, below) if below else value
