"""Transports of httpx that prove the requests of a guarded tool (the extra ``httpx``).

A transport sees each request that is sent, also after a redirect. An ``httpx.Auth`` does not: httpx
would copy the headers of the proof to wherever a redirect leads.
"""

from __future__ import annotations

import asyncio
from typing import Final

from agentguard.call.releases import RequestProof
from agentguard.errors import ConfigError
from agentguard.proof.presentation import (
    CHAIN_WANTED,
    Audiences,
    chain_url,
    is_chain_wanted,
    proof_headers,
    prove_request,
)
from agentguard.proof.target import Target

try:
    import httpx
except ModuleNotFoundError as error:
    what = "a transport that proves requests"
    raise ConfigError.without_extra("httpx", what=what, brings="httpx") from error

_FIRST: Final = "agentguard.audience"
"""The extension of a request with its audience; httpx copies extensions to redirected requests."""


class CallerTransport(httpx.BaseTransport):
    """A transport that proves each request to one of ``audiences``, and no other request.

    ``audiences`` are URLs of servers, which the delegation of the call names too. ``transport``
    sends the requests; None is ``httpx.HTTPTransport()``. A request to an audience that can't be
    proved is not sent: raises as ``prove_request`` and ``proof_headers`` do. A request after a
    redirect is proved only if the first request was to the same audience. Raises ``ConfigError``
    for an audience that is no URL, or does not protect requests.
    """

    def __init__(self, *audiences: str, transport: httpx.BaseTransport | None = None) -> None:
        self._audiences = Audiences(audiences)
        self._transport = httpx.HTTPTransport() if transport is None else transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, with a proof of its own if the URL is in an audience."""
        base = _audience(self._audiences, request)
        if base is None:
            return self._transport.handle_request(request)
        body = request.read()
        proof = prove_request(request.method, _url(request), body)
        sent = proof_headers(proof)
        response = self._transport.handle_request(_proved(request, sent, body))
        wanted = response.headers.get(CHAIN_WANTED)
        if not is_chain_wanted(response.status_code, wanted, sent, proof.chain_sha256):
            return response
        response.close()
        self._transport.handle_request(_chain_request(request, base, proof)).close()
        sent = proof_headers(prove_request(request.method, _url(request), body))
        return self._transport.handle_request(_proved(request, sent, body))

    def close(self) -> None:
        """Close the transport that sends the requests."""
        self._transport.close()


class AsyncCallerTransport(httpx.AsyncBaseTransport):
    """The twin of ``CallerTransport`` for ``httpx.AsyncClient`` on asyncio.

    The guard signs in a thread, because the guard may wait for a disk or for a guard server.
    """

    def __init__(self, *audiences: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._audiences = Audiences(audiences)
        self._transport = httpx.AsyncHTTPTransport() if transport is None else transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, with a proof of its own if the URL is in an audience."""
        base = _audience(self._audiences, request)
        if base is None:
            return await self._transport.handle_async_request(request)
        body = await request.aread()
        about = request.method, _url(request), body
        proof = await asyncio.to_thread(prove_request, *about)
        sent = proof_headers(proof)
        response = await self._transport.handle_async_request(_proved(request, sent, body))
        wanted = response.headers.get(CHAIN_WANTED)
        if not is_chain_wanted(response.status_code, wanted, sent, proof.chain_sha256):
            return response
        await response.aclose()
        taken = await self._transport.handle_async_request(_chain_request(request, base, proof))
        await taken.aclose()
        sent = proof_headers(await asyncio.to_thread(prove_request, *about))
        return await self._transport.handle_async_request(_proved(request, sent, body))

    async def aclose(self) -> None:
        """Close the transport that sends the requests."""
        await self._transport.aclose()


def _audience(audiences: Audiences, request: httpx.Request) -> Target | None:
    """Return the audience of a request that is to be proved, None for any other request.

    Another server may choose where a redirect leads, and does not choose what is proved there.
    """
    found = audiences.find(_url(request))
    return found if request.extensions.setdefault(_FIRST, found) == found else None


def _url(request: httpx.Request) -> str:
    """Return the URL as it is sent: without a user and a fragment."""
    url = request.url
    return f"{url.scheme}://{url.netloc.decode('ascii')}{url.raw_path.decode('ascii')}"


def _proved(request: httpx.Request, sent: dict[str, str], body: bytes) -> httpx.Request:
    """Return a copy of a request with the headers of a proof; the request itself gets none."""
    copied = httpx.Headers(request.headers)
    copied.update(sent)
    return httpx.Request(
        request.method,
        request.url,
        headers=copied,
        stream=httpx.ByteStream(body),
        extensions=request.extensions,
    )


def _chain_request(request: httpx.Request, base: Target, proof: RequestProof) -> httpx.Request:
    """Return the request that sends a chain, with the time limits of ``request``."""
    return httpx.Request(
        "PUT",
        chain_url(base, proof.chain_sha256),
        content=proof.chain,
        headers={"Content-Type": "application/json"},
        extensions=request.extensions,
    )
