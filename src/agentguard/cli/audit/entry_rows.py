"""The rows that ``audit show`` prints of an entry that is no call: delegation, request and more.

Nothing here is verified. ``show.py`` prints the rows, and calls.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

from agentguard.approvals.roster import Roster
from agentguard.audit.entry import Entry, present
from agentguard.audit.kinds.announcements import RosterEntry
from agentguard.audit.kinds.evaluation import EvaluationEntry
from agentguard.audit.kinds.identities import DelegationEntry
from agentguard.audit.kinds.requests import RequestEndEntry, RequestEntry
from agentguard.cli.audit import phrases
from agentguard.errors import AgentguardError
from agentguard.identity.credential import agent_alias
from agentguard.signing.canonical import JSON


def rows_of(entry: Entry) -> dict[str, JSON]:
    """Return the rows of an entry by name; none for an entry whose members are printed as such."""
    rows: dict[str, JSON] = {}
    with suppress(AgentguardError):
        match entry:
            case DelegationEntry():
                rows = _hop_rows(entry)
            case RequestEntry():
                rows = _request_rows(entry)
            case RequestEndEntry():
                rows = _request_end_rows(entry)
            case RosterEntry():
                rows = _roster_rows(entry)
            case EvaluationEntry():
                rows = _evaluation_rows(entry)
    return {name: value for name, value in rows.items() if value is not None}


def _hop_rows(entry: DelegationEntry) -> dict[str, JSON]:
    """Return a row for each hop of a delegation; raises as ``entry.hops`` does."""
    rows: dict[str, JSON] = {
        f"hop {hop.depth}": "; ".join(
            (phrases.hop_text(hop, parent), f"until {phrases.time(hop)}", hop.jti)
        )
        for parent, hop in pairwise([None, *entry.hops])
        if hop is not None
    }
    return {**rows, "checked": "no signature: use audit show CALL, or audit verify"}


def _request_rows(request: RequestEntry) -> dict[str, JSON]:
    return {
        "request": request.request_id,
        "agent": f"{agent_alias(request.agent)} ({request.agent})",
        "for": request.principal,
        "tool": request.tool.name,
        "tool digest": f"sha256 {request.tool.digest}",
        "resource": request.resource,
        "task_id": request.task_id,
        "traceparent": present(request.traceparent),
        "asked for": "; ".join(map(phrases.requirement_text, request.required)),
        "until": phrases.moment(request.expires_at),
        "call digest": request.call_digest,
        "call site": request.call_site,
        "requirement": request.requirement_sha256,
        "as shown": request.displayed_sha256,
        "arguments": "not in the log: stored with the request while the request waits",
    }


def _request_end_rows(ended: RequestEndEntry) -> dict[str, JSON]:
    answers = "; ".join(f"{one.verdict} by {one.approver}" for one in ended.answers)
    return {
        "request": ended.request_id,
        "agent": f"{agent_alias(ended.agent)} ({ended.agent})",
        "for": ended.principal,
        "tool": ended.tool.name,
        "end": f"{ended.end}, and its call was not made again",
        "until": phrases.moment(ended.expires_at),
        "answers": answers or "none",
        "call digest": ended.call_digest,
    }


def _roster_rows(entry: RosterEntry) -> dict[str, JSON]:
    """Return a row for each approver of a roster; raises as ``Roster.from_json`` does."""
    members = dict(entry.stated.predicate)
    rows: dict[str, JSON] = {"domain": members.pop("trust_domain", None)}
    people = Roster.from_json(members)
    for name, person in people.approvers.items():
        roles = f", in the roles {' '.join(person.roles)}" if person.roles else ""
        keys = ", ".join(map(phrases.key_text, person.keys))
        rows[f"approver {name}"] = f"{person.principal}{roles}, with {keys}"
    counts = "counts" if people.application else "does not count"
    return {**rows, "application": f"its word without a signature {counts}"}


def _evaluation_rows(entry: EvaluationEntry) -> dict[str, JSON]:
    said = entry.evaluated
    return {
        "about": "a call that nobody made: no tool runs on an evaluation",
        "evaluation": said.evaluation_id,
        "agent": f"{agent_alias(said.agent)} ({said.agent})",
        "for": said.principal,
        "asked by": said.client,
        "tool": said.tool.name,
        "resource": said.resource,
        "task_id": said.task_id,
        "decision": f"{said.decision} [{said.code}]" if said.code else said.decision,
        "reason": entry.words,
        "mode": said.mode if said.mode == "observe" else None,
        "policy": None if said.policy_sha256 is None else f"sha256 {said.policy_sha256}",
        "chain": None if said.chain_sha256 is None else f"sha256 {said.chain_sha256}",
        "arguments": "not in the log: the statement commits to the arguments",
        "checked": "no signature: use audit verify",
    }
