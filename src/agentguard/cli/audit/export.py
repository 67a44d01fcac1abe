"""``agentguard audit export``: writes the log as JSON lines, for other programs.

docs/reference/cli/audit-verify.md describes the members of a line. An export proves nothing:
``evidence make`` writes evidence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import click

from agentguard.audit import merkle, statements
from agentguard.audit.entry import Attachment, Entry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.audit.log import LogReader
from agentguard.cli.audit import filters, history, lookup
from agentguard.cli.audit.filters import FilterOptions
from agentguard.cli.audit.history import History
from agentguard.cli.audit.log_row import Row
from agentguard.cli.terminal import files, location, screen
from agentguard.cli.terminal.options import CONFIG, FORCE, OUTPUT, STATE, Option, command
from agentguard.errors import AgentguardError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.storage import sqlite


@command(
    OUTPUT,
    Option(
        "--attachments/--no-attachments",
        "Whether to add arguments, policy input and results.",
        default=True,
        show_default=True,
    ),
    Option(
        "-n, --last N",
        "The newest N; 0 for all.",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
    ),
    FORCE,
    *filters.OPTIONS,
    CONFIG,
    STATE,
)
def export(
    *,
    output: Path | None,
    attachments: bool,
    last: int,
    force: bool,
    config: Path | None,
    state: Path | None,
    **criteria: Unpack[FilterOptions],
) -> None:
    """Each entry is one object on one line, in the order of the log: index, leaf_hash, entry,
    attachments (by role: arguments, input, result). The entries are written as they are in the log,
    unverified. An attachment that differs from its commitment is left out, and problems names it.
    """
    reader = location.locate(config, state).reader()
    selection = lookup.with_whole_trace(reader, filters.chosen(**criteria))
    rows = History(reader).rows(selection, newest_first=bool(last), outcomes=selection.in_doubt)
    if last:
        rows = iter(history.newest(rows, last))
    total = history.expected(reader) if selection.everything and not last else None
    number = 0
    streamed = files.is_stream(output)
    with (
        files.new(output, force=force) as file,
        screen.counter("exporting", total, quiet=streamed) as count,
    ):
        for number, row in enumerate(rows, start=1):
            file.write(_line(reader, row, attachments=attachments))
            count(number)
    if not streamed:
        screen.line(f"{output} holds {screen.count(number, 'entry', 'entries')}")


def _line(reader: LogReader, row: Row, *, attachments: bool) -> bytes:
    stored = reader.entry(row.index)
    is_read = row.entry is not None
    members: dict[str, object] = {
        "index": row.index,
        "leaf_hash": merkle.leaf_hash(stored.body).hex() if stored is not None else None,
        "entry": canonical.loads(stored.body) if stored is not None and is_read else None,
    }
    problems = [] if is_read else [str(row.reason)]
    if attachments:
        decoded, changes = _decode(row.entry, stored.attachments if stored is not None else ())
        members["attachments"] = decoded
        problems += changes
    if problems:
        members["problems"] = problems
    return json.dumps(members).encode() + b"\n"


def _decode(
    parsed: Entry | None, attachments: Sequence[Attachment]
) -> tuple[dict[str, JSON], list[str]]:
    """Return the decoded attachments of an entry, and a sentence for each changed one."""
    decoded: dict[str, JSON] = {}
    changes: list[str] = []
    if not attachments or parsed is None:
        return decoded, changes
    commitments = parsed.commitments if isinstance(parsed, CallEntry | OutcomeEntry) else {}
    for attachment in attachments:
        try:
            statements.check_attachments([attachment], commitments)
            decoded[attachment.role] = canonical.loads(attachment.data, limit=sqlite.MAX_LENGTH)
        except AgentguardError as error:
            changes.append(str(error))
    return decoded, changes
