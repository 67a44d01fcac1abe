"""``agentguard evidence``: ``make`` and ``verify``; ``evidence_export.py`` has ``export``.

``agentguard/audit/prove.py`` makes the evidence of a call, ``agentguard/audit/evidence.py``
verifies the evidence, and ``evidence_report.py`` prints what it proves. ``evidence_batch.py``
verifies several files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import click

from agentguard.audit import evidence, evidence_file
from agentguard.audit.prove import prove_call
from agentguard.cli.audit import (
    evidence_batch,
    evidence_report,
    history,
    lookup,
)
from agentguard.cli.terminal import files, location, screen
from agentguard.cli.terminal.options import (
    AS_JSON,
    CALL_ARGUMENT,
    FORCE,
    JOBS,
    LOG,
    PATH,
    WITHOUT_ARGUMENTS,
    Argument,
    LogOptions,
    Option,
    command,
)
from agentguard.domain.worker_processes import default_jobs
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument


@command(
    CALL_ARGUMENT,
    Option("-o, --output FILE", "A new file; - for stdout.", type=PATH, required=True),
    WITHOUT_ARGUMENTS,
    FORCE,
    *LOG,
)
def make(
    *, call: str, output: Path, without_arguments: bool, force: bool, **options: Unpack[LogOptions]
) -> None:
    """Anybody who has the trust document can verify the file offline: who called which tool, the
    decision, and the outcome (evidence.md). The evidence is verified before it is written.
    """
    log = location.trusted_log(**options)
    reader = log.location.reader()
    found = lookup.call(reader, call)
    with screen.counter("reading entry", history.expected(reader)) as count:
        data = prove_call(
            reader,
            log.trust.document,
            found,
            attachments=not without_arguments,
            progress=count,
        )
    with files.new(output, force=force) as file:
        file.write(data)
    if not files.is_stream(output):
        screen.line(f"{output} proves the call {lookup.id_of(found)}, in {len(data)} bytes")


@command(
    Argument(
        "paths",
        "FILE...",
        "Files with evidence; - alone for stdin.",
        type=PATH,
        nargs=-1,
        required=True,
    ),
    Option(
        "--trust TRUST.json",
        "The trust document, from another source than the evidence.",
        type=PATH,
        required=True,
    ),
    JOBS,
    AS_JSON,
)
def verify(*, paths: tuple[Path, ...], trust: Path, jobs: int | None, json: bool) -> None:
    """Works offline, and needs only the trust document. Exit code 1 if a file is invalid. Several
    files are listed in a table. --json prints an object for each file: file, if there are several;
    ok; code and problem of an invalid file; the proved facts of a valid file, and unknown, which
    is what an evidence file can't prove; trust_domain and trust_sha256 of the trust document.
    """
    document = location.trust_in(trust)
    if len(paths) > 1:
        _verify_several(paths, document, jobs or default_jobs(), trust_file=trust, json=json)
        return
    # One byte more than the limit, so that a file which is too long is refused.
    data = files.read_or_stdin(paths[0], evidence_file.MAX_BYTES + 1)
    try:
        proved = evidence.verify_evidence(data, document)
    except (DecodeError, VerificationError) as error:
        if json:
            refusal = {"ok": False, "code": error.code, "problem": str(error)}
            screen.json_line(refusal | _trust_json(document))
        else:
            screen.line(screen.styled("fail", "FAILED"), f" [{error.code}]: {error}")
            _draw_trust(trust, document)
        raise SystemExit(1) from error
    if json:
        screen.json_line(evidence_report.as_json(proved) | _trust_json(document))
    else:
        screen.line(screen.styled("ok", "proved"), f", under the keys of {document.trust_domain}:")
        evidence_report.draw(proved)
        _draw_trust(trust, document)


def _verify_several(
    paths: Sequence[Path], trust: TrustDocument, jobs: int, *, trust_file: Path, json: bool
) -> None:
    if any(map(files.is_stream, paths)):
        raise click.BadParameter("- for stdin stands alone: name several files by their paths")
    rows: list[screen.Row] = []
    failed = 0
    with screen.counter("verifying file", len(paths), quiet=json) as count:
        for number, answer in enumerate(evidence_batch.answers(paths, trust, jobs), start=1):
            failed += not answer["ok"]
            if json:
                screen.json_line(answer | _trust_json(trust))
            else:
                rows.append(evidence_report.row(answer))
            count(number)
    if not json:
        screen.columns(evidence_report.COLUMNS, rows)
        verdict = f"{len(paths) - failed:,} of {screen.count(len(paths), 'file', 'files')} proved"
        screen.line(screen.styled("fail" if failed else "ok", verdict))
        _draw_trust(trust_file, trust)
    if failed:
        raise SystemExit(1)


def _trust_json(document: TrustDocument) -> dict[str, object]:
    """Return the members that tell under which trust document the evidence was verified."""
    return {"trust_domain": document.trust_domain, "trust_sha256": document.fingerprint}


def _draw_trust(file: Path, document: TrustDocument) -> None:
    """Name the trust document, so that its fingerprint can be compared with the owner's."""
    screen.line(f"trust: {document.trust_domain}, from {file}")
    screen.line(f"its fingerprint (SHA-256): {document.fingerprint}")
