"""``POST /identities``: a credential for a key that a client's agent has made itself.

The service never has the key: the caller proves the key with a DPoP proof. The credential is
recorded in the log before the answer, as the credential of each instance is.
"""

from __future__ import annotations

from agentguard.audit.kinds.identities import IdentityEntry
from agentguard.call.invocation import timestamp
from agentguard.errors import AgentguardError
from agentguard.guard.process import Present
from agentguard.identity import credential
from agentguard.identity.credential import AgentProfile, Credential
from agentguard.service.answers import (
    Answer,
    RefusedError,
    invalid_request,
    success,
)
from agentguard.service.callers import (
    agent_of,
    client_of,
    read_proof,
    require_active,
    use_proof,
)
from agentguard.service.parts import ServiceParts
from agentguard.service.reading import Request, read_json
from agentguard.signing.keys import PublicKey


def register(parts: ServiceParts, request: Request) -> Answer:
    """Return a credential for the key in the request; the same key again renews the credential.

    The caller shows a workload token, and a DPoP proof of the key for this token. The body is
    ``{"agent": NAME, "jwk": JWK}``. The answer (201) has the members ``credential`` (a Workload
    Identity Token), ``uri``, ``expires_in`` (seconds) and ``expires_at`` (seconds since the epoch).
    Raises ``RefusedError``: ``access_denied`` for an agent that the client may not be, and as
    ``client_of`` and ``read_proof`` do.
    """
    client, token = client_of(parts, request)
    name, key = _read(request)
    present = parts.present()
    at, domain = present.at, present.domain
    proof = read_proof(parts, request, access_token=token, at=at)
    if proof.thumbprint != key.thumbprint:
        raise invalid_request("the DPoP proof is of another key than jwk")
    if not client.may_be(name):
        raise _not_allowed()
    profile = agent_of(parts, name, _not_allowed()).profile
    uri = credential.agent_uri(domain.trust.trust_domain, name, key)
    require_active(parts, uri, name, key.thumbprint)
    use_proof(parts, proof, at=at)
    issued = _issue(parts, profile, key, present)
    parts.ports.log.append(IdentityEntry.new(issued, at=timestamp(present.moment)))
    value = {
        "credential": issued.token,
        "uri": issued.uri,
        "expires_in": issued.expires_at - at,
        "expires_at": issued.expires_at,
    }
    return success(value, 201)


def _read(request: Request) -> tuple[str, PublicKey]:
    """Return the agent's name and the public key in the body; raises ``RefusedError``."""
    body = read_json(request)
    name, jwk = body.get("agent"), body.get("jwk")
    if body.keys() != {"agent", "jwk"} or not isinstance(name, str) or not isinstance(jwk, dict):
        raise invalid_request("the body is an object with agent, a text, and jwk, an object")
    try:
        return name, PublicKey.from_jwk(jwk)
    except AgentguardError as error:
        raise invalid_request(f"jwk is no public Ed25519 key [{error.code}]") from error


def _issue(
    parts: ServiceParts, profile: AgentProfile, key: PublicKey, present: Present
) -> Credential:
    domain, at = present.domain, present.at
    issued = credential.issue(
        domain.issuer,
        domain.trust.trust_domain,
        profile,
        key,
        now=at,
        jti=parts.ports.entropy(16).hex(),
    )
    return credential.verify(issued.token, domain.trust, at=at)


def _not_allowed() -> RefusedError:
    # the same answer for an agent that is not in the configuration: a client learns no names
    message = "the client may not be this agent: see agents in [clients]"
    return RefusedError(403, "access_denied", message)
