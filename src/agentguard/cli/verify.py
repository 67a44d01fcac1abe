"""``agentguard audit verify``: the whole log, held against keys and checkpoints from outside.

What is checked stands in ``examination.py``, how the findings are told in ``verdict.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Final

import typer

from agentguard.audit import checkpoint
from agentguard.cli import options, screen, witness
from agentguard.cli.filters import Filter, moment
from agentguard.cli.history import History
from agentguard.cli.options import TrustedLog
from agentguard.cli.place import JsonOption
from agentguard.cli.verdict import Verdict
from agentguard.errors import AgentguardError
from agentguard.examination import examine
from agentguard.identity.trust import seconds
from agentguard.invocation import timestamp
from agentguard.storage.reader import StateReader

_WITHOUT: Final = (
    "signatures, but for the newest checkpoint's of each shard",
    "what the entries say: credentials, policies, arguments, results",
    "the columns by which entries are found, from which the calls in doubt are taken",
)


@options.given(log=options.trusted_log)
def verify(
    *,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="Check signatures only from a time on: 2026-11-25, 2026-11-25T09:30:00Z, or 30m, "
            "2h, 7d ago.",
        ),
    ] = None,
    no_signatures: Annotated[
        bool,
        typer.Option("--no-signatures", help="Check hashes, checkpoints and anchors only."),
    ] = False,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            metavar="FILE",
            help="Checkpoints that somebody else has kept, or evidence; may be repeated.",
        ),
    ] = None,
    log: TrustedLog,
    json: JsonOption = False,
) -> None:
    """Verify the whole log.

    Checks every hash, signature and credential, against the anchors and keys from outside. Exit
    code 1 if anything does not hold. With --json, one object: ok, entries, shards, anchored,
    in_doubt (invocation ids), problems (each with shard, index, what), unchecked (what was left
    out, in words).
    """
    if since is not None and no_signatures:
        raise typer.BadParameter("--since says which signatures to check, --no-signatures none")
    begin = moment(since, datetime.now(UTC)) if since is not None else None
    trust = log.trust.document
    kept = list(chain.from_iterable(witness.kept(file, trust) for file in against or ()))
    reader = log.place.reader()
    with screen.counter("verifying entry", expected(reader)) as count:
        report = examine(
            reader,
            trust,
            anchor=log.place.anchor,
            kept=kept,
            since=seconds(begin) if begin is not None else 0,
            contents=not no_signatures,
            progress=count,
        )
    unchecked: Sequence[str] = _WITHOUT if no_signatures else ()
    if begin is not None:
        unchecked = [f"signatures before {timestamp(begin)}"]
    in_doubt = _in_doubt_by_columns(reader) if no_signatures else report.in_doubt
    verdict = Verdict(log, report, in_doubt, unchecked, against or ())
    if json:
        screen.json_line(verdict.as_json())
        for warning in verdict.warnings():
            screen.warn(warning)
    else:
        verdict.draw(reader)
    if not report.ok:
        raise typer.Exit(1)


def _in_doubt_by_columns(reader: StateReader) -> list[str]:
    with suppress(AgentguardError):  # a log that can't be read is a finding already
        rows = History(reader).rows(Filter(in_doubt=True))
        return [row.invocation_id for row in rows if row.invocation_id is not None]
    return []


def expected(reader: StateReader) -> int | None:
    """Return how many entries a log has by its own word; None where it can't be read."""
    with suppress(AgentguardError):
        notes = [reader.checkpoint(shard) for shard in reader.shards()]
        return sum(checkpoint.parse(note).checkpoint.size for note in notes if note is not None)
    return None
