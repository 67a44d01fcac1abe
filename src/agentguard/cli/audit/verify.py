"""``agentguard audit verify``: the whole log, held against keys and checkpoints from outside.

What is checked stands in ``domain/verify.py``, how the findings are told in ``verify_report.py``.
The files that ``--against`` names are read in ``witnesses.py``.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from agentguard.audit import checkpoint
from agentguard.audit.findings import Problem
from agentguard.audit.log import LogReader
from agentguard.call.invocation import timestamp
from agentguard.cli.audit import history, witnesses
from agentguard.cli.audit.filters import Filter
from agentguard.cli.audit.history import History
from agentguard.cli.audit.verify_report import VerifyReport
from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.location import Location, TrustedLog, from_home
from agentguard.cli.terminal.options import (
    AnchorOption,
    ConfigOption,
    JsonOption,
    StateOption,
    TrustOption,
)
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.errors import AgentguardError, VerificationError
from agentguard.identity.trust import seconds

_WITHOUT: Final = (
    "signatures, but for the newest checkpoint's of each shard",
    "what the entries say: credentials, policies, arguments, results",
)
_COLUMNS: Final = "the columns by which entries are found, from which the calls in doubt are taken"
_DOUBTS: Final = "which calls are in doubt: in a file that is damaged they are not looked for"


CheckedSinceOption = Annotated[
    datetime | None,
    typer.Option(
        "--since",
        metavar="TIME",
        parser=times.given,
        help="Check signatures only from a time on: 2026-11-25, 2026-11-25T09:30:00Z, or 30m, "
        "2h, 7d ago.",
    ),
]
NoSignaturesOption = Annotated[
    bool, typer.Option("--no-signatures", help="Check hashes, checkpoints and anchors only.")
]
AgainstOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--against",
        metavar="FILE",
        help="Checkpoints that somebody else has kept: signed ones, evidence, or traces as "
        "Jaeger's API returns them; may be repeated.",
    ),
]


def verify(
    *,
    since: CheckedSinceOption = None,
    no_signatures: NoSignaturesOption = False,
    against: AgainstOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
    anchor: AnchorOption = None,
    trust: TrustOption = None,
    json: JsonOption = False,
) -> None:
    """Verify the whole log.

    Checks every hash, signature and credential, against the anchors and keys from outside. Exit
    code 1 if anything does not hold. With --json, one object: ok, entries, shards, anchored,
    in_doubt (invocation ids), observed (how many calls ran whatever the policy said), adopted
    (entries that were lost, on record), problems (each with shard, index, what), unchecked (what
    was left out, in words).
    """
    if since is not None and no_signatures:
        raise typer.BadParameter("--since says which signatures to check, --no-signatures none")
    where = location.locate(config, state, anchor)
    try:
        log = TrustedLog(where, location.trust(where, trust))
    except VerificationError as error:
        _refuse(where, error, json=json)
    document = log.trust.document
    heard = [witnesses.read(file, document) for file in against or ()]
    reader = log.location.reader_of_what_is_left()
    if trust is not None:
        _require_same_log(reader, log)
    with screen.counter("verifying entry", history.expected(reader)) as count:
        report = examine(
            reader,
            document,
            anchor=log.location.anchor,
            apart=log.is_apart(),
            kept=[kept for witness in heard for kept in witness.kept],
            since=seconds(since) if since is not None else 0,
            contents=not no_signatures,
            progress=count,
        )
    by_columns = no_signatures and not report.damaged
    in_doubt = _in_doubt_by_columns(reader) if by_columns else report.in_doubt
    if no_signatures:
        unchecked = [*_WITHOUT, _COLUMNS if by_columns else _DOUBTS]
    else:
        unchecked = [f"signatures before {timestamp(since)}"] if since is not None else []
    unchecked += [said for witness in heard for said in witness.unchecked]
    told = VerifyReport(log, report, in_doubt, unchecked, against or ())
    if json:
        told.print_json()
    else:
        told.draw(reader)
    if not report.ok:
        raise typer.Exit(1)


def _refuse(where: Location, error: VerificationError, *, json: bool) -> NoReturn:
    """Report a state that is not the one which its anchor knows: no more of it is looked at."""
    if json:
        log = TrustedLog(where, location.own_trust(where))
        report = Report((), (Problem(0, None, str(error)),))
        VerifyReport(log, report, (), (), ()).print_json()
    else:
        screen.line(screen.styled("fail", "FAILED"), f": {error}")
    raise typer.Exit(1)


def _require_same_log(reader: LogReader, log: TrustedLog) -> None:
    """Refuse a trust document that was named and is of another log: nothing would hold.

    Raises ``VerificationError`` (``checkpoint.origin``), but not where some shard is of its log:
    that is for the verification to find.
    """
    origins = list(filter(None, (_origin(reader, shard) for shard in reader.shards())))
    named = log.trust.document.log
    if origins and all(origin.rpartition("/")[0] != named for origin in origins):
        message = (
            f"{log.trust.source} is the trust document of {named}, and "
            f"{from_home(log.location.state)} holds {origins[0].rpartition('/')[0]}: one of the "
            "two is not the one you mean; nothing was checked"
        )
        raise VerificationError(message, code="checkpoint.origin")


def _origin(reader: LogReader, shard: int) -> str | None:
    """Return what a shard calls itself, None where that can't be read."""
    with suppress(AgentguardError):
        note = reader.checkpoint(shard)
        return checkpoint.parse(note).checkpoint.origin if note is not None else None
    return None


def _in_doubt_by_columns(reader: LogReader) -> list[str]:
    with suppress(AgentguardError):  # a log that can't be read is a finding already
        rows = History(reader).rows(Filter(in_doubt=True))
        return [row.invocation_id for row in rows if row.invocation_id is not None]
    return []
