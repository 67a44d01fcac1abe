"""Attenuation: a hop continues the hop before it, never gives more, and has limits of lifetime.

``chain_issuance.py`` and ``verification.py`` apply the same rules (records.md, Delegation). Two
more checks of a hop live here: what a first hop must be, and whether a hop is valid at a time.
Which key must have signed a hop, and which credentials that needs, is decided in
``verification.py``.
"""

from __future__ import annotations

from agentguard.delegation.grant import Grant, Hop, is_agent
from agentguard.errors import VerificationError
from agentguard.identity.principal import is_principal
from agentguard.identity.trust import TrustDocument


def check_root(grant: Grant, trust: TrustDocument) -> None:
    """Raise ``VerificationError`` unless a hop can be the first, which the issuer signs."""
    domain = f"spiffe://{trust.trust_domain}"
    if grant.delegator != domain:
        message = f"the first hop is issued by {grant.delegator}, not by {domain}"
        raise VerificationError(message, code="hop.issuer")
    if grant.parent is not None or grant.depth != 1 or grant.assurance is None:
        message = "the first hop has no parent, the depth 1, and an assurance"
        raise VerificationError(message, code="hop.parent")
    if not grant.is_asserted:
        message = "the issuer signs for the first delegatee, and the hop does not say so"
        raise VerificationError(message, code="hop.key")
    if grant.delegatee != domain and not is_principal(grant.delegatee):
        raise VerificationError("the issuer signs for no agent", code="hop.name")
    trust.key("issuer", grant.key_id, at=grant.issued_at)


def check_link(parent: Hop, grant: Grant) -> None:
    """Raise ``VerificationError`` unless a hop continues its parent: delegator, task and so on."""
    before = parent.grant
    rules = (
        (
            grant.delegator == before.delegatee,
            "hop.issuer",
            "it is not by whom the one before named",
        ),
        (grant.parent == parent.digest, "hop.parent", "it does not name the one before"),
        (grant.principal == before.principal, "hop.subject", "it is for another principal"),
        (grant.task_id == before.task_id, "hop.task", "it is for another task"),
        (grant.depth == before.depth + 1, "hop.depth", "its depth is not one more"),
        (grant.assurance is None, "hop.issuer", "only the issuer says how a principal is known"),
        (not grant.is_asserted, "hop.key", "the issuer signs for nobody but the first delegatee"),
        (
            is_agent(grant.delegatee) and grant.delegatee.endswith(f"/{grant.key_id}"),
            "hop.name",
            "its delegatee is no agent that is named by its key",
        ),
    )
    for holds, code, problem in rules:
        if not holds:
            raise VerificationError(problem, code=code)


def check_narrowing(before: Grant, grant: Grant) -> None:
    """Raise ``VerificationError`` if a hop gives more than the hop ``before`` it gave."""
    wider = sorted(set(grant.scope) - set(before.scope))
    rules = (
        (not wider, "hop.scope", f"it grants {' '.join(wider)}, which the one before does not"),
        (
            grant.expires_at <= before.expires_at,
            "hop.expiry",
            "it lives longer than the one before",
        ),
        (grant.issued_at >= before.issued_at, "hop.expiry", "it is older than the one before"),
        (grant.issued_at < before.expires_at, "hop.expiry", "the one before has expired"),
        (set(grant.audience) <= set(before.audience), "hop.audience", "its audience is wider"),
        (
            grant.depth <= grant.max_depth <= before.max_depth,
            "hop.depth",
            f"the chain may have {before.max_depth} hops at the most",
        ),
        (
            grant.max_calls is None
            or before.max_calls is None
            or grant.max_calls <= before.max_calls,
            "hop.calls",
            "it allows more calls than the one before",
        ),
    )
    for holds, code, problem in rules:
        if not holds:
            raise VerificationError(problem, code=code)


def check_time(grant: Grant, at: int) -> None:
    """Raise ``VerificationError`` unless a hop is valid at a time (seconds since the epoch)."""
    if at >= grant.expires_at:
        raise VerificationError("it has expired", code="hop.expired")
    if at < grant.issued_at:
        raise VerificationError("it is not valid yet", code="hop.not_yet_valid")
