"""Sends a request of httpx or of httpx2 with its proof: what the transports of both libraries do.

Requests and responses of the two libraries have the same members. So a new request is made by the
class of the old one, and no library is imported here.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from agentguard.call.releases import RequestProof
from agentguard.proof.presentation import (
    CHAIN_WANTED,
    Audiences,
    chain_url,
    is_chain_wanted,
    proof_headers,
    prove_request,
)
from agentguard.proof.target import Target

_FIRST: Final = "agentguard.audience"
"""The extension of a request with its audience; a client copies extensions to redirected requests.
"""


def send(audiences: Audiences, transport: Any, request: Any) -> Any:
    """Send a request with ``transport``; return the response.

    The request has a proof of its own if the URL is in an audience. Raises as ``prove_request`` and
    ``proof_headers`` do.
    """
    base = _audience(audiences, request)
    if base is None:
        return transport.handle_request(request)
    about = request.method, _url(request), request.read()
    proof = prove_request(*about)
    sent = proof_headers(proof)
    response = transport.handle_request(_proved(request, sent))
    wanted = response.headers.get(CHAIN_WANTED)
    if not is_chain_wanted(response.status_code, wanted, sent, proof.chain_sha256):
        return response
    response.close()
    transport.handle_request(_chain_request(request, base, proof)).close()
    return transport.handle_request(_proved(request, proof_headers(prove_request(*about))))


async def asend(audiences: Audiences, transport: Any, request: Any) -> Any:
    """Send a request as ``send`` does, on asyncio.

    The guard signs in a thread, because the guard may wait for a disk or for a guard server.
    """
    base = _audience(audiences, request)
    if base is None:
        return await transport.handle_async_request(request)
    about = request.method, _url(request), await request.aread()
    proof = await asyncio.to_thread(prove_request, *about)
    sent = proof_headers(proof)
    response = await transport.handle_async_request(_proved(request, sent))
    wanted = response.headers.get(CHAIN_WANTED)
    if not is_chain_wanted(response.status_code, wanted, sent, proof.chain_sha256):
        return response
    await response.aclose()
    taken = await transport.handle_async_request(_chain_request(request, base, proof))
    await taken.aclose()
    sent = proof_headers(await asyncio.to_thread(prove_request, *about))
    return await transport.handle_async_request(_proved(request, sent))


def _audience(audiences: Audiences, request: Any) -> Target | None:
    """Return the audience of a request that is to be proved, None for any other request.

    Another server may choose where a redirect leads, and does not choose what is proved there.
    """
    found = audiences.find(_url(request))
    first: Target | None = request.extensions.setdefault(_FIRST, found)
    return found if first == found else None


def _url(request: Any) -> str:
    """Return the URL as it is sent: without a user and a fragment."""
    url = request.url
    return f"{url.scheme}://{url.netloc.decode('ascii')}{url.raw_path.decode('ascii')}"


def _proved(request: Any, sent: dict[str, str]) -> Any:
    """Return a copy of a request with the headers of a proof; the request itself gets none.

    The body was read before, so that its stream can be sent more than once.
    """
    copied = request.headers.copy()
    copied.update(sent)
    return type(request)(
        request.method,
        request.url,
        headers=copied,
        stream=request.stream,
        extensions=request.extensions,
    )


def _chain_request(request: Any, base: Target, proof: RequestProof) -> Any:
    """Return the request that sends a chain, with the time limits of ``request``."""
    return type(request)(
        "PUT",
        chain_url(base, proof.chain_sha256),
        content=proof.chain,
        headers={"Content-Type": "application/json"},
        extensions=request.extensions,
    )
