"""How a chain of delegation is told in words, by ``audit show`` and ``audit verify-evidence``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from agentguard.delegation.chain import Chain
from agentguard.delegation.grant import Grant
from agentguard.identity.credential import agent_alias

UNSIGNED: Final = "by nobody: the agent's signer failed, and the log alone says that it asked"


def delegation(chain: Chain) -> Iterator[tuple[str, str]]:
    """Yield what each hop says, and what the agent could do at the end of them."""
    first = chain.root
    yield "vouched for", f"by the {first.assurance}, which has authenticated {first.principal}"
    parent: Grant | None = None
    for hop in chain.hops:
        yield f"hop {hop.grant.depth}", said(hop.grant, parent)
        parent = hop.grant
    leaf = chain.leaf
    yield "may", f"{' '.join(leaf.scope) or 'nothing: its scope is empty'}; until {time(leaf)}"
    for jti, most in chain.limits:
        yield "calls", f"{most} at the most ({jti})"


def said(grant: Grant, parent: Grant | None) -> str:
    """Write down one hop; ``parent`` is the one before it, None for the first."""
    if parent is None:
        signed = ", signed by the issuer"
    else:
        signed = ", signed by the issuer in its place" if parent.asserted else ""
    scope = " ".join(grant.scope) or "nothing"
    return f"{lets(grant, parent)} do {scope} for {grant.principal}{signed}"


def lets(grant: Grant, parent: Grant | None) -> str:
    """Write down who hands on to whom in a hop."""
    by = agent_alias(grant.delegator)
    if parent is not None and parent.delegatee == grant.delegator:
        by = delegatee(parent)
    return f"{by} lets {delegatee(grant)}"


def delegatee(grant: Grant) -> str:
    """Name whom a hop goes to; without a service that is the domain's own URI again."""
    if grant.depth == 1 and grant.delegatee == grant.delegator:
        return "the application"
    return agent_alias(grant.delegatee)


def time(grant: Grant) -> str:
    """Write down when a hop ends."""
    return datetime.fromtimestamp(grant.expires_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
