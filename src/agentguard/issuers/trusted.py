"""``Issuers``: verifies a token of any issuer in the configuration, with that issuer's keys.

The unverified ``iss`` (for a JWT-SVID, ``sub``) only chooses the issuer; the token is then verified
as one of that issuer alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from agentguard.errors import VerificationError
from agentguard.identity import jwt
from agentguard.identity.jwt import Jwt, JwtRule, VerifiedJwt
from agentguard.issuers.keys import KeySource


class TrustedIssuer(NamedTuple):
    """What a token of an issuer has to be, and where the issuer's keys come from."""

    rule: JwtRule
    source: KeySource


class Issuers:
    """The issuers whose tokens count. ``clock`` returns Unix time."""

    def __init__(
        self, issuers: Sequence[TrustedIssuer], clock: Callable[[], float] = time.time
    ) -> None:
        # an issuer with a URL may give its subjects SPIFFE IDs
        self._issuers = sorted(issuers, key=lambda one: one.rule.issuer is None)
        self._clock = clock

    def verify(self, token: object) -> VerifiedJwt:
        """Verify a token.

        Raises as ``jwt.parse`` and ``jwt.verify`` do; also ``VerificationError`` (``jwt.issuer``)
        for an issuer that is not in the configuration, and ``ServerError``
        (``issuer.unreachable``, ``issuer.keys``).
        """
        parsed = jwt.parse(token)
        for rule, source in self._issuers:
            if rule.is_issuer_of(parsed.claims):
                return self._verify(parsed, rule, source)
        message = "the token's iss (of a JWT-SVID, the trust domain of sub) is no issuer here"
        raise VerificationError(message, code="jwt.issuer")

    def _verify(self, token: Jwt, rule: JwtRule, source: KeySource) -> VerifiedJwt:
        """Verify a token; where the issuer has no such key yet, with keys fetched anew."""
        keys = source.keys()
        try:
            return jwt.verify(token, keys, rule, self._clock())
        except VerificationError as error:
            newer = source.newer(keys) if error.code == "jwt.key" else None
            if newer is None:
                raise
        return jwt.verify(token, newer, rule, self._clock())
