"""``POST /token``: a user's token for an access token of an agent's instance.

The user's token is one to exchange (RFC 8693), or an ID-JAG of a provider (RFC 7523). The issuer
signs two hops: what the user lends to the application, on the word of the user's token, and what
the application hands to the instance. Both hops are in the log before the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from agentguard.call.invocation import timestamp
from agentguard.delegation import access_token, chain_issuance, grant, verification
from agentguard.delegation.access_token import AccessToken
from agentguard.delegation.chain import Chain
from agentguard.delegation.handle import Delegation
from agentguard.delegation.terms import Lender
from agentguard.domain.id_jags import IdJag
from agentguard.domain.users import User
from agentguard.errors import AgentguardError, DelegationError
from agentguard.guard.process import Present
from agentguard.identity.revocation import require_unrevoked
from agentguard.service import assertions
from agentguard.service.answers import (
    Answer,
    RefusedError,
    invalid_client,
    invalid_request,
    success,
    unavailable,
)
from agentguard.service.callers import Instance, agent_of, instance_of, use_proof
from agentguard.service.messages import ACCESS_TOKEN, CHAIN, GRANT, JWT_BEARER
from agentguard.service.parts import LOGGER, ServiceParts
from agentguard.service.reading import Form, Request, one, read_form, required
from agentguard.store.proof_store import KeptChain

_TYPES: Final = "urn:ietf:params:oauth:token-type:"
SUBJECT_TYPES: Final = {ACCESS_TOKEN: "access", f"{_TYPES}id_token": "ID", f"{_TYPES}jwt": None}
"""The types of a user's token (RFC 8693, 3), each with the kind that the issuer's users have."""

_REPEATED: Final = frozenset({"audience", "resource"})
_OF_EXCHANGES: Final = ("subject_token", "subject_token_type", "requested_token_type")
_OF_ACTORS: Final = ("actor_token", "actor_token_type")
_LIFETIME: Final = 3600
_SCOPE_REFUSALS: Final = {  # what the guard says of a scope that is well formed, or None
    "scope.exceeded": "the user's roles do not allow this scope",
    "scope.malformed": "name the scopes in the request: the service knows no roles of the user",
    "invalid_scope": "this scope can't be lent",
}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a request asks for; ``scope`` None is all that the principal and the agent allow.

    ``audience`` None is the trust domain, or all receivers of an ID-JAG.
    ``subject_type`` is the type of the user's token, None for an ID-JAG. ``client_id`` is whom the
    request names as its client, None where the request names nobody.
    """

    token: str = field(repr=False)
    subject_type: str | None
    scope: tuple[str, ...] | None
    audience: tuple[str, ...] | None
    client_id: str | None


def exchange(parts: ServiceParts, request: Request) -> Answer:
    """Return an access token for the instance that sends the request, and the chain of the token.

    The instance shows its credential and a DPoP proof. Raises ``RefusedError``:
    ``unsupported_grant_type``, ``invalid_request`` (also for a user's token that does not count,
    RFC 8693, 2.2.2), ``invalid_grant`` for an ID-JAG that does not count (RFC 7521, 4.1.1),
    ``invalid_scope``, ``invalid_target``, and as ``instance_of`` does.
    """
    form = read_form(request, _REPEATED)
    wanted = _read(parts, form)
    instance = instance_of(parts, request)
    try:
        id_jag = _id_jag(parts, wanted, instance)
        token = _issue(parts, wanted, instance, id_jag)
        if id_jag is not None:
            assertions.use_up(parts, id_jag, at=token.issued_at)
    except Exception:
        # the proof of a refused exchange does not count a second time, either
        use_proof(parts, instance.proof, at=instance.present.at)
        raise
    # The token leaves the service after its proof is used up, and after its chain is on record.
    use_proof(parts, instance.proof, at=token.issued_at, keeps=_kept(token))
    at = timestamp(instance.present.moment)
    parts.chains.record(parts.ports.log, token.chain, at)
    return _answer(token, id_jag)


def _answer(token: AccessToken, id_jag: IdJag | None) -> Answer:
    """Return the answer with a token (RFC 8693, 2.2.1; RFC 6749, 5.1)."""
    said: dict[str, object] = {}
    if id_jag is None:
        said["issued_token_type"] = ACCESS_TOKEN
    elif id_jag.resource is not None:
        said["resource"] = list(token.chain.leaf.audience)
    return success(
        {
            "access_token": token.token,
            "token_type": "DPoP",
            "expires_in": token.expires_at - token.issued_at,
            "scope": " ".join(token.chain.leaf.scope),
            CHAIN: token.chain.document(),
            **said,
        }
    )


def _id_jag(parts: ServiceParts, wanted: _Wanted, instance: Instance) -> IdJag | None:
    """Return the verified ID-JAG of a request, None for a request with a token to exchange."""
    if wanted.subject_type is not None:
        return None
    return assertions.verified(parts, wanted.token, instance)


def _issue(
    parts: ServiceParts, wanted: _Wanted, instance: Instance, id_jag: IdJag | None
) -> AccessToken:
    """Have the issuer sign both hops and the token; nobody has got them yet."""
    agent, present = instance.credential, instance.present
    names = assertions.client_ids(parts, instance)
    if wanted.client_id not in (None, *names):
        raise invalid_client("client_id is neither the URI of the credential nor that of its agent")
    unknown = invalid_client("the agent of the credential is none of [agents] any more")
    limit = agent_of(parts, agent.profile.name, unknown).scope
    lender: Lender | User
    if id_jag is None:
        lender = Lender(None, wanted.token, actors=names)
    else:
        lender = id_jag.user
        asked = assertions.Asked(wanted.scope, wanted.audience)
        scope, audience = assertions.narrowed(id_jag, asked, _receivers(parts))
        wanted = replace(wanted, scope=scope, audience=audience)
    lent = _begin(parts, lender, wanted, limit, present)
    return _hand_on(parts, lent, instance, limit)


def _read(parts: ServiceParts, form: Form) -> _Wanted:
    """Read the parameters of a request (RFC 8693, 2.1; RFC 7523, 2.1); raises ``RefusedError``."""
    grant_type = required(form, "grant_type")
    if grant_type == JWT_BEARER and parts.id_jags.are_taken:
        token, subject_type = _read_assertion(form), None
    elif grant_type == GRANT:
        token, subject_type = _read_subject(form)
    else:
        message = "see grant_types_supported in the metadata of the service"
        raise RefusedError(400, "unsupported_grant_type", message)
    audience = (*form.get("audience", ()), *form.get("resource", ()))
    if not _receivers(parts).issuperset(audience):
        message = "a token for one of these audiences is not issued here: see [service] audiences"
        raise RefusedError(400, "invalid_target", message)
    scope = one(form, "scope")
    try:
        names = None if scope is None else grant.parse_scopes(scope.split(" "))
    except DelegationError as error:
        message = f"scope has one name or several, with single spaces between [{error.code}]"
        raise RefusedError(400, "invalid_scope", message) from error
    receivers = audience if _REPEATED & form.keys() else None
    return _Wanted(token, subject_type, names, receivers, one(form, "client_id"))


def _read_assertion(form: Form) -> str:
    """Return the assertion of a request, which has no token of another kind beside."""
    if any(name in form for name in (*_OF_EXCHANGES, *_OF_ACTORS)):
        raise invalid_request("a request with an assertion has no parameter of a token exchange")
    return required(form, "assertion")


def _read_subject(form: Form) -> tuple[str, str]:
    """Return the user's token of an exchange, and its type."""
    subject_type = required(form, "subject_token_type")
    if subject_type not in SUBJECT_TYPES:
        raise invalid_request("subject_token_type is none of access_token, id_token and jwt")
    if any(name in form for name in _OF_ACTORS):
        raise invalid_request("the actor is the instance of the credential: send no actor_token")
    if "assertion" in form:
        raise invalid_request("a token exchange has a subject_token, and no assertion")
    if one(form, "requested_token_type") not in (None, ACCESS_TOKEN):
        raise invalid_request(f"the requested_token_type here is {ACCESS_TOKEN}")
    return required(form, "subject_token"), subject_type


def _receivers(parts: ServiceParts) -> frozenset[str]:
    """Return the audiences for which tokens are issued."""
    return frozenset({*parts.config.audiences, f"spiffe://{parts.settings.trust_domain}"})


def _begin(
    parts: ServiceParts,
    lender: Lender | User,
    wanted: _Wanted,
    limit: frozenset[str] | None,
    present: Present,
) -> Delegation:
    """Have the user lend to the application; ``limit`` is the largest scope of the agent."""
    if limit is not None and wanted.scope is not None and not limit.issuperset(wanted.scope):
        message = "the agent may not have this scope: see max_scope in [agents]"
        raise RefusedError(400, "invalid_scope", message)
    try:
        lent = parts.guard.delegations.begin(
            lender,
            scope=wanted.scope,
            via=None,
            task_id=None,
            expires_in=_LIFETIME,
            max_depth=chain_issuance.DEFAULT_DEPTH,
            max_calls=None,
            audience=wanted.audience,
            present=present,
        )
        if wanted.subject_type is not None:
            _require_type(parts, lent.chain, wanted.subject_type)
        require_unrevoked(parts.ports.log, lent.chain.names)
    except AgentguardError as error:
        refused = _refused(error)
        if wanted.subject_type is None and refused.error == "invalid_request":
            raise assertions.invalid_grant(str(refused)) from error
        raise refused from error
    return lent


def _require_type(parts: ServiceParts, chain: Chain, subject_type: str) -> None:
    """Raise ``RefusedError`` where the user's token is of another type than the request says."""
    expected, token = SUBJECT_TYPES[subject_type], chain.root.subject_token
    kinds = {
        issuer.rule.issuer: issuer.users.token
        for issuer in parts.settings.issuers.values()
        if issuer.users is not None
    }
    if token is None or (expected is not None and kinds.get(token.iss) != expected):
        raise invalid_request("the subject_token is of another type than subject_token_type says")


def _hand_on(
    parts: ServiceParts, lent: Delegation, instance: Instance, limit: frozenset[str] | None
) -> AccessToken:
    """Hand what the user lends to the instance, and return a token for the verified chain."""
    at, domain, entropy = instance.present.at, instance.present.domain, parts.ports.entropy
    scope = [name for name in lent.scope if limit is None or name in limit]
    if not scope:
        raise RefusedError(400, "invalid_scope", "the user and the agent share no scope")
    try:
        chain = chain_issuance.extend(
            lent.chain,
            domain.issuer,
            instance.credential,
            by=None,
            scope=scope,
            now=at,
            jti=entropy(16).hex(),
        )
        verified = verification.from_json(chain.as_json(), domain.trust, at=at)
    except AgentguardError as error:
        raise _refused(error) from error
    return access_token.mint(
        verified, domain.issuer, now=at, jti=entropy(16).hex(), url=parts.config.issuer
    )


def _kept(token: AccessToken) -> KeptChain:
    """Return the chain of a token as the store keeps it: ``/introspect`` needs the token alone."""
    return KeptChain(token.chain.sha256, token.chain.dumps(), token.expires_at)


def _refused(error: AgentguardError) -> RefusedError:
    """Return the refusal of an exchange by the reason code of the guard."""
    LOGGER.info("the token service refuses an exchange: %s (%s)", error, error.code)
    noun = error.code.partition(".")[0]
    if error.code in _SCOPE_REFUSALS:
        message = f"{_SCOPE_REFUSALS[error.code]} [{error.code}]"
        return RefusedError(400, "invalid_scope", message)
    if noun in ("issuer", "storage", "server") or error.code == "principal.failed":
        return unavailable(f"the user's token can't be verified now [{error.code}]")
    return invalid_request(f"the user's token does not count here [{error.code}]")
