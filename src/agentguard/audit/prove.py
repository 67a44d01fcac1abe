"""How the evidence of one call is made from a log: what is found in it, and the proofs over it.

The call is found as ``find.py`` does; the columns of the log lead to the other shards with
something of it. Each shard that is needed is then read once, and of its entries no more than the
hashes are held. Nothing is believed here: what was put together is verified as a stranger would
(``evidence.py``) before anybody gets it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from agentguard.audit import approvals, checkpoint, evidence, find, merkle, statements
from agentguard.audit.calls import read_outcome
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Entry, StoredEntry, parse_entry, parse_time
from agentguard.audit.evidence import KeyName
from agentguard.audit.evidence_file import EvidenceFile, Extension, LoggedEntry
from agentguard.audit.find import Call, Progress
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


def prove(
    reader: LogReader,
    trust: TrustDocument,
    invocation_id: str,
    *,
    attachments: bool = True,
    progress: Progress = lambda _entries: None,
) -> bytes:
    """Return the file with the evidence of one call, verified under ``trust``.

    Without ``attachments``, arguments, policy input and result are left out, and only their
    commitments are shown. Raises ``CallError`` (``call.unknown``), ``StorageError``, and
    ``VerificationError`` where the log does not prove the call.
    """
    call = find.find(reader, invocation_id, progress)
    if call is None:
        raise _unknown(invocation_id)
    try:
        data = _Search(reader, trust, call, progress).file(attachments=attachments).dumps()
        evidence.verify(data, trust)
    except (DecodeError, EncodeError, VerificationError) as error:
        message = f"the log does not prove this call ({error}): agentguard audit verify says more"
        raise VerificationError(message, code=error.code) from error
    return data


@dataclass(frozen=True, slots=True)
class _Shard:
    """One shard up to its newest checkpoint: the hashes of all entries, and where a few stand.

    ``own`` are the indices of what may belong to the call, by kind; ``keys`` those of the entries
    that announce a key.
    """

    number: int
    note: bytes
    head: Checkpoint
    tree: merkle.Tree = field(default_factory=merkle.Tree)
    own: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    keys: dict[KeyName, int] = field(default_factory=dict)


class _Search:
    """Looks for everything that the statement of a call needs."""

    def __init__(
        self, reader: LogReader, trust: TrustDocument, call: Call, progress: Progress
    ) -> None:
        self._reader = reader
        self._trust = trust
        self._call = call
        self._at = parse_time(call.entry.at)
        self._progress = progress
        self._read = count(1)
        self._shards: dict[int, _Shard | None] = {}
        self._chosen: dict[tuple[int, int], StoredEntry] = {}
        self._pending: list[KeyName] = []

    def file(self, *, attachments: bool) -> EvidenceFile:
        """Choose what the proof needs: what is missing then, the verification says."""
        place = self._call.place
        shard = self._shard(place.shard)
        if shard is None or place.index >= shard.head.size:
            raise _unknown(place.invocation_id)
        own = [place.index, *shard.own["outcome"][:1]]
        kinds = ("config", "policy", "roster", "delegation")
        founded_on = [shard.own[kind][-1:] for kind in kinds]
        for index in (*own, *itertools.chain(*founded_on)):
            self._choose(shard, index)
        self._choose_identity(shard)
        self._choose_administered()
        seen, seen_in = self._seen()
        self._choose(seen_in, 0)
        self._choose_keys()
        kept = [kept for i in own for kept in self._chosen[place.shard, i].attachments]
        return EvidenceFile(
            place.invocation_id,
            tuple(self._logged()),
            (Extension(seen, tuple(seen_in.tree.consistency_proof(seen.size))),),
            tuple(sorted(kept, key=lambda one: one.role)) if attachments else (),
        )

    # --- reading ---------------------------------------------------------------------------------

    def _shard(self, number: int) -> _Shard | None:
        """Read a shard, once; None where it has no checkpoint that can be read."""
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
                break  # appended since its checkpoint was read
            self._progress(next(self._read))
            shard.tree.append(merkle.leaf_hash(body))
            # to parse all calls and outcomes of a long log would take minutes
            if find.is_call(body) or self._ends_another(shard, index, body):
                continue
            # one that can't be read is none of this call; audit verify names it
            with suppress(AgentguardError):
                parsed = parse_entry(body)
                if parsed.kind == "key":
                    shard.keys.setdefault(_announced(parsed), index)
                elif self._is_own(shard, index, parsed):
                    shard.own[parsed.kind].append(index)

    def _ends_another(self, shard: _Shard, index: int, body: bytes) -> bool:
        """Whether an entry is an outcome, and not the call's."""
        if not find.is_of(body, "outcome"):
            return False
        after = shard.number == self._call.place.shard and index > self._call.place.index
        subject = self._call.said.invocation_sha256.encode()
        return not (after and find.mentions(body, subject))

    def _is_own(self, shard: _Shard, index: int, parsed: Entry) -> bool:
        """Whether an entry is about the call or, in its shard and before it, what it stands on."""
        call, members = self._call.said, parsed.members
        match parsed.kind:
            case "outcome":
                return read_outcome(parsed).invocation_sha256 == call.invocation_sha256
            case "resolution" | "erasure":
                _kid, said = statements.read_sealed(parsed)
                own = said.subject_sha256 == call.invocation_sha256
                # whoever had a key that is compromised makes no call unprovable
                return own and statements.counts(parsed, self._trust)
            case "identity":
                own = jws.parse(str(members["credential"])).claims().get("sub") == call.agent
            case "delegation":
                own = call.chain_sha256 == statements.chain_digest(parsed)
            case "config":
                own = members["config_sha256"] == call.config_sha256
            case "policy":
                decided = (call.engine, call.policy_sha256)
                own = (members["engine"], members["policy_sha256"]) == decided
            case "roster":
                own = self._call.entry.members["roster_sha256"] == approvals.roster_digest(parsed)
            case _:
                own = False
        place = self._call.place
        return own and shard.number == place.shard and index < place.index

    # --- choosing --------------------------------------------------------------------------------

    def _choose(self, shard: _Shard, index: int) -> None:
        """Take an entry, and note down the keys that its proof needs."""
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
        """Take the newest credential that covers the call, else the newest, which tells why not."""
        newest_first = shard.own["identity"][::-1]
        for index in newest_first:
            if self._covers(parse_entry(self._stored(shard, index).body)):
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

    def _covers(self, parsed: Entry) -> bool:
        known = Credentials()
        try:
            token = str(parsed.members["credential"])
            known.add(credential.verify(token, self._trust, at=parse_time(parsed.at)))
            known.of_call(self._call.said, self._at)
        except (DecodeError, VerificationError):
            return False
        return True

    def _choose_administered(self) -> None:
        """Take what the administrator has said of the call, in whatever shard."""
        for kind in ("resolution", "erasure"):
            named = Search(kind, self._call.place.invocation_id)
            for number in self._reader.shards():
                if any(True for _index in self._reader.search(number, named)):
                    self._shard(number)
            for shard in filter(None, self._shards.values()):
                for index in shard.own[kind]:
                    self._choose(shard, index)

    def _choose_keys(self) -> None:
        """Take the announcement of each key, from the call's shard if it has it."""
        done: set[KeyName] = set()
        while self._pending:
            name = self._pending.pop()
            if name not in done:
                done.add(name)
                shard = next((shard for shard in self._announcing() if name in shard.keys), None)
                if shard is not None:
                    self._choose(shard, shard.keys[name])

    def _announcing(self) -> Iterator[_Shard]:
        """Yield the shards that were read, then those that by their columns announce keys; all."""
        read = [number for number, shard in self._shards.items() if shard is not None]
        named = [number for number in self._reader.shards() if self._announces(number)]
        for number in dict.fromkeys([*read, *named, *self._reader.shards()]):
            shard = self._shard(number)
            if shard is not None:
                yield shard

    def _announces(self, number: int) -> bool:
        return any(True for _index in self._reader.search(number, Search(kind="key")))

    def _seen(self) -> tuple[Checkpoint, _Shard]:
        """Return the checkpoint that the call carries, and the shard that it is of."""
        match self._call.said.predicate.get("log"):
            case {"origin": str(origin), "size": size, "root": str(root)} if is_integer(size):
                shard = self._shard(self._trust.shard_of(origin))
                if shard is not None and 0 < size <= shard.tree.size:
                    return Checkpoint(origin, size, b64_decode(root)), shard
        message = "the call carries no checkpoint that this log could have grown from"
        raise VerificationError(message, code="proof.invalid")

    # --- writing ---------------------------------------------------------------------------------

    def _logged(self) -> Iterator[LoggedEntry]:
        places = [(self._shards[number], index) for number, index in self._chosen]
        held = [(shard, index) for shard, index in places if shard is not None]
        for shard, index in sorted(held, key=lambda place: (place[0].head.origin, place[1])):
            path = tuple(shard.tree.inclusion_proof(index))
            body = self._chosen[shard.number, index].body
            yield LoggedEntry(body, TlogProof(index, path, shard.note))


def _announced(parsed: Entry) -> KeyName:
    _kid, said = statements.read_sealed(parsed)
    return str(said.predicate.get("use")), str(said.predicate.get("kid"))


def _signers(parsed: Entry) -> list[KeyName]:
    """Name the key of the trust document that has signed what an entry embeds."""
    match parsed.kind:
        case "identity":
            return [("issuer", str(jws.parse(str(parsed.members["credential"])).header.get("kid")))]
        case "delegation":
            hops, credentials = statements.chain_tokens(parsed)
            # the first two hops: the issuer signs for the first delegatee, too
            return [("issuer", grant.key_id(token)) for token in (*hops[:2], *credentials)]
        case "shard" | "key" | "roster":
            return [("issuer", statements.read_sealed(parsed)[0])]
        case "resolution" | "erasure":
            return [("admin", statements.read_sealed(parsed)[0])]
    return []


def _unknown(wanted: str) -> CallError:
    message = (
        f"no checkpoint of the log covers a call {wanted}: agentguard audit list --json has the "
        "ids of the calls that there are"
    )
    return CallError(message, code="call.unknown")
