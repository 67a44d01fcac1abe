"""Makes the evidence of one call from a log: the entries that the call needs, and their proofs.

``find.py`` finds the call, and the log's columns lead to the other shards with entries about the
call. Each needed shard is read once; of most entries, only the hash stays in memory. Nothing in the
log is trusted here: ``evidence.py`` verifies the finished file before the caller gets the file.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from agentguard.audit import approval_checks, checkpoint, merkle, statements
from agentguard.audit.calls import read_outcome
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Entry, StoredEntry, parse_entry, parse_time
from agentguard.audit.evidence import KeyName, verify_evidence
from agentguard.audit.evidence_file import EvidenceFile, Extension, LoggedEntry
from agentguard.audit.find import (
    LoggedCall,
    Progress,
    find_call,
    may_be_call,
    may_be_kind,
    payload_contains,
)
from agentguard.audit.log import LogReader
from agentguard.audit.statements import Credentials
from agentguard.audit.summary import Search
from agentguard.audit.tlog_proof import TlogProof
from agentguard.delegation import grant
from agentguard.errors import (
    AgentguardError,
    CallError,
    DecodeError,
    EncodeError,
    VerificationError,
)
from agentguard.identity import credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing import jws
from agentguard.signing.canonical import b64_decode, is_integer


def prove_call(
    reader: LogReader,
    trust: TrustDocument,
    invocation_id: str,
    *,
    attachments: bool = True,
    progress: Progress = lambda _entries: None,
) -> bytes:
    """Return the evidence file of one call, verified under ``trust``.

    Without ``attachments``, the file has the commitments to arguments, policy input and result, and
    not the data. Raises ``CallError`` (``call.unknown``), ``StorageError``, and
    ``VerificationError`` where the log does not prove the call.
    """
    call = find_call(reader, invocation_id, progress)
    if call is None:
        raise _unknown(invocation_id)
    try:
        data = _EvidenceBuilder(reader, trust, call, progress).file(attachments=attachments).dumps()
        verify_evidence(data, trust)
    except (DecodeError, EncodeError, VerificationError) as error:
        message = f"the log does not prove this call ({error}): agentguard audit verify says more"
        raise VerificationError(message, code=error.code) from error
    return data


@dataclass(frozen=True, slots=True)
class _Shard:
    """One shard up to its newest checkpoint: the hashes of all entries, and a few indices.

    ``own`` are the indices of entries that may belong to the call, by kind. ``keys`` are the
    indices of the entries that announce a key.
    """

    number: int
    note: bytes
    head: Checkpoint
    tree: merkle.Tree = field(default_factory=merkle.Tree)
    own: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    keys: dict[KeyName, int] = field(default_factory=dict)


class _EvidenceBuilder:
    """Collects the entries that the statement of a call needs, and their proofs."""

    def __init__(
        self, reader: LogReader, trust: TrustDocument, call: LoggedCall, progress: Progress
    ) -> None:
        self._reader = reader
        self._trust = trust
        self._call = call
        self._at = parse_time(call.entry.at)
        self._progress = progress
        self._counter = count(1)
        self._shards: dict[int, _Shard | None] = {}
        self._chosen: dict[tuple[int, int], StoredEntry] = {}
        self._pending: list[KeyName] = []

    def file(self, *, attachments: bool) -> EvidenceFile:
        """Return the file; the verification afterwards reports entries that are missing."""
        place = self._call.place
        shard = self._shard(place.shard)
        if shard is None or place.index >= shard.head.size:
            raise _unknown(place.invocation_id)
        own = [place.index, *shard.own["outcome"][:1]]
        kinds = ("config", "policy", "roster", "delegation")
        foundations = [shard.own[kind][-1:] for kind in kinds]
        for index in (*own, *itertools.chain(*foundations)):
            self._choose(shard, index)
        self._choose_identity(shard)
        self._choose_admin_statements()
        point, extended = self._call_checkpoint()
        self._choose(extended, 0)
        self._choose_keys()
        data = [one for index in own for one in self._chosen[place.shard, index].attachments]
        return EvidenceFile(
            place.invocation_id,
            tuple(self._logged()),
            (Extension(point, tuple(extended.tree.consistency_proof(point.size))),),
            tuple(sorted(data, key=lambda one: one.role)) if attachments else (),
        )

    # --- reading ---------------------------------------------------------------------------------

    def _shard(self, number: int) -> _Shard | None:
        """Return a shard, which is read once; None for a shard without a readable checkpoint."""
        if number not in self._shards:
            self._shards[number] = None
            note = self._reader.checkpoint(number)
            with suppress(DecodeError):
                if note is not None:
                    shard = _Shard(number, note, checkpoint.parse(note).checkpoint)
                    self._shards[number] = shard
                    self._scan(shard)
        return self._shards[number]

    def _scan(self, shard: _Shard) -> None:
        for index, body in self._reader.entries(shard.number):
            if index >= shard.head.size:
                break  # appended after the checkpoint was read
            self._progress(next(self._counter))
            shard.tree.append(merkle.leaf_hash(body))
            # parsing all calls and outcomes of a long log would take minutes
            if may_be_call(body) or self._is_other_outcome(shard, index, body):
                continue
            # a malformed entry belongs to no call; audit verify reports it
            with suppress(AgentguardError):
                entry = parse_entry(body)
                if entry.kind == "key":
                    shard.keys.setdefault(_key_name(entry), index)
                elif self._is_own(shard, index, entry):
                    shard.own[entry.kind].append(index)

    def _is_other_outcome(self, shard: _Shard, index: int, body: bytes) -> bool:
        """Return whether an entry is the outcome of another call."""
        if not may_be_kind(body, "outcome"):
            return False
        after = shard.number == self._call.place.shard and index > self._call.place.index
        subject = self._call.authorization.invocation_sha256.encode()
        return not (after and payload_contains(body, subject))

    def _is_own(self, shard: _Shard, index: int, entry: Entry) -> bool:
        """Return whether an entry is about the call, or is a basis of the call.

        A basis, such as the credential, stands before the call in the call's shard.
        """
        call, members = self._call.authorization, entry.members
        match entry.kind:
            case "outcome":
                return read_outcome(entry).invocation_sha256 == call.invocation_sha256
            case "resolution" | "erasure":
                _key_id, statement = statements.read_statement(entry)
                own = statement.subject_sha256 == call.invocation_sha256
                # a statement with a compromised key must not make the call unprovable
                return own and statements.is_valid_admin_statement(entry, self._trust)
            case "identity":
                own = jws.parse(str(members["credential"])).claims().get("sub") == call.agent
            case "delegation":
                own = call.chain_sha256 == statements.chain_digest(entry)
            case "config":
                own = members["config_sha256"] == call.config_sha256
            case "policy":
                decided = (call.engine, call.policy_sha256)
                own = (members["engine"], members["policy_sha256"]) == decided
            case "roster":
                own = self._call.entry.members["roster_sha256"] == approval_checks.roster_digest(
                    entry
                )
            case _:
                own = False
        place = self._call.place
        return own and shard.number == place.shard and index < place.index

    # --- choosing --------------------------------------------------------------------------------

    def _choose(self, shard: _Shard, index: int) -> None:
        """Choose an entry, its shard's opening, and note the keys that the proof needs."""
        if (shard.number, index) in self._chosen:
            return
        stored = self._stored(shard, index)
        self._chosen[shard.number, index] = stored
        self._pending += _signers(parse_entry(stored.body))
        if index != 0:
            self._choose(shard, 0)
        else:
            _point, key = statements.check_checkpoint(shard.note, self._trust, shard.head.origin)
            self._pending.append(("log", key.key.thumbprint))

    def _choose_identity(self, shard: _Shard) -> None:
        """Choose the newest credential that is valid for the call, else the newest credential.

        The verification then reports why the newest credential is not valid.
        """
        newest_first = shard.own["identity"][::-1]
        for index in newest_first:
            if self._is_valid_for_call(parse_entry(self._stored(shard, index).body)):
                self._choose(shard, index)
                return
        for index in newest_first[:1]:
            self._choose(shard, index)

    def _stored(self, shard: _Shard, index: int) -> StoredEntry:
        stored = self._reader.entry(shard.number, index)
        if stored is None:
            message = f"the entry {index} of {shard.head.origin} is gone"
            raise VerificationError(message, code="evidence.incomplete")
        return stored

    def _is_valid_for_call(self, entry: Entry) -> bool:
        credentials = Credentials()
        try:
            token = str(entry.members["credential"])
            credentials.add(credential.verify(token, self._trust, at=parse_time(entry.at)))
            credentials.of_call(self._call.authorization, self._at)
        except (DecodeError, VerificationError):
            return False
        return True

    def _choose_admin_statements(self) -> None:
        """Choose the resolutions and erasures of the call, from all shards."""
        for kind in ("resolution", "erasure"):
            search = Search(kind, self._call.place.invocation_id)
            for number in self._reader.shards():
                if any(True for _index in self._reader.search(number, search)):
                    self._shard(number)
            for shard in filter(None, self._shards.values()):
                for index in shard.own[kind]:
                    self._choose(shard, index)

    def _choose_keys(self) -> None:
        """Choose the announcement of each key, preferably from the call's shard."""
        chosen: set[KeyName] = set()
        while self._pending:
            name = self._pending.pop()
            if name not in chosen:
                chosen.add(name)
                shard = next(
                    (shard for shard in self._shards_with_keys() if name in shard.keys), None
                )
                if shard is not None:
                    self._choose(shard, shard.keys[name])

    def _shards_with_keys(self) -> Iterator[_Shard]:
        """Yield all shards: those read so far, those whose columns show keys, then the others."""
        loaded = [number for number, shard in self._shards.items() if shard is not None]
        with_keys = [number for number in self._reader.shards() if self._announces_key(number)]
        for number in dict.fromkeys([*loaded, *with_keys, *self._reader.shards()]):
            shard = self._shard(number)
            if shard is not None:
                yield shard

    def _announces_key(self, number: int) -> bool:
        return any(True for _index in self._reader.search(number, Search(kind="key")))

    def _call_checkpoint(self) -> tuple[Checkpoint, _Shard]:
        """Return the checkpoint that the call carries, and the shard of the checkpoint."""
        match self._call.authorization.predicate.get("log"):
            case {"origin": str(origin), "size": size, "root": str(root)} if is_integer(size):
                shard = self._shard(self._trust.shard_of(origin))
                if shard is not None and 0 < size <= shard.tree.size:
                    return Checkpoint(origin, size, b64_decode(root)), shard
        message = "the call carries no checkpoint that this log could have grown from"
        raise VerificationError(message, code="proof.invalid")

    # --- writing ---------------------------------------------------------------------------------

    def _logged(self) -> Iterator[LoggedEntry]:
        places = [(self._shards[number], index) for number, index in self._chosen]
        places_in_shards = [(shard, index) for shard, index in places if shard is not None]
        for shard, index in sorted(
            places_in_shards, key=lambda place: (place[0].head.origin, place[1])
        ):
            path = tuple(shard.tree.inclusion_proof(index))
            body = self._chosen[shard.number, index].body
            yield LoggedEntry(body, TlogProof(index, path, shard.note))


def _key_name(entry: Entry) -> KeyName:
    _key_id, statement = statements.read_statement(entry)
    return str(statement.predicate.get("use")), str(statement.predicate.get("kid"))


def _signers(entry: Entry) -> list[KeyName]:
    """Return the keys of the trust document that have signed the content of an entry."""
    match entry.kind:
        case "identity":
            return [("issuer", str(jws.parse(str(entry.members["credential"])).header.get("kid")))]
        case "delegation":
            hops, credentials = statements.chain_tokens(entry)
            # the issuer signs the first two hops, the second for the first delegatee
            return [("issuer", grant.key_id(token)) for token in (*hops[:2], *credentials)]
        case "shard" | "key" | "roster":
            return [("issuer", statements.read_statement(entry)[0])]
        case "resolution" | "erasure":
            return [("admin", statements.read_statement(entry)[0])]
    return []


def _unknown(invocation_id: str) -> CallError:
    message = (
        f"no checkpoint of the log covers a call {invocation_id}: agentguard audit list "
        "--json has the ids of the calls that there are"
    )
    return CallError(message, code="call.unknown")
