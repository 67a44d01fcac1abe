"""What a running call gets from its guard: secrets, and proofs for its requests to other servers.

The module has the protocols between a call and whoever has the secrets and the keys.
``secrets/desk.py`` implements the protocols in the process of the guard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple, Protocol

from msgspec import Meta

from agentguard.signing.declared import Declared, Sha256
from agentguard.signing.keys import Secret

Method = Annotated[str, Meta(pattern=r"\A[ -~]{1,128}\Z")]
"""The method of a request."""


class RequestProof(NamedTuple):
    """What a running call shows to another server, for one request.

    ``credential`` is the Workload Identity Token of the agent instance, ``access_token`` says for
    whom the agent acts, and ``proof`` is a DPoP proof (RFC 9449), or the call proof of an MCP
    request: three compact JWSs. ``chain`` is what ``Chain.dumps`` encodes, and ``chain_sha256`` the
    digest that the access token names.
    """

    credential: str
    access_token: str
    proof: str
    chain: bytes
    chain_sha256: str


class RequestRecord(Declared, kw_only=False):
    """What a log says of a request: the method, the URL, and digests (SHA-256, hex).

    ``url`` has no query, in which a secret may stand: ``query_sha256`` is the digest of the query
    without the question mark, None for a request without a query. Of a request of the Model Context
    Protocol, ``url`` is the server's name in delegations, and ``body_sha256`` the digest of the
    parameters (``proof/call_proof.py``).
    """

    method: Method
    url: str
    query_sha256: Sha256 | None
    body_sha256: Sha256


class ProofRecord(NamedTuple):
    """What the log says of the proof of a request that a running call makes.

    ``assurance`` is ``request`` for an HTTP request, and ``call`` for one of the Model Context
    Protocol. ``audience`` is the name in the delegation to which the URL belongs. ``jti`` is the id
    of the proof, and ``sha256`` (hex) the digest of the whole proof.
    """

    request: RequestRecord
    assurance: str
    audience: str
    jti: str
    sha256: str


class Prover(Protocol):
    """Signs proofs with the key of one agent instance, under one delegation."""

    def prove(
        self, method: str, url: str, *, body_sha256: str, invocation_sha256: str
    ) -> tuple[RequestProof, ProofRecord]:
        """Prove that a request belongs to the call with ``invocation_sha256``; digests are hex.

        Returns also what the log is to say of the proof before anybody gets the proof.
        Raises ``ProofError`` (``proof.audience``, ``proof.malformed``), and what a call under the
        delegation would be refused with.
        """

    def prove_call(
        self, audience: str, method: str, *, params_sha256: str, invocation_sha256: str
    ) -> tuple[RequestProof, ProofRecord]:
        """Prove that an MCP request belongs to a call; digests are hex, and raises as ``prove``."""


class ReleaseSubject(NamedTuple):
    """The running call that asks for a secret, or for the proof of a request.

    ``invocation_sha256`` (hex) is the digest of the signed invocation, and ``place`` the index of
    the authorization in the log. ``agent`` is the instance's URI. ``scope`` is what the agent may
    do, None for everything, and ``names`` are the names by which the agent's authority can be
    revoked. ``prover`` signs proofs, None without a delegation.
    """

    invocation_id: str
    invocation_sha256: str
    place: int
    agent: str
    tool: str
    scope: frozenset[str] | None
    names: frozenset[str]
    prover: Prover | None = None


class Releases(Protocol):
    """The secrets and the proofs of one running call. Any thread may call the methods."""

    def release(self, name: str) -> str:
        """Return the value of a secret, once the release is durably on record.

        Raises ``SecretError``: ``secret.unknown``, ``secret.refused``, ``secret.failed``.
        """

    def prove(self, method: str, url: str, body_sha256: str) -> RequestProof:
        """Return the proof of an HTTP request that the running tool makes; the digest is hex.

        The proof is durably on record before this method returns.
        Raises ``ProofError``: ``proof.refused``, ``proof.audience``, ``proof.malformed``,
        ``proof.failed``.
        """

    def prove_call(self, audience: str, method: str, params_sha256: str) -> RequestProof:
        """Return the proof of an MCP request that the running tool sends; raises as ``prove``.

        ``audience`` names the server, and ``params_sha256`` is the digest of the request's
        parameters in hex (``proof/call_proof.py``).
        """

    def note_receipt(self, proof_sha256: str, receipt: str, key_id: str) -> None:
        """Put a receipt on record, which the tool has got for a request of this call.

        ``proof_sha256`` (hex) is the digest of the request's proof, ``receipt`` a compact JWS that
        the client has verified, and ``key_id`` the thumbprint of the receiver's key. Raises
        ``ProofError``: ``proof.refused``, ``proof.failed``.
        """

    @property
    def held(self) -> Sequence[Secret]:
        """The values that were released to the call, to calls inside, and to the calls around."""

    def hold(self, value: Secret) -> None:
        """Note a value that was released to the call, or to a call inside."""

    def limit_warnings(self, may_warn: Callable[[], bool]) -> None:
        """Log a refusal only where ``may_warn`` returns True: one call can ask all day."""

    def end(self) -> bool:
        """End the call: nothing is released to the call any more.

        Returns True while a release or a proof is being put on record; ``settle`` then waits.
        """

    def settle(self) -> None:
        """Wait until no release and no proof is being put on record."""

    def forget(self) -> None:
        """Drop the values, once nothing of the call is to be kept any more."""


class SecretDesk(Protocol):
    """Releases secrets to the calls of one guard."""

    def begin(self, subject: ReleaseSubject, around: Releases | None) -> Releases:
        """Return the releases of a call that begins to run.

        ``around`` are the releases of the call around, None for an outermost call.
        """
