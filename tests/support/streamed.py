"""The users for whom generators act, and the answers expected of each item."""

from __future__ import annotations

from typing import Any

SCOPE = ["read", "write"]
ALICE = ("user:alice", ("read",))
BOB = ("user:bob", ("read", "write"))
NOBODY, ENDED = None, "delegation.ended"


def whole_with(delegation: Any, acts: Any) -> Any:
    with delegation:
        return acts()
