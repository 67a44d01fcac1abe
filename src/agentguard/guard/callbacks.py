"""The functions of the application that a guard calls about approvals.

``[approvals]`` names each function, or the program passes the function to ``Guard.open``.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

from agentguard.approvals.application import RoleLookUp, RolesFunction
from agentguard.call.plain import require_plain
from agentguard.domain.config import Config, load_callable
from agentguard.domain.directory import DirectoryLookUp, read_roles
from agentguard.errors import ApprovalError
from agentguard.flow.ports import OnRequest


class Functions(NamedTuple):
    """The functions that a program passes to ``Guard.open``, None for one that it does not pass."""

    on_request: OnRequest | None = None
    on_expiring: OnRequest | None = None
    on_expired: OnRequest | None = None
    approver_roles: RolesFunction | None = None


class Callbacks(NamedTuple):
    """The functions of one guard, None for a function that the application does not have."""

    on_request: OnRequest | None = None
    on_expiring: OnRequest | None = None
    on_expired: OnRequest | None = None
    approver_roles: RoleLookUp | None = None

    @property
    def hears_of_ends(self) -> bool:
        """Whether a function is called without a call of an agent."""
        return self.on_expiring is not None or self.on_expired is not None

    @classmethod
    def of(cls, settings: Config, given: Functions) -> Self:
        """Return the functions that the program passes, or else those of the configuration.

        Raises ``ConfigError`` for a function that can't be imported, and for anything that is no
        function or is a coroutine function.
        """
        source = f"{settings.source}: approvals"
        found = Functions(
            _function(given.on_request, settings.approvals.on_request, f"{source}.on_request"),
            _function(given.on_expiring, settings.approvals.on_expiring, f"{source}.on_expiring"),
            _function(given.on_expired, settings.approvals.on_expired, f"{source}.on_expired"),
            _function(given.approver_roles, settings.approvals.roles, f"{source}.roles"),
        )
        for name, function in found._asdict().items():
            if function is not None:
                require_plain(function, name)
        roles = found.approver_roles
        look_up = None if roles is None else _look_up(roles, f"{source}.roles")
        return cls(*found[:3], look_up)


def _look_up(function: RolesFunction, where: str) -> RoleLookUp:
    """Return the look-up of roles that nothing keeps: a click is rare, and a role may end."""
    return DirectoryLookUp(
        function, _read, seconds=0, where=where, error=ApprovalError, code="roles.failed"
    )


def _read(roles: object) -> frozenset[str] | None:
    return None if roles is None else frozenset(read_roles(roles))


def _function(given: Any, reference: str | None, where: str) -> Any:
    return load_callable(reference, where) if given is None and reference is not None else given
