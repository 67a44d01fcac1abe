"""A row of the list: the content of one log entry, and the outcome of its call.

This file turns a parsed entry into a row, unverified. ``history.py`` finds the entries, and
``list_table.py`` prints the rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from agentguard.audit import approval_checks, logouts, statements, summary, surrenders
from agentguard.audit.adoption import read_adoption
from agentguard.audit.calls import Authorization, Outcome
from agentguard.audit.entry import Entry
from agentguard.audit.evaluations import read_evaluation
from agentguard.audit.http_requests import ProofEntry, read_proof, read_received, read_refused
from agentguard.audit.receipts import ReceiptEntry, read_receipt, status_of
from agentguard.audit.secret_releases import Release, read_release
from agentguard.audit.statements import AdminStatement
from agentguard.audit.summary import Summary
from agentguard.cli.audit import phrases
from agentguard.delegation import grant
from agentguard.delegation.access_token import SAME_PROCESS
from agentguard.signing import jws
from agentguard.signing.canonical import JSON

DAMAGED: Final = "damaged"
"""The kind of a row for an entry that can't be read."""

_ID: Final = re.compile(r"[0-9a-f]{32}")

_MEMBERS: Final = (
    "index",
    "shard",
    "kind",
    "at",
    "agent",
    "principal",
    "proved",
    "tool",
    "resource",
    "decision",
    "enforced",
    "reason",
    "invocation_id",
    "outcome",
    "client",
    "isolation",
    "shown",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One entry, as ``audit list --json`` gives it; None where its kind has no such thing.

    Of a call that ran while the policy was only observed, ``decision`` is what it would have been,
    and was not ``enforced``. ``proved`` is false where the principal of a refused call is only
    claimed: no signature says that the principal delegated. ``client`` and ``isolation`` say who
    made the call, and how well its process was kept apart from the guard's. ``shown`` are the
    arguments that ``[tools.NAME] show`` names (``cli/terminal/shown.py``).

    The list leaves out the members from ``entry`` on: the entry, and what it is about by its own
    word, None for a damaged one; the compact JWS of an identity entry; whether a call in doubt
    ran, as a person has stated; and, of an outcome, the index of its call.
    """

    index: int
    shard: int
    kind: str
    at: str | None = None
    agent: str | None = None
    principal: str | None = None
    proved: bool | None = None
    tool: str | None = None
    resource: str | None = None
    decision: str | None = None
    enforced: bool | None = None
    reason: str | None = None
    invocation_id: str | None = None
    outcome: str | None = None
    client: str | None = None
    isolation: str | None = None
    shown: dict[str, JSON] | None = None
    entry: Entry | None = None
    about: Summary | None = None
    credential: str | None = None
    resolved: bool | None = None
    call: int | None = None

    def as_json(self) -> dict[str, JSON]:
        """Return the members that the list gives, by name."""
        return {name: getattr(self, name) for name in _MEMBERS}


def subject_of(token: str) -> str | None:
    """Return whom a credential names, without verifying it; raises ``DecodeError``."""
    subject = jws.parse(token).claims().get("sub")
    return subject if isinstance(subject, str) else None


def remedy(invocation_id: str | None) -> str:
    """Name the command with which a person settles a call in doubt."""
    # a person will paste the command, and in a log that was tampered with an id may be any text
    name = invocation_id if is_id(invocation_id) else "SHARD/INDEX"
    return f"agentguard resolve {name} --ran|--not-ran --note TEXT"


def is_id(text: str | None) -> bool:
    """Whether a text is the id of a call, and nothing else."""
    return text is not None and _ID.fullmatch(text) is not None


def damaged(shard: int, index: int, problem: str) -> Row:
    """Make the row of an entry that can't be read."""
    return Row(index, shard, DAMAGED, reason=f"it can't be read: {problem}")


def of_entry(shard: int, index: int, parsed: Entry) -> Row:
    """Make the row of an entry of which nothing is said but its kind and its time."""
    about = Summary(parsed.kind, parsed.at)
    return Row(index, shard, parsed.kind, parsed.at, entry=parsed, about=about)


def of_identity(row: Row, parsed: Entry) -> Row:
    """Add whose credential an entry keeps; raises ``DecodeError``."""
    token = str(parsed.members["credential"])
    uri = subject_of(token)
    about = summary.of_identity(uri, at=parsed.at) if uri is not None else row.about
    return replace(row, agent=uri, credential=token, about=about)


def of_delegation(row: Row, parsed: Entry) -> Row:
    """Add who acts under the chain that an entry keeps, for whom, and what it may do.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    hops, _credentials = statements.chain_tokens(parsed)
    if not hops:
        return row
    leaf = grant.read(hops[-1])
    return replace(
        row,
        agent=leaf.delegatee,
        principal=leaf.principal,
        reason=f"it may do {' '.join(leaf.scope) or 'nothing'} for {leaf.principal}",
        about=summary.of_delegation(leaf, at=parsed.at),
    )


def of_freeze_or_revocation(row: Row, parsed: Entry) -> Row:
    """Add what a revocation or a freeze says; raises as ``statements.read_sealed`` does."""
    _key_id, statement = statements.read_statement(parsed)
    match statement.predicate:
        case {"name": str(name), "note": str(note)}:
            return replace(row, reason=f"{name} is revoked: {note}")
        case {"frozen": bool(frozen), "note": str(note)}:
            return replace(row, reason=f"{'frozen' if frozen else 'thawed'}: {note}")
    return row


def of_logout(row: Row, parsed: Entry) -> Row:
    """Add who has logged out, and where; raises as ``logouts.read`` does."""
    logout = logouts.read(parsed)
    which = "all log-ins" if logout.session is None else f"the log-in {logout.session}"
    whose = "" if logout.subject is None else f" of {logout.subject}"
    return replace(row, reason=f"{logout.issuer} has ended {which}{whose}")


def of_surrender(row: Row, parsed: Entry) -> Row:
    """Add who has given up acting for whom; raises as ``surrenders.read`` does."""
    about = surrenders.read(parsed).summary
    reason = f"the agent has given up what it may do for {about.principal}"
    return replace(row, agent=about.agent, principal=about.principal, reason=reason, about=about)


def of_adoption(row: Row, parsed: Entry) -> Row:
    """Add what was lost with an adoption; raises as ``adoption.read`` does."""
    return replace(row, reason=read_adoption(parsed).words())


def of_request(row: Row, parsed: Entry) -> Row:
    """Add what a request for an approval says: who waits, for whom, with which tool, and why."""
    match parsed.members:
        case {
            "agent": str(agent),
            "principal": str(principal),
            "tool": {"name": str(tool)},
            "requirements": [*requirements],
        }:
            reasons = (str(one.get("reason")) for one in requirements if isinstance(one, dict))
            return replace(
                row,
                agent=agent,
                principal=principal,
                tool=tool,
                resource=_text(parsed.members["resource"]),
                decision="approval",
                reason="; ".join(reasons) or None,
                about=approval_checks.summary_of_request(parsed),
            )
    return row


def of_request_end(row: Row, parsed: Entry) -> Row:
    """Add which request has ended, how, and who had answered; raises ``DecodeError``."""
    ended = approval_checks.read_request_end(parsed)
    about = approval_checks.summary_of_request(parsed)
    what = {"expired": "has expired", "withdrawn": "was withdrawn"}[ended.end]
    said = _answer_summary(parsed)
    answered = f"; it was {said}" if said else ""
    return replace(
        row,
        agent=about.agent,
        principal=about.principal,
        tool=about.tool,
        reason=f"the request {ended.request.digests.request_id} {what}{answered}",
        about=about,
    )


def of_secret(row: Row, parsed: Entry) -> Row:
    """Add to which call a secret was released, unverified; raises ``DecodeError``."""
    release = read_release(parsed)
    return _of_running_call(row, release, f"the secret {release.name} was released to the call")


def of_evaluation(row: Row, parsed: Entry) -> Row:
    """Add what the policy decided about a call that nobody made, unverified.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    read = read_evaluation(parsed)
    return replace(
        row,
        agent=read.agent,
        principal=read.principal,
        proved=read.is_proved,
        tool=read.tool,
        resource=read.resource,
        decision=read.decision,
        reason="; ".join(read.reasons) or None,
        about=read.summary,
    )


def of_proof(row: Row, parsed: Entry) -> Row:
    """Add of which call a request was proved, unverified; raises ``DecodeError``."""
    proved = read_proof(parsed)
    request = proved.record.request
    return _of_running_call(
        row, proved, f"the request {request.method} {request.url} of the call was proved"
    )


def of_receipt(row: Row, parsed: Entry) -> Row:
    """Add of which call a server has signed the answer, unverified; raises ``DecodeError``."""
    noted = read_receipt(parsed)
    return _of_running_call(
        row, noted, f"the server has signed a receipt of its answer {status_of(noted)}"
    )


def _of_running_call(row: Row, entry: Release | ProofEntry | ReceiptEntry, reason: str) -> Row:
    call = entry.call
    return replace(
        row,
        agent=call.agent,
        tool=call.tool,
        reason=reason,
        invocation_id=call.invocation_id,
        about=entry.summary,
    )


def of_received(row: Row, parsed: Entry) -> Row:
    """Add whose request a server has accepted, unverified; raises ``DecodeError``."""
    entry = read_received(parsed)
    what = f"the request {entry.request.method} {entry.request.url} was accepted"
    return _at_the_receiver(row, parsed, entry.agent, entry.principal, what)


def of_refused(row: Row, parsed: Entry) -> Row:
    """Add whose request a server has refused, unverified; raises ``DecodeError``."""
    entry = read_refused(parsed)
    what = f"the request {entry.request.method} {entry.request.url} was refused: {entry.code}"
    return _at_the_receiver(row, parsed, entry.agent, entry.principal, what)


def _at_the_receiver(row: Row, parsed: Entry, agent: str, principal: str, what: str) -> Row:
    about = summary.at_receiver(parsed.kind, agent, principal, at=parsed.at)
    return replace(row, agent=agent, principal=principal, reason=what, about=about)


ALONE: Final[Mapping[str, Callable[[Row, Entry], Row]]] = {
    "identity": of_identity,
    "delegation": of_delegation,
    "request": of_request,
    "request_end": of_request_end,
    "secret": of_secret,
    "proof": of_proof,
    "receipt": of_receipt,
    "received": of_received,
    "refused": of_refused,
    "revocation": of_freeze_or_revocation,
    "freeze": of_freeze_or_revocation,
    "logout": of_logout,
    "surrender": of_surrender,
    "adoption": of_adoption,
    "evaluation": of_evaluation,
}
"""What adds to a row all that its entry says, by kind: those that need no other entry."""


def of_call(row: Row, parsed: Entry, call: Authorization) -> Row:
    """Add what the entry of a call says; what became of the call is not known yet."""
    about = summary.of_call(call.predicate, at=parsed.at, decision=call.effect)
    reason = "; ".join(call.reasons) or _answer_summary(parsed)
    return replace(
        _named(row, call),
        decision=call.decision,
        enforced=call.enforced,
        reason=reason,
        about=about,
    )


def _answer_summary(parsed: Entry) -> str | None:
    """Name who has answered, each once, unverified; raises ``DecodeError``."""
    answers = approval_checks.read_answers(parsed)
    verdicts = (
        f"{'approved' if a.verdict == 'approve' else 'rejected'} by {a.approver}" for a in answers
    )
    return ", ".join(dict.fromkeys(verdicts)) or None


def of_outcome(row: Row, parsed: Entry, read: Outcome, call: Authorization, index: int) -> Row:
    """Add what an outcome says, and of which call, that stands at ``index``."""
    about = summary.of_outcome(call.invocation_id, call.agent, at=parsed.at, status=read.status)
    return ended(replace(_named(row, call), about=about, call=index), read)


def of_administered(
    row: Row, parsed: Entry, statement: AdminStatement, call: Authorization | None
) -> Row:
    """Add what a resolution or an erasure says; ``call`` is None where its call is not there."""
    invocation_id = statement.call.invocation_id
    return replace(
        _named(row, call) if call is not None else row,
        invocation_id=invocation_id,
        reason=statement.note,
        resolved=statement.ran,
        about=Summary(parsed.kind, parsed.at, invocation_id),
    )


def ended(row: Row, read: Outcome) -> Row:
    """Add what became of a call, by its agent's word."""
    if read.status == "not_run":
        why = phrases.not_run(read.replay_of)
        return replace(row, reason="; ".join(filter(None, (row.reason, why))))
    return replace(row, outcome=read.status)


def settled(row: Row, statement: AdminStatement) -> Row:
    """Add what became of a call by a person's word: that it ran, but not with which result."""
    end = "ran" if statement.ran else "did not run"
    how = f"a person has settled that it {end}: {statement.note}"
    outcome = "unknown" if statement.ran else None
    reason = "; ".join(filter(None, (row.reason, how)))
    return replace(row, outcome=outcome, reason=reason, resolved=statement.ran)


def _named(row: Row, call: Authorization) -> Row:
    return replace(
        row,
        agent=call.agent,
        principal=call.principal,
        proved=call.is_proved,
        tool=call.tool,
        resource=_text(call.predicate.get("resource")),
        invocation_id=call.invocation_id,
        client=None if call.client is None else call.client.name,
        isolation=SAME_PROCESS if call.client is None else call.client.isolation,
    )


def _text(value: JSON) -> str | None:
    return value if isinstance(value, str) else None
