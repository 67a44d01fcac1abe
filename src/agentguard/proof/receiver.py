"""``Receiver`` and ``CallReceiver``: what a tool's server knows beforehand, and how it verifies.

A ``Receiver`` takes HTTP requests: ``asgi.py`` uses one in an application, and a server of another
kind calls ``verify`` itself. A ``CallReceiver`` takes requests of the Model Context Protocol. Both
put the requests on record in the log of the receiver, which ``guard/receiver_log.py`` writes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from agentguard.audit.kinds.receiver import KnownRequest, ReceivedRequest
from agentguard.call.plain import discarded, require_plain
from agentguard.delegation.grant import is_audience
from agentguard.errors import ConfigError, ProofError
from agentguard.identity.revocation import Revocations
from agentguard.identity.trust import TrustDocument
from agentguard.proof import call_proof, receipt
from agentguard.proof.bound_request import BoundRequest
from agentguard.proof.call_proof import BoundCall
from agentguard.proof.headers import PresentedCaller
from agentguard.proof.headers import read as read_headers
from agentguard.proof.receipt import Answer
from agentguard.proof.target import audience_target, parse_audience
from agentguard.proof.verification import (
    Chains,
    Known,
    RequestCaller,
    UnknownChainError,
    UsedProofs,
    as_proof_error,
    holder_of,
    no_answer,
    verified_caller,
    verify_chain,
)
from agentguard.proof.verified_tokens import VerifiedTokens
from agentguard.signing.keys import Signer

_LOGGER: Final = logging.getLogger("agentguard")


class ReceiverStore(UsedProofs, Chains, Protocol):
    """The used proofs and the chains of a receiver (``store.proof_store.ProofStore``)."""

    def keep_chain(self, sha256: str, chain: bytes, *, expires_at: int, at: int) -> None:
        """Keep a verified chain, and return None; raises ``ProofError`` (``proof.unavailable``)."""


class RequestLog(Protocol):
    """The receiver's own tamper-evident log (``agentguard.ReceiverLog``)."""

    def received(self, request: ReceivedRequest) -> None:
        """Put an accepted request durably on record, and return None.

        Raises ``ProofError`` (``proof.unrecorded``); the request is then refused.
        """

    def refused(self, code: str, request: KnownRequest | None) -> None:
        """Count a request that is refused with a reason code, and put it on record if it fits.

        None stands for a request of nobody who is known: the request is only counted. Raises
        ``ProofError`` (``proof.unrecorded``).
        """


class _Verifier:
    """What the receivers of both kinds of requests share: the verification, and the log."""

    def __init__(  # noqa: PLR0913  what a server knows beforehand
        self,
        audience: str,
        server: str,
        trust: TrustDocument | Sequence[TrustDocument],
        store: UsedProofs,
        *,
        chains: Chains | None,
        revocations: Revocations | Mapping[str, Revocations | None] | None,
        issuers: Mapping[str, str] | None,
        log: RequestLog | None,
        clock: Callable[[], float],
    ) -> None:
        require_audience(audience)
        trusted = (trust,) if isinstance(trust, TrustDocument) else tuple(trust)
        _require_clear_trust(trusted, revocations)
        _require_plain_parts(store, revocations, log, clock)
        named, tokens = {} if issuers is None else {**issuers}, VerifiedTokens().token
        self._known = Known(audience, server, trusted, named, store, chains, revocations, tokens)
        self._log = log
        self._clock = clock

    def _verified(
        self, read: Callable[[], tuple[PresentedCaller, BoundRequest | BoundCall]]
    ) -> RequestCaller:
        """Return the caller of the request that ``read`` reads, once the request is on record."""
        known: KnownRequest | None = None
        try:
            with as_proof_error():
                at = self._now()
                presented, bound = read()
                holder = holder_of(presented, bound.record, self._known, at)
                known = holder.request
                caller = verified_caller(presented, bound, holder, self._known, at)
        except ProofError as error:
            self._note_refusal(error, known)
            raise
        log = self._log
        if log is not None:
            _record(lambda: log.received(caller.evidence))
        return caller

    def _note_refusal(self, error: ProofError, known: KnownRequest | None) -> None:
        """Put a refusal on record; a log that can't be written changes nothing for the caller."""
        log = self._log
        if log is None or isinstance(error, UnknownChainError):
            return  # the client sends the chain, and then the request
        try:
            _record(lambda: log.refused(error.code, known))
        except ProofError as unwritten:
            _LOGGER.warning("a refused request is not on record: %s", unwritten)

    def _now(self) -> int:
        """Return the seconds since the epoch; raises ``ProofError`` (``proof.unavailable``)."""
        try:
            now: object = self._clock()
        except Exception as error:
            raise ProofError("the clock can't be read", code="proof.unavailable") from error
        if isinstance(now, int | float) and not isinstance(now, bool):
            return int(now)
        message = f"the clock can't be read: it returned a {discarded(now)}"
        raise ProofError(message, code="proof.unavailable")


class Receiver(_Verifier):
    """A tool's server as its callers name it, whom the server trusts, and its store.

    ``url`` is the URL under which callers reach the server, as in ``https://payments.example``. The
    URL is also the server's audience, unless ``audience`` says another. ``trust`` has the keys of
    one or more trust domains (``agentguard trust export``). ``store`` is a ``ProofStore``.
    ``revocations`` may be a ``PublishedRevocations``, or a mapping with one for each trust domain:
    a server that trusts several domains needs the mapping, because the names in two domains may be
    equal. In the mapping, None stands for a domain whose file the server does not get.
    ``accepts_plain_dpop`` takes proofs without a credential as well. ``issuers`` has the URLs of
    the token services whose tokens count, each with the name of its trust domain, as in
    ``{"https://agents.example": "acme.example"}``. ``log`` is the receiver's own log
    (``agentguard.ReceiverLog``), in which each accepted request stands before the request is
    handled; None for no log. ``signer`` signs a receipt of each answer to an accepted request; None
    for no receipts. ``clock`` returns seconds since the epoch.
    The methods of all of them are plain functions: a coroutine function is a ``ConfigError``, and
    an answer of another type refuses the request (``proof.unavailable``, ``proof.unrecorded``).
    Raises ``ConfigError`` also for a URL that no proof can name or that does not protect requests,
    for an audience that no delegation can name, for no trust document, for two trust documents of
    one domain, for revocations of one domain where several are trusted, and for a mapping that does
    not name exactly the trusted domains.
    """

    def __init__(  # noqa: PLR0913  what a server knows beforehand
        self,
        url: str,
        trust: TrustDocument | Sequence[TrustDocument],
        store: ReceiverStore,
        *,
        audience: str | None = None,
        revocations: Revocations | Mapping[str, Revocations | None] | None = None,
        accepts_plain_dpop: bool = False,
        issuers: Mapping[str, str] | None = None,
        log: RequestLog | None = None,
        signer: Signer | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        base = parse_audience(url)
        name = url if audience is None else audience
        named = audience_target(name)
        server = base.uri if named is None or not named.is_within(base) else named.uri
        super().__init__(
            name,
            server,
            trust,
            store,
            chains=store,
            revocations=revocations,
            issuers=issuers,
            log=log,
            clock=clock,
        )
        self._prefix = base.uri.rstrip("/")
        self._store = store
        self._signer = signer
        self.accepts_plain_dpop = accepts_plain_dpop

    def verify(
        self,
        method: str,
        path: str,
        query: str,
        headers: Iterable[tuple[str, str]],
        body: bytes,
    ) -> RequestCaller:
        """Verify a request, use its proof up, and put the request on record in the log, if any.

        ``path`` and ``query`` are as the request has them, percent-encoded. The origin, and a path
        before ``path`` that a proxy has removed, come from ``url``. ``headers`` are all
        headers, with names in any case. ``body`` is what the client has sent, before a decoding of
        ``Content-Encoding``. Raises ``ProofError`` alone, whose code is ``proof.*``, or that of the
        token, credential, chain or key that does not count: for a log that can't be written,
        ``proof.unrecorded``. ``UnknownChainError`` asks for the chain.
        """

        def read() -> tuple[PresentedCaller, BoundRequest]:
            if not path.startswith("/") or "?" in path:
                message = (
                    "the request has no path that begins with a slash and ends before the query"
                )
                raise ProofError(message, code="proof.malformed")
            bound = BoundRequest.of(
                method, self._prefix + path + (f"?{query}" if query else ""), body
            )
            return read_headers(headers, accepts_plain_dpop=self.accepts_plain_dpop), bound

        return self._verified(read)

    @property
    def signs(self) -> bool:
        """Whether the answers to accepted requests get a receipt."""
        return self._signer is not None

    def receipt(
        self, caller: RequestCaller, status: int, headers: Iterable[tuple[str, str]], body: bytes
    ) -> str:
        """Sign a receipt of the answer to a request of a verified caller (``receipt.py``).

        ``headers`` are all headers of the answer, with names in any case. ``body`` is the body of
        the answer as the application gives it: the answer to a ``HEAD`` is sent without one (RFC
        9110, 9.3.2), and the receipt is of no bytes. Raises ``ConfigError`` without a signer,
        ``ProofError`` (``proof.unavailable``) without a clock, and what the signer raises.
        """
        if self._signer is None:
            raise ConfigError("this receiver signs no receipts: give it a signer")
        seen = caller.evidence.known
        sent = b"" if seen.request.method == "HEAD" else body
        answer = Answer.of(seen.proof_sha256, status, headers, sent)
        return receipt.mint(answer, self._signer, server=self._known.server, at=self._now())

    def refuse(self, caller: RequestCaller | None, error: ProofError) -> None:
        """Put on record that the application refuses a request of a verified caller.

        ``requires`` of ``fastapi.py`` calls this method where the caller lacks a scope. The request
        is on record as received already. None stands for a request that is refused before a call of
        ``verify``: the log counts such a request.
        """
        self._note_refusal(error, None if caller is None else caller.evidence.known)

    def keep_chain(self, sha256: str, chain: bytes) -> None:
        """Verify a chain that was sent by itself, and keep it.

        Raises ``ProofError``, also for a chain of a delegation to other servers
        (``token.audience``).
        """
        with as_proof_error():
            at = self._now()
            verified = verify_chain(chain, sha256, self._known.trust, at=at)
            if self._known.audience not in verified.leaf.audience:
                raise ProofError("the chain is for other servers", code="token.audience")
            expires_at = verified.leaf.expires_at
            answer: object = self._store.keep_chain(  # type: ignore[func-returns-value]
                sha256, chain, expires_at=expires_at, at=at
            )
            if answer is not None:
                raise no_answer("that the chain is kept", answer)


class CallReceiver(_Verifier):
    """An MCP server as its callers name it, whom the server trusts, and the used proofs.

    ``audience`` is the server's name in delegations, letter for letter: for a server over HTTP its
    URL (RFC 8707), for a server on a pipe a name such as ``mcp:files``. The name comes from the
    configuration of both sides, and never over the wire. ``trust``, ``revocations``, ``issuers``,
    ``log`` and ``clock`` are those of ``Receiver``. ``store`` is a ``ProofStore``, which all
    workers of the server share. Raises ``ConfigError`` for an audience that no delegation
    can name, and for trust documents, revocations and coroutine functions as ``Receiver`` does.
    """

    def __init__(
        self,
        audience: str,
        trust: TrustDocument | Sequence[TrustDocument],
        store: UsedProofs,
        *,
        revocations: Revocations | Mapping[str, Revocations | None] | None = None,
        issuers: Mapping[str, str] | None = None,
        log: RequestLog | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(
            audience,
            audience,
            trust,
            store,
            chains=None,
            revocations=revocations,
            issuers=issuers,
            log=log,
            clock=clock,
        )

    def verify(self, method: object, params: object) -> RequestCaller:
        """Verify a JSON-RPC request as it came over the wire, and use its proof up.

        ``params`` are all parameters, with ``_meta``. The request is on record in the log, if any,
        before this method returns. Raises ``ProofError`` as ``Receiver.verify`` does.
        """

        def read() -> tuple[PresentedCaller, BoundCall]:
            presented = call_proof.read(params)
            return presented, BoundCall.of(self._known.audience, method, params)

        return self._verified(read)


def _record(record: Callable[[], object]) -> None:
    """Put a request on record with ``record``; raises ``ProofError`` (``proof.unrecorded``).

    A log of the application's own may raise anything, and only None says that the request is on
    record.
    """
    try:
        answer = record()
    except ProofError:
        raise
    except Exception as error:
        message = f"the receiver's log failed ({type(error).__name__})"
        raise ProofError(message, code="proof.unrecorded") from error
    if answer is not None:
        message = f"the receiver's log does not say that it has the request: {discarded(answer)}"
        raise ProofError(message, code="proof.unrecorded")


def _require_plain_parts(
    store: object,
    revocations: Revocations | Mapping[str, Revocations | None] | None,
    log: RequestLog | None,
    clock: Callable[[], float],
) -> None:
    """Raise ``ConfigError`` for a part of the application whose methods are coroutine functions."""
    known = revocations.values() if isinstance(revocations, Mapping) else [revocations]
    for what, part, methods in (
        ("store", store, ("use", "chain", "keep_chain")),
        *(("revocations", one, ("refusal",)) for one in known),
        ("log", log, ("received", "refused")),
    ):
        for method in methods:
            function = getattr(part, method, None)
            if function is not None:
                require_plain(function, f"{what}.{method}")
    require_plain(clock, "clock")


def require_audience(name: object) -> None:
    """Raise ``ConfigError`` for the name of a server that no delegation can have."""
    if not is_audience(name):
        message = f"{name!r} is no audience of a delegation: use printable ASCII without spaces"
        raise ConfigError(message)


def _require_clear_trust(
    trusted: Sequence[TrustDocument],
    revocations: Revocations | Mapping[str, Revocations | None] | None,
) -> None:
    """Raise ``ConfigError`` where it is in doubt whose keys or whose revocations count."""
    if not trusted:
        raise ConfigError("no trust document is given: no caller would count")
    names = {document.trust_domain for document in trusted}
    if len(names) != len(trusted):
        message = "two trust documents have the same trust domain: give the newest one alone"
        raise ConfigError(message)
    if revocations is None:
        return
    if not isinstance(revocations, Mapping):
        if len(trusted) != 1:
            message = "with several trust domains, give revocations by the name of the domain"
            raise ConfigError(message)
    elif revocations.keys() != names:  # a domain whose name is misspelt would have none
        message = (
            f"the revocations are for {' '.join(sorted(revocations))}, and the trusted domains are "
            f"{' '.join(sorted(names))}: name each domain, with None for one without a file"
        )
        raise ConfigError(message)
