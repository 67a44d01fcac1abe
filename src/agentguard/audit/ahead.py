"""Reads the entries of a shard ahead of the verifier, and has signatures verified in batches.

Most of a verification's time goes into the signatures of calls and outcomes. Their checks are
values, so that a ``SignatureChecker`` can work on many at once, on several cores. A joint signature
stands in several entries, and is checked once for the entries of a batch. The results only spare
work: ``contents.py`` checks again what was not read here, or does not hold here, and reports what
it finds, entry by entry in the order of the log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from agentguard.audit.calls import Authorization, Outcome, read_authorization, read_outcome
from agentguard.audit.entry import Entry, StoredEntry, parse_entry, parse_time
from agentguard.errors import AgentguardError, VerificationError
from agentguard.identity import credential
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import PublicKey

BATCH: Final = 128
"""The most entries whose signatures are verified together."""

_BATCH_BYTES: Final = 1024 * 1024
_MOST_KEYS: Final = 1024


class SignatureCheck(NamedTuple):
    """The question whether ``signature`` is the signature of ``message`` by a key."""

    signature: bytes
    message: bytes
    key: PublicKey

    def holds(self) -> bool:
        """Return whether the key has signed the message."""
        try:
            self.key.verify(self.signature, self.message)
        except VerificationError:
            return False
        return True


class SignatureChecker(Protocol):
    """Answers signature checks, batch by batch."""

    batches: int
    """The most batches at a time that are started and not finished."""

    def start(self, checks: Sequence[SignatureCheck]) -> Callable[[], Sequence[bool]]:
        """Start a batch; the returned function waits and gives the answers in order.

        An answer is ``SignatureCheck.holds``; an error in a check is raised by that function.
        """


class InOneThread:
    """A ``SignatureChecker`` that answers at once."""

    batches = 1

    def start(self, checks: Sequence[SignatureCheck]) -> Callable[[], Sequence[bool]]:
        """Answer the checks of a batch."""
        answers = [check.holds() for check in checks]
        return lambda: answers


@dataclass(slots=True)
class ReadEntry:
    """An entry as far as it could be read: a part is None where the part raises an error.

    ``at`` is the entry's time (seconds since the epoch), ``content`` the content of a call or an
    outcome, and ``signer`` the key that was found to have signed it.
    """

    stored: StoredEntry
    entry: Entry | None = None
    at: int | None = None
    content: Authorization | Outcome | None = None
    signer: PublicKey | None = None


class _Batch(NamedTuple):
    entries: list[ReadEntry]
    checks: dict[SignatureCheck, list[ReadEntry]]  # each with the entries in which it stands
    answers: Callable[[], Sequence[bool]]


def read_ahead(
    stored: Iterable[StoredEntry],
    keys: Mapping[str, PublicKey],
    checker: SignatureChecker,
    *,
    since: int,
) -> Iterator[ReadEntry]:
    """Yield the entries in order, each with what could be read of it and with its signer.

    ``keys`` are the keys of verified credentials by their thumbprints, which grow while the caller
    verifies. Signatures are checked in entries from the time ``since`` on (seconds since the
    epoch). An error of ``stored`` is raised after the last entry before the error.
    """
    batches: deque[_Batch] = deque()
    reading = _Reading(iter(stored), keys, since)
    while not reading.is_done or batches:
        while not reading.is_done and len(batches) < checker.batches:
            entries, checks = reading.batch()
            batches.append(_Batch(entries, checks, checker.start(list(checks))))
        batch = batches.popleft()
        for reads, holds in zip(batch.checks.values(), batch.answers(), strict=True):
            if not holds:
                for read in reads:
                    read.signer = None
        yield from batch.entries
    if reading.error is not None:
        raise reading.error


class _Reading:
    """Reads entries in batches of a bounded number and size."""

    def __init__(
        self, stored: Iterator[StoredEntry], keys: Mapping[str, PublicKey], since: int
    ) -> None:
        self.is_done = False
        self.error: AgentguardError | None = None
        self._stored = stored
        self._keys = keys
        self._new_keys: dict[str, PublicKey] = {}  # of credentials that are not verified yet
        self._since = since
        self._latest_time = 0

    def batch(self) -> tuple[list[ReadEntry], dict[SignatureCheck, list[ReadEntry]]]:
        """Return the next entries, and the checks, each with the entries in which it stands."""
        entries: list[ReadEntry] = []
        checks: dict[SignatureCheck, list[ReadEntry]] = {}
        size = 0
        while len(entries) < BATCH and size < _BATCH_BYTES:
            stored = self._next()
            if stored is None:
                break
            size += len(stored.body) + sum(len(kept.data) for kept in stored.attachments)
            read = ReadEntry(stored)
            entries.append(read)
            self._read(read)
            if read.content is not None and self._latest_time >= self._since:
                check = self._check(read.content.envelope)
                if check is not None:
                    read.signer = check.key
                    checks.setdefault(check, []).append(read)
        return entries, checks

    def _next(self) -> StoredEntry | None:
        try:
            stored = next(self._stored, None)
        except AgentguardError as error:
            self.error, stored = error, None
        self.is_done = stored is None
        return stored

    def _read(self, read: ReadEntry) -> None:
        try:
            entry = read.entry = parse_entry(read.stored.body)
            at = read.at = parse_time(entry.at)
            self._latest_time = max(self._latest_time, at)
            if entry.kind == "authorization":
                read.content = read_authorization(entry)
            elif entry.kind == "outcome":
                read.content = read_outcome(entry)
            elif entry.kind == "identity":
                self._add_key(credential.read(str(entry.members["credential"])).key)
        except AgentguardError:
            return  # the verifier reads the entry again, and reports the error in its order

    def _add_key(self, key: PublicKey) -> None:
        if len(self._new_keys) >= _MOST_KEYS:
            del self._new_keys[next(iter(self._new_keys))]
        self._new_keys[key.thumbprint] = key

    def _check(self, envelope: Envelope) -> SignatureCheck | None:
        """Return the check of an envelope's first signature, None where its key is not known."""
        for key_id in envelope.key_ids[:1]:
            key = self._keys.get(key_id) or self._new_keys.get(key_id)
            if key is not None:
                with suppress(VerificationError):  # the verifier reports it in its order
                    return SignatureCheck(*envelope.signed(key), key)
        return None
