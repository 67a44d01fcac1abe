"""Gets the proof of a request from the guard of the running call, and puts it into the request.

``httpx.py`` and ``requests.py`` use this module, and ``agentguard_mcp`` for requests of the Model
Context Protocol. Which HTTP requests get a proof, ``Audiences`` says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from agentguard.call.releases import Releases, RequestProof
from agentguard.delegation.context import running_call
from agentguard.errors import ConfigError, ProofError, UnguardedCallError
from agentguard.proof import call_proof, headers
from agentguard.proof.receipt import VerifiedReceipt
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
        """Return the narrowest audience of a URL, None for a URL that gets no proof.

        Raises ``ProofError`` (``proof.malformed``) for a URL at the server of an audience that no
        proof can name: without a proof, the server would refuse the request.
        """
        try:
            target = Target.parse(url)
        except ProofError:
            if self._is_near(url):
                raise
            return None
        bases = [base for base in self._bases if target.is_within(base)]
        return max(bases, key=lambda base: len(base.path), default=None)

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
    return _releases().prove(method, url, sha256_hex(body))


def prove_call(audience: str, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the parameters of an MCP request that the running tool sends, with a fresh proof.

    ``audience`` names the server as the delegation does, letter for letter; take the name from the
    configuration, and never from the server. ``method`` and ``params`` are those of the JSON-RPC
    request. The result has the members of ``_meta`` that say who calls, in the place of such
    members in ``params``, which is not changed. Every request needs a proof of its own, also one
    that is sent again. Raises as ``prove_request`` does, and ``ProofError``: ``proof.malformed``
    for parameters without a canonical form (RFC 8785), and ``proof.too_large``.
    """
    digest = call_proof.params_digest(params)
    proof = _releases().prove_call(audience, method, digest)
    chain = headers.encode_chain(proof.chain)
    tokens = (proof.access_token, proof.credential, proof.proof)
    if len(proof.chain) > headers.MAX_CHAIN or len(chain) > call_proof.MAX_CHAIN_TEXT:
        raise _too_large()
    if any(len(token) > call_proof.MAX_TOKEN for token in tokens):
        raise _too_large()
    meta = {
        **call_proof.meta_of(params),
        call_proof.TOKEN: proof.access_token,
        call_proof.CREDENTIAL: proof.credential,
        call_proof.CHAIN: chain,
        call_proof.PROOF: proof.proof,
    }
    return {**(params or {}), "_meta": meta}


def note_receipt(receipt: VerifiedReceipt) -> None:
    """Put the receipt of an answer to the running tool on record, durably.

    Raises ``UnguardedCallError`` outside a guarded call, and ``ProofError``: ``proof.refused`` for
    a request of another call, ``proof.failed``.
    """
    _releases().note_receipt(receipt.proof_sha256, receipt.token, receipt.key_id)


def _releases() -> Releases:
    running = running_call()
    if running is None:
        message = "a proof is for a guarded call, and none is running here: call with agent.call"
        raise UnguardedCallError(message)
    return running.releases


def proof_headers(proof: RequestProof) -> dict[str, str]:
    """Return the headers that carry a proof; a chain that is too long for a header is left out.

    Raises ``ProofError`` (``proof.too_large``) for an access token or a chain that every receiver
    refuses.
    """
    authorization = f"DPoP {proof.access_token}"
    if len(authorization) > headers.MAX_AUTHORIZATION or len(proof.chain) > headers.MAX_CHAIN:
        raise _too_large()
    made = {
        "Authorization": authorization,
        "DPoP": proof.proof,
        "Workload-Identity-Token": proof.credential,
    }
    chain = headers.encode_chain(proof.chain)
    if len(chain) <= headers.MAX_CHAIN_HEADER:
        made["Agentguard-Chain"] = chain
    return made


def _too_large() -> ProofError:
    message = (
        "the access token or its chain is too long for a receiver: delegate with fewer scopes "
        "and a shorter audience, or through fewer agents"
    )
    return ProofError(message, code="proof.too_large")


def chain_url(base: Target, sha256: str) -> str:
    """Return the URL at which a receiver takes the chain with a digest."""
    return base.uri.rstrip("/") + headers.CHAINS_PATH + sha256


def is_chain_wanted(status: int, wanted: str | None, sent: dict[str, str], sha256: str) -> bool:
    """Whether an answer asks for the chain with this digest, which the request did not carry."""
    return status == 401 and wanted == sha256 and "Agentguard-Chain" not in sent  # noqa: PLR2004
