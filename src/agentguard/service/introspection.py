"""``POST /introspect``: whether an access token counts now, for a server that asks (RFC 7662).

Unlike an offline verifier, the service knows of revocations and of the freeze. The caller has to
have the token already, and learns only what the token and the chain say.
"""

from __future__ import annotations

from agentguard.delegation.access_token import CHAIN_CLAIM, ISOLATION_CLAIM, AccessToken
from agentguard.delegation.chain import Chain
from agentguard.errors import AgentguardError, DelegationError
from agentguard.identity.revocation import require_unrevoked
from agentguard.service.answers import Answer, success, unavailable
from agentguard.service.callers import client_of
from agentguard.service.messages import CHAIN
from agentguard.service.parts import LOGGER, ServiceParts
from agentguard.service.reading import Request, one, read_form, required
from agentguard.service.tokens import read_token
from agentguard.signing import jws

_INACTIVE = {"active": False}


def introspect(parts: ServiceParts, request: Request) -> Answer:
    """Return what a token says, or ``{"active": false}`` for a token that does not count now.

    The caller shows a workload token. The parameter ``urn:agentguard:chain`` has the chain as JSON;
    a token of this service needs none. Raises ``RefusedError`` as ``client_of`` does. RFC 7662, 2.
    """
    form = read_form(request)
    client_of(parts, request)
    token = _active(parts, required(form, "token"), one(form, CHAIN))
    return success(_INACTIVE if token is None else _described(token))


def _active(parts: ServiceParts, text: str, chain: str | None) -> AccessToken | None:
    """Return the token if the token counts now; raises ``RefusedError`` where nobody can know."""
    token = read_token(parts, text, None if chain is None else chain.encode())
    if token is None:
        return None
    try:
        require_unrevoked(parts.ports.log, token.chain.names | {token.jti})
    except DelegationError as error:
        LOGGER.info("a token that is asked for is refused: %s", error.code)
        return None
    except AgentguardError as error:
        if error.code.startswith("storage."):
            raise unavailable("the revocations can't be read now") from error
        return None
    return token


def _described(token: AccessToken) -> dict[str, object]:
    """Return the members of RFC 7662, 2.2, and all actors of the chain (RFC 8693, 4.1)."""
    claims = jws.parse(token.token).claims()
    names = ("iss", "sub", "aud", "client_id", "iat", "exp", "jti", "scope", "cnf", "txn")
    return {
        "active": True,
        "token_type": "DPoP",
        **{name: claims[name] for name in names if claims[name] is not None},
        "act": _actors(token.chain),
        CHAIN_CLAIM: token.chain.sha256,
        ISOLATION_CLAIM: token.isolation,
    }


def _actors(chain: Chain) -> dict[str, object]:
    """Return the agent that acts, and within it each delegatee before."""
    nested: dict[str, object] = {}
    for member in chain.members[1:]:
        nested = {"sub": member, "act": nested} if nested else {"sub": member}
    return nested
