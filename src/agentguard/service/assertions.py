"""ID-JAGs at ``POST /token``: what a provider's grant lets an instance ask for, once (RFC 7523).

``domain/id_jags.py`` verifies a grant. Here the grant is compared with the instance that shows the
grant, narrows what the instance asks for, and is used up.
"""

from __future__ import annotations

from typing import NamedTuple

from agentguard.domain.id_jags import IdJag
from agentguard.errors import AgentguardError, ProofError
from agentguard.service.answers import RefusedError, unavailable
from agentguard.service.callers import Instance
from agentguard.service.parts import LOGGER, ServiceParts


class Asked(NamedTuple):
    """The scope and the audience that an instance asks for; None for all there is."""

    scope: tuple[str, ...] | None
    audience: tuple[str, ...] | None


def client_ids(parts: ServiceParts, instance: Instance) -> frozenset[str]:
    """Return the names by which a provider knows an instance: its own URI, and that of its agent.

    A provider registers the agent, because an instance comes and goes.
    """
    credential = instance.credential
    agent = f"spiffe://{parts.settings.trust_domain}/agent/{credential.profile.name}"
    return frozenset({credential.uri, agent})


def verified(parts: ServiceParts, text: str, instance: Instance) -> IdJag:
    """Return the ID-JAG that an instance shows, verified and for this client.

    Raises ``RefusedError``: ``invalid_grant`` for one that does not count or is another client's,
    and ``temporarily_unavailable``.
    draft-ietf-oauth-identity-assertion-authz-grant-04, 4.4.1.
    """
    try:
        grant = parts.id_jags.verify(text, now=instance.present.at)
    except AgentguardError as error:
        LOGGER.info("the token service refuses an ID-JAG: %s (%s)", error, error.code)
        if error.code.startswith("issuer."):
            raise unavailable(f"the assertion can't be verified now [{error.code}]") from error
        raise invalid_grant(f"the assertion does not count here [{error.code}]") from error
    if grant.client_id not in client_ids(parts, instance):
        raise invalid_grant("the client_id of the assertion is another client's")
    return grant


def narrowed(grant: IdJag, asked: Asked, allowed: frozenset[str]) -> Asked:
    """Return what an instance may ask for with a grant; ``allowed`` are the receivers of tokens.

    Where the grant names receivers and the request none, the token is for those that are
    ``allowed``. Raises ``RefusedError``: ``invalid_scope`` and ``invalid_target`` for more than the
    grant has.
    """
    limit = grant.user.limit
    if limit is not None and asked.scope is not None and not limit.issuperset(asked.scope):
        raise RefusedError(400, "invalid_scope", "the assertion does not have this scope")
    if grant.resource is None:
        return asked
    audience = asked.audience
    if audience is None:
        audience = tuple(name for name in grant.resource if name in allowed)
    if not audience or not set(grant.resource).issuperset(audience):
        message = (
            "the resource of the assertion is none of these receivers: see [service] audiences"
        )
        raise RefusedError(400, "invalid_target", message)
    return asked._replace(audience=audience)


def use_up(parts: ServiceParts, grant: IdJag, *, at: int) -> None:
    """Use a grant up, durably; ``at`` is in seconds since the epoch.

    Raises ``RefusedError``: ``invalid_grant`` for a grant that was used before, and
    ``temporarily_unavailable``.
    """
    try:
        # no thumbprint of a key has a space, so that no grant takes the place of a DPoP proof
        parts.store.use(
            f"id-jag {grant.issuer}", grant.token_id, expires_at=grant.expires_at, at=at
        )
    except ProofError as error:
        if error.code == "proof.unavailable":
            raise unavailable("the used assertions can't be kept now") from error
        raise invalid_grant(f"the assertion counts once [{error.code}]") from error


def invalid_grant(description: str) -> RefusedError:
    """Return the refusal of an assertion (RFC 7521, 4.1.1)."""
    return RefusedError(400, "invalid_grant", description)
