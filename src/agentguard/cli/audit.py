"""``agentguard audit``: list, show and verify the log. Nothing is written; no lock is taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.text import Text

from agentguard import domain
from agentguard.audit.entry import Entry
from agentguard.audit.verify import Problem
from agentguard.cli import history, place, screen, story
from agentguard.cli.history import Row
from agentguard.cli.place import (
    AnchorOption,
    ConfigOption,
    JsonOption,
    Place,
    StateOption,
    Trust,
    TrustOption,
)
from agentguard.cli.portrait import alias, draw, draw_entry
from agentguard.domain import Report

app = typer.Typer(no_args_is_help=True, help="Look at the log, and verify it.")

_SHOWN: Final = 50
_COLUMNS: Final = ("index", "at", "kind", "decision", "outcome", "agent", "tool")
_BACKGROUND: Final = frozenset({"shard", "key", "config", "policy"})


@app.command("list")
def list_entries(
    *,
    config: ConfigOption = None,
    state: StateOption = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=0,
            metavar="N",
            help=f"The newest N entries, 0 for all; by default {_SHOWN}, with --json all.",
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="Also the entries that are no call's; --json always has them."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """List the calls, the newest last.

    They are listed as they stand in the log, unverified; times are UTC.

    With --json, one object a line: index, shard, kind, at, agent, principal, tool, decision
    (allow, deny, approval), reason, invocation_id, outcome (ok, error, unknown, in_doubt: it was
    authorised and nothing is known since). What a kind does not have is null.
    """
    found = place.locate(config, state)
    rows: Iterable[Row] = history.rows(found.reader())
    if json:
        for row in deque(rows, maxlen=limit) if limit else rows:
            screen.json_line(row.as_json())
        return
    newest: deque[Row] = deque(maxlen=_SHOWN if limit is None else limit or None)
    count = hidden = 0
    for row in rows:
        if every or not _is_background(row):
            newest.append(row)
            count += 1
        else:
            hidden += 1
    screen.columns(_COLUMNS, _lines(newest))
    if len(newest) < count:
        screen.line(f"the newest {len(newest)} of {count} entries; --limit 0 lists them")
    if hidden:
        screen.line(f"and {_entries(hidden)} of outcomes, keys, configuration and policy: --all")


def _is_background(row: Row) -> bool:
    """Whether a row says nothing that another does not: an outcome stands in its call's row."""
    return row.kind in _BACKGROUND or (row.kind == "outcome" and row.tool is not None)


def _lines(rows: Iterable[Row]) -> Iterator[screen.Row]:
    """Yield the rows, and a line with the date wherever it changes."""
    day = ""
    for row in rows:
        at = row.at or ""
        if at and at[:10] != day:
            day = at[:10]
            yield (), screen.styled("", day)
        yield _cells(row), row.reason or ""


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


def _cells(row: Row) -> tuple[str | Text, ...]:
    return (
        str(row.index) if row.shard == 0 else f"{row.shard}/{row.index}",
        (row.at or "")[11:19],
        _kind(row),
        screen.styled(row.decision or "", row.decision or ""),
        screen.styled(row.outcome or "", row.outcome or ""),
        alias(row.agent or "").removeprefix("agent:"),
        row.tool or "",
    )


def _kind(row: Row) -> str | Text:
    if row.kind == "damaged":
        return screen.styled("damaged", row.kind)
    return "call" if row.kind == "authorization" else row.kind


@app.command("show")
def show(
    call: Annotated[
        str,
        typer.Argument(
            metavar="INVOCATION_ID|INDEX",
            help="An invocation id, an index, or SHARD/INDEX.",
        ),
    ],
    *,
    config: ConfigOption = None,
    state: StateOption = None,
    anchor: AnchorOption = None,
    trust: TrustOption = None,
    json: JsonOption = False,
) -> None:
    """Tell the story of one call.

    Who called what, for whom, what was decided and why, and what became of it. Its signatures,
    its credential and its arguments are checked; exit code 1 if one does not hold.
    """
    found = place.locate(config, state, anchor)
    believed = place.trust(found, trust)
    told = story.tell(found.reader(), call, believed.document)
    if isinstance(told, Entry):
        members = {"kind": told.kind, "at": told.at, **told.members}
        if json:
            screen.json_line(members)
        else:
            draw_entry(members)
        return
    if json:
        screen.json_line(told.as_json())
        if not believed.outside:
            screen.warn(_untrusted(believed))
    else:
        draw(told, believed)
    if told.problems:
        raise typer.Exit(1)


@app.command("verify")
def verify(
    *,
    config: ConfigOption = None,
    state: StateOption = None,
    anchor: AnchorOption = None,
    trust: TrustOption = None,
    json: JsonOption = False,
) -> None:
    """Verify the whole log.

    Checks every hash, signature and credential, against the anchors and keys from outside.
    Exit code 1 if anything does not hold. With --json, one object: ok, entries, shards, anchored,
    in_doubt (invocation ids), problems (each with shard, index, what).
    """
    found = place.locate(config, state, anchor)
    believed = place.trust(found, trust)
    report = _examine(found, believed)
    if json:
        screen.json_line(_report_json(report))
        if not believed.outside:
            screen.warn(_untrusted(believed))
        if not report.anchored:
            screen.warn(unanchored(found.anchor, report))
    else:
        _draw_report(found, believed, report)
    if not report.ok:
        raise typer.Exit(1)


def _examine(found: Place, believed: Trust) -> Report:
    with screen.counter("verifying entry") as count:
        return domain.examine(
            found.reader(), believed.document, anchor=found.anchor, progress=count
        )


def _report_json(report: Report) -> dict[str, object]:
    return {
        "ok": report.ok,
        "entries": report.entries,
        "shards": len(report.shards),
        "anchored": report.anchored,
        "in_doubt": report.in_doubt,
        "problems": [
            {"shard": problem.shard, "index": problem.index, "what": problem.what}
            for problem in report.problems
        ],
    }


def _draw_report(found: Place, believed: Trust, report: Report) -> None:
    for problem in report.problems:
        screen.item("  ", f"{where(problem)}: {problem.what}")
    verdict = screen.styled("ok", "consistent") if report.ok else screen.styled("fail", "FAILED")
    shards = "1 shard" if len(report.shards) == 1 else f"{len(report.shards)} shards"
    screen.line(
        verdict,
        f": {_entries(report.entries)} in {shards} of {place.from_home(found.state)}",
    )
    if report.anchored and found.anchor is not None:
        kept = place.from_home(found.anchor)
        screen.line(screen.styled("ok", "anchored"), f": by the checkpoints in {kept}")
    else:
        screen.line(screen.styled("warn", unanchored(found.anchor, report)))
    screen.line(f"trust: {believed.document.trust_domain}, from {believed.source}")
    if not believed.outside:
        screen.line(screen.styled("warn", _untrusted(believed)))
    if report.in_doubt:
        screen.line(
            screen.styled("in_doubt", f"{len(report.in_doubt)} in doubt"),
            " (authorised, and nothing is known since): " + ", ".join(report.in_doubt),
        )


def where(problem: Problem) -> str:
    """Name the place of a problem, for people."""
    entry = f", entry {problem.index}" if problem.index is not None else ""
    return f"shard {problem.shard}{entry}"


def unanchored(anchor: Path | None, report: Report) -> str:
    """Say why no checkpoint from outside vouches for a log: there is none, or the log is damaged.

    A report has ``anchored`` false wherever the log is not whole; ``kept`` says which it is.
    """
    if anchor is None:
        why = "no anchor is named"
    elif report.kept:
        why = f"{place.from_home(anchor)} keeps one, but the log is not whole or not the one it saw"
    elif report.ok:
        why = f"{place.from_home(anchor)} keeps none"
    else:
        why = f"{place.from_home(anchor)} has none that can be used"
    return f"UNANCHORED: no checkpoint from outside the state vouches for this log ({why})"


def _untrusted(believed: Trust) -> str:
    return (
        f"UNTRUSTED KEY: the keys come from {believed.source}, a part of what is checked; "
        "name a trust document of your own with --trust"
    )
