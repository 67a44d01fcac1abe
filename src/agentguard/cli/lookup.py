"""Finding entries of the log: by a name that a person gives, or by the call that they belong to.

The columns beside the entries are asked first. Where they know nothing of a call, the entries
themselves are looked through, so that a column that was changed hides nothing of it.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from agentguard.audit import entry
from agentguard.audit.entry import Entry
from agentguard.audit.statements import (
    Authorization,
    read_administered,
    read_authorization,
    read_outcome,
)
from agentguard.audit.summary import Search
from agentguard.cli.filters import Filter
from agentguard.cli.history import History
from agentguard.cli.rows import subject_of
from agentguard.errors import AgentguardError, CallError
from agentguard.ports import LogReader

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_PAYLOAD: Final = re.compile(rb'"payload":"([A-Za-z0-9+/=]+)"')
_SHORTEST: Final = 8
"""Characters of an invocation id that name a call, if no other begins with them."""

_NAMED: Final = 5
"""Calls that an ambiguous name is said to mean, at most."""


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, and where it stands."""

    shard: int
    index: int
    entry: Entry


def find(reader: LogReader, wanted: str) -> Found:
    """Find what an invocation id, its beginning, an index or ``SHARD/INDEX`` names.

    The entry of an outcome, a resolution or an erasure names its call; another is returned as it
    stands. Raises ``CallError`` (``call.unknown``, ``call.ambiguous``), ``DecodeError`` for an
    entry that can't be read, and ``StorageError``.
    """
    shard, slash, index = wanted.rpartition("/")
    numbers = (shard if slash else "0", index)
    if all(_NUMBER.fullmatch(number) for number in numbers):
        found = _at(reader, *map(int, numbers))
        if found is not None:
            return _call_of(reader, found)
    if len(wanted) >= _SHORTEST and not slash:
        return _named(reader, wanted)
    raise _unknown(f"the log holds no entry {wanted}, and an id takes {_SHORTEST} characters")


def of_trace(reader: LogReader, trace_id: str) -> Iterator[Found]:
    """Find the calls of a trace, in the order of their times; raises as ``find`` does."""
    wanted = Filter(Search(kind="authorization", trace_id=trace_id))
    found = None
    for row in History(reader).rows(wanted, outcomes=False):
        if row.entry is not None:
            yield (found := Found(row.shard, row.index, row.entry))
    if found is None:
        raise _unknown(f"the log holds no call of the trace {trace_id}")


def belonging(reader: LogReader, kind: str, call: Authorization, to: Found) -> list[Found]:
    """Return the entries of a kind (outcome, resolution, erasure) that speak of a call."""
    own = kind == "outcome"
    shards = [to.shard] if own else reader.shards()
    selected = (
        _readable(reader, shard, index)
        for shard in shards
        for index in reader.search(shard, Search(kind, call.invocation_id))
    )
    by_columns = [one for one in selected if one and _speaks_of(one.entry, kind, call, to)]
    if by_columns:
        return by_columns
    scanned = (
        one
        for shard in shards
        for one in _scan(reader, shard, kind, to.index if own else -1, call.invocation_sha256)
    )
    return [one for one in scanned if _speaks_of(one.entry, kind, call, to)]


def credentials(reader: LogReader, call: Authorization, before: Found) -> Iterator[Found]:
    """Yield the identity entries of a call's agent that stand before it, the newest first."""
    search = Search(kind="identity", agent=call.agent)
    none = True
    for index in reader.search(before.shard, search, newest_first=True):
        found = _readable(reader, before.shard, index) if index < before.index else None
        if found is not None and _is_identity(found.entry, call.agent):
            none = False
            yield found
    if none:
        scanned = [
            one
            for one in _scan(reader, before.shard, "identity", -1)
            if one.index < before.index and _is_identity(one.entry, call.agent)
        ]
        yield from reversed(scanned)


def _at(reader: LogReader, shard: int, index: int) -> Found | None:
    if shard not in reader.shards():
        return None
    at, body = next(reader.entries(shard, after=index - 1), (-1, b""))
    return Found(shard, index, entry.parse(body)) if at == index else None


def _readable(reader: LogReader, shard: int, index: int) -> Found | None:
    # one that can't be read is none of this call; audit verify names it
    with suppress(AgentguardError):
        return _at(reader, shard, index)
    return None


def _call_of(reader: LogReader, found: Found) -> Found:
    """Return the call that an entry speaks of, or the entry."""
    place: tuple[int, int] | None = None
    if found.entry.kind == "outcome":
        index = History(reader).call_of(found.shard, found.index, found.entry)
        place = (found.shard, index) if index is not None else None
    elif found.entry.kind in ("resolution", "erasure"):
        said = read_administered(found.entry).call
        place = (said.shard, said.index)
    call = _at(reader, *place) if place is not None else None
    if call is None or call.entry.kind != "authorization":
        return found
    return call


def _named(reader: LogReader, prefix: str) -> Found:
    calls: dict[str, Found] = {}
    for shard in reader.shards():
        for index in reader.named(shard, prefix):
            found = _readable(reader, shard, index)
            invocation_id = _id_of(found.entry) if found is not None else ""
            # the column may say anything
            if found is not None and invocation_id.startswith(prefix):
                calls.setdefault(invocation_id, found)
    if not calls:
        raise _unknown(f"the log holds no call {prefix}")
    if len(calls) > 1 and prefix not in calls:
        names = ", ".join(sorted(calls)[:_NAMED])
        message = f"{len(calls)} calls begin with {prefix}: give more of it ({names})"
        raise CallError(message, code="call.ambiguous")
    return calls.get(prefix) or next(iter(calls.values()))


def _id_of(parsed: Entry) -> str:
    with suppress(AgentguardError):
        if parsed.kind == "authorization":
            return read_authorization(parsed).invocation_id or ""
    return ""


def _speaks_of(parsed: Entry, kind: str, call: Authorization, to: Found) -> bool:
    if parsed.kind != kind:
        return False
    try:
        if kind == "outcome":
            return read_outcome(parsed).invocation_sha256 == call.invocation_sha256
        return read_administered(parsed).is_of(to.shard, to.index, call)
    except AgentguardError:
        return False


def _is_identity(parsed: Entry, uri: str) -> bool:
    with suppress(AgentguardError):
        return parsed.kind == "identity" and subject_of(str(parsed.members["credential"])) == uri
    return False


def _scan(
    reader: LogReader, shard: int, kind: str, after: int, text: str | None = None
) -> Iterator[Found]:
    """Look through all entries for those of a kind whose statement holds a text.

    To parse every entry of a long log would take minutes.
    """
    mark = f'"kind":"{kind}"'.encode()
    for index, body in reader.entries(shard, after=after):
        if mark in body and (text is None or _mentions(body, text)):
            with suppress(AgentguardError):
                yield Found(shard, index, entry.parse(body))


def _mentions(body: bytes, text: str) -> bool:
    return any(text.encode() in a2b_base64(payload) for payload in _PAYLOAD.findall(body))


def _unknown(problem: str) -> CallError:
    return CallError(f"{problem}: agentguard audit list names those that there are")
