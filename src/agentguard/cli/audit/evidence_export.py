"""``agentguard evidence export``: the evidence of many calls, a file for each.

``agentguard/audit/prove.py`` makes the files, and reads the log once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Unpack

import click

from agentguard.audit.entry import CallPlace
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.log import LogReader
from agentguard.audit.prove import prove_calls
from agentguard.cli.audit import filters, log_row, lookup
from agentguard.cli.audit.filters import Filter, FilterOptions
from agentguard.cli.audit.history import History
from agentguard.cli.terminal import files, location, screen
from agentguard.cli.terminal.options import FORCE, LOG, PATH, WITHOUT_ARGUMENTS, Option, command
from agentguard.errors import CallError, DecodeError, VerificationError


@command(
    Option(
        "-o, --output FOLDER",
        "The folder; a new one is made for this user.",
        type=PATH,
        required=True,
    ),
    WITHOUT_ARGUMENTS,
    FORCE,
    *filters.OPTIONS,
    *LOG,
)
def export(
    *,
    output: Path,
    without_arguments: bool,
    force: bool,
    config: Path | None,
    state: Path | None,
    anchor: str | None,
    trust: Path | None,
    **criteria: Unpack[FilterOptions],
) -> None:
    """The options select calls; without options, all calls are selected. A file is what evidence
    make writes, and its name is INVOCATION_ID.json. The evidence is verified before it is written.
    """
    if files.is_stream(output):
        raise click.BadParameter("-o names a folder here: stdout takes no files")
    log = location.trusted_log(config, state, anchor, trust)
    reader = log.location.reader()
    selection = lookup.with_whole_trace(reader, filters.chosen(**criteria))
    calls = _by_id(_calls(reader, selection))
    if not calls:
        raise _nothing(selection)
    places = list(calls.values())
    made = prove_calls(reader, log.trust.document, places, attachments=not without_arguments)
    files.make_folder(output)
    with screen.counter("proving call", len(calls)) as count:
        for number, (invocation_id, data) in enumerate(zip(calls, made, strict=True), start=1):
            with files.new(output / f"{invocation_id}.json", force=force) as file:
                file.write(data)
            count(number)
    screen.line(f"{output} proves {screen.count(len(calls), 'call', 'calls')}")


def _calls(reader: LogReader, selection: Filter) -> Iterator[CallPlace]:
    """Yield the selected calls that a checkpoint covers, in the order of the log.

    Where all calls are selected, all entries are read, so that no column hides a call. Raises
    ``VerificationError`` (``evidence.incomplete``) for an entry that can't be read.
    """
    if not selection.everything:
        selection = filters.calls(selection)
    size = _covered(reader)
    for row in History(reader).rows(selection, outcomes=selection.in_doubt):
        is_other = row.kind not in ("call", log_row.DAMAGED)
        if is_other or row.index >= size:
            continue
        if row.invocation_id is None or not isinstance(row.entry, CallEntry):
            message = (
                f"the entry {row.index} can't be read as a call: agentguard audit verify says more"
            )
            raise VerificationError(message, code="evidence.incomplete")
        yield CallPlace(row.index, row.invocation_id, row.entry.invocation_sha256)


def _by_id(calls: Iterable[CallPlace]) -> dict[str, CallPlace]:
    """Return calls by their ids; raises ``VerificationError`` (``evidence.mismatch``).

    An agent that writes an id twice must not have the file of one call replace that of another.
    """
    found: dict[str, CallPlace] = {}
    for call in calls:
        other = found.setdefault(call.invocation_id, call)
        if other is not call:
            message = (
                f"the calls {other.index} and {call.index} have one id, {call.invocation_id}: "
                f"agentguard evidence make {call.index} -o FILE proves one of them"
            )
            raise VerificationError(message, code="evidence.mismatch")
    return found


def _nothing(selection: Filter) -> CallError:
    problem = "no checkpoint covers a call yet"
    if not selection.everything:
        problem = f"no call that a checkpoint covers matches ({selection})"
    return CallError(f"{problem}: agentguard audit list shows the calls of the log")


def _covered(reader: LogReader) -> int:
    """Return how many entries the newest checkpoint covers."""
    with suppress(DecodeError):
        return reader.size()
    return 0
