"""Finds a call in a log, and the other entries about the call.

The columns beside the entries lead to an entry quickly; the entry itself is then read and decides.
Where the columns lead to no entry, every entry is read, so that a changed column hides nothing. A
malformed entry belongs to no call, whatever the columns say; ``audit verify`` reports such an
entry. Nothing that these functions return has been verified.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Final

from agentguard.audit import approval_checks, statements
from agentguard.audit.calls import Authorization, read_authorization, read_outcome
from agentguard.audit.entry import CallPlace, Entry, parse_entry
from agentguard.audit.entry_bytes import may_be_kind, payload_contains
from agentguard.audit.http_requests import ProofEntry, read_proof
from agentguard.audit.log import LogReader
from agentguard.audit.receipts import ReceiptEntry, read_receipt
from agentguard.audit.running_call import CallName
from agentguard.audit.secret_releases import Release, read_release
from agentguard.audit.summary import Search
from agentguard.errors import DecodeError, EncodeError, VerificationError
from agentguard.identity.credential import agent_name
from agentguard.signing import canonical

Progress = Callable[[int], None]
"""Called with the number of entries that have been read."""

_AT_A_STABLE_SITE: Final = frozenset({"approval.mismatch", "approval.rejected"})
"""Reason codes that a call without an answer gets only where a framework names its site."""

_OF_RUNNING_CALLS: Final[Mapping[str, Callable[[Entry], Release | ProofEntry | ReceiptEntry]]] = {
    "secret": read_release,
    "proof": read_proof,
    "receipt": read_receipt,
}
"""The readers of the entries that stand between the authorization of a call and the outcome."""


@dataclass(frozen=True, slots=True)
class LocatedEntry:
    """An entry, with the number of its shard and its index in the shard."""

    shard: int
    index: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class LoggedCall:
    """A call in the log: its place, its entry, and that entry's content."""

    place: CallPlace
    entry: Entry
    authorization: Authorization


def find_call(
    reader: LogReader, invocation_id: str, progress: Progress = lambda _entries: None
) -> LoggedCall | None:
    """Return the call with this id, by the columns or else from the entries; None without one.

    ``progress`` is called only while entries are read. Raises ``StorageError``.
    """
    search = Search(kind="call", invocation_id=invocation_id)
    for located in search_entries(reader, search):
        call = _as_call(located, invocation_id)
        if call is not None:
            return call
    try:
        text = canonical.dumps(invocation_id)
    except EncodeError:  # no entry holds what is no text
        return None
    counter = count(1)
    for shard in reader.shards():
        for index, body in reader.entries(shard):
            progress(next(counter))
            call = _as_call(_as_located(shard, index, body, ("call",), text), invocation_id)
            if call is not None:
                return call
    return None


def call_at(reader: LogReader, place: CallPlace) -> LoggedCall | None:
    """Return the call at a place, None for another entry there; raises ``StorageError``."""
    located = read_entry_of_kind(reader, place.shard, place.index, "call")
    return _as_call(located, place.invocation_id)


def attempts_of_call(reader: LogReader, call: LoggedCall) -> list[LoggedCall]:
    """Return the attempts of a call, ``call`` first: a framework may make a call again and again.

    The others are the entries with the same name in the journal, and the entries that repeat one of
    these (``replay_of``), refused ones among them. Raises ``StorageError``.
    """
    attempts = {call.place: call}
    first = call.entry.members.get("replay_of")
    original = find_call(reader, first) if isinstance(first, str) else None
    name = (original or call).entry.members.get("journal")
    if original is not None:
        attempts.setdefault(original.place, original)
    if isinstance(name, str):
        attempts |= _calls_with(reader, "journal", {name})
    ids = {place.invocation_id for place in attempts} | (
        {first} if isinstance(first, str) else set()
    )
    attempts |= _calls_with(reader, "replay_of", ids)
    others = [attempt for place, attempt in attempts.items() if place != call.place]
    return [call, *sorted(others, key=lambda one: (one.place.shard, one.place.index))]


def _calls_with(
    reader: LogReader, member: str, values: Collection[object]
) -> dict[CallPlace, LoggedCall]:
    """Return the authorizations, of all shards, of which a member has one of these values."""
    calls: dict[CallPlace, LoggedCall] = {}
    mark = f'"{member}":"'.encode()
    for shard in reader.shards():
        for index, body in reader.entries(shard):
            located = _as_located(shard, index, body, ("call",)) if mark in body else None
            if located is not None and located.entry.members.get(member) in values:
                call = _as_call(located)
                if call is not None:
                    calls[call.place] = call
    return calls


def entries_of_call(
    reader: LogReader, kind: str, call: Authorization, shards: Sequence[int], *, after: int = -1
) -> list[LocatedEntry]:
    """Return the entries of a kind (outcome, resolution, erasure) about a call.

    Where the columns lead to some of the entries, only these are returned;
    ``entries_about_call`` returns all. Raises ``StorageError``.
    """
    found = search_entries(reader, Search(kind, call.invocation_id), shards, after=after)
    by_columns = [located for located in found if _is_about(located.entry, call)]
    return by_columns or [
        located
        for shard in shards
        for located in entries_about_call(reader, shard, [kind], call, after=after)
    ]


def releases_of_call(
    reader: LogReader, shard: int, begin: int, end: int | None, call: Authorization
) -> list[LocatedEntry]:
    """Return the entries of what a running call got: secrets, proofs of requests, and receipts.

    The entries stand between the two entries of the call. ``begin`` is the index of the
    authorization, and ``end`` the index of the outcome, None without an outcome. The columns are
    not used. Raises ``StorageError``.
    """
    found = []
    for index, body in reader.entries(shard, after=begin):
        if index == end:
            break
        located = _as_located(shard, index, body, [*_OF_RUNNING_CALLS])
        if located is not None and _is_about(located.entry, call):
            found.append(located)
    return found


def find_delegation(
    reader: LogReader, call: Authorization, shard: int, before: int
) -> LocatedEntry | None:
    """Return the entry with the chain that a call names, from the shard's entries before the call.

    Raises ``StorageError``.
    """
    for located in _delegations(reader, shard, call.agent):
        if located.index < before and statements.chain_digest(located.entry) == call.chain_sha256:
            return located
    return None


def find_chain(reader: LogReader, digest: str, delegatee: str) -> Entry | None:
    """Return an entry with the chain of this digest, which ends with ``delegatee``; None without.

    Raises ``StorageError``.
    """
    for shard in reader.shards():
        for located in _delegations(reader, shard, delegatee):
            if statements.chain_digest(located.entry) == digest:
                return located.entry
    return None


def _delegations(reader: LogReader, shard: int, agent: str) -> Iterator[LocatedEntry]:
    """Yield the delegation entries of an agent by the columns, and then all of the shard."""
    search = Search(kind="delegation", agent=agent)
    yield from search_entries(reader, search, [shard], newest_first=True)
    yield from scan_entries(reader, shard, ["delegation"])


def find_roster(reader: LogReader, digest: str, shard: int, before: int) -> LocatedEntry | None:
    """Return the entry with the roster of this digest, from the shard's entries before an index.

    Raises ``StorageError``.
    """
    for located in scan_entries(reader, shard, ["roster"]):
        if located.index < before and approval_checks.roster_digest(located.entry) == digest:
            return located
    return None


def find_request(reader: LogReader, call: Authorization, entry: Entry) -> LocatedEntry | None:
    """Return the request for an approval on whose answers a call rests; None without one.

    ``entry`` is the call's. Of a call that was refused without an answer (``approval.expired``, for
    example), return the newest request before for this very call; of one that an adapter refused by
    itself, or whose arguments had changed, the newest at its site. Raises ``StorageError``.
    """
    ids = _answered_request_ids(entry)
    if ids:
        member, values = "request_id", ids
    elif call.code in _AT_A_STABLE_SITE:
        member, values = "call_site", frozenset({str(call.predicate.get("call_site"))})
    elif call.code.startswith("approval."):
        member, values = "call_digest", frozenset({call.call_sha256})
    else:
        return None
    search = Search(
        kind="request", agent=agent_name(call.agent), principal=call.principal, tool=call.tool
    )
    found = [
        one
        for one in search_entries(reader, search)
        if str(one.entry.members[member]) in values and (ids or one.entry.at <= entry.at)
    ]
    if ids and not found:
        scanned = (
            one for shard in reader.shards() for one in scan_entries(reader, shard, ["request"])
        )
        found = [one for one in scanned if str(one.entry.members[member]) in values]
    return max(found, key=lambda one: (one.entry.at, one.index), default=None)


def _answered_request_ids(entry: Entry) -> frozenset[str]:
    """Return the ids of the requests that the answers in a call's entry name, unverified."""
    with suppress(DecodeError):
        return frozenset(answer.request_id for answer in approval_checks.read_answers(entry))
    return frozenset()


def entries_about_call(
    reader: LogReader, shard: int, kinds: Collection[str], call: Authorization, *, after: int = -1
) -> Iterator[LocatedEntry]:
    """Yield the entries of these kinds about a call, from all entries past the index ``after``.

    The columns are not used. Raises ``StorageError``.
    """
    text = call.invocation_sha256.encode()
    for located in scan_entries(reader, shard, kinds, text, after=after):
        if _is_about(located.entry, call):
            yield located


def search_entries(
    reader: LogReader,
    search: Search,
    shards: Iterable[int] | None = None,
    *,
    after: int = -1,
    newest_first: bool = False,
) -> Iterator[LocatedEntry]:
    """Yield the entries to which the columns lead, shard by shard; ``shards`` None means all.

    An entry that is malformed, or of another kind than ``search.kind``, is left out. ``after`` and
    ``newest_first`` are those of ``LogReader.search``. Raises ``StorageError``.
    """
    for shard in reader.shards() if shards is None else shards:
        for index in reader.search(shard, search, after=after, newest_first=newest_first):
            located = read_entry_of_kind(reader, shard, index, str(search.kind))
            if located is not None:
                yield located


def scan_entries(
    reader: LogReader, shard: int, kinds: Collection[str], text: bytes = b"", *, after: int = -1
) -> Iterator[LocatedEntry]:
    """Yield the entries of these kinds whose statement contains ``text``, past ``after``.

    Malformed entries are left out. Raises ``StorageError``.
    """
    for index, body in reader.entries(shard, after=after):
        located = _as_located(shard, index, body, kinds, text)
        if located is not None:
            yield located


def read_entry(reader: LogReader, shard: int, index: int) -> LocatedEntry | None:
    """Return the entry at a place; None without one.

    Raises ``DecodeError`` or ``StorageError``.
    """
    body = read_body(reader, shard, index)
    return LocatedEntry(shard, index, parse_entry(body)) if body is not None else None


def read_entry_of_kind(reader: LogReader, shard: int, index: int, kind: str) -> LocatedEntry | None:
    """Return the entry at a place if the entry is well formed and of ``kind``, else None.

    Raises ``StorageError``.
    """
    with suppress(DecodeError):
        located = read_entry(reader, shard, index)
        return located if located is not None and located.entry.kind == kind else None
    return None


def read_body(reader: LogReader, shard: int, index: int) -> bytes | None:
    """Return the bytes of the entry at a place, without attachments; None without an entry.

    Raises ``StorageError``.
    """
    first_index, body = next(reader.entries(shard, after=index - 1), (None, b""))
    return body if first_index == index else None


def _as_located(
    shard: int, index: int, body: bytes, kinds: Collection[str], text: bytes = b""
) -> LocatedEntry | None:
    if not any(may_be_kind(body, kind) for kind in kinds):
        return None
    if text and not payload_contains(body, text):
        return None
    with suppress(DecodeError):
        located = LocatedEntry(shard, index, parse_entry(body))
        return located if located.entry.kind in kinds else None
    return None


def _as_call(located: LocatedEntry | None, invocation_id: str | None = None) -> LoggedCall | None:
    """Return the call of an authorization, None for an entry without an id, or with another id."""
    if located is None:
        return None
    with suppress(DecodeError):
        call = read_authorization(located.entry)
        found_id = call.invocation_id
        if found_id is not None and invocation_id in (None, found_id):  # the column may be wrong
            place = CallPlace(located.shard, located.index, found_id, call.invocation_sha256)
            return LoggedCall(place, located.entry, call)
    return None


def running_call(entry: Entry) -> CallName | None:
    """Return the call that a released secret, a proof or a receipt names; None for other entries.

    Raises ``DecodeError``.
    """
    read = _OF_RUNNING_CALLS.get(entry.kind)
    return None if read is None else read(entry).call


def _is_about(entry: Entry, call: Authorization) -> bool:
    """Return whether an entry of a call names the call's invocation."""
    with suppress(DecodeError, VerificationError):
        if entry.kind == "outcome":
            subject = read_outcome(entry).invocation_sha256
        elif (named := running_call(entry)) is not None:
            subject = named.invocation_sha256
        else:
            subject = statements.read_admin_statement(entry).call.invocation_sha256
        return subject == call.invocation_sha256
    return False
