"""Verifies who sends a request, for whom, and with which authority.

``verify_request`` is about an HTTP request; ``call_verification.py`` has the twin for a request of
the Model Context Protocol. The functions do no I/O but through the two stores that their caller
gives: the used proofs, and the chains that were sent by themselves. ``receiver.py`` binds these to
a server's configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from agentguard.call.plain import discarded
from agentguard.call.releases import RequestRecord
from agentguard.delegation import access_token, verification
from agentguard.delegation.access_token import CHAIN_CLAIM, AccessToken
from agentguard.delegation.chain import Chain
from agentguard.delegation.grant import parse_scopes
from agentguard.errors import (
    AgentguardError,
    ConfigError,
    DecodeError,
    ProofError,
    VerificationError,
)
from agentguard.identity import credential
from agentguard.identity.trust import TrustDocument
from agentguard.proof import bound_request, dpop, headers
from agentguard.proof.bound_request import BoundRequest, VerifiedProof
from agentguard.proof.evidence import KnownCaller, RequestEvidence, evidence_of
from agentguard.proof.headers import Assurance, PresentedCaller
from agentguard.signing import jws
from agentguard.signing.canonical import is_sha256
from agentguard.visible import visible_text

_LOGGER: Final = logging.getLogger("agentguard")

Shown = tuple[str | None, ...]
"""All that the verification of an access token reads beside keys and time."""

LEEWAY: Final = dpop.WINDOW
"""How far the clock that dated a caller's tokens may be ahead of the receiver's, in seconds."""


@dataclass(frozen=True, slots=True)
class RequestCaller:
    """Who has sent a request, verified: an agent instance, and the authority of its call.

    ``agent`` is the instance's URI (``spiffe://``), ``principal`` for whom the agent acts, as in
    ``user:alice``, and ``actors`` are the delegatees from the first to the agent itself. ``scope``
    is what the principal has lent. ``task_id`` is None for none. ``isolation`` says whether the
    agent's process could reach the keys (``access_token.ISOLATIONS``). ``token_jti`` is the id of
    the access token. ``assurance`` ``request`` means that this very request, with its query and its
    body, belongs to the authorised call whose invocation has the digest ``invocation_sha256``
    (hex) in the agent's log. ``call`` means the same of a request of the Model Context Protocol,
    with its method and its parameters. With ``dpop`` the digest is None, and only the method and
    the path are proved. ``evidence`` has what a log says of the request itself.
    """

    agent: str
    principal: str
    actors: tuple[str, ...]
    scope: frozenset[str]
    task_id: str | None
    isolation: str
    assurance: Assurance
    invocation_sha256: str | None
    token_jti: str
    chain: Chain
    evidence: RequestEvidence

    def require(self, *scopes: str) -> None:
        """Raise ``ProofError`` (``proof.scope``) unless the caller's scope has all ``scopes``.

        Raises ``ConfigError`` without a scope.
        """
        require_named(scopes)
        missing = sorted(set(scopes) - self.scope)
        if missing:
            message = f"the request needs the scope {' '.join(missing)}, which was not lent"
            raise ProofError(message, code="proof.scope")


def require_named(scopes: Sequence[str]) -> None:
    """Raise ``ConfigError`` where no scope is named: such a question would let everybody in.

    Raises ``DelegationError`` (``scope.malformed``) for a name that no caller can have.
    """
    if len(scopes) == 0 or "" in scopes:
        raise ConfigError("name the scope that the caller needs, as in 'payments:write'")
    parse_scopes(scopes)


class UsedProofs(Protocol):
    """Remembers durably which proofs were used."""

    def use(self, jkt: str, jti: str, *, expires_at: int, at: int) -> None:
        """Use up the proof ``jti`` of the key ``jkt``; times are seconds since the epoch.

        Returns None: any other answer refuses the request. Raises ``ProofError``: ``proof.used``
        for a proof that was used before, and ``proof.unavailable`` where nobody can know.
        """


class Chains(Protocol):
    """Has the chains that were sent by themselves."""

    def chain(self, sha256: str) -> bytes | None:
        """Return the chain with a digest (``Chain.sha256``), None where it is not there.

        Raises ``ProofError`` (``proof.unavailable``).
        """


class RevokedNames(Protocol):
    """Knows which names are revoked (``identity.revocation.Revocations`` in part)."""

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return the code and the reason why no bearer of ``names`` may act; None for none.

        Raises ``StorageError``.
        """


class KnownTokens(Protocol):
    """Has the access tokens that were verified at earlier requests."""

    def token(
        self, shown: Shown, trust: TrustDocument, at: int, verify: Callable[[], AccessToken]
    ) -> AccessToken:
        """Return the token that is shown at ``at``, in seconds since the epoch.

        ``verify`` verifies the token with the keys of ``trust``; the errors of ``verify`` pass.
        """


class UnknownChainError(ProofError):
    """The receiver has not got the chain that an access token names: send the chain, and repeat.

    ``sha256`` is the digest of the chain, in hex.
    """

    default_code = "proof.chain_unknown"

    def __init__(self, sha256: str) -> None:
        super().__init__(f"the chain {sha256} of the access token is not known here")
        self.sha256 = sha256


class HttpRequest(NamedTuple):
    """An HTTP request as a server has received it.

    ``url`` is the whole URL: its origin comes from the server's configuration, never from a header.
    ``headers`` are all headers, with names in any case. ``body`` is what the client has sent,
    before a decoding of ``Content-Encoding``.
    """

    method: str
    url: str
    headers: Iterable[tuple[str, str]]
    body: bytes


def verify_request(  # noqa: PLR0913  what the receiver knows beforehand
    request: HttpRequest,
    *,
    trust: TrustDocument | Sequence[TrustDocument],
    audience: str,
    at: int,
    used: UsedProofs,
    chains: Chains | None = None,
    revocations: RevokedNames | Mapping[str, RevokedNames | None] | None = None,
    accepts_plain_dpop: bool = False,
    issuers: Mapping[str, str] | None = None,
    on_caller: Callable[[KnownCaller], None] | None = None,
    tokens: KnownTokens | None = None,
) -> RequestCaller:
    """Verify the caller of one HTTP request, and use the proof up.

    ``trust`` has the keys of one or more trust domains. ``audience`` names this receiver, as
    delegations name it. ``at`` is the time in seconds since the epoch. ``chains`` has chains that
    were sent before. ``revocations`` is asked for the names of the chain and of the token; a
    mapping has the revocations of each trust domain by its name, and None for a domain whose
    revocations nobody knows here. ``accepts_plain_dpop`` also takes a DPoP proof
    without a credential, which proves less (``RequestCaller``). ``issuers`` has the URLs of the
    token services whose tokens count, each with the name of its trust domain. ``on_caller`` gets
    the caller once the access token and the credential hold, and before the proof is verified.
    ``tokens`` keeps what was verified.

    Raises ``ProofError`` alone, whose code is ``proof.*``, or that of the token, credential, chain
    or key that does not count. ``UnknownChainError`` asks for the chain.
    """
    known = Known(
        trust,
        audience,
        at,
        used,
        chains,
        revocations,
        {} if issuers is None else issuers,
        on_caller,
        tokens,
    )
    with as_proof_error():
        bound = BoundRequest.of(request.method, request.url, request.body)
        presented = headers.read(request.headers, accepts_plain_dpop=accepts_plain_dpop)
        return verified_caller(
            presented,
            bound.record,
            lambda token: bound_request.verify(
                presented.proof,
                bound,
                credential=presented.credential,
                access_token=token.token,
                at=at,
            ),
            known,
        )


class Known(NamedTuple):
    """What the receiver of a request knows beforehand; ``verify_request`` has the parts."""

    trust: TrustDocument | Sequence[TrustDocument]
    audience: str
    at: int
    used: UsedProofs
    chains: Chains | None
    revocations: RevokedNames | Mapping[str, RevokedNames | None] | None
    issuers: Mapping[str, str]
    on_caller: Callable[[KnownCaller], None] | None = None
    tokens: KnownTokens | None = None


@contextmanager
def as_proof_error() -> Iterator[None]:
    """Raise the error of a token, a credential, a chain or a key as one of the request.

    The application's store and its revocations may raise anything: nobody can know then whether the
    request counts.
    """
    try:
        yield
    except ProofError:
        raise
    except AgentguardError as error:
        raise _refused(error) from error
    except Exception as error:
        _LOGGER.exception("a request is refused, because its verification failed")
        message = f"the verification failed ({type(error).__name__})"
        raise ProofError(message, code="proof.unavailable") from error


def verified_caller(
    presented: PresentedCaller,
    request: RequestRecord,
    verify_proof: Callable[[AccessToken], VerifiedProof],
    known: Known,
) -> RequestCaller:
    """Verify the token, the credential, the proof and the revocations; then use the proof up.

    ``request`` is what a log says of the request.
    """
    trust, url = _issuer_of(presented.access_token, known.trust, known.issuers)
    as_of = _as_of(presented, known.at)
    token = _verified_token(presented, trust, url, known, as_of)
    leaf = token.chain.leaf
    _require_holder(presented, token, trust, as_of)
    evidence = evidence_of(presented, request)
    if known.on_caller is not None:
        known.on_caller(KnownCaller(leaf.delegatee, token.chain.principal, token.jti, evidence))
    proved = verify_proof(token)
    if proved.thumbprint != leaf.key_id:
        raise _other_key()
    _require_unrevoked(token, _of_domain(known.revocations, trust.trust_domain))
    answer: object = known.used.use(  # type: ignore[func-returns-value]
        leaf.key_id, proved.jti, expires_at=proved.expires_at, at=known.at
    )
    if answer is not None:
        raise no_answer("whether the proof was used", answer)
    return RequestCaller(
        agent=leaf.delegatee,
        principal=token.chain.principal,
        actors=tuple(token.chain.actors),
        scope=frozenset(leaf.scope),
        task_id=token.chain.root.task_id,
        isolation=token.isolation,
        assurance=presented.assurance,
        invocation_sha256=proved.invocation_sha256,
        token_jti=token.jti,
        chain=token.chain,
        evidence=evidence._replace(proof_jti=proved.jti),
    )


def _as_of(presented: PresentedCaller, at: int) -> int:
    """Return the time as of which the tokens count: ``at``, or up to ``LEEWAY`` seconds later.

    A token that a clock ahead of this one has dated would not be valid yet. The times are not
    verified here: a later time lets a token end earlier, and never later.
    """
    tokens = [token for token in (presented.access_token, presented.credential) if token]
    dated = [jws.claimed(token).issued_at or at for token in tokens]
    return min(max([at, *dated]), at + LEEWAY)


def _of_domain(
    revocations: RevokedNames | Mapping[str, RevokedNames | None] | None, trust_domain: str
) -> RevokedNames | None:
    if not isinstance(revocations, Mapping):
        return revocations
    if trust_domain not in revocations:
        message = f"the revocations of the trust domain {trust_domain} are not known here"
        raise ProofError(message, code="proof.unavailable")
    return revocations[trust_domain]


def _require_unrevoked(token: AccessToken, revocations: RevokedNames | None) -> None:
    names = token.chain.names | {token.jti}
    refused: object = None if revocations is None else revocations.refusal(names)
    match refused:
        case None:
            return
        case (str(code), str(reason)):
            raise ProofError(reason, code=code)
    raise no_answer("who is revoked", refused)


def no_answer(about: str, answer: object) -> ProofError:
    """Return the error for what an application's store or revocations must not answer."""
    message = f"nobody says {about}: the answer was a {discarded(answer)}"
    return ProofError(message, code="proof.unavailable")


def _issuer_of(
    token: str, trust: TrustDocument | Sequence[TrustDocument], urls: Mapping[str, str]
) -> tuple[TrustDocument, str | None]:
    """Return the trust document of the domain that a token names, and its ``iss`` if a URL.

    The signature is not verified.
    """
    trusted = [trust] if isinstance(trust, TrustDocument) else trust
    issuer = jws.claimed(token).issuer
    url = issuer if issuer in urls else None
    named = issuer if url is None else f"spiffe://{urls[url]}"
    for document in trusted:
        if named == f"spiffe://{document.trust_domain}":
            return document, url
    raise ProofError("the access token is of no trusted domain", code="proof.issuer")


def _verified_token(
    presented: PresentedCaller, trust: TrustDocument, url: str | None, known: Known, at: int
) -> AccessToken:
    """Return the access token, verified now or at an earlier request."""
    text, audience = presented.access_token, known.audience

    def verify() -> AccessToken:
        chain = _chain_of(presented, known.chains)
        return access_token.verify(text, chain, trust, at=at, audience=audience, issuer=url)

    if known.tokens is None:
        return verify()
    return known.tokens.token((text, presented.chain, audience, url), trust, at, verify)


def _chain_of(presented: PresentedCaller, chains: Chains | None) -> bytes:
    """Return the chain beside an access token, from the header or from the store."""
    if presented.chain is not None:
        return headers.decode_chain(presented.chain)
    # the digest only selects a chain; the token is verified with the chain
    named: Any = jws.parse(presented.access_token).claims().get(CHAIN_CLAIM)
    if not is_sha256(named):
        raise DecodeError("not an access token: it names no chain", code="token.malformed")
    stored: object = None if chains is None else chains.chain(named)
    if stored is None:
        raise UnknownChainError(named)
    if not isinstance(stored, bytes):
        raise no_answer("what the chain is", stored)
    return stored


def _require_holder(
    presented: PresentedCaller, token: AccessToken, trust: TrustDocument, at: int
) -> None:
    """Verify the credential of a request: of the instance and the key of the access token."""
    if presented.credential is None:
        return
    instance, leaf = credential.verify(presented.credential, trust, at=at), token.chain.leaf
    if instance.uri != leaf.delegatee or instance.key.thumbprint != leaf.key_id:
        raise _other_key()


def _other_key() -> ProofError:
    message = "the access token is bound to another key than the one that proves the request"
    return ProofError(message, code="proof.key")


def verify_chain(
    chain: bytes, sha256: str, trust: TrustDocument | Sequence[TrustDocument], *, at: int
) -> Chain:
    """Verify a chain that was sent by itself, as of ``at`` (seconds since the epoch).

    A chain counts also if it becomes valid within ``LEEWAY`` seconds. Raises ``ProofError``, also
    for a chain with another digest than ``sha256`` (``proof.malformed``).
    """
    trusted = [trust] if isinstance(trust, TrustDocument) else trust
    refused = ProofError("the chain is of no trusted domain", code="proof.issuer")
    if len(chain) > headers.MAX_CHAIN:
        raise ProofError("the chain is too long", code="proof.too_large")
    for document in trusted:
        try:
            verified = _loads(chain, document, at)
        except AgentguardError as error:
            refused = _refused(error)
            continue
        if verified.sha256 != sha256:
            raise ProofError("the chain has another digest", code="proof.malformed")
        return verified
    raise refused


def _loads(chain: bytes, trust: TrustDocument, at: int) -> Chain:
    try:
        return verification.loads(chain, trust, at=at)
    except VerificationError as error:
        if error.code != "hop.not_yet_valid":
            raise
    return verification.loads(chain, trust, at=at + LEEWAY)


def _refused(error: AgentguardError) -> ProofError:
    """Return the error of a token as one of the request; its text is one line, as in a log."""
    return ProofError(visible_text(str(error)), code=error.code)
