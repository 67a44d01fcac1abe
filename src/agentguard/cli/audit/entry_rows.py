"""The rows that ``audit show`` prints of an entry that is no call: delegation, request and more.

Nothing here is verified. ``show.py`` prints the rows, and calls.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

from agentguard.approvals.roster import Roster
from agentguard.audit import approval_checks, statements
from agentguard.audit.entry import Entry
from agentguard.audit.evaluations import read_evaluation
from agentguard.cli.audit import phrases
from agentguard.delegation import grant
from agentguard.errors import AgentguardError
from agentguard.identity.credential import agent_alias
from agentguard.signing.canonical import JSON, is_integer

_CHECKED = "no signature: use audit verify"


def rows_of(parsed: Entry) -> dict[str, JSON]:
    """Return the rows of an entry by name; none for an entry whose members are printed as such."""
    return {
        **_hop_rows(parsed),
        **_request_rows(parsed),
        **_roster_rows(parsed),
        **_evaluation_rows(parsed),
    }


def _hop_rows(parsed: Entry) -> dict[str, JSON]:
    """Return a row for each hop of a delegation entry; none where the chain can't be read."""
    if parsed.kind != "delegation":
        return {}
    with suppress(AgentguardError):
        hops = [grant.read(token) for token in statements.chain_tokens(parsed)[0]]
        rows: dict[str, JSON] = {
            f"hop {hop.depth}": "; ".join(
                (phrases.hop_text(hop, parent), f"until {phrases.time(hop)}", hop.jti)
            )
            for parent, hop in pairwise([None, *hops])
            if hop is not None
        }
        checked = "no signature: use audit show CALL, or audit verify"
        return {**rows, "checked": checked} if rows else {}
    return {}


def _request_rows(parsed: Entry) -> dict[str, JSON]:
    """Return the rows of an approval request, or of its end; none where it can't be read."""
    if parsed.kind == "request_end":
        return _request_end_rows(parsed)
    if parsed.kind != "request":
        return {}
    with suppress(AgentguardError):
        request, members = approval_checks.read_request(parsed).digests, parsed.members
        about, tool, until = (
            approval_checks.summary_of_request(parsed),
            members["tool"],
            members["expires_at"],
        )
        requirements = map(phrases.requirement_text, approval_checks.read_requirements(parsed))
        rows: dict[str, JSON] = {
            "request": request.request_id,
            "agent": f"{agent_alias(about.agent)} ({about.agent})",
            "for": about.principal,
            "tool": about.tool,
            "tool digest": f"sha256 {tool.get('digest')}" if isinstance(tool, dict) else None,
            "resource": members["resource"],
            "task_id": members["task_id"],
            "traceparent": members.get("traceparent"),
            "asked for": "; ".join(requirements),
            "until": phrases.moment(until) if is_integer(until) else until,
            "call digest": request.call_sha256,
            "call site": members["call_site"],
            "requirement": request.requirement_sha256,
            "as shown": request.displayed_sha256,
            "arguments": "not in the log: stored with the request while the request waits",
        }
        return {name: value for name, value in rows.items() if value is not None}
    return {}


def _request_end_rows(parsed: Entry) -> dict[str, JSON]:
    with suppress(AgentguardError):
        ended, about = (
            approval_checks.read_request_end(parsed),
            approval_checks.summary_of_request(parsed),
        )
        answers = approval_checks.read_answers(parsed)
        rows: dict[str, JSON] = {
            "request": ended.request.digests.request_id,
            "agent": f"{agent_alias(str(about.agent))} ({about.agent})",
            "for": about.principal,
            "tool": about.tool,
            "end": f"{ended.end}, and its call was not made again",
            "until": phrases.moment(ended.request.expires_at),
            "answers": "; ".join(f"{one.verdict} by {one.approver}" for one in answers) or "none",
            "call digest": ended.request.digests.call_sha256,
        }
        return rows
    return {}


def _roster_rows(parsed: Entry) -> dict[str, JSON]:
    """Return a row for each approver of a roster; none where the roster can't be read."""
    if parsed.kind != "roster":
        return {}
    with suppress(AgentguardError):
        _key_id, statement = statements.read_statement(parsed)
        members = {**statement.predicate}
        domain = members.pop("trust_domain", None)
        people = Roster.from_json(members)
        rows: dict[str, JSON] = {"domain": domain}
        for name, person in people.approvers.items():
            roles = f", in the roles {' '.join(person.roles)}" if person.roles else ""
            keys = ", ".join(map(phrases.key_text, person.keys))
            rows[f"approver {name}"] = f"{person.principal}{roles}, with {keys}"
        counts = "counts" if people.application else "does not count"
        return {**rows, "application": f"its word without a signature {counts}"}
    return {}


def _evaluation_rows(parsed: Entry) -> dict[str, JSON]:
    """Return the rows of an evaluation; none where the evaluation can't be read."""
    if parsed.kind != "evaluation":
        return {}
    with suppress(AgentguardError):
        read = read_evaluation(parsed)
        decision = f"{read.decision} [{read.code}]" if read.code else read.decision
        rows: dict[str, JSON] = {
            "about": "a call that nobody made: no tool runs on an evaluation",
            "evaluation": read.evaluation_id,
            "agent": f"{agent_alias(read.agent)} ({read.agent})",
            "for": read.principal,
            "asked by": read.client,
            "tool": read.tool,
            "resource": read.resource,
            "task_id": read.task_id,
            "decision": decision,
            "reason": "; ".join(read.reasons) or None,
            "mode": read.mode if read.mode == "observe" else None,
            "policy": None if read.policy_sha256 is None else f"sha256 {read.policy_sha256}",
            "chain": None if read.chain_sha256 is None else f"sha256 {read.chain_sha256}",
            "arguments": "not in the log: the statement commits to the arguments",
            "checked": _CHECKED,
        }
        return {name: value for name, value in rows.items() if value is not None}
    return {}
