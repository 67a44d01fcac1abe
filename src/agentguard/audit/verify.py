"""The verifier of a log: bytes in, findings out, and trust only from outside.

Given what a reader finds in a log, a trust document and the checkpoints that somebody kept
elsewhere, it recomputes every hash and checks every signature, and says where something does not
hold. It does no I/O. What it can't see from one log alone (a rollback of the whole state), it finds
through a checkpoint kept outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from agentguard.approvals.roster import Roster
from agentguard.audit import adoption, approvals, checkpoint, merkle, statements, summary
from agentguard.audit.adoption import Adoption
from agentguard.audit.approvals import Requested
from agentguard.audit.calls import Authorization, Commitments, read_authorization, read_outcome
from agentguard.audit.checkpoint import Checkpoint, End, WitnessedCheckpoint
from agentguard.audit.entry import Entry, StoredEntry, parse_entry, parse_time
from agentguard.audit.findings import LISTED, Gone, OpenCall, Problem, ShardReport
from agentguard.audit.merkle import CompactRange
from agentguard.audit.statements import Administered, Credentials
from agentguard.audit.summary import Summary
from agentguard.delegation.chain import Chain
from agentguard.errors import AgentguardError, VerificationError
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument, TrustedKey
from agentguard.signing.canonical import JSON
from agentguard.signing.dsse import Envelope


class _Own(NamedTuple):
    """A checkpoint of the log's own; ``signer`` is None where its signature was not checked."""

    point: Checkpoint
    note: bytes
    signer: TrustedKey | None


class _Said(NamedTuple):
    """What an entry says, as far as it bears on what stands beside it.

    ``call`` says of which call it is, if of one: the index, and the digest of the invocation.
    """

    summary: Summary
    commitments: Commitments = MappingProxyType({})
    call: tuple[int, str] | None = None


_BRAKES: Final = {
    "revocation": statements.check_revocation,
    "freeze": statements.check_freeze,
}


@dataclass(slots=True)
class ShardVerifier:
    """Walks one shard, entry by entry in the order of the log.

    ``kept`` are checkpoints of this shard from outside. A shard that nobody knows yet
    ``may_be_empty``: its writer died, or has not come to its first entry. ``seen`` are the calls of
    the shards before it, and gets its own: an agent has signed each once. Signatures are checked in
    entries from the time ``since`` on (seconds since the epoch), and always the newest
    checkpoint's; without ``contents`` only hashes and checkpoints are, and not what the entries
    say. Feed it through ``walk``; it keeps only what is needed to go on.
    """

    shard: int
    origin: str
    trust: TrustDocument
    kept: Sequence[WitnessedCheckpoint] = ()
    since: int = 0
    contents: bool = True
    may_be_empty: bool = False
    seen: set[bytes] = field(default_factory=set)
    _tree: CompactRange = field(default_factory=CompactRange)
    _problems: list[Problem] = field(default_factory=list)
    _unlisted: int = 0
    _gone: list[Gone] = field(default_factory=list)
    _heads: list[tuple[int, Checkpoint]] = field(default_factory=list)
    _embedded: set[str] = field(default_factory=set)  # the shards whose heads were seen so far
    _administered: list[tuple[int, Administered]] = field(default_factory=list)
    _chains: dict[str, Chain] = field(default_factory=dict)
    _rosters: dict[str, Roster] = field(default_factory=dict)
    _approvals: list[tuple[Requested, int]] = field(default_factory=list)
    _requests: list[tuple[Requested, Summary]] = field(default_factory=list)
    _calls: Counter[tuple[str, int]] = field(default_factory=Counter)
    _credentials: Credentials = field(default_factory=Credentials)
    _open: dict[str, OpenCall] = field(default_factory=dict)
    _announced: set[str] = field(default_factory=lambda: {str(None)})
    _modes: dict[str, str] = field(default_factory=dict)
    _observed: int = 0
    _adoptions: list[tuple[int, Adoption]] = field(default_factory=list)
    _strays: dict[str | None, int] = field(default_factory=dict)  # outcomes without a call, by id
    _head: _Own | None = None
    _seen: int = 0  # the size up to which what was kept outside agrees
    _at: int = 0  # the latest time of an entry so far
    _intact: bool = True

    def walk(self, entries: Iterable[StoredEntry], notes: Iterable[bytes]) -> Iterator[int]:
        """Check everything, yielding the number of entries so far; then see ``report``."""
        kept: dict[int, list[WitnessedCheckpoint]] = {}
        for seen in self.kept:  # two of one size may differ: then the log was forked
            kept.setdefault(seen.point.size, []).append(seen)
        pending = iter(notes)
        own = self._next_checkpoint(pending)
        stored = None
        for stored in entries:
            size = self._tree.size
            if stored.index != size:
                what = f"entry {size} is missing: the next one is {stored.index}"
                self._found(stored.index, what)
                self._intact = False
                return
            if self.contents:
                self._entry(stored)
            self._tree.append(merkle.leaf_hash(stored.body))
            size += 1
            while own is not None and own.point.size <= size:
                before = self._head.point.size if self._head is not None else 0
                self._compare(WitnessedCheckpoint(own.point, "the log's own checkpoint"), before)
                self._adopt(own)
                own = self._next_checkpoint(pending)
            for seen in kept.get(size, ()):
                self._compare(seen, self._seen)
            if self._intact and size in kept:
                self._seen = size
            yield size
        while own is not None:
            self._beyond(WitnessedCheckpoint(own.point, "the log's own checkpoint"))
            own = self._next_checkpoint(pending)
        self._end(stored)

    def report(self) -> ShardReport:
        """Return the findings after a ``walk`` to its end."""
        return ShardReport(
            shard=self.shard,
            entries=self._tree.size,
            head=self._head.point if self._head is not None else None,
            kept=bool(self.kept),
            anchored=bool(self.kept) and self._intact,
            open_calls=tuple(self._open.values()),
            administered=tuple(self._administered),
            heads=tuple(self._heads),
            gone=tuple(self._gone),
            problems=tuple(self._problems),
            unlisted=self._unlisted,
            counted=tuple((jti, most, used) for (jti, most), used in self._calls.items()),
            approvals=tuple(self._approvals),
            requests=tuple(self._requests),
            observed=self._observed,
            adoptions=tuple(self._adoptions),
        )

    def compare_end(self, end: End | None) -> None:
        """After a ``walk``, hold what the shard's writer would go on from against the entries."""
        if self._intact and end != End(self.origin, self._tree.size, self._tree.encode()):
            what = "its table shard, from which a writer goes on, does not agree with its entries"
            self._found(None, what)

    def _found(self, index: int | None, what: str) -> None:
        if len(self._problems) < LISTED:
            self._problems.append(Problem(self.shard, index, what))
        else:
            self._unlisted += 1

    # --- the tree and its checkpoints -----------------------------------------------------------

    def _next_checkpoint(self, notes: Iterator[bytes]) -> _Own | None:
        before = self._head.point.size if self._head is not None else 0
        for note in notes:
            try:
                own = self._own(note)
            except AgentguardError as error:
                after = f"a checkpoint of more than {before} entries"
                which = after if before else "the first checkpoint"
                self._found(before, f"{which} does not verify: {error}")
                self._intact = False
                continue
            if own.point.size <= before:
                self._found(own.point.size, "a checkpoint is repeated or out of order")
                continue
            return own
        return None

    def _own(self, note: bytes) -> _Own:
        if not self._checks_signatures():
            point = checkpoint.parse(note).checkpoint
            if point.origin != self.origin:
                raise VerificationError("it is another log's", code="checkpoint.origin")
            return _Own(point, note, None)
        point, signer = statements.check_checkpoint(note, self.trust, self.origin)
        return _Own(point, note, signer)

    def _checks_signatures(self) -> bool:
        return self.contents and self._at >= self.since

    def _compare(self, seen: WitnessedCheckpoint, before: int) -> None:
        """Hold a checkpoint against the entries so far; at ``before`` its like agreed last."""
        point, whose = seen
        if point.size != self._tree.size:
            self._found(point.size, f"{whose} of {point.size} entries has no place in the log")
            self._intact = False
        elif point.root != self._tree.root() and self._intact:
            where = (
                f"entries {before} to {point.size - 1} differ"
                if point.size - before > 1
                else "the entry differs"
            )
            self._found(before, f"{where} from what {whose} of {point.size} entries vouches for")
            self._intact = False

    def _adopt(self, own: _Own) -> None:
        """A checkpoint counts only if its key did when its newest entry was written."""
        if not self._intact:
            return
        self._head = own
        if own.signer is not None:
            try:
                own.signer.check(self._at)
            except VerificationError as error:
                size = own.point.size
                self._found(size - 1, f"the checkpoint of {size} entries: {error}")

    def _beyond(self, seen: WitnessedCheckpoint) -> None:
        point, whose = seen
        self._found(
            self._tree.size,
            f"the log ends here, but {whose} vouches for {point.size} entries: its tail is cut off",
        )
        self._intact = False

    def _end(self, newest: StoredEntry | None) -> None:
        size = self._tree.size
        if size == 0 and self.may_be_empty and not self.kept:
            return
        if self._head is None or self._head.point.size != size:
            if self._intact:
                what = "the newest entries are under no checkpoint" if size else "it is empty"
                self._found(size - 1 if size else None, what)
            self._intact = False
        elif self._head.signer is None and newest is not None:
            self._vouch(self._head, newest)
        for call in self._open.values():
            if call.invocation_id in self._strays:
                what = f"an outcome of another call has the id of the call at {call.place}"
                self._found(self._strays[call.invocation_id], what)
        furthest = max(self.kept, key=lambda seen: seen.point.size, default=None)
        if furthest is not None and furthest.point.size > size:
            self._beyond(furthest)

    def _vouch(self, head: _Own, newest: StoredEntry) -> None:
        """Check the newest checkpoint's signature, which covers all that stands before it."""
        try:
            _point, signer = statements.check_checkpoint(head.note, self.trust, self.origin)
            signer.check(max(self._at, parse_time(parse_entry(newest.body).at)))
            if signer.compromised_since is not None and not self.contents:
                raise VerificationError(
                    "its key was compromised: only the contents tell since when"
                )
        except AgentguardError as error:
            self._found(newest.index, f"the newest checkpoint does not verify: {error}")
            self._intact = False

    # --- what the entries say -------------------------------------------------------------------

    def _entry(self, stored: StoredEntry) -> None:
        try:
            parsed = parse_entry(stored.body)
            at = parse_time(parsed.at)
            self._at = max(self._at, at)  # a key that has ended does not come back with an old date
            if stored.index == 0 and parsed.kind != "shard":
                raise VerificationError("a shard begins with its opening entry")
            said = self._statements(stored, parsed, at)
            statements.check_attachments(stored.attachments, said.commitments)
            self._note_gone(stored, said)
            if stored.summary != said.summary:
                raise VerificationError(_other_columns(stored.summary, said.summary))
        except AgentguardError as error:
            self._found(stored.index, str(error))

    def _note_gone(self, stored: StoredEntry, said: _Said) -> None:
        kept = [attachment.role for attachment in stored.attachments]
        stated = said.commitments.items()
        roles = [role for role, value in stated if value is not None and role not in kept]
        if roles and said.call is not None:
            self._gone.append(Gone(stored.index, tuple(roles), *said.call))

    def _statements(self, stored: StoredEntry, parsed: Entry, at: int) -> _Said:
        """Check what is signed in an entry; return what it commits to, and its summary.

        A key of the issuer or the administrator must count at the entry's time and at that of all
        entries before it: whoever has one that is compromised could give an older time.
        """
        index = stored.index
        match parsed.kind:
            case "authorization":
                return self._authorization(index, parsed, at)
            case "outcome":
                return self._outcome(index, parsed)
            case "identity" | "delegation" | "request" | "resolution" | "erasure":
                return self._about(index, parsed, at)
        self._announcement(index, parsed)
        return _Said(Summary(parsed.kind, parsed.at))

    def _about(self, index: int, parsed: Entry, at: int) -> _Said:
        """Check an entry that is searched for by whom or what it is about."""
        signatures = self._checks_signatures()
        match parsed.kind:
            case "identity":
                token = parsed.members["credential"]
                verified = credential.verify(str(token), self.trust, at=at)
                self._credentials.add(verified)
                about = summary.of_identity(verified.uri, at=parsed.at)
            case "delegation":
                chain = statements.check_delegation(parsed, self.trust, at)
                self._chains[chain.sha256] = chain
                about = summary.of_delegation(chain.leaf, at=parsed.at)
            case "request":
                about = approvals.summary_of_request(parsed)
                self._requests.append((approvals.read_request(parsed), about))
            case _:
                said = statements.check_administered(
                    parsed, self.trust, self._at, signatures=signatures
                )
                self._administered.append((index, said))
                about = Summary(parsed.kind, parsed.at, said.call.invocation_id)
        return _Said(about)

    def _announcement(self, index: int, parsed: Entry) -> None:
        """Check an entry that tells what counts from here on."""
        signatures = self._checks_signatures()
        match parsed.kind:
            case "shard":
                self._shard(index, parsed)
            case "key":
                self._issued(parsed)
            case "config" | "policy":
                self._announce(parsed)
            case "roster":
                found = approvals.check_roster(parsed, self.trust, self._at, signatures=signatures)
                self._rosters[found.people.sha256] = found.people
            case "revocation" | "freeze":
                _BRAKES[parsed.kind](parsed, self.trust, self._at, signatures=signatures)
            case "adoption":
                said = adoption.check(parsed, self.trust, self._at, signatures=signatures)
                self._adoptions.append((index, said))

    def _issued(self, parsed: Entry) -> Mapping[str, JSON]:
        _issuer, said = statements.check_issued(
            parsed, self.trust, self._at, signatures=self._checks_signatures()
        )
        return said

    def _announce(self, parsed: Entry) -> None:
        if parsed.kind == "config":
            digest = statements.check_config(parsed)
            self._announced.add(digest)
            self._modes[digest] = statements.mode_of(parsed)
        else:
            self._announced.add(str(parsed.members["policy_sha256"]))

    def _shard(self, index: int, parsed: Entry) -> None:
        opening = self._issued(parsed)
        statements.check_opening(opening, self.origin, self.shard)
        heads = statements.read_heads(opening)
        self._heads += [(index, head) for head in heads]
        # no shard ends: one that was there at an earlier opening is there at each later one
        absent = sorted(self._embedded.difference(head.origin for head in heads))
        self._embedded.update(head.origin for head in heads)
        if absent:
            message = f"it leaves out the head of {absent[0]}, which an opening before it embeds"
            raise VerificationError(message, code="statement.mismatch")

    def _authorization(self, index: int, parsed: Entry, at: int) -> _Said:
        call = read_authorization(parsed)
        issued = self._credentials.of_call(call, at)
        chain = self._chain_of(call)
        statements.check_call(call, issued, chain, at, signatures=self._checks_signatures())
        if not {call.config_sha256, str(call.policy_sha256)} <= self._announced:
            raise VerificationError("a configuration or policy that no entry before it announces")
        if self._modes.get(call.config_sha256) != call.mode:
            raise VerificationError("the policy was asked in another mode than is configured")
        self._observed += not call.enforced
        subject = call.invocation_sha256
        if (digest := bytes.fromhex(subject)) in self.seen:  # half as long: there are many
            raise VerificationError("the same invocation stands in the log before")
        self.seen.add(digest)
        answers = approvals.check_approvals(call, parsed, self._roster_of(parsed), issued, at)
        if call.allowed:
            self._approvals += [(asked, index) for asked in approvals.answered(answers)]
            if chain is not None and "replay_of" not in parsed.members:
                self._calls.update(chain.limits)
            self._open[subject] = OpenCall(index, str(call.invocation_id), subject, issued)
        about = summary.of_call(call.predicate, at=parsed.at, decision=call.effect)
        return _Said(about, call.commitments, (index, subject))

    def _chain_of(self, call: Authorization) -> Chain | None:
        """Return the chain that a call names."""
        if call.chain_sha256 is None:
            return None
        chain = self._chains.get(call.chain_sha256)
        if chain is None:
            raise VerificationError("a chain of delegation that no entry before it keeps")
        return chain

    def _roster_of(self, parsed: Entry) -> Roster | None:
        """Return the roster that a call names."""
        named = approvals.roster_named(parsed)
        if named is None:
            return None
        people = self._rosters.get(named)
        if people is None:
            raise VerificationError("a roster of approvers that no entry before it states")
        return people

    def _outcome(self, index: int, parsed: Entry) -> _Said:
        outcome = read_outcome(parsed)
        subject = outcome.invocation_sha256
        call = self._open.pop(subject, None)
        if call is None:
            if outcome.predicate.get("authorization") is not None or outcome.status != "not_run":
                raise VerificationError("an outcome without an authorised call that waits for one")
            # interrupted before its authorization was durable: only what it says of it is known
            holder = self._credentials.holder(outcome.sealed)
            self._signed_by(holder, outcome.sealed)
            self._strays[outcome.invocation_id] = index
            about = summary.of_outcome(
                outcome.invocation_id, holder.uri, at=parsed.at, status="not_run"
            )
            return _Said(about)
        statements.check_place(outcome, self.shard, call.place)
        if outcome.invocation_id not in (None, call.invocation_id):
            raise VerificationError("an outcome names another call than the one that it is of")
        # by the instance that made the call, whose credential may have run out while it ran
        self._signed_by(call.issued, outcome.sealed)
        about = summary.of_outcome(
            call.invocation_id, call.issued.uri, at=parsed.at, status=outcome.status
        )
        return _Said(about, outcome.commitments, (call.place, subject))

    def _signed_by(self, issued: Credential, sealed: Envelope) -> None:
        statements.check_signed(sealed, issued, signatures=self._checks_signatures())


def _other_columns(kept: Summary | None, recomputed: Summary) -> str:
    if kept is None:
        return "the columns by which it is searched for are missing"
    other = [name for name in Summary._fields if getattr(kept, name) != getattr(recomputed, name)]
    return f"the columns by which it is searched for were changed ({', '.join(other)})"
