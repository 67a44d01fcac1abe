"""``DelegatedProver``: signs proofs for the requests of an agent instance under a delegation.

A proof names one request and one authorised call. ``secrets/desk.py`` asks for a proof while the
call runs; ``proof/bound_request.py`` and ``proof/call_proof.py`` have the forms of the proofs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from agentguard.call.releases import ProofRecord, RequestProof, RequestRecord
from agentguard.delegation.access_token import AccessToken
from agentguard.delegation.handle import Delegation
from agentguard.errors import ProofError
from agentguard.identity.trust import seconds
from agentguard.proof import bound_request, call_proof
from agentguard.proof.bound_request import BoundRequest
from agentguard.proof.call_proof import BoundCall
from agentguard.proof.target import Target, audience_target
from agentguard.signing.canonical import sha256_hex
from agentguard.signing.keys import Signer

if TYPE_CHECKING:
    from agentguard.guard.instance import Instance


class DelegatedProver(NamedTuple):
    """The prover of one agent instance under one delegation (``call.releases.Prover``)."""

    instance: Instance
    delegation: Delegation

    def prove(
        self, method: str, url: str, *, body_sha256: str, invocation_sha256: str
    ) -> tuple[RequestProof, ProofRecord]:
        """Return the proof of a request to a server in the audience of the delegation.

        Returns also what the log is to say of the proof.
        """
        request = BoundRequest.of_digest(method, url, body_sha256)
        holder = self._holder()
        audience = _audience_of(request.target, holder.token.chain.leaf.audience)
        proof = holder.sign(bound_request.mint, request, invocation_sha256)
        return holder.shown_with(proof), holder.record(request.record, "request", audience, proof)

    def prove_call(
        self, audience: str, method: str, *, params_sha256: str, invocation_sha256: str
    ) -> tuple[RequestProof, ProofRecord]:
        """Return the proof of an MCP request to a server that the delegation names.

        Returns also what the log is to say of the proof.
        """
        call = BoundCall.of_digest(audience, method, params_sha256)
        holder = self._holder()
        named = holder.token.chain.leaf.audience
        if audience not in named:
            raise _other_audience(audience, named, "name")
        proof = holder.sign(call_proof.mint, call, invocation_sha256)
        return holder.shown_with(proof), holder.record(call.record, "call", audience, proof)

    def _holder(self) -> _Holder:
        """Return the tokens of the instance under the delegation; raises as a call would."""
        ports = self.instance.ports
        now = ports.now()
        token = self.instance.accept(self.delegation, now).token
        signer, credential = self.instance.holder(now)
        assert credential is not None  # noqa: S101  an agent instance always has one
        jti = ports.entropy(16).hex()
        return _Holder(signer, credential.token, token, seconds(now), jti)


class _Holder(NamedTuple):
    """Who proves a request, and when; ``now`` is in seconds since the epoch."""

    signer: Signer
    credential: str
    token: AccessToken
    now: int
    jti: str

    def sign(self, mint: Callable[..., str], bound: object, invocation_sha256: str) -> str:
        """Sign a proof of ``bound`` with the ``mint`` of its form; raises as that does."""
        return mint(
            bound,
            self.signer,
            credential=self.credential,
            access_token=self.token.token,
            invocation_sha256=invocation_sha256,
            now=self.now,
            jti=self.jti,
        )

    def shown_with(self, proof: str) -> RequestProof:
        """Return what the caller shows to the server together with a proof."""
        chain = self.token.chain
        return RequestProof(self.credential, self.token.token, proof, chain.dumps(), chain.sha256)

    def record(
        self, request: RequestRecord, assurance: str, audience: str, proof: str
    ) -> ProofRecord:
        """Return what the log is to say of a proof."""
        return ProofRecord(request, assurance, audience, self.jti, sha256_hex(proof.encode()))


def _audience_of(target: Target, audience: Sequence[str]) -> str:
    """Return the narrowest audience of the delegation that has a URL.

    Raises ``ProofError`` (``proof.audience``) for a URL that the delegation does not name.
    """
    bases = {name: audience_target(name) for name in audience}
    found = {
        name: len(base.path)
        for name, base in bases.items()
        if base is not None and target.is_within(base)
    }
    if not found:
        raise _other_audience(target.uri, audience, "URL")
    return max(found, key=lambda name: found[name])


def _other_audience(server: str, audience: Sequence[str], kind: str) -> ProofError:
    message = (
        f"{server} is in no audience of the delegation ({' '.join(audience)}): name the "
        f"server's {kind} in guard.delegate(..., audience=[...])"
    )
    return ProofError(message, code="proof.audience")
