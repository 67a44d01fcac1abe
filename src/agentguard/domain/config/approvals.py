"""``[approvers]``, the people who approve calls, and ``[approvals]``, how requests are answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agentguard.approvals.roster import Approver, Roster
from agentguard.approvals.store import Limits
from agentguard.errors import ConfigError
from agentguard.signing.keys import PublicKey
from agentguard.tables import MistakeError, Table, kinds, setting


@dataclass(frozen=True, slots=True)
class ApproverConfig:
    """Who can answer requests for an approval, with OpenSSH keys (docs/how-to/approvals.md).

    ::

        [approvers.bob]
        principal = "user:bob"
        keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"]
        roles = ["lead"]
    """

    principal: str | None = setting(kinds.principal, default=None)
    """Who the approver is; by default ``user:NAME``."""

    keys: tuple[PublicKey, ...] = setting(
        kinds.texts.to(lambda keys: tuple(map(PublicKey.from_openssh, keys))), default=()
    )
    """The approver's public keys, as in a file ``id_ed25519.pub``; at least one, but where
    ``[approvals] application`` is true."""

    roles: tuple[str, ...] = setting(kinds.texts, default=())
    """The approver's roles, which a policy may ask for."""


@dataclass(frozen=True, slots=True)
class ApprovalsConfig:
    """How requests for an approval are answered and limited.

    ::

        [approvals]
        application = true
        application_roles = ["lead"]
        roles = "acme.people:approver_roles"
        on_request = "acme.desk:tell"
        on_expiring = "acme.desk:hurry"
        on_expired = "acme.desk:over"
        expiring_seconds = 900
        pending_per_agent = 100
        pending_per_principal = 100
    """

    application: bool = setting(kinds.boolean, default=False)
    """Whether the application may vouch for an answer, in the place of an approver's key."""

    application_roles: tuple[str, ...] = setting(kinds.texts, default=())
    """The roles for which such an answer counts; needs ``application = true``."""

    roles: str | None = setting(kinds.text, default=None)
    """A function, ``package.module:callable``, from a principal to the roles of an approver."""

    on_request: str | None = setting(kinds.text, default=None)
    """A function, ``package.module:callable``, that is called with each new request."""

    on_expiring: str | None = setting(kinds.text, default=None)
    """A function, ``package.module:callable``, that is called once with each request whose end is
    near."""

    on_expired: str | None = setting(kinds.text, default=None)
    """A function, ``package.module:callable``, that is called once with each request that has
    expired."""

    expiring_seconds: int = setting(kinds.count, default=300)
    """How many seconds before its end ``on_expiring`` hears of a request; of a request that lives
    less than twice as long, half of its time."""

    pending_per_agent: int = setting(kinds.count, default=Limits().per_agent)
    """How many requests of one agent may wait."""

    pending_per_principal: int = setting(kinds.count, default=Limits().per_principal)
    """How many requests for one principal may wait."""

    def __post_init__(self) -> None:
        if self.application_roles and not self.application:
            raise MistakeError("application_roles", "application = true beside it")

    @property
    def limits(self) -> Limits:
        """How many requests may wait at once."""
        return Limits(self.pending_per_agent, self.pending_per_principal)


def roster_of(
    root: Table, people: Mapping[str, ApproverConfig], approvals: ApprovalsConfig
) -> Roster:
    """Return the roster of ``[approvers]``; raises ``ConfigError``."""
    outer, approvers = root.table("approvers"), {}
    for name, one in people.items():
        table = outer.table(name)
        if not one.keys and not approvals.application:
            expected = (
                "a list of at least one line of a file id_ed25519.pub (an approver without keys "
                "answers through the application: [approvals] application = true)"
            )
            raise table.mistake("keys", expected)
        principal = f"user:{name}" if one.principal is None else one.principal
        try:
            approvers[name] = Approver(name, principal, one.keys, one.roles)
        except ConfigError as error:
            raise ConfigError(f"{table.name('principal')}: {error}") from error
    try:
        return Roster(approvers, approvals.application, approvals.application_roles)
    except ConfigError as error:
        raise ConfigError(f"{outer.name()}: {error}") from error
