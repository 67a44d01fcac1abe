"""Verifies who sends a request, for whom, and with which authority.

The request is one of HTTP or of the Model Context Protocol. First the access token and the
credential are verified, and then the proof: what is known in between goes into a receiver's log.
The functions do no I/O but through the stores in ``Known``: the used proofs, and the chains that
were sent by themselves. ``receiver.py`` binds the functions to a server's configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from agentguard.audit.kinds.receiver import KnownRequest, ReceivedRequest
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
from agentguard.identity.revocation import Revocations
from agentguard.identity.trust import TrustDocument
from agentguard.proof import dpop, headers
from agentguard.proof.bound_request import BoundRequest
from agentguard.proof.call_proof import BoundCall
from agentguard.proof.headers import Assurance, PresentedCaller
from agentguard.signing import jws
from agentguard.signing.canonical import is_sha256, sha256_hex
from agentguard.visible import visible_text

_LOGGER: Final = logging.getLogger("agentguard")

Shown = tuple[str | None, ...]
"""All that the verification of an access token reads beside keys and time."""

Tokens = Callable[[Shown, TrustDocument, int, Callable[[], AccessToken]], AccessToken]
"""``VerifiedTokens.token``."""

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
    evidence: ReceivedRequest

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


class UnknownChainError(ProofError):
    """The receiver has not got the chain that an access token names: send the chain, and repeat.

    ``sha256`` is the digest of the chain, in hex.
    """

    default_code = "proof.chain_unknown"

    def __init__(self, sha256: str) -> None:
        super().__init__(f"the chain {sha256} of the access token is not known here")
        self.sha256 = sha256


class Known(NamedTuple):
    """What a receiver knows beforehand; ``receiver.py`` says what each part is.

    ``audience`` names the receiver, as delegations name it; ``server`` is the URL within which it
    takes requests. ``chains`` has chains that were sent before, None where each request has one.
    """

    audience: str
    server: str
    trust: Sequence[TrustDocument]
    issuers: Mapping[str, str]
    used: UsedProofs
    chains: Chains | None
    revocations: Revocations | Mapping[str, Revocations | None] | None
    tokens: Tokens


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


class Holder(NamedTuple):
    """Who shows a valid access token with a valid credential; the proof is not verified yet."""

    token: AccessToken
    trust_domain: str
    request: KnownRequest


def holder_of(presented: PresentedCaller, request: RequestRecord, known: Known, at: int) -> Holder:
    """Verify the access token of a request, and the credential if there is one.

    ``request`` is what a log says of the request. ``at`` is in seconds since the epoch.
    """
    text = presented.access_token
    trust, url = _issuer_of(text, known)
    as_of = _as_of(presented, at)

    def verify() -> AccessToken:
        chain = _chain_of(presented, known.chains)
        return access_token.verify(
            text, chain, trust, at=as_of, audience=known.audience, issuer=url
        )

    shown = (text, presented.chain, known.audience, url)
    token = known.tokens(shown, trust, as_of, verify)
    leaf = token.chain.leaf
    if presented.credential is not None:
        instance = credential.verify(presented.credential, trust, at=as_of)
        if instance.uri != leaf.delegatee or instance.key.thumbprint != leaf.key_id:
            raise _other_key()
    seen = KnownRequest(
        request=request,
        audience=known.audience,
        server=known.server,
        proof_sha256=sha256_hex(presented.proof.encode()),
        token_jti=token.jti,
        token_sha256=sha256_hex(text.encode()),
        agent=leaf.delegatee,
        principal=token.chain.principal,
    )
    return Holder(token, trust.trust_domain, seen)


def verified_caller(
    presented: PresentedCaller,
    bound: BoundRequest | BoundCall,
    holder: Holder,
    known: Known,
    at: int,
) -> RequestCaller:
    """Verify the proof of a request, and the revocations; then use the proof up.

    ``at`` is in seconds since the epoch.
    """
    token = holder.token
    leaf = token.chain.leaf
    proved = bound.verify(
        presented.proof, credential=presented.credential, access_token=token.token, at=at
    )
    if proved.thumbprint != leaf.key_id:
        raise _other_key()
    _require_unrevoked(token, _of_domain(known.revocations, holder.trust_domain))
    answer: object = known.used.use(  # type: ignore[func-returns-value]
        leaf.key_id, proved.jti, expires_at=proved.expires_at, at=at
    )
    if answer is not None:
        raise no_answer("whether the proof was used", answer)
    invocation, assurance = proved.invocation_sha256, presented.assurance
    return RequestCaller(
        agent=leaf.delegatee,
        principal=token.chain.principal,
        actors=tuple(token.chain.actors),
        scope=frozenset(leaf.scope),
        task_id=token.chain.root.task_id,
        isolation=token.isolation,
        assurance=assurance,
        invocation_sha256=invocation,
        token_jti=token.jti,
        chain=token.chain,
        evidence=ReceivedRequest(holder.request, proved.jti, leaf.key_id, assurance, invocation),
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
    revocations: Revocations | Mapping[str, Revocations | None] | None, trust_domain: str
) -> Revocations | None:
    if not isinstance(revocations, Mapping):
        return revocations
    if trust_domain not in revocations:
        message = f"the revocations of the trust domain {trust_domain} are not known here"
        raise ProofError(message, code="proof.unavailable")
    return revocations[trust_domain]


def _require_unrevoked(token: AccessToken, revocations: Revocations | None) -> None:
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


def _issuer_of(token: str, known: Known) -> tuple[TrustDocument, str | None]:
    """Return the trust document of the domain that a token names, and its ``iss`` if a URL.

    The signature is not verified.
    """
    issuer = jws.claimed(token).issuer
    url = issuer if issuer in known.issuers else None
    named = issuer if url is None else f"spiffe://{known.issuers[url]}"
    for document in known.trust:
        if named == f"spiffe://{document.trust_domain}":
            return document, url
    raise ProofError("the access token is of no trusted domain", code="proof.issuer")


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


def _other_key() -> ProofError:
    message = "the access token is bound to another key than the one that proves the request"
    return ProofError(message, code="proof.key")


def verify_chain(chain: bytes, sha256: str, trust: Sequence[TrustDocument], *, at: int) -> Chain:
    """Verify a chain that was sent by itself, as of ``at`` (seconds since the epoch).

    A chain counts also if it becomes valid within ``LEEWAY`` seconds. Raises ``ProofError``, also
    for a chain with another digest than ``sha256`` (``proof.malformed``).
    """
    refused = ProofError("the chain is of no trusted domain", code="proof.issuer")
    if len(chain) > headers.MAX_CHAIN:
        raise ProofError("the chain is too long", code="proof.too_large")
    for document in trust:
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
