"""Prints what the evidence of one call proves, and what the evidence can't prove.

``agentguard/audit/evidence.py`` verifies the evidence first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.text import Text

from agentguard.approvals.roster import Answer
from agentguard.audit.entry import present
from agentguard.audit.evidence import Evidence
from agentguard.audit.inclusion import Place, VerifiedCheckpoint
from agentguard.audit.kinds.administration import AdministeredEntry
from agentguard.cli.audit import phrases
from agentguard.cli.terminal import screen
from agentguard.identity.credential import Credential, agent_alias
from agentguard.signing.canonical import JSON

Row = tuple[str, str | Text]

COLUMNS: Final = ("", "time", "decision", "outcome", "agent", "tool", "file")
"""The columns of a table of several files."""


def row(answer: Mapping[str, Any]) -> screen.Row:
    """Return the row of a file in such a table, from the file's object for ``--json``."""
    if not answer["ok"]:
        failed = screen.styled("fail", "FAILED")
        problem = f"[{answer['code']}]: {answer['problem']}"
        return (failed, "", "", "", "", "", answer["file"]), problem
    status = _status(answer)
    note: str | Text = ""
    if not answer["signed"]:
        note = screen.styled("warn", f"signed {phrases.UNSIGNED}")
    cells = (
        screen.styled("ok", "proved"),
        answer["at"][:19],
        phrases.decision(answer["decision"], enforced=answer["enforced"]),
        screen.styled(status, status),
        agent_alias(answer["agent"]),
        answer["tool"]["name"],
        answer["file"],
    )
    return cells, note


def _status(answer: Mapping[str, Any]) -> str:
    """Return how a call ended, as ``audit list`` has it; nothing for a call that did not run."""
    if answer["outcome"] is not None:
        return str(answer["outcome"]["status"])
    if answer["resolutions"]:
        return "resolved"
    return "in_doubt" if answer["decision"] == "allow" or not answer["enforced"] else ""


def draw(evidence: Evidence) -> None:
    """Print the evidence for people."""
    parts = (_agent_rows, _tool_rows, _decision_rows, _outcome_rows, _admin_rows, _log_rows)
    screen.sheet(row for part in parts for row in part(evidence))
    screen.line("What this file can't prove:")
    for limit in limits(evidence):
        screen.item("- ", limit)


def as_json(evidence: Evidence) -> dict[str, object]:
    """Return the object that ``evidence verify --json`` prints."""
    call, place, outcome = evidence.call, evidence.place, evidence.outcome
    evaluation = present(call.evaluation)
    outcome_commitments = outcome.commitments if outcome is not None else {"result": None}
    return {
        "ok": True,
        "invocation_id": call.invocation_id,
        "agent": call.agent,
        "credential": _credential_json(evidence.credential),
        "principal": call.principal,
        "proved": call.is_proved,
        "delegation": [hop.grant.claims() for hop in evidence.chain.hops]
        if evidence.chain
        else None,
        "inside": call.inside,
        "tool": call.predicate["tool"],
        "arguments": evidence.data.get("arguments"),
        "input": evidence.data.get("input"),
        "facts": phrases.facts(evidence.data.get("input")),
        "commitments": {**call.commitments, **outcome_commitments},
        "resource": call.predicate.get("resource"),
        "task_id": call.predicate.get("task_id"),
        "traceparent": call.predicate.get("traceparent"),
        "decision": call.decision,
        "mode": call.mode,
        "enforced": call.enforced,
        "code": call.code,
        "reasons": list(call.reasons),
        "engine": call.engine,
        "policy_sha256": call.policy_sha256,
        "evaluation": evaluation.as_json() if evaluation is not None else None,
        "config_sha256": call.config_sha256,
        **phrases.client_json(call),
        "requirements": [requirement.as_json() for requirement in evidence.requirements],
        "approvals": [phrases.answer_json(answer) for answer in evidence.answers],
        "issued_at": call.predicate.get("issued_at"),
        "signed": bool(call.envelope.key_ids),
        "at": place.at,
        "outcome": _outcome_json(evidence),
        "resolutions": _statements_json(evidence, is_resolution=True),
        "erasures": _statements_json(evidence, is_resolution=False),
        "copied": sorted(evidence.copied_roles),
        "index": place.index,
        "checkpoint": _checkpoint_json(evidence.checkpoint),
        "unknown": list(limits(evidence)),
    }


def _credential_json(credential: Credential) -> dict[str, JSON]:
    profile = credential.profile
    return {
        "name": profile.name,
        "type": profile.type,
        "owner": profile.owner,
        "version": profile.version,
        "expires_at": credential.expires_at,
    }


def _outcome_json(evidence: Evidence) -> dict[str, JSON] | None:
    if evidence.outcome is None:
        return None
    members = evidence.outcome.predicate
    names = ("status", "result_type", "error_type", "started_at", "ended_at", "replay_of")
    return {name: members.get(name) for name in names} | {"result": evidence.data.get("result")}


def _statements_json(evidence: Evidence, *, is_resolution: bool) -> list[dict[str, object]]:
    return [
        _statement_json(statement, place)
        for statement, place in evidence.admin_statements
        if (statement.ran is not None) is is_resolution
    ]


def _statement_json(statement: AdministeredEntry, place: Place) -> dict[str, object]:
    return {
        **({} if statement.ran is None else {"ran": statement.ran}),
        "note": statement.note,
        "at": place.at,
        "admin_key": statement.key_id,
        "index": place.index,
    }


def _checkpoint_json(covering: VerifiedCheckpoint) -> dict[str, object]:
    point, key = covering.point, covering.key.key.thumbprint
    return {"origin": point.origin, "size": point.size, "root": point.root.hex(), "log_key": key}


def limits(evidence: Evidence) -> Iterator[str]:
    """Yield what the evidence does not prove; each output of ``evidence verify`` has the list."""
    if evidence.call.allowed and evidence.outcome is None:
        yield (
            "whether there was an outcome, or a resolution: the file has none, which does not "
            "prove that there was none"
        )
    yield "the time: every time here is a claim of the log or of the agent"
    if not evidence.call.envelope.key_ids:
        yield (
            "whether the agent asked for this call: the agent did not sign the refused call, and "
            "only the log names the agent"
        )
    else:
        yield (
            "who used the key: the signature attributes the call to the agent instance, and other "
            "code in the same process can use the key"
        )
    yield (
        "what the holder of the log's key rewrote before anybody kept a checkpoint: compare the "
        "root above with a checkpoint that was kept elsewhere"
    )
    if not evidence.call.is_proved:
        yield (
            f"for whom the call was: {evidence.call.principal} is only claimed, for the delegation "
            "was refused and could not be verified"
        )
    yield _approval_limit(evidence.answers)
    if evidence.chain is not None:
        yield (
            "whether the delegation was revoked by then: a denial for this reason is another call "
            "in the log"
        )
    if any(statement.ran is not None for statement, _place in evidence.admin_statements):
        yield "whether the tool ran: the resolution is a person's statement"
    copies = sorted(evidence.copied_roles & evidence.data.keys())
    if copies:
        yield (
            f"what was redacted in {_role_list(copies)}: the file has the redacted copy, for which "
            "the log vouches and not the agent"
        )
    missing = [name for name, commitment in _commitments(evidence) if commitment is not None]
    if missing:
        yield f"{_role_list(missing)}: the file has only the commitment"
    log_key = evidence.checkpoint.key
    if log_key.compromised_since is not None:
        at = datetime.fromtimestamp(log_key.compromised_since, UTC).isoformat()
        yield (
            f"when this was logged: the log key {log_key.key.thumbprint} was compromised at {at}, "
            "and whoever has the key could have written an earlier time"
        )


def _approval_limit(answers: Sequence[Answer]) -> str:
    if not answers:
        return (
            "whether a person approved: the log has no approval of this call, and claims that none "
            "was required; audit verify compares this claim with the requests in the log"
        )
    if any(answer.approver is None for answer in answers):
        return "who approved: the answer is not signed, and only the application vouches for it"
    return "when a person approved: the time comes from the clock of the machine that signed"


def _agent_rows(evidence: Evidence) -> Iterator[Row]:
    credential = evidence.credential
    profile = credential.profile
    yield "call", str(evidence.call.invocation_id)
    yield "agent", f"{agent_alias(credential.uri)} ({credential.uri})"
    profile_parts = [f"name {profile.name}", f"type {profile.type}"]
    profile_parts += [f"owner {profile.owner}"] if profile.owner is not None else []
    profile_parts += [f"version {profile.version}"] if profile.version is not None else []
    until = datetime.fromtimestamp(credential.expires_at, UTC).isoformat()
    yield "issuer says", f"{', '.join(profile_parts)}; valid until {until}"
    yield "for", phrases.whose(evidence.call, profile.name)
    if evidence.chain is not None:
        yield from phrases.delegation(evidence.chain)
    if evidence.call.inside is not None:
        inside = f"the call {evidence.call.inside}, whose tool made this one, by the agent's word"
        yield "inside", f"{inside}; its evidence is another file"


def _tool_rows(evidence: Evidence) -> Iterator[Row]:
    call = evidence.call
    tool = call.predicate.get("tool")
    yield "tool", call.tool
    yield from phrases.origin(call)
    if isinstance(tool, dict):
        yield "tool digest", f"sha256 {tool.get('digest')}"
    if "arguments" in evidence.data:
        yield "arguments", screen.value(evidence.data["arguments"])
    elif call.commitments["arguments"] is None:
        yield "arguments", "they do not fit the tool's parameters"
    else:
        commitment = call.commitments["arguments"]
        yield "arguments", f"not in the file, or erased; their commitment is {commitment}"
    for name in ("resource", "task_id", "traceparent"):
        if call.predicate.get(name) is not None:
            yield name, str(call.predicate[name])
    facts = phrases.facts(evidence.data.get("input"))
    if facts:
        yield "policy saw", screen.value(facts)


def _decision_rows(evidence: Evidence) -> Iterator[Row]:
    call, evaluation = evidence.call, present(evidence.call.evaluation)
    yield from phrases.decided(call)
    if call.engine is None:
        yield "policy", "not evaluated: the call was refused before"
    else:
        name = " ".join(str(value) for _name, value in sorted(call.engine.items()))
        yield "policy", f"{name}, sha256 {call.policy_sha256 or 'not reported by the engine'}"
    if evaluation is not None:
        yield "evaluated", phrases.evaluated(evaluation)
    yield from phrases.client(call)
    yield "config", f"sha256 {call.config_sha256}"
    for requirement in evidence.requirements:
        yield "asked for", phrases.requirement_text(requirement)
    if evidence.answers:
        yield from phrases.answers(evidence.answers)
    else:
        yield "approvals", "none"


def _outcome_rows(evidence: Evidence) -> Iterator[Row]:
    if evidence.call.envelope.key_ids:
        yield "signed at", str(evidence.call.predicate.get("issued_at"))
    else:
        yield "signed", screen.styled("warn", phrases.UNSIGNED)
    yield "logged at", evidence.place.at
    if not evidence.call.allowed:
        yield "outcome", "the tool did not run"
        return
    if evidence.outcome is None or evidence.outcome_place is None:
        yield "outcome", screen.styled("in_doubt", "in doubt: the file has no outcome")
        return
    status, members = evidence.outcome.status, evidence.outcome.predicate
    status_text = (
        phrases.not_run(evidence.outcome.ended.replay_of) if status == "not_run" else status
    )
    yield "outcome", screen.styled(status, status_text)
    if members.get("error_type") is not None:
        yield "error", str(members["error_type"])
    if "result" in evidence.data:
        yield "result", screen.value(evidence.data["result"])
    elif members.get("result") is not None:
        yield "result", f"not in the file, or erased; its commitment is {members['result']}"
    if members.get("result_type") is not None:
        yield "result type", str(members["result_type"])
    if members.get("started_at") is not None:
        yield "ran", f"from {members['started_at']} to {members.get('ended_at')}"


def _admin_rows(evidence: Evidence) -> Iterator[Row]:
    for statement, place in evidence.admin_statements:
        by = f"by the admin key {statement.key_id} at {place.at}: {statement.note}"
        if statement.ran is None:
            yield "erased", f"its data, {by}"
        else:
            yield "resolved", f"the tool {'ran' if statement.ran else 'did not run'}, {by}"


def _log_rows(evidence: Evidence) -> Iterator[Row]:
    point, key = evidence.checkpoint.point, evidence.checkpoint.key.key.thumbprint
    yield "log", f"entry {evidence.place.index} of {point.origin}"
    if evidence.outcome_place is not None:
        yield "its outcome", f"entry {evidence.outcome_place.index}"
    root = point.root.hex()
    yield "checkpoint", f"{point.size} entries of {point.origin}, root {root}, by the log key {key}"
    checkpoint = evidence.call_checkpoint
    yield (
        "witnessed",
        f"the signed call names a checkpoint of the same log, with {checkpoint.size} entries",
    )


def _commitments(evidence: Evidence) -> Iterator[tuple[str, JSON]]:
    """Yield the role and the commitment of each part that is not in the file."""
    outcome = evidence.outcome.commitments if evidence.outcome is not None else {}
    for role, commitment in {**evidence.call.commitments, **outcome}.items():
        if role not in evidence.data:
            yield role, commitment


def _role_list(names: list[str]) -> str:
    return ", ".join("the policy's input" if name == "input" else f"the {name}" for name in names)
