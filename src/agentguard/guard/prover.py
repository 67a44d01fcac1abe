"""``DelegatedProver``: signs proofs for the requests of an agent instance under a delegation.

A proof names one request and one authorised call. ``secrets/desk.py`` asks for a proof while the
call runs; ``proof/wpt.py`` has the form of the proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from agentguard.call.releases import RequestProof
from agentguard.delegation.handle import Delegation
from agentguard.errors import ProofError
from agentguard.identity.trust import seconds
from agentguard.proof import wpt
from agentguard.proof.bound_request import BoundRequest
from agentguard.proof.target import Target, audience_target

if TYPE_CHECKING:
    from agentguard.guard.instance import Instance


class DelegatedProver(NamedTuple):
    """The prover of one agent instance under one delegation (``call.releases.Prover``)."""

    instance: Instance
    delegation: Delegation

    def prove(
        self, method: str, url: str, *, body_sha256: str, invocation_sha256: str
    ) -> RequestProof:
        """Return the proof of a request to a server in the audience of the delegation."""
        request = BoundRequest.of_digest(method, url, body_sha256)
        ports = self.instance.ports
        now = max(ports.clock(), ports.log.last_at)
        token = self.instance.accept(self.delegation, now).token
        _require_audience(request.target, token.chain.leaf.audience)
        signer, credential = self.instance.holder(now)
        assert credential is not None  # noqa: S101  an agent instance always has one
        proof = wpt.mint(
            request,
            signer,
            credential=credential.token,
            access_token=token.token,
            invocation_sha256=invocation_sha256,
            now=seconds(now),
            jti=ports.entropy(16).hex(),
        )
        chain = token.chain
        return RequestProof(credential.token, token.token, proof, chain.dumps(), chain.sha256)


def _require_audience(target: Target, audience: Sequence[str]) -> None:
    """Raise ``ProofError`` (``proof.audience``) for a URL that the delegation does not name."""
    bases = map(audience_target, audience)
    if not any(base is not None and target.is_within(base) for base in bases):
        message = (
            f"{target.uri} is in no audience of the delegation ({' '.join(audience)}): name the "
            "server's URL in guard.delegate(..., audience=[...])"
        )
        raise ProofError(message, code="proof.audience")
