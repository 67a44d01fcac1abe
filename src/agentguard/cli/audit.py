"""``agentguard audit``: list, show and verify the log. Nothing is written; no lock is taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Annotated, Final

import typer
from rich.text import Text

from agentguard import domain
from agentguard.audit.entry import Entry
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
_COLUMNS: Final = ("index", "at", "kind", "agent", "tool", "decision", "reason", "outcome")


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
    json: JsonOption = False,
) -> None:
    """List the entries, the newest last.

    They are listed as they stand in the log, unverified.

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
    count = 0
    for row in rows:
        newest.append(row)
        count += 1
    screen.table(_COLUMNS, (_cells(row) for row in newest))
    if len(newest) < count:
        screen.line(f"the newest {len(newest)} of {count} entries; --limit 0 lists all")


def _cells(row: Row) -> tuple[str | Text, ...]:
    return (
        str(row.index) if row.shard == 0 else f"{row.shard}/{row.index}",
        (row.at or "")[:19].replace("T", " "),
        screen.styled("damaged", row.kind) if row.kind == "damaged" else row.kind,
        alias(row.agent or ""),
        row.tool or "",
        screen.styled(row.decision or "", row.decision or ""),
        row.reason or "",
        screen.styled(row.outcome or "", row.outcome or ""),
    )


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
            screen.warn(_unanchored(found))
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
    if report.problems:
        rows = (
            (str(p.shard), "" if p.index is None else str(p.index), p.what) for p in report.problems
        )
        screen.table(("shard", "index", "what does not hold"), rows)
    verdict = screen.styled("ok", "consistent") if report.ok else screen.styled("fail", "FAILED")
    shards = "1 shard" if len(report.shards) == 1 else f"{len(report.shards)} shards"
    screen.line(verdict, f": {report.entries} entries in {shards} of {found.state}")
    if report.anchored:
        screen.line(screen.styled("ok", "anchored"), f": by the checkpoints in {found.anchor}")
    else:
        screen.line(screen.styled("warn", _unanchored(found)))
    screen.line(f"trust: {believed.document.trust_domain}, from {believed.source}")
    if not believed.outside:
        screen.line(screen.styled("warn", _untrusted(believed)))
    if report.in_doubt:
        screen.line(
            screen.styled("in_doubt", f"{len(report.in_doubt)} in doubt"),
            " (authorised, and nothing is known since): " + ", ".join(report.in_doubt),
        )


def _unanchored(found: Place) -> str:
    where = f"{found.anchor} keeps none" if found.anchor is not None else "no anchor is named"
    return f"UNANCHORED: no checkpoint from outside the state vouches for this log ({where})"


def _untrusted(believed: Trust) -> str:
    return (
        f"UNTRUSTED KEY: the keys come from {believed.source}, a part of what is checked; "
        "name a trust document of your own with --trust"
    )
