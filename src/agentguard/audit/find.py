"""Finds a call in a log, and the other entries about the call.

The columns beside the entries lead to an entry quickly; the entry itself is then read and decides.
Where the columns lead to no entry, every entry is read, so that a changed column hides nothing. A
malformed entry belongs to no call, whatever the columns say; ``audit verify`` reports such an
entry. Nothing that these functions return has been verified.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from agentguard.audit.entry import CallPlace, Entry, present
from agentguard.audit.entry_bytes import may_be_kind, payload_contains
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.administration import AdministeredEntry
from agentguard.audit.kinds.announcements import RosterEntry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.audit.kinds.identities import DelegationEntry
from agentguard.audit.kinds.requests import RequestEntry
from agentguard.audit.kinds.running import OfRunningCall, ProofEntry, ReceiptEntry, SecretEntry
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.errors import DecodeError, EncodeError
from agentguard.identity.credential import agent_name
from agentguard.signing import canonical

Progress = Callable[[int], None]
"""Called with the number of entries that have been read."""

E = TypeVar("E", bound=Entry)
E_co = TypeVar("E_co", bound=Entry, covariant=True)

_AT_A_STABLE_SITE: Final = frozenset({"approval.mismatch", "approval.rejected"})
"""Reason codes that a call without an answer gets only where a framework names its site."""

OF_RUNNING_CALLS: Final[tuple[type[OfRunningCall], ...]] = (SecretEntry, ProofEntry, ReceiptEntry)
"""The entries that stand between the authorization of a call and the outcome."""


@dataclass(frozen=True, slots=True)
class LocatedEntry(Generic[E_co]):
    """An entry, with its index."""

    index: int
    entry: E_co


@dataclass(frozen=True, slots=True)
class LoggedCall:
    """A call in the log: its place, and its entry."""

    place: CallPlace
    entry: CallEntry


def find_call(
    reader: LogReader, invocation_id: str, progress: Progress = lambda _entries: None
) -> LoggedCall | None:
    """Return the call with this id, by the columns or else from the entries; None without one.

    ``progress`` is called only while entries are read. Raises ``StorageError``.
    """
    for located in search_entries(reader, CallEntry, Search(invocation_id=invocation_id)):
        call = _as_call(located, invocation_id)
        if call is not None:
            return call
    try:
        text = canonical.dumps(invocation_id)
    except EncodeError:  # no entry holds what is no text
        return None
    for read, (index, body) in enumerate(reader.entries(), start=1):
        progress(read)
        call = _as_call(_as_located(index, body, (CallEntry,), text), invocation_id)
        if call is not None:
            return call
    return None


def call_at(reader: LogReader, place: CallPlace) -> LoggedCall | None:
    """Return the call at a place, None for another entry there; raises ``StorageError``."""
    located = read_entry_of_kind(reader, place.index, CallEntry)
    return _as_call(located, place.invocation_id)


def attempts_of_call(reader: LogReader, call: LoggedCall) -> list[LoggedCall]:
    """Return the attempts of a call, ``call`` first: a framework may make a call again and again.

    The others are the entries with the same name in the journal, and the entries that repeat one of
    these (``replay_of``), refused ones among them. Raises ``StorageError``.
    """
    attempts = {call.place: call}
    first = present(call.entry.replay_of)
    original = find_call(reader, first) if first is not None else None
    name = present((original or call).entry.journal)
    if original is not None:
        attempts.setdefault(original.place, original)
    if name is not None:
        attempts |= _calls_with(reader, "journal", {name})
    ids = {place.invocation_id for place in attempts} | ({first} if first is not None else set())
    attempts |= _calls_with(reader, "replay_of", ids)
    others = [attempt for place, attempt in attempts.items() if place != call.place]
    return [call, *sorted(others, key=lambda one: one.place.index)]


def _calls_with(
    reader: LogReader, member: str, values: Collection[object]
) -> dict[CallPlace, LoggedCall]:
    """Return the authorizations of which a member has one of these values."""
    calls: dict[CallPlace, LoggedCall] = {}
    mark = f'"{member}":"'.encode()
    for index, body in reader.entries():
        located = _as_located(index, body, (CallEntry,)) if mark in body else None
        if located is not None and getattr(located.entry, member) in values:
            call = _as_call(located)
            if call is not None:
                calls[call.place] = call
    return calls


def entries_of_call(
    reader: LogReader, kind: type[E], call: CallEntry, *, after: int = -1
) -> list[LocatedEntry[E]]:
    """Return the entries of a kind (outcome, resolution, erasure) about a call.

    Where the columns lead to some of the entries, only these are returned;
    ``entries_about_call`` returns all. Raises ``StorageError``.
    """
    search = Search(invocation_id=call.invocation_id)
    found = search_entries(reader, kind, search, after=after)
    by_columns = [located for located in found if _is_about(located.entry, call)]
    return by_columns or [*entries_about_call(reader, (kind,), call, after=after)]


def releases_of_call(
    reader: LogReader, begin: int, end: int | None, call: CallEntry
) -> list[LocatedEntry[OfRunningCall]]:
    """Return the entries of what a running call got: secrets, proofs of requests, and receipts.

    The entries stand between the two entries of the call. ``begin`` is the index of the
    authorization, and ``end`` the index of the outcome, None without an outcome. The columns are
    not used. Raises ``StorageError``.
    """
    found = []
    for index, body in reader.entries(after=begin):
        if index == end:
            break
        located = _as_located(index, body, OF_RUNNING_CALLS)
        if located is not None and _is_about(located.entry, call):
            found.append(located)
    return found


def find_delegation(
    reader: LogReader, call: CallEntry, before: int
) -> LocatedEntry[DelegationEntry] | None:
    """Return the entry with the chain that a call names, from the entries before the call.

    Raises ``StorageError``.
    """
    for located in _delegations(reader, call.agent):
        if located.index < before and located.entry.sha256 == call.chain_sha256:
            return located
    return None


def find_chain(reader: LogReader, digest: str, delegatee: str) -> DelegationEntry | None:
    """Return an entry with the chain of this digest, which ends with ``delegatee``; None without.

    Raises ``StorageError``.
    """
    found = (one.entry for one in _delegations(reader, delegatee))
    return next((entry for entry in found if entry.sha256 == digest), None)


def _delegations(reader: LogReader, agent: str) -> Iterator[LocatedEntry[DelegationEntry]]:
    """Yield the delegation entries of an agent by the columns, and then all."""
    yield from search_entries(reader, DelegationEntry, Search(agent=agent), newest_first=True)
    yield from scan_entries(reader, (DelegationEntry,))


def find_roster(reader: LogReader, digest: str, before: int) -> LocatedEntry[RosterEntry] | None:
    """Return the entry with the roster of this digest, from the entries before an index.

    Raises ``StorageError``.
    """
    for located in scan_entries(reader, (RosterEntry,)):
        if located.index < before and located.entry.sha256 == digest:
            return located
    return None


def find_request(reader: LogReader, call: CallEntry) -> LocatedEntry[RequestEntry] | None:
    """Return the request for an approval on whose answers a call rests; None without one.

    Of a call that was refused without an answer (``approval.expired``, for example), return the
    newest request before for this very call; of one that an adapter refused by itself, or whose
    arguments had changed, the newest at its site. Raises ``StorageError``.
    """
    ids = frozenset(answer.request_id for answer in call.answers)
    if ids:
        member, values = "request_id", ids
    elif call.code in _AT_A_STABLE_SITE:
        member, values = "call_site", frozenset({str(call.predicate.get("call_site"))})
    elif call.code.startswith("approval."):
        member, values = "call_digest", frozenset({call.call_sha256})
    else:
        return None
    search = Search(agent=agent_name(call.agent), principal=call.principal, tool=call.tool)
    found = [
        one
        for one in search_entries(reader, RequestEntry, search)
        if getattr(one.entry, member) in values and (ids or one.entry.at <= call.at)
    ]
    if ids and not found:
        scanned = scan_entries(reader, (RequestEntry,))
        found = [one for one in scanned if getattr(one.entry, member) in values]
    return found[-1] if found else None


def entries_about_call(
    reader: LogReader, kinds: tuple[type[E], ...], call: CallEntry, *, after: int = -1
) -> Iterator[LocatedEntry[E]]:
    """Yield the entries of these kinds about a call, from all entries past the index ``after``.

    The columns are not used. Raises ``StorageError``.
    """
    text = call.invocation_sha256.encode()
    for located in scan_entries(reader, kinds, text, after=after):
        if _is_about(located.entry, call):
            yield located


def search_entries(
    reader: LogReader,
    kind: type[E],
    search: Search,
    *,
    after: int = -1,
    newest_first: bool = False,
) -> Iterator[LocatedEntry[E]]:
    """Yield the entries of a kind to which the columns lead.

    An entry that is malformed, or of another kind, is left out. ``after`` and ``newest_first`` are
    those of ``LogReader.search``. Raises ``StorageError``.
    """
    of_kind = search._replace(kind=kind.kind)
    for index in reader.search(of_kind, after=after, newest_first=newest_first):
        located = read_entry_of_kind(reader, index, kind)
        if located is not None:
            yield located


def scan_entries(
    reader: LogReader, kinds: tuple[type[E], ...], text: bytes = b"", *, after: int = -1
) -> Iterator[LocatedEntry[E]]:
    """Yield the entries of these kinds whose statement contains ``text``, past ``after``.

    Malformed entries are left out. Raises ``StorageError``.
    """
    for index, body in reader.entries(after=after):
        located = _as_located(index, body, kinds, text)
        if located is not None:
            yield located


def read_entry(reader: LogReader, index: int) -> LocatedEntry[Entry] | None:
    """Return the entry at an index; None without one.

    Raises ``DecodeError`` or ``StorageError``.
    """
    body = read_body(reader, index)
    return LocatedEntry(index, parse_entry(body)) if body is not None else None


def read_entry_of_kind(reader: LogReader, index: int, kind: type[E]) -> LocatedEntry[E] | None:
    """Return the entry at an index if the entry is well formed and of ``kind``, else None.

    Raises ``StorageError``.
    """
    body = read_body(reader, index)
    return None if body is None else _as_located(index, body, (kind,))


def read_body(reader: LogReader, index: int) -> bytes | None:
    """Return the bytes of the entry at an index, without attachments; None without an entry.

    Raises ``StorageError``.
    """
    first_index, body = next(reader.entries(after=index - 1), (None, b""))
    return body if first_index == index else None


def _as_located(
    index: int, body: bytes, kinds: tuple[type[E], ...], text: bytes = b""
) -> LocatedEntry[E] | None:
    if not any(may_be_kind(body, kind.kind) for kind in kinds):
        return None
    if text and not payload_contains(body, text):
        return None
    with suppress(DecodeError):
        entry = parse_entry(body)
        return LocatedEntry(index, entry) if isinstance(entry, kinds) else None
    return None


def _as_call(
    located: LocatedEntry[CallEntry] | None, invocation_id: str | None = None
) -> LoggedCall | None:
    """Return the call of an authorization, None for an entry without an id, or with another id."""
    if located is None:
        return None
    call = located.entry
    found_id = call.invocation_id
    if found_id is None or invocation_id not in (None, found_id):  # the column may be wrong
        return None
    place = CallPlace(located.index, found_id, call.invocation_sha256)
    return LoggedCall(place, call)


def _is_about(entry: Entry, call: CallEntry) -> bool:
    """Return whether an entry of a call names the call's invocation."""
    if isinstance(entry, AdministeredEntry):
        return entry.call.invocation_sha256 == call.invocation_sha256
    if isinstance(entry, OutcomeEntry | OfRunningCall):
        return entry.invocation_sha256 == call.invocation_sha256
    return False
