"""Reads the entries of a log ahead of the verifier, in batches, with their signatures checked.

Most of a verification's time goes into what concerns one entry alone: its JSON, its statement and
the statement's signature. An ``EntryReader`` does this work for a batch, which is a value, so that
several processes can do the work. The results only spare work: ``contents.py`` reads again what was
not read here, checks again a signature that does not hold here, and reports what it finds, entry by
entry in the order of the log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from agentguard.audit.entry import Entry, StoredEntry, parse_time
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.audit.kinds.identities import IdentityEntry
from agentguard.errors import AgentguardError, VerificationError
from agentguard.identity import credential
from agentguard.signing import canonical
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import PublicKey

BATCH: Final = 128
"""The most entries that are read together."""

_BATCH_BYTES: Final = 1024 * 1024
_BYTES_AHEAD: Final = 16 * _BATCH_BYTES
"""The length of the entries in the started batches from which on no batch is started."""

MOST_KEYS: Final = 4096
"""The most keys of instances that a reader of entries has."""


class Batch(NamedTuple):
    """Entries to be read: their bodies, and what a reader of entries needs for the signatures.

    ``keys`` are the keys of the instances that the batches before did not have; they are not
    verified. Signatures are checked in entries from the time ``since`` on (seconds since the
    epoch).
    """

    bodies: Sequence[bytes]
    keys: Sequence[PublicKey] = ()
    since: int = 0


class Reading(NamedTuple):
    """What could be read of an entry: a part is None where the part raises an error.

    ``at`` is the entry's time (seconds since the epoch), and ``signer`` the key that was found to
    have signed the statement of a call or an outcome.
    """

    entry: Entry | None = None
    at: int | None = None
    signer: PublicKey | None = None


class ReadEntry(NamedTuple):
    """An entry of a log's storage, and what could be read of the entry."""

    stored: StoredEntry
    reading: Reading = Reading()


class EntryReader(Protocol):
    """Reads the entries of batches."""

    batches: int
    """The most batches at a time that are started and not finished."""

    def start(self, batch: Batch) -> Callable[[], Sequence[Reading]]:
        """Start a batch; the returned function waits and gives the readings in order."""


class InOneThread:
    """An ``EntryReader`` that reads at once."""

    batches = 1

    def __init__(self) -> None:
        self.keys: dict[str, PublicKey] = {}
        """The newest keys of the batches so far, by their thumbprints."""

    def learn(self, keys: Iterable[PublicKey]) -> None:
        """Take up the keys of a batch that is read somewhere else."""
        self.keys.update((key.thumbprint, key) for key in keys)
        while len(self.keys) > MOST_KEYS:
            del self.keys[next(iter(self.keys))]

    def start(self, batch: Batch) -> Callable[[], Sequence[Reading]]:
        """Read the entries of a batch."""
        self.learn(batch.keys)
        signatures = _Signatures(self.keys)
        readings = [_read(body, signatures, batch.since) for body in batch.bodies]
        return lambda: readings


class _Signatures:
    """Checks the signatures of one batch, and each joint signature once."""

    def __init__(self, keys: Mapping[str, PublicKey]) -> None:
        self._keys = keys
        self._held: dict[tuple[str, bytes, bytes], bool] = {}

    def signer(self, envelope: Envelope) -> PublicKey | None:
        """Return the key of an envelope's first signature, if it is known and has signed."""
        for key_id in envelope.key_ids[:1]:
            key = self._keys.get(key_id)
            if key is not None and self._holds(envelope, key):
                return key
        return None

    def _holds(self, envelope: Envelope, key: PublicKey) -> bool:
        with suppress(VerificationError):  # the verifier reports the error in its order
            signature, message = envelope.signed(key)
            check = (key.thumbprint, signature, message)
            if check not in self._held:
                self._held[check] = False
                key.verify(signature, message)
                self._held[check] = True
            return self._held[check]
        return False


def _read(body: bytes, signatures: _Signatures, since: int) -> Reading:
    entry: Entry | None = None
    try:
        entry = parse_entry(body)
        at = parse_time(entry.at)
        if isinstance(entry, CallEntry | OutcomeEntry) and at >= since:
            return Reading(entry, at, signatures.signer(entry.envelope))
        return Reading(entry, at)
    except AgentguardError:  # the verifier reads the entry again, and reports the error
        return Reading(entry)


def read_ahead(
    stored: Iterable[StoredEntry], reader: EntryReader, *, since: int
) -> Iterator[ReadEntry]:
    """Yield the entries in order, each with what ``reader`` could read of it.

    ``since`` is the time of a ``Batch``. An error of ``stored`` is raised after the last entry
    before the error.
    """
    started: deque[_Started] = deque()
    batches = _Batches(iter(stored))
    while not batches.is_done or started:
        size = sum(each.size for each in started)
        while not batches.is_done and len(started) < reader.batches and size < _BYTES_AHEAD:
            entries, size_of_batch = batches.next()
            batch = Batch([_short(one.body) for one in entries], _keys(entries), since)
            started.append(_Started(entries, size_of_batch, reader.start(batch)))
            size += size_of_batch
        oldest = started.popleft()
        for one, reading in zip(oldest.entries, oldest.readings(), strict=True):
            yield ReadEntry(one, reading)
    if batches.error is not None:
        raise batches.error


class _Started(NamedTuple):
    entries: Sequence[StoredEntry]
    size: int
    readings: Callable[[], Sequence[Reading]]


class _Batches:
    """Takes entries in batches of a bounded number and size."""

    def __init__(self, stored: Iterator[StoredEntry]) -> None:
        self.is_done = False
        self.error: AgentguardError | None = None
        self._stored = stored

    def next(self) -> tuple[Sequence[StoredEntry], int]:
        """Return the next entries, and how many bytes they have."""
        entries: list[StoredEntry] = []
        size = 0
        while len(entries) < BATCH and size < _BATCH_BYTES:
            stored = self._next()
            if stored is None:
                break
            size += len(stored.body) + sum(len(kept.data) for kept in stored.attachments)
            entries.append(stored)
        return entries, size

    def _next(self) -> StoredEntry | None:
        try:
            stored = next(self._stored, None)
        except AgentguardError as error:
            self.error, stored = error, None
        self.is_done = stored is None
        return stored


def _short(body: bytes) -> bytes:
    """Return a body, and nothing in place of one that is too long to be read."""
    return body if len(body) <= canonical.MAX_BYTES else b""


def _keys(entries: Sequence[StoredEntry]) -> Sequence[PublicKey]:
    """Return the keys of the credentials that stand in identity entries, by their columns."""
    keys: list[PublicKey] = []
    for stored in entries:
        if stored.summary is not None and stored.summary.kind == "identity":
            with suppress(AgentguardError):  # the verifier reports it in its order
                entry = parse_entry(stored.body)
                if isinstance(entry, IdentityEntry):  # the columns may name another kind
                    keys.append(credential.read(entry.credential).key)
    return keys
