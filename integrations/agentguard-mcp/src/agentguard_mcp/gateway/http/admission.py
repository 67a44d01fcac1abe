"""``Admission``: which HTTP requests reach a gateway, and for whom.

Without tokens, whoever reaches the address is the caller whom the settings or a proof name.
``bearer.py`` asks for a token of each request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from agentguard_mcp.gateway.answers import code_of
from agentguard_mcp.gateway.http.refusal import HttpRefusalError, Refusal
from agentguard_mcp.gateway.http.request_context import RequestContext, User
from agentguard_mcp.gateway.messages import Message
from agentguard_mcp.messages import ERROR, OPEN
from agentguard_mcp.params import PASSED


class Owner(NamedTuple):
    """To whom a session belongs: a user, who comes by a client program."""

    user: str
    client: str


class Admitted(NamedTuple):
    """The caller of a request: ``owner`` tells callers apart, None where nobody tells them apart.

    ``user`` has come with a token, which counts until ``ends_at`` (Unix time); None without tokens.
    """

    owner: Owner | None
    user: User | None = None
    ends_at: float | None = None


class Admission(Protocol):
    """Says who sends a request."""

    async def admit(self, headers: Mapping[str, str], /) -> Admitted:
        """Return the caller; raises ``HttpRefusalError``."""

    def require_passed(self, method: str, /) -> None:
        """Raise ``HttpRefusalError`` for a method that no caller may use here."""

    def refusal_of(
        self, answer: Message, context: RequestContext, admitted: Admitted, /
    ) -> Refusal | None:
        """Return how HTTP says what the answer to a call says, None for an ordinary answer."""

    def metadata(self, path: str, /) -> bytes | None:
        """Return the metadata of the resource at a path (RFC 9728), None for another path."""

    def close(self) -> None:
        """Admit nobody any more."""


class OpenAdmission:
    """Admits each request that has reached the address."""

    async def admit(self, _headers: Mapping[str, str]) -> Admitted:
        """Return a caller whom nothing tells apart from others."""
        return Admitted(None)

    def require_passed(self, _method: str) -> None:
        """Let each method pass that the relay passes."""

    def refusal_of(
        self, _answer: Message, _context: RequestContext, _admitted: Admitted
    ) -> Refusal | None:
        """Return None: each answer is an ordinary one."""
        return None

    def metadata(self, _path: str) -> bytes | None:
        """Return None: nothing asks for tokens."""
        return None

    def close(self) -> None:
        """Keep nothing: there is nothing to close."""


class ProofAdmission(OpenAdmission):
    """Admits each request: the call itself verifies the proof, which names ``audience``.

    Who reaches the address may be anybody. So what is neither a call nor a list does not pass.
    """

    def __init__(self, audience: str) -> None:
        self._audience = audience

    def require_passed(self, method: str) -> None:
        """Raise ``HttpRefusalError`` (403) for a request that no proof covers, but for lists."""
        if method in PASSED and method not in OPEN:
            text = f"no proof covers {method}, so the gateway does not pass the request on"
            raise HttpRefusalError(403, text, code=ERROR)

    def refusal_of(
        self, answer: Message, _context: RequestContext, _admitted: Admitted
    ) -> Refusal | None:
        """Return status 401 for a call without a token that counts here (RFC 9110, 15.5.2)."""
        code = code_of(answer)
        if code != "proof.missing" and not str(code).startswith("token."):
            return None
        challenge = f'Agentguard-Call-Proof audience="{self._audience}"'
        return Refusal(401, {"www-authenticate": challenge})
