"""``VerifiedTokens``: the access tokens that a receiver has verified, each until its end.

A caller shows the same token with many requests. So the token, its chain and their signatures are
verified at the first request. Proofs and revocations are verified at each request
(``verification.py``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from hashlib import sha256
from typing import Final, NamedTuple

from agentguard.delegation.access_token import AccessToken
from agentguard.identity.trust import TrustDocument
from agentguard.proof.verification import Shown

MAX_KEPT: Final = 256
"""The most tokens that are kept; a further one replaces the one unused for longest."""


class _Verified(NamedTuple):
    """A token that counts from ``since`` until before ``ends``, in seconds since the epoch."""

    token: AccessToken
    trust: TrustDocument
    since: int
    ends: int


class VerifiedTokens:
    """The verified access tokens of one receiver, whose threads share them."""

    def __init__(self) -> None:
        self._kept: dict[bytes, _Verified] = {}
        self._lock = threading.Lock()

    def token(
        self, shown: Shown, trust: TrustDocument, at: int, verify: Callable[[], AccessToken]
    ) -> AccessToken:
        """Return the token that is shown at ``at``, in seconds since the epoch.

        ``verify`` verifies the token with the keys of ``trust``; the errors of ``verify`` pass.
        """
        digest = sha256(repr(shown).encode()).digest()
        with self._lock:
            kept = self._kept.pop(digest, None)
            if kept is not None and kept.trust is trust and kept.since <= at < kept.ends:
                self._kept[digest] = kept
                return kept.token
        token = verify()
        with self._lock:
            self._kept[digest] = _Verified(token, trust, at, _end_of(token, trust, at))
            while len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]
        return token


def _end_of(token: AccessToken, trust: TrustDocument, at: int) -> int:
    """Return until when a token counts that counts at ``at``.

    Nothing in the chain ends before the token does. A key of the trust document may do so.
    """
    ends = [key.compromised_since for key in trust.keys if key.compromised_since is not None]
    return min([token.expires_at, *(end for end in ends if end > at)])
