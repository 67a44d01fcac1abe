"""The verifier of what the entries of one shard say: statements, signatures, and their order.

``ContentsVerifier`` reads the entries in the order of the log and checks each against the entries
before it. ``verify.py`` checks the hashes and the checkpoints, and feeds the entries to this
verifier. ``statements.py`` and ``approval_checks.py`` check single statements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from agentguard.approvals.roster import Roster
from agentguard.audit import (
    approval_checks,
    evaluations,
    late_calls,
    logouts,
    statements,
    summary,
    surrenders,
)
from agentguard.audit.adoption import Adoption, check_adoption
from agentguard.audit.ahead import ReadEntry, Reading
from agentguard.audit.approval_checks import LoggedEnd, LoggedRequest, RequestDigests
from agentguard.audit.calls import (
    Authorization,
    Commitments,
    Outcome,
    read_authorization,
    read_outcome,
)
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Entry, StoredEntry, parse_entry, parse_time
from agentguard.audit.evaluations import LoggedEvaluation
from agentguard.audit.findings import LatestCall, LoggedOut, MissingData, OpenCall
from agentguard.audit.http_requests import ProofVerifier, summary_at_receiver
from agentguard.audit.secret_releases import ReleaseVerifier
from agentguard.audit.statements import AdminStatement, Credentials
from agentguard.audit.summary import Summary
from agentguard.delegation.chain import Chain
from agentguard.errors import VerificationError
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing.canonical import JSON

_REFUSALS: Final = {
    "revocation": statements.check_revocation,
    "freeze": statements.check_freeze,
}


class _Content(NamedTuple):
    """The content of an entry that the data beside the entry must agree with.

    ``call`` is the call of an authorization or outcome: the index of the authorization in the
    shard, and the digest of the invocation.
    """

    summary: Summary
    commitments: Commitments = MappingProxyType({})
    call: tuple[int, str] | None = None


@dataclass(slots=True)
class ContentsVerifier:
    """Verifies the entries of one shard in their order, and collects what other shards need.

    ``invocations`` are the digests of all invocations and evaluations so far, also of the shards
    before this one: each is signed once, and so is the outcome of an invocation that is not in the
    log. Signatures are checked in entries from the time ``since`` on (seconds since the epoch).
    """

    shard: int
    origin: str
    trust: TrustDocument
    since: int
    invocations: set[bytes]
    latest_time: int = 0
    """The latest time of an entry so far, in seconds since the epoch."""

    missing_data: list[MissingData] = field(default_factory=list)
    heads: list[tuple[int, Checkpoint]] = field(default_factory=list)
    admin_statements: list[tuple[int, AdminStatement]] = field(default_factory=list)
    approvals: list[tuple[RequestDigests, int]] = field(default_factory=list)
    requests: list[tuple[LoggedRequest, Summary]] = field(default_factory=list)
    request_ends: list[tuple[LoggedEnd, int]] = field(default_factory=list)
    adoptions: list[tuple[int, Adoption]] = field(default_factory=list)
    call_counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    logouts: list[LoggedOut] = field(default_factory=list)
    surrenders: list[tuple[str, int]] = field(default_factory=list)
    latest_calls: dict[str, LatestCall] = field(default_factory=dict)
    open_calls: dict[str, OpenCall] = field(default_factory=dict)
    observed_calls: int = 0
    _embedded_origins: set[str] = field(default_factory=set)
    _chains: dict[str, Chain] = field(default_factory=dict)
    _rosters: dict[str, Roster] = field(default_factory=dict)
    _credentials: Credentials = field(default_factory=Credentials)
    _digests: set[str] = field(default_factory=lambda: {str(None)})  # of configurations, policies
    _modes: dict[str, str] = field(default_factory=dict)
    _unauthorised: dict[str | None, int] = field(default_factory=dict)  # outcomes without a call
    _releases: ReleaseVerifier = field(init=False)
    _proofs: ProofVerifier = field(init=False)

    def __post_init__(self) -> None:
        self._releases = ReleaseVerifier(self.shard)
        self._proofs = ProofVerifier(self.shard)

    @property
    def checks_signatures(self) -> bool:
        """Whether the newest entry is recent enough for its signatures to be checked."""
        return self.latest_time >= self.since

    def verify(self, read: ReadEntry) -> None:
        """Verify the next entry and the data beside the entry.

        Raises ``DecodeError`` or ``VerificationError``.
        """
        stored, reading = read.stored, read.reading
        entry = parse_entry(stored.body) if reading.entry is None else reading.entry
        at = parse_time(entry.at) if reading.at is None else reading.at
        # an entry with an older time does not revive a key that has ended
        self.latest_time = max(self.latest_time, at)
        if stored.index == 0 and entry.kind != "shard":
            raise VerificationError("a shard begins with its opening entry")
        content = self._content(stored.index, reading, entry, at)
        statements.check_attachments(stored.attachments, content.commitments)
        self._note_missing_data(stored, content)
        if stored.summary != content.summary:
            raise VerificationError(_column_problem(stored.summary, content.summary))

    def mistaken_outcomes(self) -> Iterator[tuple[int, str]]:
        """Yield, after the last entry, each outcome that gives an open call's id to another call.

        Each is the index of the outcome, and the problem in words.
        """
        for call in self.open_calls.values():
            if call.invocation_id in self._unauthorised:
                what = f"an outcome of another call has the id of the call at {call.place}"
                yield self._unauthorised[call.invocation_id], what

    def _note_missing_data(self, stored: StoredEntry, content: _Content) -> None:
        if content.call is None:
            return
        present = [attachment.role for attachment in stored.attachments]
        stated = content.commitments.items()
        missing = [role for role, value in stated if value is not None and role not in present]
        if missing:
            self.missing_data.append(MissingData(stored.index, tuple(missing), *content.call))

    def _content(self, index: int, reading: Reading, entry: Entry, at: int) -> _Content:
        """Check the statement in an entry, and return the entry's commitments and summary.

        A key of the issuer or the administrator must be valid at the entry's time and at the time
        of all entries before. Otherwise the holder of a compromised key could give an older time.
        """
        match entry.kind:
            case "call":
                return self._authorization(index, reading, entry, at)
            case "outcome":
                return self._outcome(index, reading, entry)
            case "secret" | "proof" | "receipt" | "received" | "refused":
                return _Content(self._release(entry))
            case "identity" | "delegation" | "surrender" | "resolution" | "erasure":
                return _Content(self._subject(index, entry, at))
            case "evaluation" | "request" | "request_end":
                return _Content(self._asked(index, entry, at))
        self._announcement(index, entry)
        return _Content(Summary(entry.kind, entry.at))

    def _release(self, entry: Entry) -> Summary:
        """Check what a running call got, or what a receiver says of a request."""
        if entry.kind == "secret":
            return self._releases.check(entry)
        is_of_agent = entry.kind in ("proof", "receipt")
        return self._proofs.check(entry) if is_of_agent else summary_at_receiver(entry)

    def _subject(self, index: int, entry: Entry, at: int) -> Summary:
        """Check an entry about an agent or a call, and return the entry's summary."""
        match entry.kind:
            case "identity":
                token = entry.members["credential"]
                issued = credential.verify(str(token), self.trust, at=at)
                self._credentials.add(issued)
                return summary.of_identity(issued.uri, at=entry.at)
            case "delegation":
                chain = statements.check_delegation(entry, self.trust, at)
                self._chains[chain.sha256] = chain
                return summary.of_delegation(chain.leaf, at=entry.at)
            case "surrender":
                surrender = surrenders.check(entry, self.trust, self.latest_time)
                self.surrenders.append((surrender.jti, min(at, surrender.latest)))
                return surrender.summary
        statement = statements.check_admin_statement(
            entry, self.trust, self.latest_time, signatures=self.checks_signatures
        )
        self.admin_statements.append((index, statement))
        return Summary(entry.kind, entry.at, statement.call.invocation_id)

    def _asked(self, index: int, entry: Entry, at: int) -> Summary:
        """Check what the policy or people were asked, and return the entry's summary."""
        if entry.kind == "evaluation":
            return self._evaluation(entry, at)
        return self._request(index, entry, at)

    def _request(self, index: int, entry: Entry, at: int) -> Summary:
        """Check a request for an approval, or its end, and return the entry's summary."""
        about = approval_checks.summary_of_request(entry)
        if entry.kind == "request":
            digest = entry.members["chain_sha256"]
            chain = None if digest is None else self._chain_named(str(digest))
            self.requests.append((approval_checks.check_request(entry, chain), about))
        else:
            ended = approval_checks.check_request_end(entry, self._roster_of(entry), at)
            self.request_ends.append((ended, index))
        return about

    def _announcement(self, index: int, entry: Entry) -> None:
        """Check an entry that states what is in force from now on."""
        at, signatures = self.latest_time, self.checks_signatures
        match entry.kind:
            case "shard":
                self._opening(index, entry)
            case "key":
                self._issued(entry)
            case "config":
                digest = statements.check_config(entry)
                self._digests.add(digest)
                self._modes[digest] = statements.policy_mode(entry)
                self._releases.add_config(digest, entry.members["config"])
            case "policy":
                self._digests.add(str(entry.members["policy_sha256"]))
            case "roster":
                signed = approval_checks.check_roster(entry, self.trust, at, signatures=signatures)
                self._rosters[signed.roster.sha256] = signed.roster
            case "revocation" | "freeze":
                _REFUSALS[entry.kind](entry, self.trust, at, signatures=signatures)
            case "logout":
                self.logouts.append(LoggedOut(logouts.read(entry), parse_time(entry.at)))
            case "adoption":
                adopted = check_adoption(entry, self.trust, at, signatures=signatures)
                self.adoptions.append((index, adopted))

    def _issued(self, entry: Entry) -> Mapping[str, JSON]:
        _issuer, predicate = statements.check_issued(
            entry, self.trust, self.latest_time, signatures=self.checks_signatures
        )
        return predicate

    def _opening(self, index: int, entry: Entry) -> None:
        opening = self._issued(entry)
        statements.check_opening(opening, self.origin, self.shard)
        heads = statements.read_heads(opening)
        self.heads += [(index, head) for head in heads]
        # no shard ends: a shard in an earlier opening is in each later opening
        absent = sorted(self._embedded_origins.difference(head.origin for head in heads))
        self._embedded_origins.update(head.origin for head in heads)
        if absent:
            message = f"it leaves out the head of {absent[0]}, which an opening before it embeds"
            raise VerificationError(message, code="statement.mismatch")

    def _authorization(self, index: int, reading: Reading, entry: Entry, at: int) -> _Content:
        call = reading.content
        if not isinstance(call, Authorization):
            call = read_authorization(entry)
        issued = self._credentials.of_call(call, at)
        chain = self._chain_of(call)
        signatures = self._is_unchecked(reading, issued)
        statements.check_call(call, issued, chain, self.trust, at, signatures=signatures)
        self._require_announced(call)
        self.observed_calls += not call.enforced
        self._require_first(call.invocation_sha256, "the same invocation stands in the log before")
        answers = approval_checks.check_approvals(call, entry, self._roster_of(entry), issued, at)
        if call.allowed:
            if answers:
                requests = approval_checks.answered_requests(answers)
                self.approvals += [(request, index) for request in requests]
            is_replay = statements.is_replay(entry)
            if chain is not None and not is_replay:
                self.call_counts.update(chain.limits)
            if chain is not None:
                self._note_latest(chain, at, index)
            subject = call.invocation_sha256
            self.open_calls[subject] = OpenCall(
                index, str(call.invocation_id), subject, issued, is_replay
            )
            self._releases.begin(call, index, chain)
            self._proofs.begin(call, index, chain)
        call_summary = summary.of_call(call.predicate, at=entry.at, decision=call.effect)
        return _Content(call_summary, call.commitments, (index, call.invocation_sha256))

    def _evaluation(self, entry: Entry, at: int) -> Summary:
        """Check an evaluation against the entries before it, and return the entry's summary."""
        read = evaluations.check_evaluation(
            entry, self.trust, self.latest_time, signatures=self.checks_signatures
        )
        self._require_announced(read)
        self._require_first(read.sha256, "the same evaluation stands in the log before")
        evaluations.check_chain(read, self._chain_of(read), self.trust, at)
        return read.summary

    def _require_announced(self, call: Authorization | LoggedEvaluation) -> None:
        """Require that entries before have the configuration, the policy and the mode of a call."""
        digests = self._digests
        if call.config_sha256 not in digests or str(call.policy_sha256) not in digests:
            raise VerificationError("a configuration or policy that no entry before it announces")
        if self._modes.get(call.config_sha256) != call.mode:
            raise VerificationError("the policy was asked in another mode than is configured")

    def _note_latest(self, chain: Chain, at: int, index: int) -> None:
        before = self.latest_calls.get(chain.sha256)
        names = late_calls.names_of(chain) if before is None else before.names
        self.latest_calls[chain.sha256] = LatestCall(at, index, names)

    def _require_first(self, sha256: str, problem: str) -> None:
        digest = bytes.fromhex(sha256)  # half the size of the text, for many calls
        if digest in self.invocations:
            raise VerificationError(problem)
        self.invocations.add(digest)

    def _chain_of(self, call: Authorization | LoggedEvaluation) -> Chain | None:
        return None if call.chain_sha256 is None else self._chain_named(call.chain_sha256)

    def _chain_named(self, digest: str) -> Chain:
        chain = self._chains.get(digest)
        if chain is None:
            raise VerificationError("a chain of delegation that no entry before it keeps")
        return chain

    def _roster_of(self, entry: Entry) -> Roster | None:
        digest = approval_checks.roster_digest_of_answers(entry)
        if digest is None:
            return None
        roster = self._rosters.get(digest)
        if roster is None:
            raise VerificationError("a roster of approvers that no entry before it states")
        return roster

    def _outcome(self, index: int, reading: Reading, entry: Entry) -> _Content:
        outcome = reading.content
        if not isinstance(outcome, Outcome):
            outcome = read_outcome(entry)
        call = self.open_calls.pop(outcome.invocation_sha256, None)
        self._releases.end(outcome.invocation_sha256)
        self._proofs.end(outcome.invocation_sha256)
        if call is None:
            return self._outcome_without_call(index, reading, entry, outcome)
        statements.check_outcome(
            outcome, self.shard, call.place, call.invocation_id, is_replay=call.is_replay
        )
        # the credential of the call's instance may have expired while the tool ran
        if self._is_unchecked(reading, call.issued):
            outcome.envelope.verify(call.issued.key)
        outcome_summary = summary.of_outcome(
            call.invocation_id, call.issued.uri, at=entry.at, status=outcome.status
        )
        return _Content(
            outcome_summary, outcome.commitments, (call.place, outcome.invocation_sha256)
        )

    def _outcome_without_call(
        self, index: int, reading: Reading, entry: Entry, outcome: Outcome
    ) -> _Content:
        """Check the outcome of a call that was interrupted before the authorization was durable."""
        if outcome.predicate.get("authorization") is not None or outcome.status != "not_run":
            raise VerificationError("an outcome without an authorised call that waits for one")
        problem = "an outcome of a call that has an outcome already, or that was denied"
        self._require_first(outcome.invocation_sha256, problem)
        signer = self._credentials.holder(outcome.envelope)
        if self._is_unchecked(reading, signer):
            outcome.envelope.verify(signer.key)
        self._unauthorised[outcome.invocation_id] = index
        return _Content(
            summary.of_outcome(outcome.invocation_id, signer.uri, at=entry.at, status="not_run")
        )

    def _is_unchecked(self, reading: Reading, issued: Credential) -> bool:
        """Whether the statement in an entry is still to be checked against an instance's key."""
        if not self.checks_signatures:
            return False
        return reading.signer is not issued.key and reading.signer != issued.key


def _column_problem(kept: Summary | None, recomputed: Summary) -> str:
    if kept is None:
        return "the columns by which it is searched for are missing"
    changed: Sequence[str] = [
        name for name in Summary._fields if getattr(kept, name) != getattr(recomputed, name)
    ]
    return f"the columns by which it is searched for were changed ({', '.join(changed)})"
