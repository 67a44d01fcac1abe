"""``POST /revoke``: an agent's instance gives up an access token of its own (RFC 7009).

The delegation under which the instance acts ends with the token, and so does what the instance has
handed on. The log has the entry, durably, and every process of the state knows before the answer.
"""

from __future__ import annotations

from agentguard.audit.kinds.identities import SurrenderEntry, require_issued
from agentguard.call.invocation import timestamp
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.service.answers import Answer, RefusedError, success, unavailable
from agentguard.service.callers import instance_of, use_proof
from agentguard.service.messages import CHAIN
from agentguard.service.parts import LOGGER, ServiceParts
from agentguard.service.reading import Request, one, read_form, required
from agentguard.service.tokens import read_token


def revoke(parts: ServiceParts, request: Request) -> Answer:
    """End the delegation of an access token of the instance that sends the request.

    The instance shows its credential and a DPoP proof whose ``ath`` names the token. A token that
    does not count, or that nobody knows, gets the same answer (RFC 7009, 2.2). Raises
    ``RefusedError``: ``unauthorized_client`` for a token of another instance (2.1),
    ``unsupported_token_type`` for a delegation that an agent has handed on (2.2.1),
    ``temporarily_unavailable``, and as ``instance_of`` does.
    """
    form = read_form(request)
    text = required(form, "token")
    instance = instance_of(parts, request, access_token=text)
    use_proof(parts, instance.proof, at=instance.present.at)
    chain = one(form, CHAIN)
    token = read_token(parts, text, None if chain is None else chain.encode())
    if token is None:
        return success({})
    last = token.chain.hops[-1]
    if last.grant.key_id != instance.credential.key.thumbprint:
        raise RefusedError(400, "unauthorized_client", "the token is another instance's")
    _require_issued(parts, last.token, instance.present.at)
    try:
        with parts.turn:
            _record(parts, last.grant.jti, last.token, request.headers["dpop"])
    except AgentguardError as error:
        LOGGER.warning("a surrender can't be recorded: %s (%s)", error, error.code)
        raise unavailable("the token can't be revoked now") from error
    return success({})


def _require_issued(parts: ServiceParts, hop: str, at: int) -> None:
    """Raise ``RefusedError`` unless the issuer has signed the hop, as ``/token`` has it do."""
    try:
        require_issued(hop, parts.trust, at)
    except (DecodeError, VerificationError) as error:
        message = "the delegation of the token is one that an agent has handed on"
        raise RefusedError(400, "unsupported_token_type", message) from error


def _record(parts: ServiceParts, jti: str, hop: str, proof: str) -> None:
    log = parts.ports.log
    if not log.look(lambda state: state.is_refused(jti)):
        log.append(SurrenderEntry(at=timestamp(parts.now()), hop=hop, proof=proof).record())
