"""How the evidence of one call is made from a log: what is found in it, and the proofs over it.

Nothing is believed here: what was put together is verified as a stranger would
(``audit/evidence.py``) before anybody gets it. Each shard is read once, to its newest checkpoint,
and a hash is held of each entry; the columns that a log is searched by are not believed.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from agentguard import jws
from agentguard.audit import checkpoint, entry, evidence, inclusion, merkle, statements
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, Entry
from agentguard.audit.evidence import KeyName
from agentguard.audit.evidence_file import EvidenceFile, Extension, LoggedEntry
from agentguard.audit.statements import Authorization, Credentials
from agentguard.audit.tlog_proof import TlogProof
from agentguard.canonical import b64_decode
from agentguard.errors import AgentguardError, CallError, VerificationError
from agentguard.identity import credential
from agentguard.identity.trust import TrustDocument
from agentguard.ports import LogReader

_CALL: Final = b'"kind":"authorization"'
_OUTCOME: Final = b'"kind":"outcome"'
_PAYLOAD: Final = re.compile(rb'"payload":"([A-Za-z0-9+/=]+)"')


def prove(
    reader: LogReader, trust: TrustDocument, invocation_id: str, *, attachments: bool = True
) -> bytes:
    """Return the file with the evidence of one call, verified under ``trust``.

    Without ``attachments``, arguments, policy input and result are left out, and only their
    commitments are shown. Raises ``CallError`` (``call.unknown``), ``StorageError``, and what
    ``evidence.verify`` raises where the log does not prove the call.
    """
    file = _Search(reader, trust, invocation_id).file(attachments=attachments)
    try:
        data = file.dumps()
        evidence.verify(data, trust)
    except AgentguardError as error:
        message = f"the log does not prove this call ({error}): agentguard audit verify says more"
        raise VerificationError(message, code=error.code) from error
    return data


class _Found(NamedTuple):
    body: bytes
    entry: Entry


@dataclass(slots=True)
class _Shard:
    """One shard up to its newest checkpoint: the hashes of all entries, and those of interest."""

    number: int
    note: bytes
    head: Checkpoint
    leaves: list[bytes] = field(default_factory=list)
    entries: dict[int, _Found] = field(default_factory=dict)

    def before(self, index: int, kind: str) -> Iterator[tuple[int, Entry]]:
        """Yield the entries of a kind that stand before another, the newest first."""
        for at in sorted(self.entries, reverse=True):
            if at < index and self.entries[at].entry.kind == kind:
                yield at, self.entries[at].entry


class _Search:
    """Looks for one call, and for everything that its statement needs."""

    def __init__(self, reader: LogReader, trust: TrustDocument, wanted: str) -> None:
        self._reader = reader
        self._trust = trust
        self._wanted = wanted
        self._scanned: dict[int, _Shard | None] = {}
        self._call: Authorization | None = None
        self._index = -1
        self._outcome: int | None = None
        self._chosen: set[tuple[int, int]] = set()
        self._pending: list[KeyName] = []

    def file(self, *, attachments: bool) -> EvidenceFile:
        shard, call = self._locate()
        self._choose(shard, self._index)
        self._choose_before(shard, call)
        if self._outcome is not None:
            self._choose(shard, self._outcome)
        self._choose_administered(call)
        seen, seen_in = self._seen(call)
        self._choose(seen_in, 0)
        self._choose_keys(shard)
        kept = self._attachments(shard) if attachments else []
        return EvidenceFile(
            self._wanted,
            tuple(self._logged()),
            (_extension(seen, seen_in),),
            tuple(sorted(kept, key=lambda one: one.role)),
        )

    # --- reading ---------------------------------------------------------------------------------

    def _shards(self) -> Iterator[_Shard]:
        return filter(None, map(self._shard, self._reader.shards()))

    def _locate(self) -> tuple[_Shard, Authorization]:
        for shard in self._shards():
            if self._call is not None:
                return shard, self._call
        message = (
            f"no checkpoint of the log covers a call {self._wanted}: agentguard audit list names "
            "the calls that there are"
        )
        raise CallError(message, code="call.unknown")

    def _shard(self, number: int) -> _Shard | None:
        """Scan a shard, once; None where it has no checkpoint that can be read."""
        if number not in self._scanned:
            note = self._reader.checkpoint(number)
            self._scanned[number] = None
            with suppress(AgentguardError):
                if note is not None:
                    head = checkpoint.parse(note).checkpoint
                    self._scanned[number] = _Shard(number, note, head)
            scanned = self._scanned[number]
            if scanned is not None:
                self._scan(scanned)
        return self._scanned[number]

    def _scan(self, shard: _Shard) -> None:
        for index, body in self._reader.entries(shard.number):
            if index >= shard.head.size:
                break  # appended since its checkpoint was read
            shard.leaves.append(merkle.leaf_hash(body))
            if self._is_of_interest(body):
                # an entry that can't be read is none of this call; audit verify names it
                with suppress(AgentguardError):
                    found = _Found(body, entry.parse(body))
                    self._recognise(index, found.entry)
                    shard.entries[index] = found

    def _is_of_interest(self, body: bytes) -> bool:
        """Whether an entry may be needed; to parse every call of a long log would take minutes."""
        if _CALL in body:
            return self._call is None and _mentions(body, self._wanted)
        if _OUTCOME in body:
            call = self._call
            return call is not None and _mentions(body, call.invocation_sha256)
        return True

    def _recognise(self, index: int, parsed: Entry) -> None:
        if parsed.kind == "authorization":
            call = statements.read_authorization(parsed)
            if call.invocation_id == self._wanted:
                self._call, self._index = call, index
        elif parsed.kind == "outcome" and self._call is not None:
            outcome = statements.read_outcome(parsed)
            if outcome.invocation_sha256 == self._call.invocation_sha256:
                self._outcome = index

    # --- choosing: what is missing here, the verification says -----------------------------------

    def _choose(self, shard: _Shard, index: int) -> None:
        """Take an entry, and note down the keys that its proof needs."""
        if (shard.number, index) in self._chosen or index not in shard.entries:
            return
        self._chosen.add((shard.number, index))
        self._pending += _signers(shard.entries[index].entry)
        if index != 0:
            self._choose(shard, 0)
        else:
            _point, key = statements.check_checkpoint(shard.note, self._trust, shard.head.origin)
            self._pending.append(("log", key.key.thumbprint))

    def _choose_before(self, shard: _Shard, call: Authorization) -> None:
        for index, parsed in shard.before(self._index, "identity"):
            if self._covers(parsed, call, entry.time_of(shard.entries[self._index].entry.at)):
                self._choose(shard, index)
                break
        for index, parsed in shard.before(self._index, "config"):
            if parsed.members["config_sha256"] == call.config_sha256:
                self._choose(shard, index)
                break
        decided = (call.engine, call.policy_sha256)
        for index, parsed in shard.before(self._index, "policy") if call.engine else ():
            if (parsed.members["engine"], parsed.members["policy_sha256"]) == decided:
                self._choose(shard, index)
                break

    def _covers(self, parsed: Entry, call: Authorization, at: int) -> bool:
        known = Credentials()
        try:
            token = str(parsed.members["credential"])
            known.add(credential.verify(token, self._trust, at=entry.time_of(parsed.at)))
            known.of_call(call, at)
        except AgentguardError:
            return False
        return True

    def _choose_administered(self, call: Authorization) -> None:
        """Take what the administrator has said of the call, in whatever shard."""
        for shard in self._shards():
            for index, found in list(shard.entries.items()):
                if found.entry.kind in ("resolution", "erasure"):
                    _kid, said = statements.read_sealed(found.entry)
                    if said.subject_sha256 == call.invocation_sha256:
                        self._choose(shard, index)

    def _choose_keys(self, first: _Shard) -> None:
        """Take the announcement of each key, from the call's shard if it has it."""
        shards = [first, *(shard for shard in self._shards() if shard is not first)]
        done: set[KeyName] = set()
        while self._pending:
            name = self._pending.pop()
            if name in done:
                continue
            done.add(name)
            for shard in shards:
                index = _announcement(shard, name)
                if index is not None:
                    self._choose(shard, index)
                    break

    def _seen(self, call: Authorization) -> tuple[Checkpoint, _Shard]:
        """Return the checkpoint that the call carries, and the shard that it is of."""
        match call.predicate.get("log"):
            case {"origin": str(origin), "size": int(size), "root": str(root)}:
                shard = self._shard(inclusion.shard_number(origin, self._trust))
                if shard is not None and 0 < size <= len(shard.leaves):
                    return Checkpoint(origin, size, b64_decode(root)), shard
        message = "the call carries no checkpoint that this log could have grown from"
        raise VerificationError(message, code="proof.invalid")

    # --- writing ---------------------------------------------------------------------------------

    def _logged(self) -> Iterator[LoggedEntry]:
        places = [(self._scanned[number], index) for number, index in self._chosen]
        held = [(shard, index) for shard, index in places if shard is not None]
        for shard, index in sorted(held, key=lambda place: (place[0].head.origin, place[1])):
            path = tuple(merkle.inclusion_proof(index, shard.leaves))
            yield LoggedEntry(shard.entries[index].body, TlogProof(index, path, shard.note))

    def _attachments(self, shard: _Shard) -> list[Attachment]:
        places = [self._index] if self._outcome is None else [self._index, self._outcome]
        return [kept for at in places for kept in self._reader.attachments(shard.number, at)]


def _mentions(body: bytes, wanted: str) -> bool:
    """Whether a payload in an entry holds this text."""
    return any(wanted.encode() in a2b_base64(found) for found in _PAYLOAD.findall(body))


def _signers(parsed: Entry) -> list[KeyName]:
    """Name the key of the trust document that has signed what an entry embeds."""
    match parsed.kind:
        case "identity":
            return [("issuer", str(jws.parse(str(parsed.members["credential"])).header.get("kid")))]
        case "shard" | "key":
            return [("issuer", statements.read_sealed(parsed)[0])]
        case "resolution" | "erasure":
            return [("admin", statements.read_sealed(parsed)[0])]
    return []


def _announcement(shard: _Shard, name: KeyName) -> int | None:
    for index, found in shard.entries.items():
        if found.entry.kind == "key":
            _kid, said = statements.read_sealed(found.entry)
            if (said.predicate.get("use"), said.predicate.get("kid")) == name:
                return index
    return None


def _extension(seen: Checkpoint, shard: _Shard) -> Extension:
    return Extension(seen, tuple(merkle.consistency_proof(seen.size, shard.leaves)))
