"""The log of a tool's server: the requests that it has accepted, and some that it has refused."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

from agentguard.audit.entry import Entry, Record
from agentguard.audit.summary import Summary
from agentguard.call.releases import RequestRecord
from agentguard.errors import DecodeError
from agentguard.signing.declared import Count, Declared, Sha256

Assurance = Literal["request", "dpop", "call"]
"""What is proved of a request: all of it, its method and path, or all of an MCP request."""


class ShownToken(Declared):
    """The access token of a request: its id, and the digest of the whole token."""

    jti: str
    sha256: Sha256


class UsedProof(Declared):
    """The proof of a request: its id, the digest of the whole proof, and the key's thumbprint."""

    jti: str
    sha256: Sha256
    key_id: str


class KnownRequest(NamedTuple):
    """A request at a tool's server whose access token and credential hold, and its caller.

    The proof may not be verified yet: whoever has seen the tokens can send them as well.
    ``audience`` is the name of the server in delegations, ``server`` the URL within which it takes
    requests. ``proof_sha256`` and ``token_sha256`` (hex) are the digests of the proof and of the
    access token, as the request carries them.
    """

    request: RequestRecord
    audience: str
    server: str
    proof_sha256: str
    token_jti: str
    token_sha256: str
    agent: str
    principal: str


class ReceivedRequest(NamedTuple):
    """A request that a tool's server has accepted; ``key_id`` is the thumbprint of its key."""

    known: KnownRequest
    proof_jti: str
    key_id: str
    assurance: Assurance
    invocation_sha256: str | None


class AtReceiver(Entry):
    """A request at a tool's server.

    ``audience`` is the name of the server in delegations, and ``server`` the URL within which the
    server takes requests. ``unrecorded`` is how many refused requests have no entry since the entry
    before.
    """

    request: RequestRecord
    audience: str
    server: str
    token: ShownToken
    agent: str
    principal: str
    unrecorded: Count

    @property
    def summary(self) -> Summary:
        """The columns: who has asked, for whom."""
        return Summary(self.kind, self.at, agent=self.agent, principal=self.principal)


class ReceivedEntry(AtReceiver):
    """A tool's server has accepted a request, with its verified caller.

    ``assurance`` is ``request``, ``dpop`` or ``call``; with ``dpop`` nobody knows the call, and
    ``invocation_sha256`` is None.
    """

    kind: ClassVar[str] = "received"
    proof: UsedProof
    assurance: Assurance
    invocation_sha256: Sha256 | None

    @classmethod
    def new(cls, request: ReceivedRequest, *, unrecorded: int, at: str) -> Record:
        """Return the entry."""
        sha256 = request.known.proof_sha256
        return cls(
            at=at,
            proof=UsedProof(jti=request.proof_jti, sha256=sha256, key_id=request.key_id),
            assurance=request.assurance,
            invocation_sha256=request.invocation_sha256,
            **_of(request.known, unrecorded),
        ).record()

    @property
    def words(self) -> str:
        """Which request was accepted."""
        return f"the request {self.request.method} {self.request.url} was accepted"

    def read(self) -> None:
        """Require a call unless nobody knows it."""
        if (self.invocation_sha256 is None) is not (self.assurance == "dpop"):
            message = "an accepted request names its call, and with the assurance dpop none"
            raise DecodeError(message, code="entry.malformed")


class RefusedEntry(AtReceiver):
    """A tool's server has refused a request, though its token and credential hold.

    ``code`` is the reason code. ``proof_sha256`` is the digest of a proof that may be forged.
    """

    kind: ClassVar[str] = "refused"
    code: str
    proof_sha256: Sha256

    @classmethod
    def new(cls, code: str, request: KnownRequest, *, unrecorded: int, at: str) -> Record:
        """Return the entry."""
        sha256 = request.proof_sha256
        return cls(at=at, code=code, proof_sha256=sha256, **_of(request, unrecorded)).record()

    @property
    def words(self) -> str:
        """Which request was refused, and why."""
        return f"the request {self.request.method} {self.request.url} was refused: {self.code}"


def _of(request: KnownRequest, unrecorded: int) -> dict[str, Any]:
    return {
        "request": request.request,
        "audience": request.audience,
        "server": request.server,
        "token": ShownToken(jti=request.token_jti, sha256=request.token_sha256),
        "agent": request.agent,
        "principal": request.principal,
        "unrecorded": unrecorded,
    }
