"""An adapter of requests that proves the requests of a guarded tool (the extra ``requests``).

An adapter sees each request that is sent, also after a redirect. The ``auth`` of requests does not:
requests would copy the headers of the proof to wherever a redirect leads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any, Final, NamedTuple

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
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPResponse
except ModuleNotFoundError as error:
    what = "an adapter that proves requests"
    raise ConfigError.without_extra("requests", what=what, brings="requests") from error


_BEFORE_PROXIES: Final = 4
"""How many positional arguments of ``HTTPAdapter.send`` stand before ``proxies``."""


class CallerAdapter(HTTPAdapter):
    """An adapter that proves each request to one of ``audiences``, and no other request.

    Mount one adapter for ``https://`` and for ``http://``: the adapter has to see where a line of
    redirects begins. A request to an audience that can't be proved is not sent: raises as
    ``prove_request`` and ``proof_headers`` do. A request after a redirect is proved only if all
    requests before were to the same audience. A proved request over ``http`` goes to this machine
    itself, and through no proxy. ``receipt_keys`` has the keys (``ssh-ed25519 ...``) of audiences
    that sign their answers: an answer of such an audience without a valid receipt is a
    ``ProofError`` (``receipt.*``), as is a redirect to such an audience or out of it, and each
    receipt is on record in the guard's log. Raises
    ``ConfigError`` for an audience that is no URL or does not protect requests, for keys that can't
    be used, and for a body that is neither bytes nor text.
    """

    def __init__(
        self, *audiences: str, receipt_keys: Mapping[str, Iterable[str]] | None = None
    ) -> None:
        super().__init__()
        self._audiences = Audiences(audiences)
        self._receipts = ReceiptKeys({} if receipt_keys is None else receipt_keys, audiences)

    def send(
        self, request: requests.PreparedRequest, *given: Any, **more: Any
    ) -> requests.Response:
        """Send a request, with a proof of its own if the URL is in an audience."""
        base = _audience(self._audiences, request, self._receipts)
        if base is None:
            return super().send(request, *given, **more)
        if not base.is_encrypted:  # a proxy would read the proof before this machine does
            given, more = given[:_BEFORE_PROXIES], {**more, "proxies": None}
        try:
            response, proof = self._send_proved(request, base, given, more)
        except requests.RequestException as error:
            error.request = request  # which has no tokens
            raise
        response.request = request
        if self._receipts.wants(base):
            body, digest = _body_of(response), sha256_hex(proof.proof.encode())
            answer = Answer.of(digest, response.status_code, response.raw.headers.items(), body)
            token = response.headers[receipt.HEADER]
            note_receipt(self._receipts.verify(base, token, answer))
        return response

    def _send_proved(
        self,
        request: requests.PreparedRequest,
        base: Target,
        given: tuple[Any, ...],
        more: Mapping[str, Any],
    ) -> tuple[requests.Response, RequestProof]:
        about = request.method or "", _url(request), _body(request)
        proof = prove_request(*about)
        sent = proof_headers(proof)
        response = super().send(_proved(request, sent), *given, **more)
        wanted = response.headers.get(CHAIN_WANTED)
        if not is_chain_wanted(response.status_code, wanted, sent, proof.chain_sha256):
            return response, proof
        response.close()
        chain = _chain_request(base, proof.chain_sha256, proof.chain)
        super().send(chain, *given, **more).close()
        proof = prove_request(*about)
        return super().send(_proved(request, proof_headers(proof)), *given, **more), proof


def _body_of(response: requests.Response) -> bytes:
    """Read the body as it came, still encoded; the response goes on with a copy.

    Raises ``ProofError``: ``receipt.missing``, and ``receipt.mismatch`` for a body that is longer
    than a receipt's can be.
    """
    if receipt.HEADER not in response.headers:
        response.close()
        raise receipt.missing(response.status_code)
    came: Any = response.raw
    body: bytes = came.read(receipt.MAX_ANSWER + 1, decode_content=False)
    came.close()
    if len(body) > receipt.MAX_ANSWER:
        raise ProofError("the answer is longer than its receipt can be", code="receipt.mismatch")
    response.raw = HTTPResponse(
        BytesIO(body),
        headers=came.headers,
        status=came.status,
        reason=came.reason,
        preload_content=False,
        original_response=came._original_response,  # noqa: SLF001  requests looks there for cookies
    )
    return body


class _FirstAudience(NamedTuple):
    """A hook that does nothing, with the audience of the first request; None for no proof.

    requests hands the hooks on to the request after a redirect.
    """

    found: Target | None

    def __call__(self, *_given: Any, **_more: Any) -> None:
        """Leave the response as it is."""


def _audience(
    audiences: Audiences, request: requests.PreparedRequest, receipts: ReceiptKeys
) -> Target | None:
    """Return the audience of a request that is to be proved, None for any other request.

    Another server may choose where a redirect leads, and does not choose what is proved there. So
    a line of redirects that has left the audience of its first request has no more proofs. Raises
    ``ProofError`` (``receipt.redirect``).
    """
    found = audiences.find(_url(request))
    hooks: list[Any] = request.hooks.setdefault("response", [])
    first = next((hook for hook in hooks if isinstance(hook, _FirstAudience)), None)
    if first is None:
        hooks.append(_FirstAudience(found))
        return found
    if first.found == found:
        return found
    receipts.require_no_redirect(first.found, found)
    changed: list[Any] = [_FirstAudience(None) if hook is first else hook for hook in hooks]
    request.hooks = {**request.hooks, "response": changed}  # the first request keeps its own
    return None


def _url(request: requests.PreparedRequest) -> str:
    """Return the URL as it is sent: without a fragment."""
    return (request.url or "").partition("#")[0]


def _body(request: requests.PreparedRequest) -> bytes:
    body: Any = request.body
    if body is None:
        return b""
    if not isinstance(body, str | bytes):
        message = "a request to an audience needs its body as bytes or text, not as a stream"
        raise ConfigError(message)
    return body.encode() if isinstance(body, str) else body


def _proved(request: requests.PreparedRequest, sent: dict[str, str]) -> requests.PreparedRequest:
    """Return a copy of a request with the headers of a proof; the request itself gets none."""
    copied = request.copy()
    copied.headers.update(sent)
    return copied


def _chain_request(base: Target, sha256: str, chain: bytes) -> requests.PreparedRequest:
    headers = {"Content-Type": "application/json"}
    return requests.Request("PUT", chain_url(base, sha256), data=chain, headers=headers).prepare()
