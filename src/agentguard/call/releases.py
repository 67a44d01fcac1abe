"""The release of secrets to a running call: the protocols between a call and whoever has secrets.

``secrets/desk.py`` implements the protocols in the process of the guard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from agentguard.signing.keys import Secret


class ReleaseSubject(NamedTuple):
    """The running call that asks for a secret.

    ``invocation_sha256`` (hex) is the digest of the signed invocation. ``shard`` and ``place``
    (the index) say where the authorization stands in the log. ``agent`` is the instance's URI.
    ``scope`` is what the agent may do, None for everything, and ``names`` are the names by which
    the agent's authority can be revoked.
    """

    invocation_id: str
    invocation_sha256: str
    shard: int
    place: int
    agent: str
    tool: str
    scope: frozenset[str] | None
    names: frozenset[str]


class Releases(Protocol):
    """The secrets that were released to one running call. Any thread may call the methods."""

    def release(self, name: str) -> str:
        """Return the value of a secret, once the release is durably on record.

        Raises ``SecretError``: ``secret.unknown``, ``secret.refused``, ``secret.failed``.
        """

    @property
    def held(self) -> Sequence[Secret]:
        """The values that were released to the call, to calls inside, and to the calls around."""

    def hold(self, value: Secret) -> None:
        """Note a value that was released to the call, or to a call inside."""

    def end(self) -> bool:
        """End the call: nothing is released to the call any more.

        Returns True while a release is still being put on record; ``settle`` then waits.
        """

    def settle(self) -> None:
        """Wait until no release is being put on record."""

    def forget(self) -> None:
        """Drop the values, once nothing of the call is to be kept any more."""


class SecretDesk(Protocol):
    """Releases secrets to the calls of one guard."""

    def begin(self, subject: ReleaseSubject, around: Releases | None) -> Releases:
        """Return the releases of a call that begins to run.

        ``around`` are the releases of the call around, None for an outermost call.
        """
