"""``agentguard audit export``: the log as JSON lines, for other programs.

What a line holds is documented in docs/cli.md. An export proves nothing: ``audit prove`` makes
evidence.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated

import typer

from agentguard import canonical
from agentguard.audit import merkle, statements
from agentguard.audit.entry import Attachment, Entry
from agentguard.audit.statements import Commitments
from agentguard.canonical import JSON
from agentguard.cli import filters, options, screen
from agentguard.cli.filters import Filter
from agentguard.cli.history import History
from agentguard.cli.listing import newest
from agentguard.cli.place import Place
from agentguard.cli.rows import Row
from agentguard.cli.verify import expected
from agentguard.errors import AgentguardError, StorageError
from agentguard.storage import sqlite
from agentguard.storage.reader import StateReader


@options.given(wanted=filters.wanted, found=options.log)
def export(
    *,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="A new file; by default stdout."),
    ] = None,
    attachments: Annotated[
        bool,
        typer.Option(
            "--attachments/--no-attachments",
            help="Whether to add arguments, policy input and results.",
        ),
    ] = True,
    last: Annotated[
        int, typer.Option("-n", "--last", min=0, metavar="N", help="The newest N; 0 for all.")
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    wanted: Filter,
    found: Place,
) -> None:
    """Write the log as JSON lines.

    One object a line for each entry, in the order of their times: shard, index, leaf_hash, entry,
    attachments (by role: arguments, input, result). They are written as they stand in the log,
    unverified; but what is not what its entry commits to is left out, and problems names it.
    """
    reader = found.reader()
    rows = History(reader).rows(wanted, newest_first=bool(last), outcomes=wanted.in_doubt)
    if last:
        rows = iter(newest(rows, last))
    if output is None:
        for row in rows:
            sys.stdout.write(_line(reader, row, attachments=attachments))
        return
    total = expected(reader) if wanted.everything and not last else None
    number = 0
    with _file(output, force=force) as file, screen.counter("exporting", total) as count:
        for number, row in enumerate(rows, start=1):
            file.write(_line(reader, row, attachments=attachments))
            count(number)
    screen.line(f"{output} holds {screen.count(number, 'entry', 'entries')}")


def _line(reader: StateReader, row: Row, *, attachments: bool) -> str:
    stored = reader.entry(row.shard, row.index)
    members: dict[str, object] = {
        "shard": row.shard,
        "index": row.index,
        "leaf_hash": merkle.leaf_hash(stored.body).hex() if stored is not None else None,
        "entry": _entry(row.entry) if row.entry is not None else None,
    }
    problems = [str(row.reason)] if row.entry is None else []
    if attachments:
        beside, changed = _beside(row.entry, stored.attachments if stored is not None else ())
        members["attachments"] = beside
        problems += changed
    if problems:
        members["problems"] = problems
    return json.dumps(members) + "\n"


def _entry(parsed: Entry) -> dict[str, JSON]:
    return dict(sorted({"kind": parsed.kind, "at": parsed.at, **parsed.members}.items()))


def _beside(
    parsed: Entry | None, attachments: Sequence[Attachment]
) -> tuple[dict[str, JSON], list[str]]:
    """Decode what stands beside an entry, and say what of it was changed."""
    found: dict[str, JSON] = {}
    changed: list[str] = []
    if not attachments or parsed is None:
        return found, changed
    try:
        commitments = _commitments(parsed)
    except AgentguardError as error:
        return found, [str(error)]
    for beside in attachments:
        try:
            statements.check_attachments([beside], commitments)
            found[beside.role] = canonical.loads(beside.data, limit=sqlite.MAX_LENGTH)
        except AgentguardError as error:
            changed.append(str(error))
    return found, changed


def _commitments(parsed: Entry) -> Commitments:
    match parsed.kind:
        case "authorization":
            return statements.read_authorization(parsed).commitments
        case "outcome":
            return statements.read_outcome(parsed).commitments
    return {}


@contextmanager
def _file(path: Path, *, force: bool) -> Iterator[IO[str]]:
    """Make a file that only its owner can read, whole or not at all."""
    if not force and path.exists():
        raise _exists(path)
    try:
        new, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(new, "w", encoding="ascii") as file:
            yield file
        if not force and path.exists():
            raise _exists(path)
        Path(name).replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        Path(name).unlink(missing_ok=True)


def _exists(path: Path) -> StorageError:
    message = f"{path} exists already: name another file, or overwrite it with --force"
    return StorageError(message, code="storage.exists")


def _unwritable(path: Path, error: OSError) -> StorageError:
    message = f"{path} can't be written ({error.strerror}): name another file"
    return StorageError(message, code="storage.readonly")
