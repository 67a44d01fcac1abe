"""Which call is meant, where a command takes one by name and needs its whole id.

How a name is looked up stands in ``lookup.py``.
"""

from __future__ import annotations

from agentguard.audit.calls import read_authorization
from agentguard.audit.log import LogReader
from agentguard.cli.audit import lookup, row
from agentguard.errors import CallError


def invocation_id(reader: LogReader, wanted: str) -> str:
    """Return the id of the call that a name means.

    A whole id is returned as it is: whether there is such a call, whoever acts on it finds out.
    Raises as ``lookup.find`` does, and ``CallError`` (``call.unknown``) for an entry that is no
    call's.
    """
    if row.is_id(wanted):
        return wanted
    found = lookup.find(reader, wanted)
    kind = found.entry.kind
    named = read_authorization(found.entry).invocation_id if kind == "authorization" else None
    if named is None:
        said = "has no id" if kind == "authorization" else f"is of the kind {kind}, and no call's"
        raise CallError(f"the entry {found.shard}/{found.index} {said}: name a call's")
    return named
