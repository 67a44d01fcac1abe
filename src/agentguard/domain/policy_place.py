"""``PolicyPlace``: where a developer finds what decides the calls of a guard."""

from __future__ import annotations

from typing import NamedTuple


class PolicyPlace(NamedTuple):
    """Where a developer finds what decides the calls, for the program's log.

    ``place`` is the place of the policy, ``url`` the address of the policy server (None without
    one). ``is_durable`` says whether the command line can read the audit log.
    """

    place: str
    url: str | None
    is_durable: bool
