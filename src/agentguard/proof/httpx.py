"""Transports of httpx that prove the requests of a guarded tool (the extra ``httpx``).

A transport sees each request that is sent, also after a redirect. An ``httpx.Auth`` does not: httpx
would copy the headers of the proof to wherever a redirect leads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agentguard.errors import ConfigError
from agentguard.proof import proving
from agentguard.proof.presentation import Audiences
from agentguard.proof.receipt import ReceiptKeys

try:
    import httpx
except ModuleNotFoundError as error:
    what = "a transport that proves requests"
    raise ConfigError.without_extra("httpx", what=what, brings="httpx") from error


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
        response: httpx.Response = proving.send(
            self._audiences, self._transport, request, self._receipts
        )
        return response

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
        response: httpx.Response = await proving.asend(
            self._audiences, self._transport, request, self._receipts
        )
        return response

    async def aclose(self) -> None:
        """Close the transport that sends the requests."""
        await self._transport.aclose()
