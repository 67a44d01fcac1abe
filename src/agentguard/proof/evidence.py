"""What a log says of a request: digests of its parts, and the caller before the proof is verified.

``verification.py`` makes these values while it verifies a request, and ``recorder.py`` puts them on
record.
"""

from __future__ import annotations

from typing import NamedTuple

from agentguard.call.releases import RequestRecord
from agentguard.proof.headers import PresentedCaller
from agentguard.signing.canonical import sha256_hex


class RequestEvidence(NamedTuple):
    """What a log says of one request: digests (SHA-256, hex), and the id of the proof.

    ``proof_sha256`` and ``token_sha256`` are the digests of the proof and of the access token, as
    the request carries them. ``proof_jti`` is None until the proof is verified.
    """

    request: RequestRecord
    proof_sha256: str
    token_sha256: str
    proof_jti: str | None = None


class KnownCaller(NamedTuple):
    """Who sends a request, once the access token and the credential are verified.

    The proof is not verified yet: whoever has seen the tokens can send them as well. The fields are
    those of ``RequestCaller``.
    """

    agent: str
    principal: str
    token_jti: str
    evidence: RequestEvidence


def evidence_of(presented: PresentedCaller, request: RequestRecord) -> RequestEvidence:
    """Return the digests of what a request carries; the proof is not verified yet."""
    digests = (sha256_hex(one.encode()) for one in (presented.proof, presented.access_token))
    return RequestEvidence(request, *digests)
