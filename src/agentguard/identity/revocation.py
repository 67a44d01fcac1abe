"""Revocations: who may not act any more, and how many calls a delegation has left.

``storage/revocations.py`` implements the protocol in the state's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol


class Revocations(Protocol):
    """What was revoked, whether all is frozen, and how many calls are left; shared by processes."""

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return why nobody of these names may act now, as reason code and words; None if they may.

        Asked at every call, so it costs little. Raises ``StorageError``.
        """

    def consume(self, limits: Sequence[tuple[str, int]]) -> bool:
        """Count one call under each ``(jti, most)``; count none where one of them has no call left.

        It is durable and atomic. Raises ``StorageError``, or as the log is read.
        """

    def is_within(self, limits: Sequence[tuple[str, int]]) -> bool:
        """Whether the log has no more calls than the limits allow. Raises as ``consume`` does."""
