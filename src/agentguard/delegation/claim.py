"""``Claim``: whose delegation a call was made under, where the delegation gives no authority.

The delegation has ended, is revoked, does not verify, or may not be used by whoever brought it. The
denial of the call names the principal all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from agentguard.delegation import grant, verification
from agentguard.delegation.chain import Chain
from agentguard.errors import AgentguardError
from agentguard.identity.principal import is_principal
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON


class Claim(NamedTuple):
    """The principal of a delegation that is refused.

    ``chain`` proves by its signatures that the principal delegated; None where nothing proves it.
    """

    principal: str
    chain: Chain | None = None


@contextmanager
def refusing(delegation: object) -> Iterator[None]:
    """Note in an error that is raised here which delegation the error refuses."""
    try:
        yield
    except AgentguardError as error:
        if error.delegation is None:
            error.delegation = delegation
        raise


def claim_of(refused: object, trust: TrustDocument, *, at: int) -> Claim | None:
    """Return the claim in a chain, verified or encoded, or in a name; None without a principal.

    The chain is verified as of ``at`` (seconds since the epoch), but may have ended by then.
    """
    if isinstance(refused, str) and is_principal(refused):
        return Claim(refused)
    try:
        members = _members(refused)
    except AgentguardError:
        return None
    try:
        chain = verification.from_json(members, trust, at=at, may_have_ended=True)
        return Claim(chain.principal, chain)
    except AgentguardError:
        return _unproved(members.get("hops"))


def _members(refused: object) -> dict[str, JSON]:
    """Return the members of a chain, unverified; raises ``DecodeError``."""
    if isinstance(refused, Chain):
        return refused.as_json()
    members = canonical.loads_object(refused)
    return {name: value for name, value in members.items() if name != "type"}


def _unproved(hops: JSON) -> Claim | None:
    match hops:
        case [str(first), *_]:
            try:
                principal = grant.read(first).principal
            except AgentguardError:
                return None
            return Claim(principal) if is_principal(principal) else None
    return None
