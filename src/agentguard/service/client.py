"""A client of a token service: ``TokenService`` and its async twin, over httpx.

Both register a key of this process as an instance of an agent, get access tokens for users' tokens
and ID-JAGs, give access tokens up, and ask what the policy decides about calls. A server asks
whether a token counts. ``messages.py``
says what is sent. The extra ``httpx`` brings httpx.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Final, Self

from agentguard.call.evaluation import Evaluation
from agentguard.delegation.access_token import IssuedToken
from agentguard.errors import ConfigError
from agentguard.service import messages
from agentguard.service.messages import ACCESS_TOKEN, ExchangedToken, Identity, Sent
from agentguard.signing.canonical import JSON
from agentguard.signing.keys import Ed25519Signer

try:
    import httpx
except ModuleNotFoundError as missing:
    what = "a client of a token service"
    raise ConfigError.without_extra("httpx", what=what, brings="httpx") from missing

_TIMEOUT: Final = 30.0


class TokenService:
    """The token service at ``url``: ``https``, or ``http`` on this machine.

    Each method of ``identities`` and ``tokens``, and ``authorize``, makes one request. ``http``
    sends the requests, and is not closed here; None makes a client that ``close`` closes. Raises
    ``ConfigError`` for another URL.
    """

    def __init__(self, url: str, *, http: httpx.Client | None = None) -> None:
        self._url = messages.parse_url(url)
        self._is_own = http is None
        if http is None:
            http = httpx.Client(timeout=_TIMEOUT, trust_env=_has_tls(self._url))
        self._http = http
        self.identities = Identities(self._url, http)
        self.tokens = Tokens(self._url, http)

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
        resource, and as ``Identities.register`` does. AuthZEN Authorization API 1.0.
        """
        sent = messages.authorization(self._url, identity, tool, arguments, resource, access_token)
        return messages.read_evaluation(*_post(self._http, sent))

    def close(self) -> None:
        """Close the client of httpx that was made here."""
        if self._is_own:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Identities:
    """The identities that a token service gives."""

    def __init__(self, url: str, http: httpx.Client) -> None:
        self._url, self._http = url, http

    def register(
        self, agent: str, *, workload_token: str, signer: Ed25519Signer | None = None
    ) -> Identity:
        """Return an identity of the agent; the key is ``signer``, or a new key.

        ``workload_token`` is a token of an issuer that the service knows, of a client that may be
        the agent. Raises ``ServerError``: ``service.refused``, ``service.unreachable``,
        ``service.malformed``.
        """
        key = _key(signer)
        sent = messages.registration(self._url, agent, workload_token, key)
        return messages.read_identity(*_post(self._http, sent), agent, key)


class Tokens:
    """The access tokens that a token service issues, until their instances give them up."""

    def __init__(self, url: str, http: httpx.Client) -> None:
        self._url, self._http = url, http

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
        itself. Raises as ``Identities.register`` does, and ``DelegationError``
        (``scope.malformed``). RFC 8693, 2.
        """
        sent = messages.exchange(
            self._url, identity, subject_token, subject_token_type, scope, audience
        )
        return messages.read_token(*_post(self._http, sent))

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
        sent = messages.redemption(self._url, identity, id_jag, scope, audience)
        return messages.read_token(*_post(self._http, sent))

    def revoke(self, identity: Identity, issued: IssuedToken) -> None:
        """Give up an access token of the identity, and the delegation under which it acts.

        A token that counts no more is no error. Raises as ``Identities.register`` does. RFC 7009.
        """
        sent = messages.revocation(self._url, identity, issued)
        messages.read_revocation(*_post(self._http, sent))

    def introspect(
        self, token: str, *, workload_token: str, chain: bytes | None = None
    ) -> Mapping[str, JSON] | None:
        """Return what an access token says, None for a token that does not count now.

        The service knows of revocations, log-outs and the freeze. ``workload_token`` is that of the
        server that asks. ``chain`` is the chain of the token (``IssuedToken.chain``); a token of
        this service needs none. The proof of the token's key is for the server to verify. Raises as
        ``Identities.register`` does. RFC 7662.
        """
        sent = messages.introspection(self._url, token, workload_token, chain)
        return messages.read_introspection(*_post(self._http, sent))


class AsyncTokenService:
    """The twin of ``TokenService`` for asyncio, with an ``httpx.AsyncClient``."""

    def __init__(self, url: str, *, http: httpx.AsyncClient | None = None) -> None:
        self._url = messages.parse_url(url)
        self._is_own = http is None
        if http is None:
            http = httpx.AsyncClient(timeout=_TIMEOUT, trust_env=_has_tls(self._url))
        self._http = http
        self.identities = AsyncIdentities(self._url, http)
        self.tokens = AsyncTokens(self._url, http)

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
        sent = messages.authorization(self._url, identity, tool, arguments, resource, access_token)
        return messages.read_evaluation(*await _apost(self._http, sent))

    async def aclose(self) -> None:
        """Close the client of httpx that was made here."""
        if self._is_own:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class AsyncIdentities:
    """The twin of ``Identities`` for asyncio."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self._url, self._http = url, http

    async def register(
        self, agent: str, *, workload_token: str, signer: Ed25519Signer | None = None
    ) -> Identity:
        """Return an identity of the agent, as ``Identities.register`` does."""
        key = _key(signer)
        sent = messages.registration(self._url, agent, workload_token, key)
        return messages.read_identity(*await _apost(self._http, sent), agent, key)


class AsyncTokens:
    """The twin of ``Tokens`` for asyncio."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self._url, self._http = url, http

    async def exchange(
        self,
        identity: Identity,
        subject_token: str,
        *,
        subject_token_type: str = ACCESS_TOKEN,
        scope: Iterable[str] | None = None,
        audience: Iterable[str] | None = None,
    ) -> ExchangedToken:
        """Return an access token of the identity, as ``Tokens.exchange`` does."""
        sent = messages.exchange(
            self._url, identity, subject_token, subject_token_type, scope, audience
        )
        return messages.read_token(*await _apost(self._http, sent))

    async def redeem(
        self,
        identity: Identity,
        id_jag: str,
        *,
        scope: Iterable[str] | None = None,
        audience: Iterable[str] | None = None,
    ) -> ExchangedToken:
        """Return an access token of the identity, as ``Tokens.redeem`` does."""
        sent = messages.redemption(self._url, identity, id_jag, scope, audience)
        return messages.read_token(*await _apost(self._http, sent))

    async def revoke(self, identity: Identity, issued: IssuedToken) -> None:
        """Give up an access token of the identity, as ``Tokens.revoke`` does."""
        sent = messages.revocation(self._url, identity, issued)
        messages.read_revocation(*await _apost(self._http, sent))

    async def introspect(
        self, token: str, *, workload_token: str, chain: bytes | None = None
    ) -> Mapping[str, JSON] | None:
        """Return what an access token says, as ``Tokens.introspect`` does."""
        sent = messages.introspection(self._url, token, workload_token, chain)
        return messages.read_introspection(*await _apost(self._http, sent))


def _key(signer: Ed25519Signer | None) -> Ed25519Signer:
    return Ed25519Signer.from_seed(os.urandom(32)) if signer is None else signer


def _has_tls(url: str) -> bool:
    """Whether a proxy of the environment may be used: not without TLS, as it would see tokens."""
    return url.startswith("https:")


def _is_plain(answer: httpx.Response) -> bool:
    """Whether an answer is not packed; a packed one is never unpacked, as it may be huge then."""
    encoding: str = answer.headers.get("Content-Encoding", "identity")
    return encoding.lower() == "identity"


def _post(http: httpx.Client, sent: Sent) -> tuple[int, bytes]:
    """Return the status and the body of an answer; a redirect is never followed."""
    try:
        with http.stream(
            "POST", sent.url, content=sent.body, headers=sent.headers, follow_redirects=False
        ) as answer:
            body = b""
            for part in answer.iter_bytes() if _is_plain(answer) else ():
                body += part
                if len(body) > messages.MAX_ANSWER:
                    break  # a text that is cut off is no JSON
            return answer.status_code, body
    except httpx.HTTPError as error:
        raise messages.unreachable(error) from error


async def _apost(http: httpx.AsyncClient, sent: Sent) -> tuple[int, bytes]:
    try:
        async with http.stream(
            "POST", sent.url, content=sent.body, headers=sent.headers, follow_redirects=False
        ) as answer:
            body = b""
            if _is_plain(answer):
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > messages.MAX_ANSWER:
                        break
            return answer.status_code, body
    except httpx.HTTPError as error:
        raise messages.unreachable(error) from error
