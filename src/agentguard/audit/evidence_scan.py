"""Reads a log once for the evidence of any number of its calls.

Of most entries nothing stays in memory. Nothing here is trusted: ``prove.py`` makes the evidence,
and has it verified.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import Final

from agentguard.audit.entry import Entry, StoredEntry
from agentguard.audit.entry_bytes import may_be_call, may_be_kind, payload_contains_any
from agentguard.audit.evidence import KeyName
from agentguard.audit.find import Progress
from agentguard.audit.inclusion import verify_checkpoint
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.administration import AdministeredEntry
from agentguard.audit.kinds.announcements import ConfigEntry, KeyEntry, PolicyEntry, RosterEntry
from agentguard.audit.kinds.calls import OutcomeEntry
from agentguard.audit.kinds.identities import DelegationEntry, IdentityEntry
from agentguard.audit.log import LogReader
from agentguard.errors import AgentguardError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical

_SHARED: Final = 128
"""The most entries, and as many proofs, that are kept since other calls need them as well."""


class LogScan:
    """One reading of a log up to its newest checkpoint.

    ``subjects`` are the digests (hex) of the invocations whose evidence is wanted. ``progress`` is
    called with the number of the entries that have been read. ``note`` is the signed checkpoint,
    and ``covering`` what it says, verified under ``trust``. ``keys`` are the indices of the entries
    that announce a key. The methods raise ``StorageError``, and so does the making of a scan, which
    also raises ``DecodeError`` or ``VerificationError`` for a checkpoint that does not verify.
    """

    def __init__(
        self,
        reader: LogReader,
        trust: TrustDocument,
        subjects: Collection[str],
        progress: Progress,
    ) -> None:
        self._reader = reader
        self._subjects = frozenset(subject.encode() for subject in subjects)
        self.note: Final = reader.head() or b""
        self.covering: Final = verify_checkpoint(self.note, trust)
        self.keys: Final[dict[KeyName, int]] = {}
        self._about: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self._kept_entry = lru_cache(_SHARED)(reader.entry)
        self._kept_proof = lru_cache(_SHARED)(self._proof)
        for index, body in islice(reader.entries(), self.covering.point.size):
            progress(index + 1)
            self._note(index, body)

    def about(self, kind: str, name: str) -> list[int]:
        """Return, in order, the indices of the entries of a kind that are about ``name``.

        Of an outcome that is the digest of the invocation, of a configuration its own (``_about``).
        """
        return self._about.get((kind, name), [])

    def before(self, index: int, kind: str, name: str) -> list[int]:
        """Return those of ``about`` that are below ``index``."""
        return [one for one in self.about(kind, name) if one < index]

    def entry(self, index: int, *, is_shared: bool) -> StoredEntry:
        """Return an entry; one that ``is_shared`` is kept for other calls.

        Raises ``VerificationError`` (``evidence.incomplete``) where the entry is gone.
        """
        stored = (self._kept_entry if is_shared else self._reader.entry)(index)
        if stored is None:
            message = f"the entry {index} is gone"
            raise VerificationError(message, code="evidence.incomplete")
        return stored

    def proof(self, index: int) -> tuple[bytes, ...]:
        """Return the proof that the checkpoint includes an entry (RFC 6962, 2.1.1)."""
        return self._kept_proof(index)

    def _proof(self, index: int) -> tuple[bytes, ...]:
        return tuple(self._reader.inclusion_proof(index, self.covering.point.size))

    def extension(self, size: int) -> tuple[bytes, ...]:
        """Return the proof that the checkpoint extends the tree of ``size`` (RFC 6962, 2.1.2)."""
        return tuple(self._reader.consistency_proof(size, self.covering.point.size))

    def _note(self, index: int, body: bytes) -> None:
        # parsing all calls and outcomes of a long log would take minutes
        if may_be_call(body) or self._is_other_outcome(body):
            return
        with suppress(AgentguardError):  # a malformed entry belongs to no call
            entry = parse_entry(body)
            about = _about(entry)
            if isinstance(entry, KeyEntry):
                self.keys.setdefault(entry.name, index)
            elif about is not None:
                self._about[entry.kind, about].append(index)

    def _is_other_outcome(self, body: bytes) -> bool:
        """Return whether an entry is the outcome of a call whose evidence is not wanted."""
        is_outcome = may_be_kind(body, "outcome")
        return is_outcome and not payload_contains_any(body, self._subjects)


def engine_name(engine: object, policy_sha256: object) -> str:
    """Return what a policy entry is about: the engine and the policy's digest."""
    return canonical.dumps([engine, policy_sha256]).decode()


def _about(entry: Entry) -> str | None:
    """Return what an entry is about: of other kinds, the evidence of a call needs only keys."""
    about: str | None = None
    match entry:
        case OutcomeEntry():
            about = entry.invocation_sha256
        case AdministeredEntry():
            about = entry.call.invocation_sha256
        case IdentityEntry():
            about = entry.agent
        case DelegationEntry() | RosterEntry():
            about = entry.sha256
        case ConfigEntry():
            about = entry.config_sha256
        case PolicyEntry():
            about = engine_name(entry.engine, entry.policy_sha256)
    return about
