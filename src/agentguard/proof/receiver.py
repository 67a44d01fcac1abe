"""``Receiver``: what the server of a tool knows beforehand, and the verification of its requests.

``asgi.py`` uses a receiver in an application; a server of another kind calls ``verify`` itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from agentguard.call.plain import discarded, require_plain
from agentguard.delegation.grant import is_audience
from agentguard.errors import ConfigError, ProofError
from agentguard.identity.trust import TrustDocument
from agentguard.proof import receipt
from agentguard.proof.evidence import KnownCaller
from agentguard.proof.receipt import Answer
from agentguard.proof.recorder import Recorder, RequestLog
from agentguard.proof.target import audience_target, parse_audience
from agentguard.proof.verification import (
    Chains,
    HttpRequest,
    RequestCaller,
    RevokedNames,
    UsedProofs,
    as_proof_error,
    no_answer,
    verify_chain,
    verify_request,
)
from agentguard.proof.verified_tokens import VerifiedTokens
from agentguard.signing.keys import Signer


class ReceiverStore(UsedProofs, Chains, Protocol):
    """The used proofs and the chains of a receiver (``storage.proof_store.ProofStore``)."""

    def keep_chain(self, sha256: str, chain: bytes, *, expires_at: int, at: int) -> None:
        """Keep a verified chain, and return None; raises ``ProofError`` (``proof.unavailable``)."""


class Receiver:
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
        revocations: RevokedNames | Mapping[str, RevokedNames | None] | None = None,
        accepts_plain_dpop: bool = False,
        issuers: Mapping[str, str] | None = None,
        log: RequestLog | None = None,
        signer: Signer | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        require_clear_trust(trust, revocations)
        require_plain_parts(store, revocations, log, clock)
        self._base = parse_audience(url)
        self._audience = url if audience is None else audience
        require_audience(self._audience)
        self._trust = trust
        self._store = store
        self._revocations = revocations
        self._clock = clock
        self.accepts_plain_dpop = accepts_plain_dpop
        self._issuers = dict({} if issuers is None else issuers)
        self._tokens = VerifiedTokens()
        self._signer = signer
        named = audience_target(self._audience)
        is_narrower = named is not None and named.is_within(self._base)
        server = named.uri if named is not None and is_narrower else self._base.uri
        self._recorder = Recorder(log, self._audience, server)

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
        before ``path`` that a proxy has removed, come from ``url``. Raises ``ProofError``: for a
        log that can't be written, ``proof.unrecorded``.
        """
        return self._recorder.verified(
            lambda on_caller: self._verify(method, path, query, headers, body, on_caller)
        )

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
        evidence = caller.evidence
        sent = b"" if evidence.request.method == "HEAD" else body
        answer = Answer.of(evidence.proof_sha256, status, headers, sent)
        at = read_clock(self._clock)
        return receipt.mint(answer, self._signer, server=self._recorder.server, at=at)

    def refuse(self, caller: RequestCaller | None, error: ProofError) -> None:
        """Put on record that the application refuses a request of a verified caller.

        ``requires`` of ``fastapi.py`` calls this method where the caller lacks a scope. The request
        is on record as received already. None stands for a request that is refused before a call of
        ``verify``: the log counts such a request.
        """
        self._recorder.refuse(caller, error)

    def _verify(
        self,
        method: str,
        path: str,
        query: str,
        headers: Iterable[tuple[str, str]],
        body: bytes,
        on_caller: Callable[[KnownCaller], None],
    ) -> RequestCaller:
        if not path.startswith("/") or "?" in path:
            message = "the request has no path that begins with a slash and ends before the query"
            raise ProofError(message, code="proof.malformed")
        url = self._base.uri.rstrip("/") + path + (f"?{query}" if query else "")
        return verify_request(
            HttpRequest(method, url, headers, body),
            trust=self._trust,
            audience=self._audience,
            at=read_clock(self._clock),
            used=self._store,
            chains=self._store,
            revocations=self._revocations,
            accepts_plain_dpop=self.accepts_plain_dpop,
            issuers=self._issuers,
            on_caller=on_caller,
            tokens=self._tokens,
        )

    def keep_chain(self, sha256: str, chain: bytes) -> None:
        """Verify a chain that was sent by itself, and keep it.

        Raises ``ProofError``, also for a chain of a delegation to other servers
        (``token.audience``).
        """
        with as_proof_error():
            at = read_clock(self._clock)
            verified = verify_chain(chain, sha256, self._trust, at=at)
            if self._audience not in verified.leaf.audience:
                raise ProofError("the chain is for other servers", code="token.audience")
            expires_at = verified.leaf.expires_at
            answer: object = self._store.keep_chain(  # type: ignore[func-returns-value]
                sha256, chain, expires_at=expires_at, at=at
            )
            if answer is not None:
                raise no_answer("that the chain is kept", answer)


def read_clock(clock: Callable[[], float]) -> int:
    """Return the seconds since the epoch; raises ``ProofError`` (``proof.unavailable``)."""
    try:
        now: object = clock()
        if isinstance(now, int | float) and not isinstance(now, bool):
            return int(now)
    except Exception as error:
        raise ProofError("the clock can't be read", code="proof.unavailable") from error
    message = f"the clock can't be read: it returned a {discarded(now)}"
    raise ProofError(message, code="proof.unavailable")


def require_plain_parts(
    store: object,
    revocations: RevokedNames | Mapping[str, RevokedNames | None] | None,
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


def require_clear_trust(
    trust: TrustDocument | Sequence[TrustDocument],
    revocations: RevokedNames | Mapping[str, RevokedNames | None] | None,
) -> None:
    """Raise ``ConfigError`` where it is in doubt whose keys or whose revocations count."""
    trusted = [trust] if isinstance(trust, TrustDocument) else trust
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
