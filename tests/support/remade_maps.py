"""The map that entries make, for those who forge a log and sign its head themselves."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from agentguard.audit.kinds import parse_entry
from agentguard.audit.state import Remade
from agentguard.errors import AgentguardError


def map_of(bodies: Iterable[bytes]) -> tuple[bytes, dict[str, bytes]]:
    """Return the root of the map, and its nodes by address, after all entries that can be read."""
    remade = Remade()
    for body in bodies:
        with suppress(AgentguardError):
            remade.apply(parse_entry(body).change)
    root, nodes = remade._map.seal()
    return root, {address: node for address, node in nodes.items() if node is not None}
