"""Sentences about calls, delegations and approvals for ``audit show`` and ``evidence verify``.

``with_query`` adds the options of the command line to an error message of a policy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from rich.text import Text

from agentguard.approvals.roster import Answer
from agentguard.audit.entry import present
from agentguard.audit.find import LocatedEntry
from agentguard.audit.kinds.calls import CallEntry, EvaluationReport
from agentguard.audit.kinds.running import OfRunningCall, ProofEntry, ReceiptEntry, SecretEntry
from agentguard.call.decision import Requirement
from agentguard.call.vocabulary import STATED
from agentguard.cli.terminal import screen
from agentguard.delegation.chain import Chain
from agentguard.delegation.grant import Grant
from agentguard.identity.credential import agent_alias
from agentguard.signing.canonical import JSON
from agentguard.signing.keys import PublicKey

UNSIGNED: Final = "by nobody: the agent's signer failed, and the log alone says that it asked"


_NO_PACKAGE: Final = re.compile(
    r"^the query \S+ names no package of the policy, which has ([^\s,]+).*$", re.MULTILINE
)

_WOULD: Final = {"allow": "allow", "deny": "deny", "approval": "ask"}
"""The verb for a decision that was not enforced, by decision."""


def decision(verdict: str, *, enforced: bool) -> Text:
    """Return the cell of a decision: the verdict, or what the policy would only have done."""
    if enforced:
        return screen.styled(verdict, verdict)
    return screen.styled("warn", f"would {_WOULD[verdict]}")


def observed(call: CallEntry) -> str:
    """Return the sentence for a call that ran in the mode observe."""
    return (
        "the policy was only observed (mode observe): the call was let run whatever it said, and "
        f"no policy has authorised it; it would {_WOULD[call.decision]}"
    )


def released(located: LocatedEntry[OfRunningCall]) -> tuple[str, str]:
    """Return the row of what a running call got; raises ``DecodeError``."""
    entry = located.entry
    when = f"at {entry.at} (entry {located.index})"
    match entry:
        case SecretEntry():
            return "secret", f"{entry.name}, released {when}"
        case ProofEntry():
            return "request", f"{entry.request.method} {entry.request.url}, proved {when}"
        case ReceiptEntry():
            return "receipt", f"the server has signed its answer {entry.status}, on record {when}"
    return entry.kind, f"{entry.words}, {when}"


def decided(call: CallEntry) -> Iterator[tuple[str, str | Text]]:
    """Yield the rows of a call's decision: its code, its reasons, and whether it was enforced."""
    code = f" [{call.code}]" if call.code else ""
    if call.enforced:
        yield "decision", screen.styled(call.decision, f"{call.decision}{code}")
    else:
        would = f"would {_WOULD[call.decision]}{code}"
        yield "decision", screen.styled("warn", f"NOT ENFORCED: {would}")
        yield "mode", screen.styled("warn", observed(call))
    for reason in call.reasons:
        yield "reason", reason


def origin(call: CallEntry) -> Iterator[tuple[str, str]]:
    """Yield the row that says where the tool of a call comes from, if the call says so."""
    if call.origin is not None:
        yield "origin", call.origin


def facts(document: JSON) -> dict[str, JSON]:
    """Return what the policy saw beside the call itself: facts, attributes and paths, by name."""
    if not isinstance(document, dict):
        return {}
    return {name: value for name, value in document.items() if name not in STATED}


def delegation(chain: Chain) -> Iterator[tuple[str, str]]:
    """Yield the rows of a delegation chain: each hop, and the scope of the last one."""
    first = chain.root
    yield "vouched for", f"by {voucher(first)}, which has authenticated {first.principal}"
    parent: Grant | None = None
    for hop in chain.hops:
        yield f"hop {hop.grant.depth}", hop_text(hop.grant, parent)
        parent = hop.grant
    leaf = chain.leaf
    yield "may", f"{' '.join(leaf.scope) or 'nothing: its scope is empty'}; until {time(leaf)}"
    for jti, most in chain.limits:
        yield "calls", f"{most} at the most ({jti})"


def voucher(first: Grant) -> str:
    """Return who vouches for the principal of a first hop."""
    login = first.subject_token
    if login is None:
        return "the application"
    time_of_login = "" if login.auth_time is None else f", log-in at {moment(login.auth_time)}"
    kind = "ID-JAG" if login.is_id_jag else "token"
    return f"{login.iss} ({kind} {login.jti or login.sha256[:16]}{time_of_login})"


def service(first: Grant) -> str:
    """Return through which service the request came, and who vouches for the service."""
    token = first.via_token
    if token is None:
        return f"{first.delegatee}, vouched for by the application"
    which = token.jti or token.sha256[:16]
    return f"{first.delegatee}, vouched for by {token.iss} (token {which} of {token.sub})"


def hop_text(grant: Grant, parent: Grant | None) -> str:
    """Describe one hop. ``parent`` is the hop before, None for the first hop."""
    if parent is None:
        signed = ", signed by the issuer"
    else:
        signed = ", signed by the issuer in its place" if parent.is_asserted else ""
    scope = " ".join(grant.scope) or "nothing"
    return f"{lets(grant, parent)} do {scope} for {grant.principal}{signed}"


def lets(grant: Grant, parent: Grant | None) -> str:
    """Name the delegator and the delegatee of a hop."""
    by = agent_alias(grant.delegator)
    if parent is not None and parent.delegatee == grant.delegator:
        by = delegatee(parent)
    return f"{by} lets {delegatee(grant)}"


def delegatee(grant: Grant) -> str:
    """Name the delegatee of a hop.

    A first hop to the delegator itself goes to the application, which has no service identity.
    """
    if is_direct(grant):
        return "the application"
    return agent_alias(grant.delegatee)


def is_direct(grant: Grant) -> bool:
    """Whether a hop goes to the application itself, which names no service of its own."""
    return grant.depth == 1 and grant.delegatee == grant.delegator


def not_run(replay_of: str | None) -> str:
    """Return the reason why the tool of an authorised call did not run."""
    if replay_of is None:
        return "interrupted before it ran"
    return f"it did not run again: the result of the call {replay_of} was handed out"


def requirement_text(requirement: Requirement) -> str:
    """Describe one requirement: how many people have to approve, and which."""
    parts = [f"{requirement.quorum} {'person' if requirement.quorum == 1 else 'people'}"]
    if requirement.approvers is not None:
        parts.append(f"of {', '.join(requirement.approvers)}")
    if requirement.roles is not None:
        parts.append(f"in a role of {', '.join(requirement.roles)}")
    if requirement.allow_self:
        parts.append("whoever asks among them")
    return f"{' '.join(parts)} ({requirement.reason})"


def client(call: CallEntry) -> Iterator[tuple[str, str]]:
    """Yield a row about the client of a guard server; none for a call in its guard's process."""
    found = present(call.client)
    if found is not None:
        name = f", client {found.name}" if found.name else ""
        yield "isolation", f"{found.isolation}: through a guard server{name}"


def client_json(call: CallEntry) -> dict[str, JSON]:
    """Return the member ``client`` of a call in JSON; none for a call in its guard's process."""
    found = present(call.client)
    return {} if found is None else {"client": found.as_json()}


def evaluated(evaluation: EvaluationReport) -> str:
    """Describe an evaluation as the policy's server reports it."""
    parts = [f"by its word {evaluation.version or 'of no version'}"]
    for bundle, revision in sorted(evaluation.revisions.items()):
        parts.append(f"bundle {bundle} at {revision or 'no revision'}")
    parts.append(f"decision id {evaluation.decision_id or 'none'}")
    return ", ".join(parts)


def answers(request_answers: Sequence[Answer]) -> Iterator[tuple[str, str]]:
    """Yield a row for each answer to a request: the approver, and the proof of the identity."""
    for answer in request_answers:
        approval = answer.approval
        approver = answer.approver
        if approver is None:
            roles = f" ({', '.join(answer.roles)})" if answer.roles else ""
            how = f"by the application's word{roles}, unsigned"
        else:
            roles = f" ({', '.join(approver.roles)})" if approver.roles else ""
            how = f"{approver.name} of the roster{roles}, signed with {_signing_key(answer)}"
        at = moment(approval.not_before)
        note = f": {approval.note}" if approval.note else ""
        verdict = "approved by" if approval.verdict == "approve" else "rejected by"
        yield verdict, f"{approval.approver}, {how}, at {at}{note}"


def key_text(key: PublicKey) -> str:
    """Name a person's key in both spellings: ours, and that of ``ssh-keygen -lf``."""
    return f"{key.thumbprint} (ssh-keygen: {key.fingerprint})"


def _key_of(answer: Answer) -> PublicKey | None:
    keys = answer.approver.keys if answer.approver is not None else ()
    key_ids = {key_id for key_id, _signature in answer.envelope.signatures}
    return next((key for key in keys if key.thumbprint in key_ids), None)


def _signing_key(answer: Answer) -> str:
    key = _key_of(answer)
    return key_text(key) if key is not None else answer.envelope.signatures[0][0]


def answer_json(answer: Answer) -> dict[str, JSON]:
    """Return the object that ``--json`` prints for an answer."""
    approval, approver, key = answer.approval, answer.approver, _key_of(answer)
    return {
        "approval_id": approval.approval_id,
        "request_id": approval.request_id,
        "verdict": approval.verdict,
        "approver": approval.approver,
        "name": approver.name if approver is not None else None,
        "roles": list(answer.roles),
        "method": approval.method,
        "key": answer.envelope.signatures[0][0] if approver is not None else None,
        "ssh_fingerprint": key.fingerprint if key is not None else None,
        "not_before": approval.not_before,
        "note": approval.note,
    }


def with_query(message: str) -> str:
    """Add the remedy to the error of a query that names no package of the policy."""
    return _NO_PACKAGE.sub(r"\g<0>: ask with --query \1, or name it as query in [policy]", message)


def time(grant: Grant) -> str:
    """Return the time at which a hop expires."""
    return moment(grant.expires_at)


def moment(seconds: int) -> str:
    """Format a time in seconds since 1970; outside the calendar, the number itself."""
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{seconds} s since 1970"


def whose(call: CallEntry, name: str | None) -> str:
    """Say for whom a call is, whose agent has the ``name``; None where nobody knows the name."""
    if call.principal == f"agent:{name}":
        return f"{call.principal}, on its own authority"
    if not call.is_proved:
        return f"{call.principal}, which nothing proves: the delegation was refused"
    refused = "" if call.refused_chain is None else ", whose delegation was refused"
    return f"{call.principal}{refused}"
