"""The report on one call, read from the log: the agent, the principal, the decision, the outcome.

The builder of a report checks the signatures, the credential and the data whose digests the log
holds. A check that fails becomes a problem in the report. ``audit verify`` checks the log as a
whole. ``lookup.py`` finds the call that a name means, and ``show.py`` prints the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from agentguard.approvals.roster import Answer
from agentguard.audit import inclusion, statements
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Commitments, Entry, parse_time, present
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
from agentguard.audit.kinds.administration import (
    AdministeredEntry,
    ErasureEntry,
    ResolutionEntry,
)
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.audit.kinds.requests import RequestEntry
from agentguard.audit.kinds.running import OfRunningCall, ProofEntry, ReceiptEntry, SecretEntry
from agentguard.audit.log import LogReader
from agentguard.audit.statements import Credentials
from agentguard.cli.audit import lookup, phrases
from agentguard.delegation.chain import Chain
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.storage import sqlite

E = TypeVar("E", bound=Entry)
A = TypeVar("A", bound=AdministeredEntry)

_OUTCOME_MEMBERS: Final = ("result_type", "error_type", "started_at", "ended_at", "replay_of")


@dataclass(slots=True)
class CallReport:
    """One call: its authorization, its outcome, and the admin's resolution and erasure.

    ``credential``, ``chain`` and ``head`` (the newest checkpoint) are None where they
    do not verify; ``chain`` is None also where the agent acted on its own authority.
    ``around`` is the call whose tool made this one, unverified; None where there is no such call,
    or the log does not have it. ``request`` is the request for the call's approval, unverified;
    None where nobody was asked, or the log does not have it. ``releases`` are the entries of the
    secrets and of the proofs of HTTP requests that the tool got, unverified. ``attachments`` maps a
    role to the decoded data beside the log. ``problems`` lists the checks that failed.
    """

    index: int
    call: CallEntry
    credential: Credential | None = None
    chain: Chain | None = None
    answers: tuple[Answer, ...] = ()
    outcome: LocatedEntry[OutcomeEntry] | None = None
    releases: tuple[LocatedEntry[OfRunningCall], ...] = ()
    resolution: LocatedEntry[ResolutionEntry] | None = None
    erasure: LocatedEntry[ErasureEntry] | None = None
    head: Checkpoint | None = None
    around: LoggedCall | None = None
    request: LocatedEntry[RequestEntry] | None = None
    attachments: dict[str, JSON] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def commitments(self) -> Commitments:
        """Return the digests of the data to which the call and its outcome commit, by role."""
        return {**self.call.commitments, **(self.outcome.entry.commitments if self.outcome else {})}

    def as_json(self) -> dict[str, JSON]:
        """Return what ``audit show --json`` prints."""
        call, evaluation = self.call, present(self.call.evaluation)
        return {
            "index": self.index,
            "at": call.at,
            "invocation_id": call.invocation_id,
            "agent": call.agent,
            "principal": call.principal,
            "proved": call.is_proved,
            "credential": _credential_json(self.credential),
            "delegation": _chain_json(self.chain),
            "inside": call.inside,
            "inside_call": _around_json(self.around),
            "requirements": call.requirements,
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
            "engine": call.engine,
            "policy_sha256": call.policy_sha256,
            "evaluation": evaluation.as_json() if evaluation is not None else None,
            "config_sha256": call.config_sha256,
            "secrets": self._releases_json(SecretEntry, "name"),
            "requests": self._releases_json(
                ProofEntry, "request", "assurance", "audience", "proof"
            ),
            "receipts": self._releases_json(ReceiptEntry, "proof_sha256", "receipt", "key_id"),
            **phrases.client_json(call),
            "outcome": self._outcome_json(),
            "problems": [*self.problems],
            "resolution": _administered_json(self.resolution),
            "erasure": _administered_json(self.erasure),
            "checkpoint": _head_json(self.head),
        }

    def _releases_json(self, kind: type[OfRunningCall], *names: str) -> list[JSON]:
        """Return these members of what the call got of a kind, with the time and the index."""
        listed: list[JSON] = []
        for one in self.releases:
            if isinstance(one.entry, kind):
                members = one.entry.members
                shown = {name: members[name] for name in names}
                listed.append({**shown, "at": one.entry.at, "index": one.index})
        return listed

    def _outcome_json(self) -> JSON:
        if self.outcome is None:
            return None
        members = self.outcome.entry.predicate
        return {
            "index": self.outcome.index,
            "status": self.outcome.entry.status,
            "result": self.attachments.get("result"),
            **{name: members.get(name) for name in _OUTCOME_MEMBERS},
        }


def read(reader: LogReader, call: LocatedEntry[CallEntry], trust: TrustDocument) -> CallReport:
    """Read and check a call; raises ``StorageError``."""
    report = CallReport(call.index, call.entry)
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
                at = parse_time(report.call.at)
                report.call.check_authority(issued, report.chain, self.trust, at)
        if issued is not None:
            with self._problem("the approvals do not hold"):
                report.answers = self._answers(issued)
        if report.call.inside is not None:
            report.around = find_call(self.reader, report.call.inside)
        report.request = find_request(self.reader, report.call)
        if report.call.allowed:
            self._outcome()
            self._releases()
        self._attach(report.index, report.call.commitments)
        if report.call.allowed and report.outcome is None:
            report.resolution = self._administered(ResolutionEntry)
        committed = [
            role for role, commitment in report.commitments().items() if commitment is not None
        ]
        if not set(committed) <= report.attachments.keys():
            report.erasure = self._administered(ErasureEntry)
        with self._problem("the newest checkpoint does not hold"):
            report.head = self._head()

    def _credential(self) -> Credential | None:
        report = self.report
        call, at = report.call, parse_time(report.call.at)
        newest: AgentguardError | None = None
        for identity in lookup.credentials(self.reader, call.agent, report.index):
            credentials = Credentials()
            try:
                issued_by = parse_time(identity.at)
                credentials.add(credential.verify(identity.credential, self.trust, at=issued_by))
                return credentials.of_call(call.agent, at, allowed=call.allowed)
            except (DecodeError, VerificationError) as error:
                newest = newest or error
        if newest is None:
            report.problems.append("no credential of this agent stands before the call")
        else:
            report.problems.append(f"the credential does not hold: {newest}")
        return None

    def _chain(self) -> Chain | None:
        report = self.report
        if report.call.chain_sha256 is None:
            return None
        delegation = find_delegation(self.reader, report.call, report.index)
        if delegation is None:
            raise VerificationError("no entry before the call holds its chain")
        return delegation.entry.verified(self.trust, parse_time(delegation.entry.at))

    def _answers(self, issued: Credential) -> tuple[Answer, ...]:
        """Return the approvals of the call, checked against the roster that the call names."""
        report, people = self.report, None
        digest = report.call.roster_sha256
        if digest is not None:
            located = find_roster(self.reader, digest, report.index)
            if located is None:
                raise VerificationError("no entry before the call states its roster")
            located.entry.verify(self.trust, parse_time(located.entry.at))
            people = located.entry.roster(self.trust)
        return report.call.check_answers(people, issued, parse_time(report.call.at))

    def _outcome(self) -> None:
        report = self.report
        for located in self._entries_of(OutcomeEntry, after=report.index)[:1]:
            report.outcome, outcome, call = located, located.entry, report.call
            with self._problem("the outcome does not hold"):
                outcome.require_of(report.index, call.invocation_id, is_replay=call.is_replay)
                if report.credential is not None:  # without one, that is a problem already
                    outcome.envelope.verify(report.credential.key)
            self._attach(located.index, outcome.commitments)

    def _releases(self) -> None:
        report = self.report
        end = report.outcome.index if report.outcome is not None else None
        report.releases = tuple(releases_of_call(self.reader, report.index, end, report.call))

    def _administered(self, kind: type[A]) -> LocatedEntry[A] | None:
        """Return the newest resolution or erasure of the call with the admin key's signature."""
        report = self.report
        found: list[LocatedEntry[A]] = []
        for one in self._entries_of(kind):
            with self._problem(f"the {kind.kind} at {one.index} does not hold"):
                one.entry.verify(self.trust, max(map(parse_time, (one.entry.at, report.call.at))))
                if one.entry.is_of(report.index, report.call.invocation_sha256):
                    found.append(one)
        return found[-1] if found else None

    def _head(self) -> Checkpoint:
        report = self.report
        head = inclusion.verify_checkpoint(self.reader.head() or b"", self.trust).point
        if head.size <= report.index:
            raise VerificationError(f"it covers {head.size} entries, and not this one")
        return head

    def _attach(self, index: int, commitments: Commitments) -> None:
        """Add the data beside an entry to the report where the entry's commitments match."""
        stored = self.reader.entry(index)
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

    def _entries_of(self, kind: type[E], *, after: int = -1) -> list[LocatedEntry[E]]:
        return entries_of_call(self.reader, kind, self.report.call, after=after)

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
    call = around.entry
    return {"agent": call.agent, "tool": call.tool, "index": around.place.index}


def _request_json(request: LocatedEntry[RequestEntry] | None) -> JSON:
    if request is None:
        return None
    return {"request_id": request.entry.request_id, "index": request.index}


def _administered_json(located: LocatedEntry[AdministeredEntry] | None) -> JSON:
    """Return the index, the time, the note and, of a resolution, whether the call ran."""
    if located is None:
        return None
    entry = located.entry
    ran: dict[str, JSON] = {} if entry.ran is None else {"ran": entry.ran}
    return {"index": located.index, "at": entry.at, "note": entry.note, **ran}


def _head_json(head: Checkpoint | None) -> JSON:
    if head is None:
        return None
    return {"origin": head.origin, "size": head.size, "root": head.root.hex()}
