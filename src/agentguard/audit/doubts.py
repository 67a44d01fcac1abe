"""Finds the calls in doubt: allowed, without an outcome, and settled by no person.

The columns beside the entries select the calls, so few entries are read. Nothing is verified here:
``audit verify`` does that.
"""

from __future__ import annotations

from collections.abc import Iterator

from agentguard.audit.find import read_entry_of_kind, search_entries
from agentguard.audit.kinds.administration import ResolutionEntry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search


def doubts(reader: LogReader, size: int) -> Iterator[int]:
    """Yield the indices of the calls in doubt among the first ``size`` entries.

    Raises ``StorageError``.
    """
    for index in reader.unsettled():
        if index >= size:
            break
        if is_in_doubt(reader, index):
            yield index


def is_in_doubt(reader: LogReader, index: int) -> bool:
    """Whether no person has settled the call at an index; raises ``StorageError``."""
    located = read_entry_of_kind(reader, index, CallEntry)
    if located is None:
        return False
    call = located.entry
    search = Search(invocation_id=call.invocation_id)
    return not any(
        resolution.entry.is_of(index, call.invocation_sha256)
        for resolution in search_entries(reader, ResolutionEntry, search)
    )
