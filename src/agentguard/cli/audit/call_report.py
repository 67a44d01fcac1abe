"""The report on one call, read from the log: the agent, the principal, the decision, the outcome.

The builder of a report checks the signatures, the credential and the data whose digests the log
holds. A check that fails becomes a problem in the report. ``audit verify`` checks the log as a
whole. ``lookup.py`` finds the call that a name means, and ``show.py`` prints the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from agentguard.approvals.roster import Answer
from agentguard.audit import approval_checks, statements
from agentguard.audit.calls import (
    Authorization,
    Commitments,
    Outcome,
    read_authorization,
    read_outcome,
)
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Entry, parse_time
from agentguard.audit.find import (
    LocatedEntry,
    LoggedCall,
    entries_of_call,
    find_call,
    find_delegation,
    find_request,
    find_roster,
    releases_of_call,
)
from agentguard.audit.log import LogReader
from agentguard.audit.statements import AdminStatement, Credentials
from agentguard.cli.audit import lookup, phrases
from agentguard.delegation.chain import Chain
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.storage import sqlite

_OUTCOME_MEMBERS: Final = ("result_type", "error_type", "started_at", "ended_at", "replay_of")


class AdminRecord(NamedTuple):
    """A resolution or an erasure that the admin key has signed, and the entry that holds it."""

    statement: AdminStatement
    log_entry: LocatedEntry

    def as_json(self) -> dict[str, JSON]:
        """Return the place, the time, the note and, of a resolution, whether the call ran."""
        place: dict[str, JSON] = {"shard": self.log_entry.shard, "index": self.log_entry.index}
        ran: dict[str, JSON] = {} if self.statement.ran is None else {"ran": self.statement.ran}
        return {**place, "at": self.log_entry.entry.at, "note": self.statement.note, **ran}


@dataclass(slots=True)
class CallReport:
    """One call: its authorization, its outcome, and the admin's resolution and erasure.

    ``credential``, ``chain`` and ``head`` (the newest checkpoint of the shard) are None where they
    do not verify; ``chain`` is None also where the agent acted on its own authority.
    ``around`` is the call whose tool made this one, unverified; None where there is no such call,
    or the log does not have it. ``request`` is the request for the call's approval, unverified;
    None where nobody was asked, or the log does not have it. ``releases`` are the entries of the
    secrets and of the proofs of HTTP requests that the tool got, unverified. ``attachments`` maps a
    role to the decoded data beside the log. ``problems`` lists the checks that failed.
    """

    shard: int
    index: int
    entry: Entry
    call: Authorization
    credential: Credential | None = None
    chain: Chain | None = None
    answers: tuple[Answer, ...] = ()
    outcome_entry: LocatedEntry | None = None
    outcome: Outcome | None = None
    releases: tuple[LocatedEntry, ...] = ()
    resolution: AdminRecord | None = None
    erasure: AdminRecord | None = None
    head: Checkpoint | None = None
    around: LoggedCall | None = None
    request: LocatedEntry | None = None
    attachments: dict[str, JSON] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def commitments(self) -> Commitments:
        """Return the digests of the data to which the call and its outcome commit, by role."""
        return {**self.call.commitments, **(self.outcome.commitments if self.outcome else {})}

    def releases_of(self, kind: str) -> Iterator[LocatedEntry]:
        """Yield the entries of the secrets (``secret``), or of the proofs (``proof``)."""
        return (release for release in self.releases if release.entry.kind == kind)

    def as_json(self) -> dict[str, JSON]:
        """Return what ``audit show --json`` prints."""
        call, members = self.call, self.entry.members
        return {
            "index": self.index,
            "shard": self.shard,
            "at": self.entry.at,
            "invocation_id": call.invocation_id,
            "agent": call.agent,
            "principal": call.principal,
            "proved": call.is_proved,
            "credential": _credential_json(self.credential),
            "delegation": _chain_json(self.chain),
            "inside": call.inside,
            "inside_call": _around_json(self.around),
            "requirements": members["requirements"],
            "request": _request_json(self.request),
            "approvals": [phrases.answer_json(answer) for answer in self.answers],
            "tool": call.predicate["tool"],
            "arguments": self.attachments.get("arguments"),
            "input": self.attachments.get("input"),
            "facts": phrases.facts(self.attachments.get("input")),
            "resource": call.predicate.get("resource"),
            "task_id": call.predicate.get("task_id"),
            "traceparent": call.predicate.get("traceparent"),
            "decision": call.decision,
            "mode": call.mode,
            "enforced": call.enforced,
            "code": call.code,
            "reasons": [*call.reasons],
            "engine": members["engine"],
            "policy_sha256": members["policy_sha256"],
            "evaluation": call.evaluation.as_json() if call.evaluation else None,
            "config_sha256": members["config_sha256"],
            "secrets": [_release_json(one) for one in self.releases_of("secret")],
            "requests": [_proof_json(one) for one in self.releases_of("proof")],
            "receipts": [_receipt_json(one) for one in self.releases_of("receipt")],
            **phrases.client_json(call),
            "outcome": self._outcome_json(),
            "problems": [*self.problems],
            "resolution": self.resolution.as_json() if self.resolution is not None else None,
            "erasure": self.erasure.as_json() if self.erasure is not None else None,
            "checkpoint": _head_json(self.head),
        }

    def _outcome_json(self) -> JSON:
        if self.outcome is None or self.outcome_entry is None:
            return None
        members = self.outcome.predicate
        return {
            "index": self.outcome_entry.index,
            "status": self.outcome.status,
            "result": self.attachments.get("result"),
            **{name: members.get(name) for name in _OUTCOME_MEMBERS},
        }


def read(reader: LogReader, log_entry: LocatedEntry, trust: TrustDocument) -> CallReport:
    """Read and check the call of the entry of a call.

    Raises ``DecodeError`` for an entry that can't be read, and ``StorageError``.
    """
    call = read_authorization(log_entry.entry)
    report = CallReport(log_entry.shard, log_entry.index, log_entry.entry, call)
    _ReportBuilder(reader, trust, report).build()
    return report


@dataclass(slots=True)
class _ReportBuilder:
    """Checks the parts of a call one by one, and adds them to its report."""

    reader: LogReader
    trust: TrustDocument
    report: CallReport

    def build(self) -> None:
        report = self.report
        report.credential = issued = self._credential()
        with self._problem("the delegation does not hold"):
            report.chain = self._chain()
        if issued is not None and (report.chain is not None) is (
            report.call.chain_sha256 is not None
        ):
            with self._problem("the invocation does not hold"):
                at = parse_time(report.entry.at)
                statements.check_call(report.call, issued, report.chain, self.trust, at)
        if issued is not None:
            with self._problem("the approvals do not hold"):
                report.answers = self._answers(issued)
        if report.call.inside is not None:
            report.around = find_call(self.reader, report.call.inside)
        report.request = find_request(self.reader, report.call, report.entry)
        if report.call.allowed:
            self._outcome()
            self._releases()
        self._attach(report.index, report.call.commitments)
        if report.call.allowed and report.outcome is None:
            report.resolution = self._admin_record("resolution")
        committed = [
            role for role, commitment in report.commitments().items() if commitment is not None
        ]
        if not set(committed) <= report.attachments.keys():
            report.erasure = self._admin_record("erasure")
        with self._problem("the newest checkpoint does not hold"):
            report.head = self._head()

    def _credential(self) -> Credential | None:
        call, at = self.report.call, parse_time(self.report.entry.at)
        newest: AgentguardError | None = None
        for identity in lookup.credentials(self.reader, call, self._call_entry()):
            credentials = Credentials()
            try:
                token = str(identity.entry.members["credential"])
                credentials.add(
                    credential.verify(token, self.trust, at=parse_time(identity.entry.at))
                )
                return credentials.of_call(call, at)
            except (DecodeError, VerificationError) as error:
                newest = newest or error
        if newest is None:
            self.report.problems.append("no credential of this agent stands before the call")
        else:
            self.report.problems.append(f"the credential does not hold: {newest}")
        return None

    def _chain(self) -> Chain | None:
        report = self.report
        call = report.call
        if call.chain_sha256 is None:
            return None
        delegation = find_delegation(self.reader, call, report.shard, report.index)
        if delegation is None:
            raise VerificationError("no entry before the call holds its chain")
        return statements.check_delegation(
            delegation.entry, self.trust, parse_time(delegation.entry.at)
        )

    def _answers(self, issued: Credential) -> tuple[Answer, ...]:
        """Return the approvals of the call, checked against the roster that the call names."""
        report, people = self.report, None
        digest = approval_checks.roster_digest_of_answers(report.entry)
        if digest is not None:
            log_entry = find_roster(self.reader, digest, report.shard, report.index)
            if log_entry is None:
                raise VerificationError("no entry before the call states its roster")
            at = parse_time(log_entry.entry.at)
            people = approval_checks.check_roster(log_entry.entry, self.trust, at).roster
        at = parse_time(report.entry.at)
        return approval_checks.check_approvals(report.call, report.entry, people, issued, at)

    def _outcome(self) -> None:
        report = self.report
        for log_entry in self._entries_of("outcome", [report.shard], after=report.index)[:1]:
            report.outcome_entry = log_entry
            report.outcome = outcome = read_outcome(log_entry.entry)
            with self._problem("the outcome does not hold"):
                statements.check_outcome(
                    outcome,
                    report.shard,
                    report.index,
                    report.call.invocation_id,
                    is_replay=statements.is_replay(report.entry),
                )
                if report.credential is not None:  # without one, that is a problem already
                    outcome.envelope.verify(report.credential.key)
            self._attach(log_entry.index, outcome.commitments)

    def _releases(self) -> None:
        report = self.report
        end = report.outcome_entry.index if report.outcome_entry is not None else None
        report.releases = tuple(
            releases_of_call(self.reader, report.shard, report.index, end, report.call)
        )

    def _admin_record(self, kind: str) -> AdminRecord | None:
        """Return the newest resolution or erasure of the call with the admin key's signature."""
        records: list[AdminRecord] = []
        for log_entry in self._entries_of(kind, self.reader.shards()):
            with self._problem(f"the {kind} at {log_entry.shard}/{log_entry.index} does not hold"):
                at = max(parse_time(log_entry.entry.at), parse_time(self.report.entry.at))
                statement = statements.check_admin_statement(log_entry.entry, self.trust, at)
                if statement.is_of(self.report.shard, self.report.index, self.report.call):
                    records.append(AdminRecord(statement, log_entry))
        return max(records, key=lambda record: record.log_entry.entry.at, default=None)

    def _head(self) -> Checkpoint:
        report = self.report
        note = self.reader.checkpoint(report.shard)
        if note is None:
            raise VerificationError("there is none")
        origin = self.trust.origin(report.shard)
        head, _key = statements.check_checkpoint(note, self.trust, origin)
        if head.size <= report.index:
            raise VerificationError(f"it covers {head.size} entries, and not this one")
        return head

    def _attach(self, index: int, commitments: Commitments) -> None:
        """Add the data beside an entry to the report where the entry's commitments match."""
        stored = self.reader.entry(self.report.shard, index)
        for attachment in stored.attachments if stored is not None else ():
            try:
                statements.check_attachments([attachment], commitments)
                data = canonical.loads(attachment.data, limit=sqlite.MAX_LENGTH)
            except VerificationError:
                self.report.problems.append(
                    f"the {attachment.role} kept beside the log were changed"
                )
            except DecodeError as error:
                what = f"the {attachment.role} kept beside the log are no JSON: {error}"
                self.report.problems.append(what)
            else:
                self.report.attachments[attachment.role] = data

    def _entries_of(
        self, kind: str, shards: Sequence[int], *, after: int = -1
    ) -> list[LocatedEntry]:
        return entries_of_call(self.reader, kind, self.report.call, shards, after=after)

    def _call_entry(self) -> LocatedEntry:
        return LocatedEntry(self.report.shard, self.report.index, self.report.entry)

    @contextmanager
    def _problem(self, what: str) -> Iterator[None]:
        """Turn an error of the block into a problem of the report."""
        try:
            yield
        except (DecodeError, VerificationError) as error:
            self.report.problems.append(f"{what}: {error}")


def _credential_json(credential: Credential | None) -> JSON:
    if credential is None:
        return None
    return {
        "type": credential.profile.type,
        "owner": credential.profile.owner,
        "version": credential.profile.version,
        "issued_at": credential.issued_at,
        "expires_at": credential.expires_at,
        "jti": credential.jti,
    }


def _chain_json(chain: Chain | None) -> JSON:
    if chain is None:
        return None
    hops: list[JSON] = [hop.grant.claims() for hop in chain.hops]
    return {"sha256": chain.sha256, "members": list(chain.members), "hops": hops}


def _around_json(around: LoggedCall | None) -> JSON:
    if around is None:
        return None
    call, place = around.authorization, around.place
    return {"agent": call.agent, "tool": call.tool, "shard": place.shard, "index": place.index}


def _request_json(request: LocatedEntry | None) -> JSON:
    if request is None:
        return None
    request_id = request.entry.members["request_id"]
    return {"request_id": request_id, "shard": request.shard, "index": request.index}


def _release_json(release: LocatedEntry) -> JSON:
    members = release.entry.members
    return {"name": members["name"], "at": release.entry.at, "index": release.index}


def _proof_json(proof: LocatedEntry) -> JSON:
    members = proof.entry.members
    shown = {name: members[name] for name in ("request", "assurance", "audience", "proof")}
    return {**shown, "at": proof.entry.at, "index": proof.index}


def _receipt_json(receipt: LocatedEntry) -> JSON:
    members = receipt.entry.members
    shown = {name: members[name] for name in ("proof_sha256", "receipt", "key_id")}
    return {**shown, "at": receipt.entry.at, "index": receipt.index}


def _head_json(head: Checkpoint | None) -> JSON:
    if head is None:
        return None
    return {"origin": head.origin, "size": head.size, "root": head.root.hex()}
