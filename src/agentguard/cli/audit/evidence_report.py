"""What the evidence of one call proves, for people and for scripts, and what it can't know.

Here it is only written out; that it holds was found out before, in ``audit/evidence.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from rich.text import Text

from agentguard.approvals.roster import Answer
from agentguard.audit.evidence import Evidence
from agentguard.audit.inclusion import Head, Place
from agentguard.audit.statements import AdminStatement
from agentguard.cli.audit import phrases
from agentguard.cli.terminal import screen
from agentguard.identity.credential import agent_alias
from agentguard.signing.canonical import JSON

Row = tuple[str, str | Text]


def draw(proved: Evidence) -> None:
    """Tell it on the screen."""
    parts = (_who, _what, _why, _then, _since, _where)
    screen.sheet(row for part in parts for row in part(proved))
    screen.line("What this file can't know:")
    for said in unknown(proved):
        screen.item("- ", said)


def as_json(proved: Evidence) -> dict[str, object]:
    """Return what ``evidence verify --json`` prints."""
    call, place, held = proved.call, proved.place, proved.credential
    committed = proved.outcome.commitments if proved.outcome is not None else {"result": None}
    profile = held.profile
    return {
        "ok": True,
        "invocation_id": call.invocation_id,
        "agent": call.agent,
        "credential": {
            "name": profile.name,
            "type": profile.type,
            "owner": profile.owner,
            "version": profile.version,
            "expires_at": held.expires_at,
        },
        "principal": call.principal,
        "delegation": [hop.grant.claims() for hop in proved.chain.hops] if proved.chain else None,
        "tool": call.predicate["tool"],
        "arguments": proved.data.get("arguments"),
        "input": proved.data.get("input"),
        "commitments": {**call.commitments, **committed},
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
        "evaluation": call.evaluation.as_json() if call.evaluation else None,
        "config_sha256": call.config_sha256,
        "requirements": [needed.as_json() for needed in proved.requirements],
        "approvals": [phrases.answer_json(answer) for answer in proved.answers],
        "issued_at": call.predicate.get("issued_at"),
        "signed": call.signed,
        "at": place.at,
        "outcome": _outcome_json(proved),
        "resolutions": [_said_json(*s) for s in proved.admin_statements if s[0].ran is not None],
        "erasures": [_said_json(*s) for s in proved.admin_statements if s[0].ran is None],
        "copied": sorted(proved.copied_roles),
        "origin": place.origin,
        "index": place.index,
        "checkpoints": [_head_json(head) for _origin, head in sorted(proved.heads.items())],
        "unknown": list(unknown(proved)),
    }


def _outcome_json(proved: Evidence) -> dict[str, JSON] | None:
    if proved.outcome is None:
        return None
    said = proved.outcome.predicate
    names = ("status", "result_type", "error_type", "started_at", "ended_at", "replay_of")
    return {name: said.get(name) for name in names} | {"result": proved.data.get("result")}


def _said_json(said: AdminStatement, place: Place) -> dict[str, object]:
    return {
        **({} if said.ran is None else {"ran": said.ran}),
        "note": said.note,
        "at": place.at,
        "admin_key": said.key_id,
        "origin": place.origin,
        "index": place.index,
    }


def _head_json(head: Head) -> dict[str, object]:
    point = head.checkpoint
    return {
        "origin": point.origin,
        "size": point.size,
        "root": point.root.hex(),
        "log_key": head.key.key.thumbprint,
    }


def unknown(proved: Evidence) -> Iterator[str]:
    """Say what such a file can't know; every reader of it is told."""
    if proved.call.allowed and proved.outcome is None:
        yield (
            "whether there was an outcome, or a resolution: that none is here does not prove that "
            "there was none"
        )
    yield "the time: every time here is the log's word, or the agent's"
    if not proved.call.signed:
        yield (
            "whether the agent asked for this at all: the refusal has no signature of its, and "
            "only the log says so"
        )
    else:
        yield (
            "who used the key: it attributes the call to the agent instance, and does not isolate "
            "the instance from other code in its process"
        )
    yield (
        "what the holder of the log's key has rewritten before anybody kept a checkpoint: compare "
        "the root above with a checkpoint that was kept elsewhere"
    )
    yield _unknown_of_people(proved.answers)
    if proved.chain is not None:
        yield (
            "whether the delegation was revoked by then: what was denied for that is on record as "
            "another call"
        )
    if any(said.ran is not None for said, _place in proved.admin_statements):
        yield "whether the tool ran: that it is resolved is a person's word"
    copies = sorted(proved.copied_roles & proved.data.keys())
    if copies:
        yield (
            f"what was redacted in {_listed(copies)}: what is kept is a copy, for which the log "
            "vouches and not the agent"
        )
    missing = [name for name, committed in _commitments(proved) if committed is not None]
    if missing:
        yield f"{_listed(missing)}: not in the file; only the commitment to it is"
    for _origin, head in sorted(proved.heads.items()):
        since = head.key.compromised_since
        if since is not None:
            at = datetime.fromtimestamp(since, UTC).isoformat()
            yield (
                f"when this was logged: the log key {head.key.key.thumbprint} was compromised at "
                f"{at}, and who has it could have written an earlier time"
            )


def _unknown_of_people(answers: Sequence[Answer]) -> str:
    if not answers:
        return (
            "whether a person approved: the log holds no approval of this call, and that none was "
            "asked for is its word, which audit verify holds against the requests in it"
        )
    if any(answer.approver is None for answer in answers):
        return "who approved: it is not signed, and the application alone says so"
    return "when a person approved: the time is by the clock where the answer was signed"


def _who(proved: Evidence) -> Iterator[Row]:
    held = proved.credential
    profile = held.profile
    yield "call", str(proved.call.invocation_id)
    yield "agent", f"{agent_alias(held.uri)} ({held.uri})"
    said = [f"name {profile.name}", f"type {profile.type}"]
    said += [f"owner {profile.owner}"] if profile.owner is not None else []
    said += [f"version {profile.version}"] if profile.version is not None else []
    until = datetime.fromtimestamp(held.expires_at, UTC).isoformat()
    yield "issuer says", f"{', '.join(said)}; valid until {until}"
    own = proved.call.principal == f"agent:{profile.name}"
    yield "for", f"{proved.call.principal}{', on its own authority' if own else ''}"
    if proved.chain is not None:
        yield from phrases.delegation(proved.chain)


def _what(proved: Evidence) -> Iterator[Row]:
    call = proved.call
    tool = call.predicate.get("tool")
    yield "tool", call.tool
    if isinstance(tool, dict):
        yield "tool digest", f"sha256 {tool.get('digest')}"
    if "arguments" in proved.data:
        yield "arguments", screen.value(proved.data["arguments"])
    elif call.commitments["arguments"] is None:
        yield "arguments", "could not be bound"
    else:
        committed = call.commitments["arguments"]
        yield "arguments", f"left out of the file, or erased; their commitment is {committed}"
    for name in ("resource", "task_id", "traceparent"):
        if call.predicate.get(name) is not None:
            yield name, str(call.predicate[name])


def _why(proved: Evidence) -> Iterator[Row]:
    call = proved.call
    yield from phrases.decided(call)
    if call.engine is None:
        yield "policy", "not asked: the call was refused before"
    else:
        name = " ".join(str(value) for _name, value in sorted(call.engine.items()))
        yield "policy", f"{name}, sha256 {call.policy_sha256 or 'unknown to it'}"
    if call.evaluation is not None:
        yield "evaluated", phrases.evaluated(call.evaluation)
    yield "config", f"sha256 {call.config_sha256}"
    for needed in proved.requirements:
        yield "asked for", phrases.requirement_text(needed)
    if proved.answers:
        yield from phrases.answers(proved.answers)
    else:
        yield "approvals", "none"


def _then(proved: Evidence) -> Iterator[Row]:
    if proved.call.signed:
        yield "signed at", str(proved.call.predicate.get("issued_at"))
    else:
        yield "signed", screen.styled("warn", phrases.UNSIGNED)
    yield "logged at", proved.place.at
    if not proved.call.allowed:
        yield "outcome", "the tool did not run"
        return
    if proved.outcome is None or proved.outcome_place is None:
        yield "outcome", screen.styled("in_doubt", "in doubt: the file holds none")
        return
    status, said = proved.outcome.status, proved.outcome.predicate
    ended = phrases.not_run(proved.outcome.replay_of) if status == "not_run" else status
    yield "outcome", screen.styled(status, ended)
    if said.get("error_type") is not None:
        yield "error", str(said["error_type"])
    if "result" in proved.data:
        yield "result", screen.value(proved.data["result"])
    elif said.get("result") is not None:
        yield "result", f"left out of the file, or erased; its commitment is {said['result']}"
    if said.get("result_type") is not None:
        yield "result type", str(said["result_type"])
    if said.get("started_at") is not None:
        yield "ran", f"from {said['started_at']} to {said.get('ended_at')}"


def _since(proved: Evidence) -> Iterator[Row]:
    for said, place in proved.admin_statements:
        by = f"said the admin key {said.key_id} at {place.at}: {said.note}"
        if said.ran is None:
            yield "erased", f"its data, {by}"
        else:
            yield "resolved", f"the tool {'ran' if said.ran else 'did not run'}, {by}"


def _where(proved: Evidence) -> Iterator[Row]:
    place = proved.place
    yield "log", f"entry {place.index} of {place.origin}"
    if proved.outcome_place is not None:
        yield "its outcome", f"entry {proved.outcome_place.index} of {proved.outcome_place.origin}"
    for origin, head in sorted(proved.heads.items()):
        point, key = head.checkpoint, head.key.key.thumbprint
        said = f"{point.size} entries of {origin}, root {point.root.hex()}, by the log key {key}"
        yield "checkpoint", said
    seen = proved.call_checkpoint
    yield "witnessed", f"the call carries the checkpoint of {seen.size} entries, of the same log"


def _commitments(proved: Evidence) -> Iterator[tuple[str, JSON]]:
    """Yield what is committed to and not in the file, by role."""
    outcome = proved.outcome.commitments if proved.outcome is not None else {}
    for role, committed in {**proved.call.commitments, **outcome}.items():
        if role not in proved.data:
            yield role, committed


def _listed(names: list[str]) -> str:
    return ", ".join("the policy's input" if name == "input" else f"the {name}" for name in names)
