"""The users that generators act for, and the answers that a test expects of a call."""

from __future__ import annotations

from typing import Any

SCOPE = ["read", "write"]
ALICE = ("user:alice", ("read",))
BOB = ("user:bob", ("read", "write"))
NOBODY, ENDED = None, "delegation.ended"


def whole_with(delegation: Any, acts: Any) -> Any:
    with delegation:
        return acts()
