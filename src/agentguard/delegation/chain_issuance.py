"""Issues chains: the first hop for a principal, and each further hop for an agent.

``begin`` has the issuer sign the first hop, under the ``Terms`` that the application states.
``extend`` has the chain's holder sign a hop for one more agent. ``verification.py`` verifies
chains; ``attenuation.py`` has the rules that both apply.

A service has no key, so the issuer signs the hop that a service gives. The issuer uses its current
key, so that a delegation outlives a rotation of the key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agentguard.call.invocation import MAX_TASK_ID
from agentguard.delegation import attenuation, grant
from agentguard.delegation.chain import Chain
from agentguard.delegation.grant import Grant, Hop
from agentguard.delegation.verified_tokens import SubjectToken, ViaToken
from agentguard.errors import AgentguardError, DelegationError, VerificationError
from agentguard.identity.credential import Credential
from agentguard.identity.principal import require_principal
from agentguard.identity.trust import LATEST
from agentguard.signing.canonical import is_integer
from agentguard.signing.keys import Signer

DEFAULT_DEPTH: Final = 8
"""The default of ``Terms.max_depth``."""

_REASON_CODES: Final = {
    "hop.scope": "invalid_scope",  # RFC 6749, 5.2; RFC 8693, 2.2.2
    "hop.depth": "delegation.depth",
    "hop.expiry": "delegation.expired",
}
"""What a delegator reads in place of a verifier's reason code."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a principal delegates, and to whom first.

    ``via`` is the service that asked for the delegation; None stands for the application itself,
    which a chain names by the trust domain's URI. The ``audience`` None stands for the trust
    domain. ``expires_in`` is in seconds. ``subject_token`` is the token with which the principal
    came; None where the application vouches for the principal. ``via_token`` is the token with
    which the service of ``via`` came; None where the application vouches for the service.
    """

    principal: str
    scope: tuple[str, ...]
    via: str | None = None
    task_id: str | None = None
    audience: tuple[str, ...] | None = None
    expires_in: int = 3600
    max_depth: int = DEFAULT_DEPTH
    max_calls: int | None = None
    subject_token: SubjectToken | None = None
    via_token: ViaToken | None = None

    def check(self, now: int) -> None:
        """Raise ``DelegationError``, which names the parameter, for a value that no hop can have.

        ``now`` is in seconds since the epoch. The codes are ``hop.malformed`` and
        ``delegation.depth``.
        """
        expires_in, max_depth, max_calls = self.expires_in, self.max_depth, self.max_calls
        task_id: object = self.task_id  # of any type, in an application without a type checker
        if not is_integer(expires_in) or not 1 <= expires_in <= LATEST - now:
            raise _malformed(
                f"expires_in is {expires_in!r}: give a timedelta or whole seconds, at least one "
                "second, which end before the year 10000"
            )
        if task_id is not None and not isinstance(task_id, str):
            raise _malformed(f"task_id is {task_id!r}: give a text, or None for no task")
        if task_id is not None and len(task_id.encode("utf-8", "surrogatepass")) > MAX_TASK_ID:
            raise _malformed(f"task_id takes more than {MAX_TASK_ID} bytes: give a shorter one")
        if not is_integer(max_depth) or not 1 <= max_depth <= grant.MAX_DEPTH:
            message = f"max_depth is {max_depth!r}: give 1 to {grant.MAX_DEPTH} hops"
            raise DelegationError(message, code="delegation.depth")
        if max_calls is not None and not grant.is_call_count(max_calls):
            raise _malformed(
                f"max_calls is {max_calls!r}: give a whole number from 1 on, or None for no limit"
            )
        if self.audience == ():
            message = "audience is empty: name a receiver, or leave it out for the trust domain"
            raise _malformed(message)
        for name in () if self.audience is None else self.audience:
            if not grant.is_audience(name):
                raise _malformed(
                    f"audience has {name!r}: give names in printable ASCII without spaces"
                )


def begin(issuer: Signer, trust_domain: str, terms: Terms, *, now: int, jti: str) -> Chain:
    """Return a chain of one hop, signed by the issuer at ``now`` (seconds since the epoch).

    Raises ``DelegationError`` for terms that no hop can have.
    """
    domain = f"spiffe://{trust_domain}"
    terms.check(now)
    first = Grant(
        delegator=domain,
        principal=require_principal(terms.principal, "principal", DelegationError),
        delegatee=domain
        if terms.via is None
        else require_principal(terms.via, "service", DelegationError),
        key_id=issuer.key_id,
        scope=grant.parse_scopes(terms.scope),
        audience=(domain,) if terms.audience is None else tuple(sorted(set(terms.audience))),
        issued_at=now,
        expires_at=now + terms.expires_in,
        jti=jti,
        task_id=terms.task_id,
        depth=1,
        max_depth=terms.max_depth,
        max_calls=terms.max_calls,
        parent=None,
        assurance="application" if terms.subject_token is None else "oidc",
        is_asserted=True,
        subject_token=terms.subject_token,
        via_token=terms.via_token,
    )
    return Chain((_signed(first, issuer),))


def extend(
    chain: Chain,
    signer: Signer,
    delegatee: Credential,
    *,
    by: Credential | None,
    scope: Iterable[str],
    now: int,
    jti: str,
) -> Chain:
    """Return the chain with one more hop, which gives ``scope`` to the agent ``delegatee``.

    ``signer`` is the key of the chain's holder. The holder is the last hop's agent, with its
    credential ``by``; or, if the last hop is a service's, the issuer, with ``by`` None. Raises
    ``DelegationError``: ``invalid_scope``, ``delegation.depth``, ``delegation.expired``,
    ``delegation.holder``, and so on.
    """
    _require_holder(chain.leaf, signer, by)
    parent = chain.hops[-1]
    hop = _next_grant(parent, delegatee, grant.parse_scopes(scope), now=now, jti=jti)
    try:
        attenuation.check_link(parent, hop)
        attenuation.check_narrowing(parent.grant, hop)
    except VerificationError as error:
        raise _refusal(error) from error
    credentials = chain.credentials
    for agent in (by, delegatee):
        if agent is not None and not any(_is_proved(agent, now, shown) for shown in credentials):
            credentials = (*credentials, agent)
    return Chain((*chain.hops, _signed(hop, signer)), credentials)


def _require_holder(leaf: Grant, signer: Signer, by: Credential | None) -> None:
    # Whether `signer` is an issuer key is for a verifier to know, who has the trust document.
    is_holder = by is None if leaf.is_asserted else by is not None and signer.key_id == leaf.key_id
    if not is_holder:
        message = f"only {leaf.delegatee} can hand on what it was given"
        raise DelegationError(message, code="delegation.holder")


def _next_grant(
    parent: Hop, delegatee: Credential, scope: tuple[str, ...], *, now: int, jti: str
) -> Grant:
    leaf = parent.grant
    return Grant(
        delegator=leaf.delegatee,
        principal=leaf.principal,
        delegatee=delegatee.uri,
        key_id=delegatee.key.thumbprint,
        scope=scope,
        audience=leaf.audience,
        issued_at=now,
        expires_at=leaf.expires_at,
        jti=jti,
        task_id=leaf.task_id,
        depth=leaf.depth + 1,
        max_depth=leaf.max_depth,
        max_calls=None,  # the limits of the hops before count every call anyway
        parent=parent.digest,
        assurance=None,
        is_asserted=False,
    )


def _is_proved(agent: Credential, at: int, credential: Credential) -> bool:
    """Whether ``credential`` shows who ``agent`` is at the time ``at``."""
    is_valid = credential.issued_at <= at < credential.expires_at
    return credential.uri == agent.uri and is_valid


def _signed(unsigned: Grant, signer: Signer) -> Hop:
    """Sign a grant and read the hop back as a verifier does; raises ``DelegationError``."""
    try:
        return grant.verify(grant.sign(unsigned, signer).token, signer.public_key)
    except AgentguardError as error:
        raise _refusal(error) from error


def _refusal(error: AgentguardError) -> DelegationError:
    return DelegationError(str(error), code=_REASON_CODES.get(error.code, error.code))


def _malformed(problem: str) -> DelegationError:
    return DelegationError(problem, code="hop.malformed")
