"""``PolicyPlace``: where a developer finds what decides the calls of a guard."""

from __future__ import annotations

from typing import Literal, NamedTuple


class PolicyPlace(NamedTuple):
    """Where a developer finds what decides the calls, for the program's log.

    ``place`` is the place of the policy, ``url`` the address of the policy server (None without
    one). ``log`` says where the command line can read the audit log: here, at the guard server, or
    nowhere (``memory``).
    """

    place: str
    url: str | None
    log: Literal["here", "server", "memory"]
