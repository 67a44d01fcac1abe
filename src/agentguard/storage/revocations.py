"""What was revoked and whether all is frozen, as every process of a state sees it at its next call.

The log is what counts: each revocation and freeze is an entry of it, signed by the admin key. This
file is made from it whenever the state is opened, signed with the log's key and replaced whole, so
that a process that looks at its status (a microsecond) knows whether there is something new. A
running process never forgets what it has seen, and no edit of the file lets anybody act again.

The calls under a delegation that allows a number of them are counted beside it: a byte for each, in
a file for each hop.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from agentguard import canonical, envelope
from agentguard.audit import entry, statements
from agentguard.canonical import JSON, b64_decode, b64_encode, is_integer
from agentguard.errors import AgentguardError, StorageError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.keys import Signer
from agentguard.ports import LogReader
from agentguard.storage import files, lock

FILE: Final = "revocations.json"
CALLS: Final = "calls"
"""The folder with the counted calls."""

_TYPE: Final = "application/vnd.agentguard.revocations+json"
_MAX_BYTES: Final = 64 * 1024 * 1024
_JTI: Final = re.compile(r"[A-Za-z0-9_-]{8,128}\Z")
_KINDS: Final = (b'"kind":"revocation"', b'"kind":"freeze"')
_UNKEPT: Final = 1000
"""Entries that may be read once more at each opening, before how far they were read is kept."""


class Standing(NamedTuple):
    """What counts: the names that are revoked, and the newest freeze by its number.

    ``read`` says how far each shard has been read for it.
    """

    revoked: frozenset[str] = frozenset()
    sequence: int = 0
    frozen: bool = False
    read: tuple[tuple[int, int], ...] = ()

    def with_revoked(self, name: str) -> Standing:
        """Return it with one name more."""
        return self._replace(revoked=self.revoked | {name})

    def with_freeze(self, sequence: int, *, frozen: bool) -> Standing:
        """Return it with a freeze or thaw; an older one changes nothing."""
        if sequence <= self.sequence:
            return self
        return self._replace(sequence=sequence, frozen=frozen)

    def joined(self, other: Standing) -> Standing:
        """Return all that one of the two says."""
        both = self._replace(revoked=self.revoked | other.revoked)
        return both.with_freeze(other.sequence, frozen=other.frozen)

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return why nobody of these names may act; None if they may."""
        if self.frozen:
            return "domain.frozen", "all calls are frozen: agentguard thaw lets them go on"
        if self.revoked.isdisjoint(names):
            return None
        revoked = min(self.revoked & names)
        return "delegation.revoked", f"{revoked} was revoked: whatever goes back to it is denied"


class _Counting(threading.local):
    """Whether this thread is counting a call."""

    busy = False

    @contextmanager
    def once(self) -> Iterator[None]:
        """Count; a signal handler that interrupts that would wait for its own thread for ever."""
        if self.busy:
            message = "this thread is counting another call: make this one when that is done"
            raise StorageError(message, code="storage.busy")
        self.busy = True
        try:
            yield
        finally:
            self.busy = False


class FileRevocations:
    """The ``Revocations`` of a state directory; safe from many threads, and after a fork.

    It begins with the ``standing`` that the log gives: the file may be an older one by the first
    call.
    """

    def __init__(self, state: Path, trust: Callable[[], TrustDocument], standing: Standing) -> None:
        self._state = state
        self._trust = trust
        self._path = state / FILE
        # the file's status, and what counted by it: one value, so that two threads that load at
        # once never leave the one's status beside the other's standing
        self._known: tuple[tuple[int, int, int] | None, Standing] = (None, standing)
        self._learning = threading.RLock()  # a signal handler may make a call meanwhile
        self._counting = _Counting()

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Look whether there is something new, then in what counts."""
        try:
            status = self._path.stat()
        except OSError as error:
            message = (
                f"{self._path} can't be looked at ({error.strerror}): open the guard again, which "
                "makes it anew from the log"
            )
            raise StorageError(message, code="storage.missing") from error
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        known, standing = self._known
        if seen != known:
            # what it was before is kept: nobody who changes the file brings anything back
            kept = load(self._state)
            with self._learning:
                # by now another thread may know more than this one did, or than the file still says
                standing = self._known[1]
                joined = standing.joined(kept.standing)
                if standing.frozen and not joined.frozen:
                    kept.verify(self._trust())  # to deny, anybody's word is enough
                self._known, standing = (seen, joined), joined
        return standing.refusal(names)

    def consume(self, limits: Sequence[tuple[str, int]]) -> bool:
        """Count a call under each limit, or under none."""
        folder = self._state / CALLS
        try:
            with self._counting.once(), ExitStack() as held:
                files.make_folder(folder)
                counters: list[int] = []
                for jti, most in sorted(limits):  # in one order, so that nobody waits in a circle
                    counter = lock.acquire(folder / _name(jti), wait=True)
                    held.callback(lock.release, counter)
                    if os.fstat(counter).st_size >= most:
                        return False
                    counters.append(counter)
                for counter in counters:
                    os.lseek(counter, 0, os.SEEK_END)
                    os.write(counter, b".")
                    os.fdatasync(counter)
                return True
        except OSError as error:
            message = f"the calls can't be counted in {folder} ({error.strerror})"
            raise StorageError(message) from error


class MemoryRevocations:
    """The ``Revocations`` of a guard in memory: nothing is revoked, and calls are counted."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._counting = _Counting()

    def refusal(self, names: AbstractSet[str]) -> None:
        """Nobody is refused."""

    def consume(self, limits: Sequence[tuple[str, int]]) -> bool:
        """Count a call under each limit, or under none."""
        with self._counting.once(), self._lock:
            if any(self._calls[jti] >= most for jti, most in limits):
                return False
            self._calls.update(jti for jti, _most in limits)
            return True


class Kept(NamedTuple):
    """What was kept, and who has signed it; only ``verify`` says that the signature holds."""

    path: Path
    standing: Standing
    encoded: bytes
    key_id: str
    signature: bytes

    def verify(self, trust: TrustDocument) -> Standing:
        """Return it if a key of the log has signed it; raises ``StorageError``."""
        for trusted in trust.keys_for("log"):
            if trusted.key.thumbprint == self.key_id and trusted.compromised_since is None:
                with suppress(VerificationError):
                    trusted.key.verify(self.signature, _signed(trust.log, self.encoded))
                    return self.standing
        raise _damaged(self.path)


def load(state: Path) -> Kept:
    """Read what is kept; raises ``StorageError`` (``storage.corrupt``, ``storage.missing``)."""
    path = state / FILE
    try:
        document = canonical.loads(files.read(path, limit=_MAX_BYTES), limit=_MAX_BYTES)
        match document:
            case {
                "standing": {
                    "revoked": [*revoked],
                    "sequence": sequence,
                    "frozen": bool(frozen),
                    "read": [*read],
                    **others,
                } as kept,
                "keyid": str(key_id),
                "sig": str(signature),
                **further,
            } if not others and not further and is_integer(sequence):
                places = tuple(_place(item, path) for item in read)
                standing = Standing(frozenset(map(str, revoked)), sequence, frozen, places)
                return Kept(path, standing, canonical.dumps(kept), key_id, b64_decode(signature))
    except OSError as error:
        message = f"{path} can't be read ({error.strerror}): open the guard again"
        raise StorageError(message, code="storage.missing") from error
    except AgentguardError as error:
        raise _damaged(path) from error
    raise _damaged(path)


def keep(state: Path, log: str, standing: Standing, signer: Signer) -> None:
    """Replace what is kept; raises ``StorageError``. Call it inside ``registry.locked`` only."""
    revoked: list[JSON] = [*sorted(standing.revoked)]
    read: list[JSON] = [[shard, size] for shard, size in standing.read]
    kept: dict[str, JSON] = {
        "revoked": revoked,
        "sequence": standing.sequence,
        "frozen": standing.frozen,
        "read": read,
    }
    signature = signer.sign(_signed(log, canonical.dumps(kept)))
    document: dict[str, JSON] = {
        "standing": kept,
        "keyid": signer.key_id,
        "sig": b64_encode(signature),
    }
    files.replace(state / FILE, canonical.dumps(document))


def _signed(log: str, encoded: bytes) -> bytes:
    """Return what is signed (DSSE's encoding, with a type of its own): of this log alone."""
    return envelope.pae(_TYPE, canonical.dumps(log) + encoded)


def current(state: Path, reader: LogReader, trust: TrustDocument) -> Standing:
    """Return what counts by the log; ``read`` then says how far that was.

    What is kept says how far the log was read before. Where it is missing or damaged, or no key of
    the log has signed it, all of it is read. Raises ``StorageError``.
    """
    return _read_on(_kept(state, trust) or Standing(), reader, trust)


def rebuild(state: Path, reader: LogReader, trust: TrustDocument, signer: Signer) -> Standing:
    """Bring what is kept up to what the log says, as ``current`` does, and return it.

    ``signer`` has the log's key. Call it inside ``registry.locked`` only. Raises ``StorageError``.
    """
    kept = _kept(state, trust)
    standing = _read_on(kept or Standing(), reader, trust)
    if kept is not None:
        # how far it was read is worth a write now and then only
        read = sum(size for _shard, size in standing.read) - sum(size for _, size in kept.read)
        if standing._replace(read=kept.read) == kept and 0 <= read <= _UNKEPT:
            return standing
    keep(state, trust.log, standing, signer)
    return standing


def _kept(state: Path, trust: TrustDocument) -> Standing | None:
    with suppress(StorageError):
        return load(state).verify(trust)
    return None


def _read_on(standing: Standing, reader: LogReader, trust: TrustDocument) -> Standing:
    sizes = dict(standing.read)
    for shard in reader.shards():
        start = sizes.get(shard, 0)
        newest, _body = next(reader.entries(shard, newest_first=True), (-1, b""))
        if newest < start - 1:  # an older shard was restored: what it holds now was never read
            start = sizes[shard] = 0
        for index, body in reader.entries(shard, after=start - 1):
            sizes[shard] = index + 1
            if any(kind in body for kind in _KINDS):
                standing = _with_entry(standing, body, trust)
    return standing._replace(read=tuple(sorted(sizes.items())))


def _with_entry(standing: Standing, body: bytes, trust: TrustDocument) -> Standing:
    """Add what an entry says, if the admin has signed it; audit verify names one that is false."""
    with suppress(AgentguardError):
        parsed = entry.parse(body)
        at = entry.time_of(parsed.at)
        if parsed.kind == "revocation":
            return standing.with_revoked(statements.check_revocation(parsed, trust, at))
        if parsed.kind == "freeze":
            sequence, frozen = statements.check_freeze(parsed, trust, at)
            return standing.with_freeze(sequence, frozen=frozen)
    return standing


def _name(jti: str) -> str:
    if not _JTI.match(jti):
        raise StorageError(f"{jti!r} is no id of a hop", code="storage.failed")
    return jti


def _place(item: JSON, path: Path) -> tuple[int, int]:
    match item:
        case [shard, size] if is_integer(shard) and is_integer(size):
            return shard, size
    raise _damaged(path)


def _damaged(path: Path) -> StorageError:
    message = f"{path} is damaged: remove it, and open the guard again, which makes it anew"
    return StorageError(message, code="storage.corrupt")
