"""How one call, or one entry of the log, looks to a person.

What a call is and whether it holds stands in ``story.py``; here it is only written out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

from rich.text import Text

from agentguard import envelope
from agentguard.audit.entry import Entry
from agentguard.audit.statements import Outcome
from agentguard.canonical import JSON
from agentguard.cli import rows, screen
from agentguard.cli.place import Trust
from agentguard.cli.story import Story
from agentguard.envelope import Envelope
from agentguard.identity.credential import Credential

_SHORT: Final = 8
_URI: Final = re.compile(r"spiffe://[^/]+/agent/([^/]+)/([^/]{4})[^/]*\Z")


def alias(uri: str) -> str:
    """Return the short name of an agent instance, for display; another text as it is."""
    match = _URI.match(uri)
    return f"agent:{match[1]}:{match[2]}" if match else uri


def draw(told: Story, believed: Trust) -> None:
    """Print a call's story."""
    screen.sheet([*_who(told), *_what(told), *_why(told), *_then(told), *_evidence(told, believed)])


def draw_entry(members: Mapping[str, JSON]) -> None:
    """Print an entry that belongs to no call; of a signed one, what its statement says."""
    shown = dict(members)
    if "statement" in shown:
        sealed = Envelope.parse(members["statement"])
        said = envelope.parse_statement(sealed.payload, str(members["kind"]))
        shown |= {
            "statement": dict(said.predicate),
            "signed by": [key for key, _ in sealed.signatures],
        }
    screen.sheet((name, _written(value)) for name, value in shown.items())


def _who(told: Story) -> Iterator[tuple[str, str | Text]]:
    call = told.call
    yield "call", call.invocation_id or "without an id"
    yield "agent", f"{alias(call.agent)}  {call.agent}"
    held = told.credential
    if held is None:
        yield "credential", screen.styled("fail", "none that holds")
    else:
        yield "credential", _credential(held)
    own = call.principal == f"agent:{held.profile.name}" if held is not None else False
    yield "for", f"{call.principal}, on its own authority" if own else call.principal


def _credential(held: Credential) -> str:
    profile = held.profile
    parts = [f"type {profile.type}"]
    if profile.owner is not None:
        parts.append(f"owner {profile.owner}")
    if profile.version is not None:
        parts.append(f"version {profile.version}")
    since, until = (
        datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
        for seconds in (held.issued_at, held.expires_at)
    )
    return ", ".join([*parts, f"valid from {since} to {until} UTC"])


def _what(told: Story) -> Iterator[tuple[str, str | Text]]:
    said = told.call.predicate
    yield "tool", told.call.tool
    if said.get("arguments") is None:
        yield "arguments", "could not be bound"
    else:
        yield "arguments", _kept(told, "arguments", told.entry)
    for name in ("resource", "task_id", "traceparent"):
        if said.get(name) is not None:
            yield name, str(said[name])


def _why(told: Story) -> Iterator[tuple[str, str | Text]]:
    call, members = told.call, told.entry.members
    code = f" [{call.code}]" if call.code else ""
    yield "decision", screen.styled(call.decision, f"{call.decision}{code}")
    for reason in call.reasons:
        yield "reason", reason
    if members["engine"] is None:
        yield "policy", "not asked: authority refused before"
    else:
        engine = members["engine"]
        name = " ".join(map(str, engine.values())) if isinstance(engine, dict) else str(engine)
        yield "policy", f"{name}, sha256 {members['policy_sha256'] or 'unknown to it'}"
    yield "config", f"sha256 {members['config_sha256']}"


def _then(told: Story) -> Iterator[tuple[str, str | Text]]:
    yield "decided at", told.entry.at
    if not told.call.allowed:
        yield "outcome", "the tool did not run"
    elif told.outcome is None or told.outcome_entry is None:
        yield from _in_doubt(told)
    else:
        yield from _ended(told, told.outcome, told.outcome_entry.entry)


def _in_doubt(told: Story) -> Iterator[tuple[str, str | Text]]:
    said = told.resolution
    if said is None:
        yield "outcome", screen.styled("in_doubt", "in doubt: nothing is known since")
        yield "resolve it", rows.remedy(told.call.invocation_id)
        return
    how = "it ran; with which result is not known" if said.ran else "it did not run"
    yield "outcome", screen.styled("resolved", f"resolved by a person: {how}")
    yield "resolution", f"on {said.at} by the admin key: {said.note}"


def _ended(told: Story, outcome: Outcome, parsed: Entry) -> Iterator[tuple[str, str | Text]]:
    status, said = outcome.status, outcome.predicate
    yield "outcome", screen.styled(status, rows.NOT_RUN if status == "not_run" else status)
    if said.get("error_type") is not None:
        yield "error", str(said["error_type"])
    if said.get("result") is not None:
        yield "result", _kept(told, "result", parsed)
    elif said.get("result_type") is not None:
        yield "result", f"a {said['result_type']}, which has no canonical form"
    if said.get("started_at") is not None:
        yield "ran", f"from {said['started_at']} to {said.get('ended_at')}"


def _kept(told: Story, role: str, parsed: Entry) -> str:
    """Write what stands beside an entry, or say why it does not."""
    copies = parsed.members.get("copies")
    redacted = isinstance(copies, dict) and role in copies
    if role in told.kept:
        return ("redacted: " if redacted else "") + _written(told.kept[role])
    said = told.erasure
    if said is not None:
        return f"erased on {said.at} by the admin key: {said.note}"
    return f"not kept; what it commits to is {told.commitments()[role]}"


def _evidence(told: Story, believed: Trust) -> Iterator[tuple[str, str | Text]]:
    place = f"shard {told.shard}, entry {told.index}"
    if told.outcome_entry is not None:
        place += f"; its outcome is entry {told.outcome_entry.index}"
    yield "log", place
    if told.head is not None:
        root = told.head.root.hex()
        yield "checkpoint", f"{told.head.size} entries of {told.head.origin}, root {root}"
    for problem in told.problems:
        yield "PROBLEM", screen.styled("fail", problem)
    if not told.problems:
        yield "checked", screen.styled("ok", "signatures, credential and commitments hold")
    yield "trust", believed.source if believed.outside else f"UNTRUSTED KEY: {believed.source}"
    invocation_id = told.call.invocation_id
    if invocation_id is not None:
        file = f"{invocation_id[:_SHORT]}.json"
        yield "to prove it", f"agentguard audit prove {invocation_id} -o {file}"


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
