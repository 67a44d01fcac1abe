"""The rules of a link: a hop goes on where the one before it ended, and can only narrow.

They stand here once (records.md, Delegation), for whoever issues a hop and for whoever verifies
one; with them what a first hop must hold, and when a hop counts. Who has signed a hop, and whose
credentials are needed for that, is ``chain.py``'s business.
"""

from __future__ import annotations

from agentguard.delegation import grant as grants
from agentguard.delegation.grant import Grant, Hop
from agentguard.errors import VerificationError
from agentguard.identity import principal
from agentguard.identity.trust import TrustDocument


def check_root(grant: Grant, trust: TrustDocument) -> None:
    """Check that a first hop is the issuer's; raises ``VerificationError``."""
    domain = f"spiffe://{trust.trust_domain}"
    if grant.delegator != domain:
        message = f"the first hop is issued by {grant.delegator}, not by {domain}"
        raise VerificationError(message, code="hop.issuer")
    if grant.parent is not None or grant.depth != 1 or grant.assurance is None:
        message = "the first hop has no parent, the depth 1, and an assurance"
        raise VerificationError(message, code="hop.parent")
    if not grant.asserted:
        message = "the issuer signs for the first delegatee, and the hop does not say so"
        raise VerificationError(message, code="hop.key")
    if grant.delegatee != domain and not principal.is_principal(grant.delegatee):
        raise VerificationError("the issuer signs for no agent", code="hop.name")
    trust.key("issuer", grant.key_id, at=grant.issued_at)


def check_link(parent: Hop, grant: Grant) -> None:
    """Check that a hop goes on where its parent ended."""
    held = parent.grant
    rules = (
        (grant.delegator == held.delegatee, "hop.issuer", "it is not by whom the one before named"),
        (grant.parent == parent.digest, "hop.parent", "it does not name the one before"),
        (grant.principal == held.principal, "hop.subject", "it is for another principal"),
        (grant.task_id == held.task_id, "hop.task", "it is for another task"),
        (grant.depth == held.depth + 1, "hop.depth", "its depth is not one more"),
        (grant.assurance is None, "hop.issuer", "only the issuer says how a principal is known"),
        (not grant.asserted, "hop.key", "the issuer signs for nobody but the first delegatee"),
        (
            grants.is_agent(grant.delegatee) and grant.delegatee.endswith(f"/{grant.key_id}"),
            "hop.name",
            "its delegatee is no agent that is named by its key",
        ),
    )
    for holds, code, problem in rules:
        if not holds:
            raise VerificationError(problem, code=code)


def check_narrowing(held: Grant, grant: Grant) -> None:
    """Check that a hop gives no more than its delegator had (attenuation only)."""
    wider = sorted(set(grant.scope) - set(held.scope))
    rules = (
        (not wider, "hop.scope", f"it grants {' '.join(wider)}, which the one before does not"),
        (grant.expires_at <= held.expires_at, "hop.expiry", "it lives longer than the one before"),
        (grant.issued_at >= held.issued_at, "hop.expiry", "it is older than the one before"),
        (grant.issued_at < held.expires_at, "hop.expiry", "the one before has expired"),
        (set(grant.audience) <= set(held.audience), "hop.audience", "its audience is wider"),
        (
            grant.depth <= grant.max_depth <= held.max_depth,
            "hop.depth",
            f"the chain may have {held.max_depth} hops at the most",
        ),
        (
            grant.max_calls is None or held.max_calls is None or grant.max_calls <= held.max_calls,
            "hop.calls",
            "it allows more calls than the one before",
        ),
    )
    for holds, code, problem in rules:
        if not holds:
            raise VerificationError(problem, code=code)


def check_time(grant: Grant, at: int) -> None:
    """Check that a hop counts at a time (seconds since the epoch)."""
    if at >= grant.expires_at:
        raise VerificationError("it has expired", code="hop.expired")
    if at < grant.issued_at:
        raise VerificationError("it is not valid yet", code="hop.not_yet_valid")
