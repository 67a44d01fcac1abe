"""The roles of a principal who answers through the application, by the application's word.

``[approvals] roles`` names a function of the application that returns the roles; without such a
function the roster has the roles. Of these roles only those count that the configuration lists as
``application_roles``. ``quorum.py`` has the rules by which an answer counts.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet

from agentguard.approvals.roster import Roster
from agentguard.errors import ApprovalError

RolesFunction = Callable[[str], list[str] | tuple[str, ...] | AbstractSet[str] | None]
"""Returns the roles of a principal as an approver; None for a principal who may not approve.

The guard calls the function once for each answer, and keeps no result.
"""

RoleLookUp = Callable[[str], AbstractSet[str] | None]
"""A ``RolesFunction`` whose result is checked; raises ``ApprovalError`` (``roles.failed``)."""


def application_roles(
    roster: Roster, principal: str, look_up: RoleLookUp | None
) -> tuple[str, ...]:
    """Return the roles of a principal for which the application's word counts, sorted.

    Raises as ``look_up``, and ``ApprovalError`` (``approval.unknown``) for a principal whom
    ``look_up`` does not know.
    """
    roles = roster.roles_of(principal) if look_up is None else look_up(principal)
    if roles is None:
        message = f"{principal} is no approver, by the function of [approvals] roles"
        raise ApprovalError(message, code="approval.unknown")
    return tuple(sorted(roles & set(roster.application_roles)))
