"""Access tokens that others show: to ``/introspect``, to ``/revoke`` and to the evaluations."""

from __future__ import annotations

from typing import Any

from agentguard.delegation import access_token
from agentguard.delegation.access_token import CHAIN_CLAIM, AccessToken
from agentguard.errors import AgentguardError, ProofError
from agentguard.identity.trust import seconds
from agentguard.proof.headers import MAX_CHAIN
from agentguard.service.answers import unavailable
from agentguard.service.parts import LOGGER, ServiceParts
from agentguard.signing import jws


def read_token(parts: ServiceParts, text: str, chain: bytes | None = None) -> AccessToken | None:
    """Return the verified token, revoked or not; None for a token that does not count now.

    ``chain`` is the chain as JSON; None for a token of this service, which has kept the chain. Any
    audience of the token is good. Raises ``RefusedError`` where chains or keys can't be read.
    """
    try:
        claims: Any = jws.parse(text).claims()
        audience = claims.get("aud")
        digest = claims.get(CHAIN_CLAIM)
        if not isinstance(audience, list) or not audience or not isinstance(digest, str):
            return None
        shown = parts.store.chain(digest) if chain is None else chain
        if shown is None or len(shown) > MAX_CHAIN:
            return None
        # which of its audiences asks is for the asking server to compare
        return access_token.verify(
            text,
            shown,
            parts.trust,
            at=seconds(parts.now()),
            audience=audience[0],
            issuer=parts.config.issuer,
        )
    except ProofError as error:
        raise unavailable("the chains of tokens can't be read now") from error
    except AgentguardError as error:
        if error.code.startswith("storage."):
            raise unavailable("the keys of the trust domain can't be read now") from error
        LOGGER.info("a token that is shown does not count: %s", error.code)
        return None
