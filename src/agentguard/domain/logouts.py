"""``LogOutTokens``: verifies what a provider sends when a user logs out.

The providers are those of ``[issuers]`` that know users. ``identity/logout_token.py`` says what a
log-out token is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from agentguard.domain.config import Config
from agentguard.domain.key_sources import KeySources
from agentguard.errors import VerificationError
from agentguard.identity import logout_token
from agentguard.identity.login import LogOut
from agentguard.issuers.trusted import Issuers, TrustedIssuer

OLDEST: Final = 3600
"""Seconds for which a log-out token counts at the most, also one that ends later."""


class LogOutTokens:
    """Verifies log-out tokens of the providers that know users."""

    def __init__(self, settings: Config, sources: KeySources) -> None:
        providers = [
            (issuer, issuer.users, sources.of(issuer.rule.name))
            for issuer in settings.issuers.values()
            if issuer.users is not None
        ]
        # a log-out names whose log-ins end by either claim, and perhaps by one alone
        self._issuers = {
            claim: Issuers(
                [
                    TrustedIssuer(
                        replace(
                            issuer.rule,
                            audience=users.logout_audience,
                            types=logout_token.TYPES,
                            subject_claim=claim,
                        ),
                        source,
                    )
                    for issuer, users, source in providers
                ]
            )
            for claim in ("sub", "sid")
        }

    def verify(self, token: str, *, now: int) -> LogOut:
        """Verify a log-out token; ``now`` is in seconds since the epoch.

        Raises as ``Issuers.verify`` and ``logout_token.read`` do; also ``VerificationError``
        (``jwt.expired``) for a token that was issued more than ``OLDEST`` seconds ago. OpenID
        Connect Back-Channel Logout 1.0, 2.6.
        """
        verified = self._issuers[logout_token.subject_claim(token)].verify(token)
        logout = logout_token.read(verified.claims)
        if logout.issued_at < now - OLDEST:
            raise VerificationError("the log-out token is too old", code="jwt.expired")
        return logout
