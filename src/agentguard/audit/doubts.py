"""Finds the calls in doubt: allowed, without an outcome, and settled by no person.

The columns beside the entries select the calls, so few entries are read. Nothing is verified here:
``audit verify`` does that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agentguard.audit.find import read_entry_of_kind, search_entries
from agentguard.audit.kinds.administration import ResolutionEntry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search

Place = tuple[int, int]
"""A shard, and an index in the shard."""


def ends(reader: LogReader) -> dict[int, int]:
    """Return for each shard how many entries the shard has; raises ``StorageError``."""
    found = {shard: reader.end(shard) for shard in reader.shards()}
    return {shard: end.size for shard, end in found.items() if end is not None}


def doubts(reader: LogReader, before: Mapping[int, int]) -> Iterator[Place]:
    """Yield the places of the calls in doubt, of which ``before`` has the end of each shard.

    Raises ``StorageError``.
    """
    for shard, end in before.items():
        for index in reader.unsettled(shard):
            if index >= end:
                break
            if is_in_doubt(reader, (shard, index)):
                yield shard, index


def is_in_doubt(reader: LogReader, place: Place) -> bool:
    """Whether no person has settled the call at a place; raises ``StorageError``."""
    shard, index = place
    located = read_entry_of_kind(reader, shard, index, CallEntry)
    if located is None:
        return False
    call = located.entry
    search = Search(invocation_id=call.invocation_id)
    return not any(
        resolution.entry.is_of(shard, index, call.invocation_sha256)
        for resolution in search_entries(reader, ResolutionEntry, search)
    )
