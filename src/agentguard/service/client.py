"""A client of a token service: ``TokenService`` and its async twin, over httpx.

Both register a key of this process as an instance of an agent, get access tokens for users' tokens
and ID-JAGs, give access tokens up, and ask what the policy decides about calls. A server asks
whether a token counts. ``messages.py`` says what is sent. The extra ``httpx`` brings httpx.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Self, TypeVar

from agentguard.call.evaluation import Evaluation
from agentguard.delegation.access_token import IssuedToken
from agentguard.errors import ConfigError
from agentguard.service import messages
from agentguard.service.messages import ACCESS_TOKEN, ExchangedToken, Identity, Question
from agentguard.signing.canonical import JSON
from agentguard.signing.keys import Ed25519Signer

try:
    import httpx
except ModuleNotFoundError as missing:
    what = "a client of a token service"
    raise ConfigError.without_extra("httpx", what=what, brings="httpx") from missing

_TIMEOUT: Final = 30.0

T = TypeVar("T")


class TokenService:
    """The token service at ``url``: ``https``, or ``http`` on this machine.

    Each method but ``close`` makes one request. ``http`` sends the requests, and is not closed
    here; None makes a client that ``close`` closes. Raises ``ConfigError`` for another URL.
    """

    def __init__(self, url: str, *, http: httpx.Client | None = None) -> None:
        self._url = messages.parse_url(url)
        self._is_own = http is None
        if http is None:
            http = httpx.Client(timeout=_TIMEOUT, trust_env=_has_tls(self._url))
        self._http = http

    def register(
        self, agent: str, *, workload_token: str, signer: Ed25519Signer | None = None
    ) -> Identity:
        """Return an identity of the agent; the key is ``signer``, or a new key.

        ``workload_token`` is a token of an issuer that the service knows, of a client that may be
        the agent. Raises ``ServerError``: ``service.refused``, ``service.unreachable``,
        ``service.malformed``.
        """
        return self._ask(messages.registration(self._url, agent, workload_token, signer))

    def exchange(
        self,
        identity: Identity,
        subject_token: str,
        *,
        subject_token_type: str = ACCESS_TOKEN,
        scope: Iterable[str] | None = None,
        audience: Iterable[str] | None = None,
    ) -> ExchangedToken:
        """Return an access token with which the identity acts for the user of ``subject_token``.

        ``scope`` None asks for all that the user and the agent share, an empty one for nothing,
        which the service refuses. ``audience`` names the receivers, None for the trust domain
        itself. Raises as ``register`` does, and ``DelegationError``
        (``scope.malformed``). RFC 8693, 2.
        """
        kind = subject_token_type
        return self._ask(
            messages.exchange(self._url, identity, subject_token, kind, scope, audience)
        )

    def redeem(
        self,
        identity: Identity,
        id_jag: str,
        *,
        scope: Iterable[str] | None = None,
        audience: Iterable[str] | None = None,
    ) -> ExchangedToken:
        """Return an access token with which the identity acts for the user of an ID-JAG.

        ``id_jag`` counts once, and is for the identity or its agent. ``scope`` None asks for all
        that grant, user and agent share. ``audience`` names receivers of the grant; None asks for
        all receivers of a grant that names some. The service refuses an empty one of either. Raises
        as ``exchange`` does.
        RFC 7523, 2.1; draft-ietf-oauth-identity-assertion-authz-grant-04, 4.4.
        """
        return self._ask(messages.redemption(self._url, identity, id_jag, scope, audience))

    def revoke(self, identity: Identity, issued: IssuedToken) -> None:
        """Give up an access token of the identity, and the delegation under which it acts.

        A token that counts no more is no error. Raises as ``register`` does. RFC 7009.
        """
        self._ask(messages.revocation(self._url, identity, issued))

    def introspect(
        self, token: str, *, workload_token: str, chain: bytes | None = None
    ) -> Mapping[str, JSON] | None:
        """Return what an access token says, None for a token that does not count now.

        The service knows of revocations, log-outs and the freeze. ``workload_token`` is that of the
        server that asks. ``chain`` is the chain of the token (``IssuedToken.chain``); a token of
        this service needs none. The proof of the token's key is for the server to verify. Raises as
        ``register`` does. RFC 7662.
        """
        return self._ask(messages.introspection(self._url, token, workload_token, chain))

    def authorize(
        self,
        identity: Identity,
        tool: str,
        arguments: Mapping[str, JSON],
        *,
        resource: str,
        access_token: str | None = None,
    ) -> Evaluation:
        """Return the policy's decision about a call of the identity; nobody makes the call.

        ``tool`` is a tool of the service's ``[tools]``. ``resource`` is ``TYPE:ID``, that of the
        arguments where the configuration has a template. With ``access_token``, the identity acts
        for the user of the token, else on its own authority. The signature of the statement is not
        verified: ``agentguard.verify_evaluation`` does that. Raises ``ConfigError`` for a malformed
        resource, and as ``register`` does. AuthZEN Authorization API 1.0.
        """
        return self._ask(
            messages.authorization(self._url, identity, tool, arguments, resource, access_token)
        )

    def _ask(self, question: Question[T]) -> T:
        """Return the answer to a question; a redirect is never followed."""
        try:
            with self._http.stream("POST", **_sent(question)) as answer:
                body = b""
                for part in answer.iter_bytes() if _is_plain(answer) else ():
                    body += part
                    if len(body) > messages.MAX_ANSWER:
                        break  # a text that is cut off is no JSON
        except httpx.HTTPError as error:
            raise messages.unreachable(error) from error
        return question.read(answer.status_code, body)

    def close(self) -> None:
        """Close the client of httpx that was made here."""
        if self._is_own:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()


class AsyncTokenService:
    """The twin of ``TokenService`` for asyncio, with an ``httpx.AsyncClient``."""

    def __init__(self, url: str, *, http: httpx.AsyncClient | None = None) -> None:
        self._url = messages.parse_url(url)
        self._is_own = http is None
        if http is None:
            http = httpx.AsyncClient(timeout=_TIMEOUT, trust_env=_has_tls(self._url))
        self._http = http

    async def register(
        self, agent: str, *, workload_token: str, signer: Ed25519Signer | None = None
    ) -> Identity:
        """Return an identity of the agent, as ``TokenService.register`` does."""
        return await self._ask(messages.registration(self._url, agent, workload_token, signer))

    async def exchange(
        self,
        identity: Identity,
        subject_token: str,
        *,
        subject_token_type: str = ACCESS_TOKEN,
        scope: Iterable[str] | None = None,
        audience: Iterable[str] | None = None,
    ) -> ExchangedToken:
        """Return an access token of the identity, as ``TokenService.exchange`` does."""
        kind = subject_token_type
        return await self._ask(
            messages.exchange(self._url, identity, subject_token, kind, scope, audience)
        )

    async def redeem(
        self,
        identity: Identity,
        id_jag: str,
        *,
        scope: Iterable[str] | None = None,
        audience: Iterable[str] | None = None,
    ) -> ExchangedToken:
        """Return an access token of the identity, as ``TokenService.redeem`` does."""
        return await self._ask(messages.redemption(self._url, identity, id_jag, scope, audience))

    async def revoke(self, identity: Identity, issued: IssuedToken) -> None:
        """Give up an access token of the identity, as ``TokenService.revoke`` does."""
        await self._ask(messages.revocation(self._url, identity, issued))

    async def introspect(
        self, token: str, *, workload_token: str, chain: bytes | None = None
    ) -> Mapping[str, JSON] | None:
        """Return what an access token says, as ``TokenService.introspect`` does."""
        return await self._ask(messages.introspection(self._url, token, workload_token, chain))

    async def authorize(
        self,
        identity: Identity,
        tool: str,
        arguments: Mapping[str, JSON],
        *,
        resource: str,
        access_token: str | None = None,
    ) -> Evaluation:
        """Return the policy's decision about a call, as ``TokenService.authorize`` does."""
        return await self._ask(
            messages.authorization(self._url, identity, tool, arguments, resource, access_token)
        )

    async def _ask(self, question: Question[T]) -> T:
        try:
            async with self._http.stream("POST", **_sent(question)) as answer:
                body = b""
                if _is_plain(answer):
                    async for part in answer.aiter_bytes():
                        body += part
                        if len(body) > messages.MAX_ANSWER:
                            break
        except httpx.HTTPError as error:
            raise messages.unreachable(error) from error
        return question.read(answer.status_code, body)

    async def aclose(self) -> None:
        """Close the client of httpx that was made here."""
        if self._is_own:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_raised: object) -> None:
        await self.aclose()


def _has_tls(url: str) -> bool:
    """Whether a proxy of the environment may be used: not without TLS, as it would see tokens."""
    return url.startswith("https:")


def _is_plain(answer: httpx.Response) -> bool:
    """Whether an answer is not packed; a packed one is never unpacked, as it may be huge then."""
    encoding: str = answer.headers.get("Content-Encoding", "identity")
    return encoding.lower() == "identity"


def _sent(question: Question[Any]) -> dict[str, Any]:
    return {
        "url": question.url,
        "content": question.body,
        "headers": question.headers,
        "follow_redirects": False,
    }
