"""Who sends a request: a client with a workload token, or an agent's instance with its credential.

Each function returns the caller, or raises ``RefusedError``. The proof of a request is used up
after the caller is known, so that nobody uses up a proof of another caller.
"""

from __future__ import annotations

from typing import NamedTuple

from agentguard.domain.config.agents import AgentConfig
from agentguard.domain.config.clients import ClientConfig
from agentguard.errors import (
    AgentguardError,
    ConfigError,
    DelegationError,
    ProofError,
    ServerError,
)
from agentguard.guard.process import Present
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.revocation import require_unrevoked
from agentguard.proof import dpop
from agentguard.proof.dpop import DpopProof
from agentguard.proof.target import Target
from agentguard.service.answers import (
    RefusedError,
    invalid_client,
    invalid_token,
    unavailable,
)
from agentguard.service.parts import LOGGER, ServiceParts
from agentguard.service.reading import Request
from agentguard.store.proof_store import KeptChain
from agentguard.visible import visible_text

_CREDENTIAL = "workload-identity-token"


def client_of(parts: ServiceParts, request: Request) -> tuple[ClientConfig, str]:
    """Return the client whose workload token the request has, and the token.

    Raises ``RefusedError``: ``invalid_token``, and ``temporarily_unavailable`` where the keys of
    the token's issuer can't be had. RFC 6750, 2.1.
    """
    scheme, _space, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise invalid_token("send a workload token: Authorization: Bearer TOKEN")
    try:
        client, _ends_at = parts.clients.client_of(token)
    except ServerError as error:
        LOGGER.info("the token service refuses a workload token: %s (%s)", error, error.code)
        if error.code in ("issuer.unreachable", "issuer.keys"):
            raise unavailable("the keys of the token's issuer can't be had now") from error
        raise invalid_token("the workload token is of no client of this service") from error
    return client, token


class Instance(NamedTuple):
    """An instance that sends a request, with the proof of the request, which is yet to be used up.

    Credential and proof were verified at the time and by the keys of ``present``.
    """

    credential: Credential
    proof: DpopProof
    present: Present


def instance_of(
    parts: ServiceParts, request: Request, *, access_token: str | None = None
) -> Instance:
    """Return the instance that sends the request; the caller of this function uses the proof up.

    The credential stands in the header ``Workload-Identity-Token``; the header ``DPoP`` has a proof
    of the credential's key, whose ``ath`` names ``access_token``; without one, the proof has no
    ``ath`` (RFC 9449, 5). Raises ``RefusedError``:
    ``invalid_client``, ``invalid_dpop_proof``, ``unauthorized_client`` while the trust domain is
    frozen.
    """
    token = request.headers.get(_CREDENTIAL)
    if token is None:
        raise invalid_client("send the credential in the header Workload-Identity-Token")
    present = parts.present()
    at = present.at
    try:
        instance = credential.verify_shown(token, present.domain.trust, at=at)
    except AgentguardError as error:
        problem = visible_text(str(error))  # whoever sends the token has chosen its kid
        LOGGER.info("the token service refuses a credential: %s (%s)", problem, error.code)
        raise invalid_client(f"the credential does not count [{error.code}]") from error
    proof = read_proof(parts, request, access_token=access_token, at=at)
    if proof.thumbprint != instance.key.thumbprint:
        raise invalid_client("the DPoP proof is of another key than the credential's")
    require_active(parts, instance.uri, instance.profile.name, instance.key.thumbprint)
    return Instance(instance, proof, present)


def read_proof(
    parts: ServiceParts, request: Request, *, access_token: str | None, at: int
) -> DpopProof:
    """Return the verified DPoP proof of a request; ``at`` is in seconds since the epoch.

    Raises ``RefusedError`` (``invalid_dpop_proof``, RFC 9449, 5).
    """
    proof = request.headers.get("dpop")
    if proof is None:
        raise _invalid_proof("send a DPoP proof in the header DPoP")
    target = Target.parse(parts.url(request.path))
    try:
        return dpop.verify(proof, request.method, target, access_token=access_token, at=at)
    except AgentguardError as error:
        raise _invalid_proof(f"the DPoP proof does not count [{error.code}]") from error


def use_proof(
    parts: ServiceParts, proof: DpopProof, *, at: int, keeps: KeptChain | None = None
) -> None:
    """Use a proof up, durably, and keep the chain of the token that goes with the proof.

    ``at`` is in seconds since the epoch. Raises ``RefusedError``: ``invalid_dpop_proof`` for a
    proof that was used before, and ``temporarily_unavailable``.
    """
    try:
        parts.store.use(
            proof.thumbprint, proof.jti, expires_at=proof.expires_at, at=at, keeps=keeps
        )
    except ProofError as error:
        if error.code == "proof.unavailable":
            raise unavailable("the used proofs can't be kept now") from error
        raise _invalid_proof(f"the DPoP proof does not count [{error.code}]") from error


def require_active(parts: ServiceParts, uri: str, name: str, thumbprint: str) -> None:
    """Raise ``RefusedError`` where the agent or the instance is revoked, or all are frozen."""
    try:
        require_unrevoked(parts.ports.log, frozenset({uri, f"agent:{name}", thumbprint}))
    except DelegationError as error:
        if error.code == "domain.frozen":
            message = f"the trust domain is frozen [{error.code}]"
            raise RefusedError(400, "unauthorized_client", message) from error
        raise invalid_client(f"the agent is revoked [{error.code}]") from error


def agent_of(parts: ServiceParts, name: str, unknown: RefusedError) -> AgentConfig:
    """Return the configuration of an agent; raise ``unknown`` where there is none of this name.

    Raises ``RefusedError`` (``temporarily_unavailable``) where the agent's owner can't be had.
    """
    try:
        return parts.guard.agent(name)
    except ConfigError as error:
        if error.code == "agent.unknown":
            raise unknown from error
        LOGGER.warning("the token service can't describe an agent: %s (%s)", error, error.code)
        raise unavailable("the owner of the agent can't be looked up now") from error


def _invalid_proof(description: str) -> RefusedError:
    return RefusedError(400, "invalid_dpop_proof", description)
