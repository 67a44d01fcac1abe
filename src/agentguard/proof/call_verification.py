"""``verify_call``: verifies who sends a request of the Model Context Protocol, and for whom.

``verification.py`` has what such a request shares with an HTTP request, ``call_proof.py`` the form
of the proof. ``call_receiver.py`` binds the function to a server's configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from agentguard.delegation.access_token import AccessToken
from agentguard.identity.trust import TrustDocument
from agentguard.proof import call_proof
from agentguard.proof.bound_request import VerifiedProof
from agentguard.proof.call_proof import BoundCall
from agentguard.proof.evidence import KnownCaller
from agentguard.proof.verification import (
    Known,
    KnownTokens,
    RequestCaller,
    RevokedNames,
    UsedProofs,
    as_proof_error,
    verified_caller,
)


def verify_call(  # noqa: PLR0913  what the receiver knows beforehand
    method: object,
    params: object,
    *,
    trust: TrustDocument | Sequence[TrustDocument],
    audience: str,
    at: int,
    used: UsedProofs,
    revocations: RevokedNames | Mapping[str, RevokedNames | None] | None = None,
    issuers: Mapping[str, str] | None = None,
    on_caller: Callable[[KnownCaller], None] | None = None,
    tokens: KnownTokens | None = None,
) -> RequestCaller:
    """Verify the caller of one request of the Model Context Protocol, and use the proof up.

    ``method`` and ``params`` are those of the JSON-RPC request as they came over the wire, with
    ``_meta``. ``audience`` names this receiver, as delegations name it, letter for letter. The
    other parameters are those of ``verify_request``. The chain always comes with the request.

    Raises ``ProofError`` alone, whose code is ``proof.*``, or that of the token, credential, chain
    or key that does not count.
    """
    known = Known(
        trust,
        audience,
        at,
        used,
        None,
        revocations,
        {} if issuers is None else issuers,
        on_caller,
        tokens,
    )
    with as_proof_error():
        presented = call_proof.read(params)
        bound = BoundCall.of(audience, method, params)

        def verify_proof(token: AccessToken) -> VerifiedProof:
            assert presented.credential is not None  # noqa: S101  call_proof.read found one
            return call_proof.verify(
                presented.proof,
                bound,
                credential=presented.credential,
                access_token=token.token,
                at=at,
            )

        return verified_caller(presented, bound.record, verify_proof, known)
