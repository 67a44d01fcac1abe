"""Gets the proof of a request from the guard of the running call, and puts it into headers.

``httpx.py`` and ``requests.py`` use this module. Which requests get a proof, ``Audiences`` says.
"""

from __future__ import annotations

import re
from typing import Final

from agentguard.call.releases import RequestProof
from agentguard.delegation.context import running_call
from agentguard.errors import ConfigError, ProofError, UnguardedCallError
from agentguard.proof import headers
from agentguard.proof.target import Target, parse_audience
from agentguard.signing.canonical import sha256_hex

_AUTHORITY: Final = re.compile(r"[A-Za-z]+://[^/?#]*")

CHAIN_WANTED: Final = "Agentguard-Chain-Wanted"
"""The header of an answer that asks for a chain: its value is the digest of the chain."""


class Audiences:
    """The URLs of the servers that get proofs; raises ``ConfigError`` for a URL that protects none.

    A URL is ``https``, or ``http`` on the loopback of this machine. A server gets proofs for the
    path of its URL, and for all paths below.
    """

    def __init__(self, urls: tuple[str, ...]) -> None:
        if not urls:
            raise ConfigError("name the URL of each server that is to get proofs")
        self._bases = [parse_audience(url) for url in urls]

    def find(self, url: str) -> Target | None:
        """Return the audience of a URL, None for a URL that gets no proof.

        Raises ``ProofError`` (``proof.malformed``) for a URL at the server of an audience that no
        proof can name: without a proof, the server would refuse the request.
        """
        try:
            target = Target.parse(url)
        except ProofError:
            if self._is_near(url):
                raise
            return None
        return next((base for base in self._bases if target.is_within(base)), None)

    def _is_near(self, url: str) -> bool:
        authority = _AUTHORITY.match(url)
        try:
            origin = Target.parse("" if authority is None else authority[0]).origin
        except ProofError:
            return False
        return any(base.origin == origin for base in self._bases)


def prove_request(method: str, url: str, body: bytes) -> RequestProof:
    """Return the proof of a request that the running tool makes.

    ``url`` is the whole URL, and ``body`` the bytes that are sent. The guard signs a proof only
    while the call runs, and only for a URL in the audience of the delegation. Raises
    ``UnguardedCallError`` (``tool.unguarded``) outside a guarded call, and ``ProofError``:
    ``proof.refused``, ``proof.audience``, ``proof.malformed``, ``proof.failed``.
    """
    running = running_call()
    if running is None:
        message = "a proof is for a guarded call, and none is running here: call with agent.call"
        raise UnguardedCallError(message)
    return running.releases.prove(method, url, sha256_hex(body))


def proof_headers(proof: RequestProof) -> dict[str, str]:
    """Return the headers that carry a proof; a chain that is too long for a header is left out.

    Raises ``ProofError`` (``proof.too_large``) for an access token or a chain that every receiver
    refuses.
    """
    authorization = f"Bearer {proof.access_token}"
    if len(authorization) > headers.MAX_AUTHORIZATION or len(proof.chain) > headers.MAX_CHAIN:
        message = (
            "the access token or its chain is too long for a receiver: delegate with fewer scopes "
            "and a shorter audience, or through fewer agents"
        )
        raise ProofError(message, code="proof.too_large")
    made = {
        "Authorization": authorization,
        "Workload-Identity-Token": proof.credential,
        "Workload-Proof-Token": proof.proof,
    }
    chain = headers.encode_chain(proof.chain)
    if len(chain) <= headers.MAX_CHAIN_HEADER:
        made["Agentguard-Chain"] = chain
    return made


def chain_url(base: Target, sha256: str) -> str:
    """Return the URL at which a receiver takes the chain with a digest."""
    return base.uri.rstrip("/") + headers.CHAINS_PATH + sha256


def is_chain_wanted(status: int, wanted: str | None, sent: dict[str, str], sha256: str) -> bool:
    """Whether an answer asks for the chain with this digest, which the request did not carry."""
    return status == 401 and wanted == sha256 and "Agentguard-Chain" not in sent  # noqa: PLR2004
