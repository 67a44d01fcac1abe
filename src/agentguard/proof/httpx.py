"""Transports of httpx that prove the requests of a guarded tool (the extra ``httpx``).

A transport sees each request that is sent, also after a redirect. An ``httpx.Auth`` does not: httpx
would copy the headers of the proof to wherever a redirect leads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final, cast

from agentguard.call.releases import RequestProof
from agentguard.errors import ConfigError, ProofError
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

try:
    import httpx
except ModuleNotFoundError as error:
    what = "a transport that proves requests"
    raise ConfigError.without_extra("httpx", what=what, brings="httpx") from error

_FIRST: Final = "agentguard.audience"
"""The extension of a request with the audience of the first request; None for no proof.

A client copies the extensions to the request after a redirect.
"""


class CallerTransport(httpx.BaseTransport):
    """A transport that proves each request to one of ``audiences``, and no other request.

    ``audiences`` are URLs of servers, which the delegation of the call names too. ``transport``
    sends the requests; None is ``httpx.HTTPTransport()``. A request to an audience that can't be
    proved is not sent: raises as ``prove_request`` and ``proof_headers`` do. A request after a
    redirect is proved only if all requests before were to the same audience. ``receipt_keys`` has
    the keys (``ssh-ed25519 ...``) of audiences that sign their answers: an answer of such an
    audience without a valid receipt is a ``ProofError`` (``receipt.*``), as is a redirect to such
    an audience or out of it, and each receipt is on record in the guard's log. Raises
    ``ConfigError`` for an audience that is no URL, or does not protect requests, and for keys that
    can't be used.
    """

    def __init__(
        self,
        *audiences: str,
        transport: httpx.BaseTransport | None = None,
        receipt_keys: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self._audiences = Audiences(audiences)
        self._receipts = ReceiptKeys({} if receipt_keys is None else receipt_keys, audiences)
        self._transport = httpx.HTTPTransport() if transport is None else transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, with a proof of its own if the URL is in an audience."""
        base = _audience(self._audiences, request, self._receipts)
        if base is None:
            return self._transport.handle_request(request)
        response, proof = self._send_proved(request, base)
        if not self._receipts.wants(base):
            return response
        try:
            token = _receipt_in(response)
            body = bytearray()
            for part in cast("httpx.SyncByteStream", response.stream):
                body += part
                _require_short(body)
        finally:
            response.close()
        answer = _answer(response, proof, body)
        note_receipt(self._receipts.verify(base, token, answer))
        return _with_body(response, body)

    def _send_proved(
        self, request: httpx.Request, base: Target
    ) -> tuple[httpx.Response, RequestProof]:
        """Send a request, and its chain where the server asks for the chain."""
        about = request.method, _url(request), request.read()
        proof = prove_request(*about)
        sent = proof_headers(proof)
        response = self._transport.handle_request(_proved(request, sent))
        wanted = response.headers.get(CHAIN_WANTED)
        if not is_chain_wanted(response.status_code, wanted, sent, proof.chain_sha256):
            return response, proof
        response.close()
        self._transport.handle_request(_chain_request(request, base, proof)).close()
        proof = prove_request(*about)
        return self._transport.handle_request(_proved(request, proof_headers(proof))), proof

    def close(self) -> None:
        """Close the transport that sends the requests."""
        self._transport.close()


class AsyncCallerTransport(httpx.AsyncBaseTransport):
    """The twin of ``CallerTransport`` for ``httpx.AsyncClient`` on asyncio.

    The guard signs in a thread, because the guard may wait for a disk or for a guard server.
    """

    def __init__(
        self,
        *audiences: str,
        transport: httpx.AsyncBaseTransport | None = None,
        receipt_keys: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self._audiences = Audiences(audiences)
        self._receipts = ReceiptKeys({} if receipt_keys is None else receipt_keys, audiences)
        self._transport = httpx.AsyncHTTPTransport() if transport is None else transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, with a proof of its own if the URL is in an audience."""
        base = _audience(self._audiences, request, self._receipts)
        if base is None:
            return await self._transport.handle_async_request(request)
        response, proof = await self._send_proved(request, base)
        if not self._receipts.wants(base):
            return response
        try:
            token = _receipt_in(response)
            body = bytearray()
            async for part in cast("httpx.AsyncByteStream", response.stream):
                body += part
                _require_short(body)
        finally:
            await response.aclose()
        answer = _answer(response, proof, body)
        await asyncio.to_thread(note_receipt, self._receipts.verify(base, token, answer))
        return _with_body(response, body)

    async def _send_proved(
        self, request: httpx.Request, base: Target
    ) -> tuple[httpx.Response, RequestProof]:
        """Send a request, and its chain where the server asks for the chain."""
        about = request.method, _url(request), await request.aread()
        proof = await asyncio.to_thread(prove_request, *about)
        sent = proof_headers(proof)
        send = self._transport.handle_async_request
        response = await send(_proved(request, sent))
        wanted = response.headers.get(CHAIN_WANTED)
        if not is_chain_wanted(response.status_code, wanted, sent, proof.chain_sha256):
            return response, proof
        await response.aclose()
        await (await send(_chain_request(request, base, proof))).aclose()
        proof = await asyncio.to_thread(prove_request, *about)
        return await send(_proved(request, proof_headers(proof))), proof

    async def aclose(self) -> None:
        """Close the transport that sends the requests."""
        await self._transport.aclose()


def _receipt_in(response: httpx.Response) -> str:
    """Return the receipt in an answer, unverified; raises ``ProofError`` (``receipt.missing``)."""
    token = response.headers.get(receipt.HEADER)
    if not isinstance(token, str):
        raise receipt.missing(response.status_code)
    return token


def _require_short(body: bytearray) -> None:
    if len(body) > receipt.MAX_ANSWER:
        raise ProofError("the answer is longer than its receipt can be", code="receipt.mismatch")


def _answer(response: httpx.Response, proof: RequestProof, body: bytearray) -> Answer:
    digest = sha256_hex(proof.proof.encode())
    raw = response.headers.raw
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
    return Answer.of(digest, response.status_code, headers, bytes(body))


def _with_body(response: httpx.Response, body: bytearray) -> httpx.Response:
    """Return a response whose stream has the body that was read, still encoded as it came."""
    return httpx.Response(
        response.status_code,
        headers=response.headers,
        stream=httpx.Response(response.status_code, content=bytes(body)).stream,
        extensions=response.extensions,
    )


def _audience(audiences: Audiences, request: httpx.Request, receipts: ReceiptKeys) -> Target | None:
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


def _url(request: httpx.Request) -> str:
    """Return the URL as it is sent: without a user and a fragment."""
    url = request.url
    return f"{url.scheme}://{url.netloc.decode('ascii')}{url.raw_path.decode('ascii')}"


def _proved(request: httpx.Request, sent: dict[str, str]) -> httpx.Request:
    """Return a copy of a request with the headers of a proof; the request itself gets none.

    The body was read before, so that its stream can be sent more than once.
    """
    copied = request.headers.copy()
    copied.update(sent)
    return httpx.Request(
        request.method,
        request.url,
        headers=copied,
        stream=request.stream,
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
