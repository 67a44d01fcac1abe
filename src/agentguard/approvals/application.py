"""The roles of a principal who answers through the application, by the application's word.

``[approvals] roles`` names a function of the application that returns the roles; without such a
function the roster has the roles. Of these roles only those count that the configuration lists as
``application_roles``. ``quorum.py`` has the rules by which an answer counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

from agentguard.approvals.roster import Roster
from agentguard.errors import ApprovalError

RolesFunction = Callable[[str], Iterable[str] | None]
"""Returns the roles of a principal as an approver; None for a principal who may not approve.

The function is called once for each answer, and nothing keeps its result.
"""

_LOGGER = logging.getLogger("agentguard")


def application_roles(
    roster: Roster, principal: str, function: RolesFunction | None
) -> tuple[str, ...]:
    """Return the roles of a principal for which the application's word counts, sorted.

    Raises ``ApprovalError``: ``approval.unknown`` for a principal whom the ``function`` does not
    know, ``roles.failed`` where the function raises, ``roles.malformed`` where the function returns
    anything but a list, tuple or set of texts.
    """
    roles = roster.roles_of(principal) if function is None else _asked(function, principal)
    return tuple(sorted(roles & set(roster.application_roles)))


def _asked(function: RolesFunction, principal: str) -> AbstractSet[str]:
    try:
        roles = function(principal)
    except Exception as error:
        _LOGGER.exception("[approvals] roles failed: the answer of %s does not count", principal)
        message = (
            f"the roles of {principal} can't be found out ({type(error).__name__}): the function "
            "of [approvals] roles failed, and the log of the program has the error"
        )
        raise ApprovalError(message, code="roles.failed") from error
    if roles is None:
        message = f"{principal} is no approver, by the function of [approvals] roles"
        raise ApprovalError(message, code="approval.unknown")
    if isinstance(roles, list | tuple | set | frozenset):
        texts = [role for role in roles if isinstance(role, str)]
        if len(texts) == len(roles):
            return frozenset(texts)
    message = (
        f"the function of [approvals] roles returned {type(roles).__name__} for {principal}: "
        "expected a list of texts, or None for somebody who may not approve"
    )
    raise ApprovalError(message, code="roles.malformed")
