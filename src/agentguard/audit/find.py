"""Where in a log a call stands, and what else there is of it: the entries themselves are asked.

The columns beside them may lead to an entry sooner, and what it is, is then read in it. Where they
lead to none, all entries are looked through, so that a column that was changed hides nothing. An
entry that can't be read is none of a call's, whatever its columns say: ``audit verify`` names it.
Nothing that is found here has been verified.
"""

from __future__ import annotations

import itertools
import re
from binascii import Error, a2b_base64
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Final

from agentguard.audit import approvals, statements
from agentguard.audit.calls import Authorization, read_authorization, read_outcome
from agentguard.audit.entry import CallPlace, Entry, parse_entry
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.errors import DecodeError, EncodeError, VerificationError
from agentguard.signing import canonical

Progress = Callable[[int], None]
"""Is told how many entries have been read."""

_PAYLOAD: Final = re.compile(rb'"payload":"([A-Za-z0-9+/=]+)"')


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, and where it stands."""

    shard: int
    index: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was found by its id: its place, its authorization entry, and what that says."""

    place: CallPlace
    entry: Entry
    said: Authorization


def find(
    reader: LogReader, invocation_id: str, progress: Progress = lambda _entries: None
) -> Call | None:
    """Find a call by the columns or, where they do not lead to it, in the entries.

    ``progress`` is told of the entries alone. Raises ``StorageError``.
    """
    named = Search(kind="authorization", invocation_id=invocation_id)
    for shard in reader.shards():
        for index in reader.search(shard, named):
            call = _as_call(readable(reader, shard, index, "authorization"), invocation_id)
            if call is not None:
                return call
    try:
        spelled = canonical.dumps(invocation_id)
    except EncodeError:  # what is no text stands in no entry
        return None
    read = count(1)
    for shard in reader.shards():
        for index, data in reader.entries(shard):
            progress(next(read))
            found = _relevant(shard, index, data, ("authorization",), spelled)
            call = _as_call(found, invocation_id)
            if call is not None:
                return call
    return None


def belonging(
    reader: LogReader, kind: str, call: Authorization, shards: Sequence[int], *, after: int = -1
) -> list[Found]:
    """Return the entries of a kind (outcome, resolution, erasure) that speak of a call.

    Those that the columns lead to, if there are any: more of them are seen by ``speaking`` alone.
    Raises ``StorageError``.
    """
    wanted = Search(kind, call.invocation_id)
    led = [
        found
        for shard in shards
        for index in reader.search(shard, wanted, after=after)
        if (found := readable(reader, shard, index, kind)) and _speaks_of(found, call)
    ]
    return led or [
        found for shard in shards for found in speaking(reader, shard, [kind], call, after=after)
    ]


def delegation(reader: LogReader, call: Authorization, shard: int, before: int) -> Found | None:
    """Return the entry, before a call in its shard, that keeps the chain which the call names.

    Raises ``StorageError``.
    """
    wanted = Search(kind="delegation", agent=call.agent)
    led = (
        readable(reader, shard, index, "delegation")
        for index in reader.search(shard, wanted, newest_first=True)
    )
    for found in itertools.chain(led, scan(reader, shard, ["delegation"])):
        if found is None or found.index >= before:
            continue
        if statements.chain_digest(found.entry) == call.chain_sha256:
            return found
    return None


def roster(reader: LogReader, digest: str, shard: int, before: int) -> Found | None:
    """Return the entry, before a call in its shard, that states the roster of this digest.

    Raises ``StorageError``.
    """
    for found in scan(reader, shard, ["roster"]):
        if found.index < before and approvals.roster_digest(found.entry) == digest:
            return found
    return None


def speaking(
    reader: LogReader, shard: int, kinds: Collection[str], call: Authorization, *, after: int = -1
) -> Iterator[Found]:
    """Look through all entries of a shard for those of these kinds that speak of a call.

    Past the index ``after``, and whatever the columns say. Raises ``StorageError``.
    """
    for found in scan(reader, shard, kinds, call.invocation_sha256.encode(), after=after):
        if _speaks_of(found, call):
            yield found


def scan(
    reader: LogReader, shard: int, kinds: Collection[str], text: bytes = b"", *, after: int = -1
) -> Iterator[Found]:
    """Look through all entries of a shard for those of these kinds whose statement holds a text.

    Without a text, for all that can be read. Raises ``StorageError``.
    """
    for index, data in reader.entries(shard, after=after):
        found = _relevant(shard, index, data, kinds, text)
        if found is not None:
            yield found


def at(reader: LogReader, shard: int, index: int) -> Found | None:
    """Read the entry at a place, None where there is none.

    Raises ``DecodeError`` or ``StorageError``.
    """
    data = body(reader, shard, index)
    return Found(shard, index, parse_entry(data)) if data is not None else None


def readable(reader: LogReader, shard: int, index: int, kind: str) -> Found | None:
    """Read the entry at a place, None where there is none of this kind; raises ``StorageError``."""
    with suppress(DecodeError):
        found = at(reader, shard, index)
        return found if found is not None and found.entry.kind == kind else None
    return None


def body(reader: LogReader, shard: int, index: int) -> bytes | None:
    """Return the bytes of the entry at a place, None where there is none.

    What stands beside it is not read. Raises ``StorageError``.
    """
    stands, data = next(reader.entries(shard, after=index - 1), (None, b""))
    return data if stands == index else None


def is_of(data: bytes, kind: str) -> bool:
    """Whether an entry's bytes may be one of a kind; to parse all would take minutes."""
    return f'"kind":"{kind}"'.encode() in data


def is_call(data: bytes) -> bool:
    """Whether an entry's bytes are an authorization's; a configuration may hold the same text."""
    return is_of(data, "authorization") and not is_of(data, "config")


def mentions(data: bytes, text: bytes) -> bool:
    """Whether a payload in an entry's bytes holds this text."""
    return any(text in _decoded(payload) for payload in _PAYLOAD.findall(data))


def _decoded(payload: bytes) -> bytes:
    try:
        return a2b_base64(payload)
    except Error:  # so it is no payload of an entry that can be read
        return b""


def _relevant(
    shard: int, index: int, data: bytes, kinds: Collection[str], text: bytes
) -> Found | None:
    if not any(is_of(data, kind) for kind in kinds) or (text and not mentions(data, text)):
        return None
    with suppress(DecodeError):
        found = Found(shard, index, parse_entry(data))
        return found if found.entry.kind in kinds else None
    return None


def _as_call(found: Found | None, invocation_id: str) -> Call | None:
    if found is None:
        return None
    with suppress(DecodeError):
        said = read_authorization(found.entry)
        if said.invocation_id == invocation_id:  # a column may lie
            place = CallPlace(found.shard, found.index, invocation_id, said.invocation_sha256)
            return Call(place, found.entry, said)
    return None


def _speaks_of(found: Found, call: Authorization) -> bool:
    """Whether an outcome, a resolution or an erasure is of a call, by the invocation's digest."""
    with suppress(DecodeError, VerificationError):
        if found.entry.kind == "outcome":
            subject = read_outcome(found.entry).invocation_sha256
        else:
            subject = statements.read_administered(found.entry).call.invocation_sha256
        return subject == call.invocation_sha256
    return False
