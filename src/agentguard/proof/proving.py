"""Sends a request of httpx or of httpx2 with its proof: what the transports of both libraries do.

Requests and responses of the two libraries have the same members. So a new request is made by the
class of the old one, and no library is imported here.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from agentguard.call.releases import RequestProof
from agentguard.errors import ProofError
from agentguard.proof import receipt
from agentguard.proof.presentation import (
    CHAIN_WANTED,
    Audiences,
    chain_url,
    is_chain_wanted,
    note_receipt,
    proof_headers,
    prove_request,
)
from agentguard.proof.receipt import Answer, ReceiptKeys
from agentguard.proof.target import Target
from agentguard.signing.canonical import sha256_hex

_FIRST: Final = "agentguard.audience"
"""The extension of a request with the audience of the first request; None for no proof.

A client copies the extensions to the request after a redirect.
"""


def send(audiences: Audiences, transport: Any, request: Any, receipts: ReceiptKeys) -> Any:
    """Send a request with ``transport``; return the response.

    The request has a proof of its own if the URL is in an audience. If ``receipts`` has keys of the
    audience, the response needs a receipt, which is on record before this function returns; a
    redirect into such an audience or out of it is not followed. Raises as ``prove_request`` and
    ``proof_headers`` do, and ``ProofError`` (``receipt.*``).
    """
    base = _audience(audiences, request, receipts)
    if base is None:
        return transport.handle_request(request)
    response, proof = _send_proved(transport, request, base)
    if not receipts.wants(base):
        return response
    try:
        token = _receipt_in(response)
        body = bytearray()
        for part in response.stream:
            body += part
            _require_short(body)
    finally:
        response.close()
    answer = _answer(response, proof, body)
    note_receipt(receipts.verify(base, token, answer))
    return _with_body(response, body)


def _send_proved(transport: Any, request: Any, base: Target) -> tuple[Any, RequestProof]:
    """Send a request, and its chain where the server asks for the chain."""
    about = request.method, _url(request), request.read()
    proof = prove_request(*about)
    sent = proof_headers(proof)
    response = transport.handle_request(_proved(request, sent))
    wanted = response.headers.get(CHAIN_WANTED)
    if not is_chain_wanted(response.status_code, wanted, sent, proof.chain_sha256):
        return response, proof
    response.close()
    transport.handle_request(_chain_request(request, base, proof)).close()
    proof = prove_request(*about)
    return transport.handle_request(_proved(request, proof_headers(proof))), proof


async def asend(audiences: Audiences, transport: Any, request: Any, receipts: ReceiptKeys) -> Any:
    """Send a request as ``send`` does, on asyncio.

    The guard signs in a thread, because the guard may wait for a disk or for a guard server.
    """
    base = _audience(audiences, request, receipts)
    if base is None:
        return await transport.handle_async_request(request)
    response, proof = await _asend_proved(transport, request, base)
    if not receipts.wants(base):
        return response
    try:
        token = _receipt_in(response)
        body = bytearray()
        async for part in response.stream:
            body += part
            _require_short(body)
    finally:
        await response.aclose()
    answer = _answer(response, proof, body)
    await asyncio.to_thread(note_receipt, receipts.verify(base, token, answer))
    return _with_body(response, body)


async def _asend_proved(transport: Any, request: Any, base: Target) -> tuple[Any, RequestProof]:
    """Send a request, and its chain where the server asks for the chain."""
    about = request.method, _url(request), await request.aread()
    proof = await asyncio.to_thread(prove_request, *about)
    sent = proof_headers(proof)
    response = await transport.handle_async_request(_proved(request, sent))
    wanted = response.headers.get(CHAIN_WANTED)
    if not is_chain_wanted(response.status_code, wanted, sent, proof.chain_sha256):
        return response, proof
    await response.aclose()
    taken = await transport.handle_async_request(_chain_request(request, base, proof))
    await taken.aclose()
    proof = await asyncio.to_thread(prove_request, *about)
    return await transport.handle_async_request(_proved(request, proof_headers(proof))), proof


def _receipt_in(response: Any) -> str:
    """Return the receipt in an answer, unverified; raises ``ProofError`` (``receipt.missing``)."""
    token = response.headers.get(receipt.HEADER)
    if not isinstance(token, str):
        raise receipt.missing(response.status_code)
    return token


def _require_short(body: bytearray) -> None:
    if len(body) > receipt.MAX_ANSWER:
        raise ProofError("the answer is longer than its receipt can be", code="receipt.mismatch")


def _answer(response: Any, proof: RequestProof, body: bytearray) -> Answer:
    digest = sha256_hex(proof.proof.encode())
    raw = response.headers.raw
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
    return Answer.of(digest, response.status_code, headers, bytes(body))


def _with_body(response: Any, body: bytearray) -> Any:
    """Return a response whose stream has the body that was read, still encoded as it came."""
    made = type(response)
    return made(
        response.status_code,
        headers=response.headers,
        stream=made(response.status_code, content=bytes(body)).stream,
        extensions=response.extensions,
    )


def _audience(audiences: Audiences, request: Any, receipts: ReceiptKeys) -> Target | None:
    """Return the audience of a request that is to be proved, None for any other request.

    Another server may choose where a redirect leads, and does not choose what is proved there. So
    a line of redirects that has left the audience of its first request has no more proofs. Raises
    ``ProofError`` (``receipt.redirect``).
    """
    found = audiences.find(_url(request))
    first: Target | None = request.extensions.setdefault(_FIRST, found)
    if first == found:
        return found
    receipts.require_no_redirect(first, found)
    request.extensions = {**request.extensions, _FIRST: None}  # the first request keeps its own
    return None


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
