"""Transports of httpx2 that prove the requests of a guarded tool (the extra ``httpx2``).

A transport sees each request that is sent, also after a redirect. An ``httpx2.Auth`` does not:
httpx2 would copy the headers of the proof to wherever a redirect leads. The module ``httpx`` beside
this one has the same for httpx.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agentguard.errors import ConfigError
from agentguard.proof import proving
from agentguard.proof.presentation import Audiences
from agentguard.proof.receipt import ReceiptKeys

try:
    import httpx2
except ModuleNotFoundError as error:
    what = "a transport that proves requests"
    raise ConfigError.without_extra("httpx2", what=what, brings="httpx2") from error


class CallerTransport(httpx2.BaseTransport):
    """A transport that proves each request to one of ``audiences``, and no other request.

    ``audiences`` are URLs of servers, which the delegation of the call names too. ``transport``
    sends the requests; None is ``httpx2.HTTPTransport()``. A request to an audience that can't be
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
        transport: httpx2.BaseTransport | None = None,
        receipt_keys: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self._audiences = Audiences(audiences)
        self._receipts = ReceiptKeys({} if receipt_keys is None else receipt_keys, audiences)
        self._transport = httpx2.HTTPTransport() if transport is None else transport

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request, with a proof of its own if the URL is in an audience."""
        response: httpx2.Response = proving.send(
            self._audiences, self._transport, request, self._receipts
        )
        return response

    def close(self) -> None:
        """Close the transport that sends the requests."""
        self._transport.close()


class AsyncCallerTransport(httpx2.AsyncBaseTransport):
    """The twin of ``CallerTransport`` for ``httpx2.AsyncClient`` on asyncio.

    The guard signs in a thread, because the guard may wait for a disk or for a guard server.
    """

    def __init__(
        self,
        *audiences: str,
        transport: httpx2.AsyncBaseTransport | None = None,
        receipt_keys: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self._audiences = Audiences(audiences)
        self._receipts = ReceiptKeys({} if receipt_keys is None else receipt_keys, audiences)
        self._transport = httpx2.AsyncHTTPTransport() if transport is None else transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request, with a proof of its own if the URL is in an audience."""
        response: httpx2.Response = await proving.asend(
            self._audiences, self._transport, request, self._receipts
        )
        return response

    async def aclose(self) -> None:
        """Close the transport that sends the requests."""
        await self._transport.aclose()
