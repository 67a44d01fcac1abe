"""``agentguard audit verify``: verifies the whole log with keys and checkpoints from outside.

``domain/verify.py`` does the checks, ``verify_report.py`` prints the findings, and
``witnesses.py`` reads the files of ``--against``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

import click

from agentguard.audit import head as heads
from agentguard.audit.checkpoint import WitnessedCheckpoint
from agentguard.audit.findings import Problem
from agentguard.audit.log import LogReader
from agentguard.call.invocation import timestamp
from agentguard.cli.audit import history, witnesses
from agentguard.cli.audit.filters import Filter
from agentguard.cli.audit.history import History
from agentguard.cli.audit.verify_report import VerifyReport
from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.location import Location, TrustedLog, from_home
from agentguard.cli.terminal.options import AS_JSON, JOBS, LOG, PATH, Option, command
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.domain.worker_processes import default_jobs
from agentguard.errors import AgentguardError, DecodeError, StorageError, VerificationError
from agentguard.identity.trust import seconds

_WITHOUT: Final = (
    "signatures, but for that of the head",
    "what the entries say: credentials, policies, arguments, results",
)
_COLUMNS: Final = "the columns by which entries are found, from which the calls in doubt are taken"
_DOUBTS: Final = "which calls are in doubt: in a file that is damaged they are not looked for"


@command(
    Option(
        "--since TIME",
        "Check signatures only from a time on: 2026-11-25, 2026-11-25T09:30:00Z, or 30m, 2h, 7d "
        "ago.",
        type=times.parse,
    ),
    Option("--no-signatures", "Check hashes, checkpoints and the anchor only."),
    Option(
        "--against FILE",
        "Checkpoints that somebody else has kept: signed ones, as an anchor has, evidence, or "
        "traces as Jaeger's API returns them; may be repeated.",
        type=PATH,
        multiple=True,
    ),
    JOBS,
    *LOG,
    AS_JSON,
)
def verify(  # noqa: PLR0913  the options of the command
    *,
    since: datetime | None,
    no_signatures: bool,
    against: tuple[Path, ...],
    jobs: int | None,
    config: Path | None,
    state: Path | None,
    anchor: str | None,
    trust: Path | None,
    json: bool,
) -> None:
    """Checks every hash, signature and credential, against the anchor and keys from outside. Exit
    code 1 if anything does not hold.

    With --json, one object: ok, entries, head (log, size, root, map_root, at), anchored, witness,
    in_doubt (invocation ids), observed, adopted, problems (each with index, what), unchecked,
    your_word. The witness is outside or same user: who kept the checkpoints by which the log is
    anchored. Observed is how many calls ran whatever the policy said. Adopted are entries that were
    lost, on record. Unchecked says what was left out. Your_word has the files of --against: that
    they were kept elsewhere is your word.
    """
    if since is not None and no_signatures:
        raise click.BadParameter("--since says which signatures to check, --no-signatures none")
    log = _open(location.locate(config, state, anchor), trust, against, json=json)
    document = log.trust.document
    outside = [witnesses.read(file, document) for file in against]
    reader = log.location.reader()
    if trust is not None:
        _require_same_log(reader, log)
    apart, kept = log.is_apart(), [point for witness in outside for point in witness.checkpoints]
    with screen.counter("verifying entry", history.expected(reader)) as count:
        report = examine(
            reader,
            document,
            anchor=log.location.anchor,
            apart=apart,
            kept=kept,
            since=seconds(since) if since is not None else 0,
            contents=not no_signatures,
            jobs=jobs or default_jobs(),
            progress=count,
        )
    by_columns = no_signatures and not report.damaged
    in_doubt = _in_doubt_by_columns(reader) if by_columns else report.in_doubt
    unchecked = _unchecked(since, no_signatures=no_signatures, is_damaged=report.damaged)
    unchecked += [part for witness in outside for part in witness.unchecked]
    unchecked += [] if apart else _without_witness(report, kept)
    VerifyReport(log, report, in_doubt, unchecked, against).print(reader, json=json)
    if not report.ok:
        raise SystemExit(1)


def _unchecked(since: datetime | None, *, no_signatures: bool, is_damaged: bool) -> list[str]:
    """Return the parts of the log that the options leave unchecked."""
    if no_signatures:
        return [*_WITHOUT, _DOUBTS if is_damaged else _COLUMNS]
    return [f"signatures before {timestamp(since)}"] if since is not None else []


def _without_witness(report: Report, kept: Sequence[WitnessedCheckpoint]) -> list[str]:
    """Return the newest entries that no checkpoint in the files of --against covers.

    Somebody who writes both the state and its anchor can cut such entries off.
    """
    size = max((point.size for point, _whose in kept), default=report.entries)
    if not report.anchored or size >= report.entries:
        return []
    what = f"whether entries from {size} on were cut off or replaced"
    return [f"{what}: the checkpoints in the files of --against are older"]


def _open(
    place: Location, trust: Path | None, against: Sequence[Path], *, json: bool
) -> TrustedLog:
    """Return the log with its trust document.

    Where the anchor does not know the state, print the error and exit. ``against`` is for the
    report alone: nothing is read from the files.
    """
    try:
        return TrustedLog(place, location.trust_of(place, trust))
    except VerificationError as error:
        if json:
            log = TrustedLog(place, location.own_trust(place))
            report = Report(
                0, None, kept=False, anchored=False, problems=(Problem(None, str(error)),)
            )
            VerifyReport(log, report, (), (), against).print_json()
        else:
            screen.line(screen.styled("fail", "FAILED"), f": {error}")
        raise SystemExit(1) from error


def _require_same_log(reader: LogReader, log: TrustedLog) -> None:
    """Raise ``VerificationError`` (``checkpoint.origin``) for the trust document of another log.

    Where the checkpoint can't be read, the verification itself reports it.
    """
    with suppress(StorageError, DecodeError):
        origin = heads.parse(reader.head()).log
        if origin != log.trust.document.log:
            message = (
                f"{log.trust.source} is the trust document of {log.trust.document.log}, and "
                f"{from_home(log.location.state)} holds {origin}: one of the two is not the one "
                "you mean; nothing was checked"
            )
            raise VerificationError(message, code="checkpoint.origin")


def _in_doubt_by_columns(reader: LogReader) -> list[str]:
    with suppress(AgentguardError):  # the report has the error already
        rows = History(reader).rows(Filter(in_doubt=True))
        return [row.invocation_id for row in rows if row.invocation_id is not None]
    return []
