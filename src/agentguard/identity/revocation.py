"""The protocol ``Revocations``: who may act no more.

``storage/revocations.py`` implements the protocol in the state's folder. ``require_unrevoked`` is
the check that calls, access tokens and stored delegations share.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Literal, Protocol

from agentguard.errors import DelegationError
from agentguard.identity.login import LogOut


class Revocations(Protocol):
    """The revoked names, the log-outs and the freeze, of all processes."""

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return the reason code and the reason why no bearer of ``names`` may act now, or None.

        Every call asks for this, so it must be fast. Raises ``StorageError``.
        """

    def has_ended(self, logout: LogOut) -> bool:
        """Whether the log is known to have a log-out that ends all that this log-out ends."""

    def surrender_of(self, jti: str) -> Literal["new", "known", "full"]:
        """Whether a hop is known to be given up; ``full`` where no further hop can be."""

    def publish(self) -> None:
        """Have every process of the state learn, before this returns, what the log has by now.

        Raises ``StorageError``, and the errors of reading the log.
        """


def require_unrevoked(revocations: Revocations, names: AbstractSet[str]) -> None:
    """Raise ``DelegationError`` with the reason code, if no bearer of ``names`` may act now.

    Raises ``StorageError`` if the revocations can't be read.
    """
    refused = revocations.refusal(names)
    if refused is not None:
        code, reason = refused
        raise DelegationError(reason, code=code)
