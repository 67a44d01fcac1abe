"""``agentguard audit show``: prints the report on one call, or on each call of a trace.

``call_report.py`` reads and checks a call; this file prints the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NamedTuple, Unpack

import click
from rich.text import Text

from agentguard.audit.entry import Entry, Signed, present
from agentguard.audit.find import LocatedEntry
from agentguard.audit.kinds.administration import AdministeredEntry
from agentguard.audit.kinds.calls import CallEntry, Copies, OutcomeEntry
from agentguard.audit.log import LogReader
from agentguard.cli.audit import call_report, log_row, lookup, phrases
from agentguard.cli.audit.call_report import CallReport
from agentguard.cli.audit.entry_rows import rows_of
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.location import Trust
from agentguard.cli.terminal.options import (
    AS_JSON,
    CALL,
    LOG,
    NAMES,
    Argument,
    LogOptions,
    Option,
    beginning_of_trace_id,
    command,
)
from agentguard.errors import AgentguardError
from agentguard.identity.credential import Credential, agent_alias

_SHORT: Final = 8
"""The number of characters of the invocation id in the suggested name of an evidence file."""

_SheetRow = tuple[str, str | Text]


@command(
    Argument("call", CALL, NAMES, required=False),
    Option(
        "--trace ID",
        "All calls of a trace, by its id or the beginning of its id.",
        type=beginning_of_trace_id,
    ),
    *LOG,
    AS_JSON,
)
def show(
    *, call: str | None, trace: str | None, json: bool, **log_options: Unpack[LogOptions]
) -> None:
    """Who called what, for whom, what was decided and why, what became of it, and how to prove it.
    Its signatures, its credential and its arguments are checked; exit code 1 if one does not hold.
    """
    if (call is None) is (trace is None):
        raise click.BadParameter("name a call, or a trace with --trace")
    log = location.trusted_log(**log_options)
    reader = log.location.reader()
    located = lookup.find(reader, call) if call is not None else None
    if located is not None and not isinstance(located.entry, CallEntry):
        _show_entry(located, json=json)
        return
    calls = [located] if located is not None else lookup.of_trace(reader, trace or "")
    reading = location.log_options(**log_options)
    options = _Options(reading, acting=location.config_option(log.location))
    if not _show_calls(reader, calls, log.trust, options, json=json):
        raise SystemExit(1)


class _Options(NamedTuple):
    """The options that a report adds to its suggested commands, so that they use the same log.

    ``reading`` is for commands that read the log, ``acting`` for commands that change the log.
    """

    reading: str
    acting: str


def _show_calls(
    reader: LogReader,
    calls: Iterable[LocatedEntry[Entry]],
    trust: Trust,
    options: _Options,
    *,
    json: bool,
) -> bool:
    """Print the report on each call; return whether every check holds."""
    hold = True
    for number, call in enumerate(calls):
        if not isinstance(call.entry, CallEntry):
            if number and not json:
                screen.line()
            _show_entry(call, json=json)
            continue
        report = call_report.read(reader, LocatedEntry(call.index, call.entry), trust.document)
        hold = hold and not report.problems
        if json:
            screen.json_line(report.as_json())
            continue
        if number:
            screen.line()
        _draw(report, trust, options)
    if json and not trust.outside:
        screen.warn(trust.warning())
    return hold


def _show_entry(located: LocatedEntry[Entry], *, json: bool) -> None:
    entry = located.entry
    about = {"kind": entry.kind, "at": entry.at}
    if json:
        screen.json_line({"index": located.index, **about, **entry.members})
        return
    display: dict[str, object] = {**about, **(rows_of(entry) or _members(entry))}
    screen.sheet((name, _as_text(value)) for name, value in display.items())


def _members(entry: Entry) -> dict[str, object]:
    """Return the members of an entry, with the statement in the place of its envelope."""
    members: dict[str, object] = {**entry.members}
    if isinstance(entry, Signed | OutcomeEntry):
        members["statement"] = dict(entry.stated.predicate)
        members["signed by"] = list(entry.envelope.key_ids)
    return members


def _draw(report: CallReport, trust: Trust, options: _Options) -> None:
    """Print the report on a call."""
    decision = _decision_rows(report, options.reading)
    outcome = _outcome_rows(report, options.acting)
    evidence = _evidence_rows(report, trust, options.reading)
    screen.sheet([*_agent_rows(report), *_tool_rows(report), *decision, *outcome, *evidence])


def _agent_rows(report: CallReport) -> Iterator[_SheetRow]:
    call = report.call
    yield "call", call.invocation_id or "without an id"
    yield "agent", f"{agent_alias(call.agent)} ({call.agent})"
    credential = report.credential
    if credential is None:
        yield "credential", screen.styled("fail", "none valid")
    else:
        yield "credential", _credential(credential)
    yield "for", phrases.whose(call, None if credential is None else credential.profile.name)
    if report.chain is not None:
        yield from phrases.delegation(report.chain)
    if call.inside is not None:
        yield "inside", _around(report, call.inside)


def _around(report: CallReport, invocation_id: str) -> str:
    """Name the call whose tool made this one, and whether work was handed on by it."""
    if report.around is None:
        return f"the call {invocation_id}, which is not in this log"
    around = report.around.entry
    name = f"the call {invocation_id} of {around.tool} by {agent_alias(around.agent)}"
    handed_on = ", which handed the work on" if around.agent != report.call.agent else ""
    return f"{name} (entry {report.around.place.index}){handed_on}"


def _credential(credential: Credential) -> str:
    profile = credential.profile
    parts = [f"type {profile.type}"]
    if profile.owner is not None:
        parts.append(f"owner {profile.owner}")
    if profile.version is not None:
        parts.append(f"version {profile.version}")
    since, until = (
        datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
        for seconds in (credential.issued_at, credential.expires_at)
    )
    return ", ".join([*parts, f"valid from {since} to {until} UTC"])


def _tool_rows(report: CallReport) -> Iterator[_SheetRow]:
    members = report.call.predicate
    yield "tool", report.call.tool
    yield from phrases.origin(report.call)
    if members.get("arguments") is None:
        yield "arguments", "could not be bound to the tool's parameters"
    else:
        yield "arguments", _attached(report, "arguments", report.call.copies)
    for name in ("resource", "task_id", "traceparent"):
        if members.get(name) is not None:
            yield name, str(members[name])
    facts = phrases.facts(report.attachments.get("input"))
    if facts:
        yield "policy saw", screen.value(facts)


def _decision_rows(report: CallReport, reading: str) -> Iterator[_SheetRow]:
    call, evaluation = report.call, present(report.call.evaluation)
    yield from phrases.decided(call)
    if call.engine is None:
        yield "policy", "not asked: the call was refused before"
    else:
        name = " ".join(map(str, call.engine.values()))
        yield "policy", f"{name}, sha256 {call.policy_sha256 or 'not reported by the engine'}"
    if evaluation is not None:
        yield "evaluated", phrases.evaluated(evaluation)
    yield from phrases.client(call)
    yield "config", f"sha256 {call.config_sha256}"
    with suppress(AgentguardError):  # the report has the problem already
        for requirement in call.required:
            yield "asked for", phrases.requirement_text(requirement)
    if report.request is not None:
        place = report.request.index
        yield "request", f"{report.request.entry.request_id} (entry {place})"
        yield "to see it", screen.command(f"agentguard audit show {place}{reading}")
    yield from phrases.answers(report.answers)


def _outcome_rows(report: CallReport, acting: str) -> Iterator[_SheetRow]:
    if not report.call.envelope.key_ids:
        yield "signed", screen.styled("warn", phrases.UNSIGNED)
    yield "decided at", report.call.at
    yield from map(phrases.released, report.releases)
    if not report.call.allowed:
        yield "outcome", "the tool did not run"
    elif report.outcome is None:
        yield from _doubt_rows(report, acting)
    else:
        yield from _ended_rows(report, report.outcome.entry)


def _doubt_rows(report: CallReport, acting: str) -> Iterator[_SheetRow]:
    if report.resolution is None:
        yield (
            "outcome",
            screen.styled("in_doubt", "in doubt: allowed, and no outcome is in the log"),
        )
        yield "resolve it", screen.command(f"{log_row.remedy(report.call.invocation_id)}{acting}")
        return
    resolution = report.resolution.entry
    how = "it ran; with which result is not known" if resolution.ran else "it did not run"
    yield "outcome", screen.styled("resolved", f"resolved by a person: {how}")
    yield "resolution", _by_admin(resolution)


def _ended_rows(report: CallReport, outcome: OutcomeEntry) -> Iterator[_SheetRow]:
    status, members = outcome.status, outcome.predicate
    ended = phrases.not_run(outcome.ended.replay_of) if status == "not_run" else status
    yield "outcome", screen.styled(status, ended)
    if members.get("error_type") is not None:
        yield "error", str(members["error_type"])
    if members.get("result") is not None:
        yield "result", _attached(report, "result", outcome.copies)
    elif members.get("result_type") is not None:
        yield "result", f"a {members['result_type']}, which has no canonical form"
    if members.get("started_at") is not None:
        yield "ran", f"from {members['started_at']} to {members.get('ended_at')}"


def _attached(report: CallReport, role: str, copies: Copies) -> str | Text:
    """Return the data beside an entry, or the reason why there are none."""
    if role in report.attachments:
        data = screen.value(report.attachments[role])
        return Text("redacted: ").append_text(data) if role in copies else data
    if report.erasure is not None:
        return f"erased {_by_admin(report.erasure.entry)}"
    digest = report.commitments()[role]
    return f"gone, and no erasure is on record; the entry commits to {digest}"


def _by_admin(entry: AdministeredEntry) -> str:
    return f"on {entry.at} by the admin key: {entry.note}"


def _evidence_rows(report: CallReport, trust: Trust, reading: str) -> Iterator[_SheetRow]:
    place = f"entry {report.index}"
    if report.outcome is not None:
        place += f"; its outcome is entry {report.outcome.index}"
    yield "log", place
    if report.head is not None:
        root = report.head.root.hex()
        yield "checkpoint", f"{report.head.size} entries of {report.head.origin}, root {root}"
    for problem in report.problems:
        yield "PROBLEM", screen.styled("fail", problem)
    if not report.problems:
        checks = "signatures, credential" if report.call.envelope.key_ids else "credential"
        yield "checked", screen.styled("ok", f"{checks} and commitments hold")
        yield "not checked", "the log around the call: agentguard audit verify does"
    yield "trust", trust.source if trust.outside else f"UNTRUSTED KEY: {trust.source}"
    invocation_id = report.call.invocation_id
    if invocation_id is not None:
        name, file = invocation_id, invocation_id[:_SHORT]
        if not log_row.is_id(invocation_id):  # in a log that was tampered with, it may be any text
            name, file = str(report.index), "call"
        prove = f"agentguard evidence make {name} -o {file}.json{reading}"
        yield "to prove it", screen.command(prove)


def _as_text(value: object) -> str | Text:
    return value if isinstance(value, str) else screen.value(value)
