"""``agentguard audit show``: the story of one call, or of all calls of a trace, for a person.

What belongs to a story, and whether it holds, stands in ``call_report.py``; here it is written out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Final, NamedTuple

import typer
from rich.text import Text

from agentguard.audit import approvals, statements
from agentguard.audit.calls import Outcome
from agentguard.audit.entry import Entry
from agentguard.audit.find import LocatedEntry
from agentguard.audit.log import LogReader
from agentguard.cli.audit import call_report, lookup, phrases, row
from agentguard.cli.audit.call_report import Noted, Story
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.location import Trust
from agentguard.cli.terminal.options import (
    CALL,
    NAMES,
    AnchorOption,
    ConfigOption,
    JsonOption,
    StateOption,
    TrustOption,
    trace_id,
)
from agentguard.delegation import grant
from agentguard.errors import AgentguardError
from agentguard.identity.credential import Credential, agent_alias
from agentguard.signing import dsse
from agentguard.signing.canonical import JSON, is_integer
from agentguard.signing.dsse import Envelope

_SHORT: Final = 8
"""Characters of an invocation id that name a file well enough."""


WholeTraceOption = Annotated[
    str | None,
    typer.Option(
        "--trace", metavar="ID", parser=trace_id, help="All calls of a trace (32 hex digits)."
    ),
]


def show(
    call: Annotated[str | None, typer.Argument(metavar=CALL, help=NAMES)] = None,
    *,
    trace: WholeTraceOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
    anchor: AnchorOption = None,
    trust: TrustOption = None,
    json: JsonOption = False,
) -> None:
    """Show all that the log says of one call.

    Who called what, for whom, what was decided and why, what became of it, and how to prove it. Its
    signatures, its credential and its arguments are checked; exit code 1 if one does not hold.
    """
    if (call is None) is (trace is None):
        raise typer.BadParameter("name a call, or a trace with --trace")
    log = location.trusted_log(config, state, anchor, trust)
    reader = log.location.reader()
    found = lookup.find(reader, call) if call is not None else None
    if found is not None and found.entry.kind != "authorization":
        _show_entry(found, json=json)
        return
    calls = [found] if found is not None else lookup.of_trace(reader, trace or "")
    again = _Again(location.repeated(config, state, anchor, trust), location.acting(log.location))
    if not _show_calls(reader, calls, log.trust, again, json=json):
        raise typer.Exit(1)


class _Again(NamedTuple):
    """The options that the commands need which a story names, to find the same log."""

    reading: str
    acting: str


def _show_calls(
    reader: LogReader, calls: Iterable[LocatedEntry], trust: Trust, again: _Again, *, json: bool
) -> bool:
    """Show the story of each call; return whether all of them hold."""
    hold = True
    for number, call in enumerate(calls):
        if call.entry.kind != "authorization":
            if number and not json:
                screen.line()
            _show_entry(call, json=json)
            continue
        told = call_report.tell(reader, call, trust.document)
        hold = hold and not told.problems
        if json:
            screen.json_line(told.as_json())
            continue
        if number:
            screen.line()
        _draw(told, trust, again)
    if json and not trust.outside:
        screen.warn(trust.warning())
    return hold


def _show_entry(found: LocatedEntry, *, json: bool) -> None:
    members = {"kind": found.entry.kind, "at": found.entry.at, **found.entry.members}
    if json:
        screen.json_line({"shard": found.shard, "index": found.index, **members})
    else:
        _draw_entry(members, {**_hops(found.entry), **_asked(found.entry)})


def _draw(told: Story, believed: Trust, again: _Again) -> None:
    """Print a call's story."""
    then, evidence = _then(told, again.acting), _evidence(told, believed, again.reading)
    screen.sheet([*_who(told), *_what(told), *_why(told), *then, *evidence])


def _hops(parsed: Entry) -> dict[str, JSON]:
    """Tell the chain of a delegation entry in words; where it can't be read, it is shown raw."""
    if parsed.kind != "delegation":
        return {}
    with suppress(AgentguardError):
        hops = [grant.read(token) for token in statements.chain_tokens(parsed)[0]]
        told: dict[str, JSON] = {
            f"hop {hop.depth}": f"{phrases.said(hop, parent)}; until {phrases.time(hop)}; {hop.jti}"
            for parent, hop in pairwise([None, *hops])
            if hop is not None
        }
        checked = "no signature: audit show of a call does, and audit verify"
        return {**told, "checked": checked} if told else {}
    return {}


def _asked(parsed: Entry) -> dict[str, JSON]:
    """Tell a request for an approval in words; where it can't be read, it is shown raw."""
    if parsed.kind != "request":
        return {}
    with suppress(AgentguardError):
        asked, said = approvals.read_request(parsed), parsed.members
        about, tool, until = approvals.summary_of_request(parsed), said["tool"], said["expires_at"]
        needed = map(phrases.asked_for, approvals.read_requirements(parsed))
        told: dict[str, JSON] = {
            "request": asked.request_id,
            "agent": f"{agent_alias(about.agent or '')} ({about.agent})",
            "for": about.principal,
            "tool": about.tool,
            "tool digest": f"sha256 {tool.get('digest')}" if isinstance(tool, dict) else None,
            "resource": said["resource"],
            "task_id": said["task_id"],
            "traceparent": said.get("traceparent"),
            "asked for": "; ".join(needed),
            "until": phrases.moment(until) if is_integer(until) else until,
            "call digest": asked.call_sha256,
            "call site": said["call_site"],
            "requirement": asked.requirement_sha256,
            "as shown": asked.displayed_sha256,
            "arguments": "not in the log: they lie with the request while it waits",
        }
        return {name: value for name, value in told.items() if value is not None}
    return {}


def _draw_entry(members: Mapping[str, JSON], told: Mapping[str, JSON]) -> None:
    """Print an entry that belongs to no call; of a signed one, what its statement says."""
    shown = dict(members)
    if told:  # in words, in the place of what they tell
        shown = {"kind": members["kind"], "at": members["at"], **told}
    if "statement" in shown:
        sealed = Envelope.parse(members["statement"])
        said = dsse.parse_statement(sealed.payload, str(members["kind"]))
        shown |= {
            "statement": dict(said.predicate),
            "signed by": [key for key, _ in sealed.signatures],
        }
    screen.sheet((name, _written(value)) for name, value in shown.items())


def _who(told: Story) -> Iterator[tuple[str, str | Text]]:
    call = told.call
    yield "call", call.invocation_id or "without an id"
    yield "agent", f"{agent_alias(call.agent)} ({call.agent})"
    held = told.credential
    if held is None:
        yield "credential", screen.styled("fail", "none that holds")
    else:
        yield "credential", _credential(held)
    own = call.principal == f"agent:{held.profile.name}" if held is not None else False
    yield "for", f"{call.principal}, on its own authority" if own else call.principal
    if told.chain is not None:
        yield from phrases.delegation(told.chain)


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
        yield "arguments", _attached(told, "arguments", told.entry)
    for name in ("resource", "task_id", "traceparent"):
        if said.get(name) is not None:
            yield name, str(said[name])


def _why(told: Story) -> Iterator[tuple[str, str | Text]]:
    call, members = told.call, told.entry.members
    yield from phrases.decided(call)
    if members["engine"] is None:
        yield "policy", "not asked: authority refused before"
    else:
        engine = members["engine"]
        name = " ".join(map(str, engine.values())) if isinstance(engine, dict) else str(engine)
        yield "policy", f"{name}, sha256 {members['policy_sha256'] or 'unknown to it'}"
    if call.evaluation is not None:
        yield "evaluated", phrases.evaluated(call.evaluation)
    yield "config", f"sha256 {members['config_sha256']}"
    with suppress(AgentguardError):  # what can't be read is a problem of the story
        for needed in approvals.read_requirements(told.entry):
            yield "asked for", phrases.asked_for(needed)
    yield from phrases.answers(told.approved)


def _then(told: Story, acting: str) -> Iterator[tuple[str, str | Text]]:
    if not told.call.signed:
        yield "signed", screen.styled("warn", phrases.UNSIGNED)
    yield "decided at", told.entry.at
    if not told.call.allowed:
        yield "outcome", "the tool did not run"
    elif told.outcome is None or told.outcome_entry is None:
        yield from _in_doubt(told, acting)
    else:
        yield from _ended(told, told.outcome, told.outcome_entry.entry)


def _in_doubt(told: Story, acting: str) -> Iterator[tuple[str, str | Text]]:
    noted = told.resolution
    if noted is None:
        yield "outcome", screen.styled("in_doubt", "in doubt: nothing is known since")
        yield "resolve it", screen.command(f"{row.remedy(told.call.invocation_id)}{acting}")
        return
    how = "it ran; with which result is not known" if noted.said.ran else "it did not run"
    yield "outcome", screen.styled("resolved", f"resolved by a person: {how}")
    yield "resolution", _by_admin(noted)


def _ended(told: Story, outcome: Outcome, parsed: Entry) -> Iterator[tuple[str, str | Text]]:
    status, said = outcome.status, outcome.predicate
    ended = phrases.not_run(outcome.replay_of) if status == "not_run" else status
    yield "outcome", screen.styled(status, ended)
    if said.get("error_type") is not None:
        yield "error", str(said["error_type"])
    if said.get("result") is not None:
        yield "result", _attached(told, "result", parsed)
    elif said.get("result_type") is not None:
        yield "result", f"a {said['result_type']}, which has no canonical form"
    if said.get("started_at") is not None:
        yield "ran", f"from {said['started_at']} to {said.get('ended_at')}"


def _attached(told: Story, role: str, parsed: Entry) -> str | Text:
    """Write what stands beside an entry, or say why it does not."""
    copies = parsed.members.get("copies")
    redacted = isinstance(copies, dict) and role in copies
    if role in told.attachments:
        data = screen.value(told.attachments[role])
        return Text("redacted: ").append_text(data) if redacted else data
    if told.erasure is not None:
        return f"erased {_by_admin(told.erasure)}"
    return f"gone, and no erasure is on record; it commits to {told.commitments()[role]}"


def _by_admin(noted: Noted) -> str:
    return f"on {noted.found.entry.at} by the admin key: {noted.said.note}"


def _evidence(told: Story, believed: Trust, reading: str) -> Iterator[tuple[str, str | Text]]:
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
        checked = "signatures, credential" if told.call.signed else "credential"
        yield "checked", screen.styled("ok", f"{checked} and commitments hold")
    yield "trust", believed.source if believed.outside else f"UNTRUSTED KEY: {believed.source}"
    invocation_id = told.call.invocation_id
    if invocation_id is not None:
        named, file = invocation_id, invocation_id[:_SHORT]
        if not row.is_id(invocation_id):  # in a log that was tampered with, it may be any text
            named, file = f"{told.shard}/{told.index}", "call"
        prove = f"agentguard evidence make {named} -o {file}.json{reading}"
        yield "to prove it", screen.command(prove)


def _written(value: object) -> str | Text:
    return value if isinstance(value, str) else screen.value(value)
