"""The protocol ``Revocations``: who may act no more.

The log implements it (``store/log.py``), and so does the file for servers elsewhere
(``storage/published_revocations.py``). ``require_unrevoked`` is the check that calls, access tokens
and stored delegations share.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Protocol

from agentguard.errors import DelegationError


class Revocations(Protocol):
    """The revoked names, the surrendered hops, the log-outs and the freeze, of all processes."""

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return the reason code and the reason why no bearer of ``names`` may act now, or None.

        Every call asks for this, so it must be fast. Raises ``StorageError``.
        """


def require_unrevoked(revocations: Revocations, names: AbstractSet[str]) -> None:
    """Raise ``DelegationError`` with the reason code, if no bearer of ``names`` may act now.

    Raises ``StorageError`` if the revocations can't be read.
    """
    refused = revocations.refusal(names)
    if refused is not None:
        code, reason = refused
        raise DelegationError(reason, code=code)
