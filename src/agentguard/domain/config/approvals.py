"""Reads ``[approvers]``, the people who approve calls, and the limits in ``[approvals]``."""

from __future__ import annotations

from agentguard.approvals.roster import Approver, Roster
from agentguard.approvals.store import Limits
from agentguard.domain.config.table import Table
from agentguard.errors import ConfigError, KeyMaterialError
from agentguard.signing.keys import PublicKey


def read_roster(root: Table, approvals: Table) -> Roster:
    """Read ``[approvers]``: the principal, OpenSSH public keys and roles of each approver.

    ``[approvals]`` says whether the application may approve without a signature, and for which
    roles.
    """
    application = approvals.boolean("application", default=False)
    application_roles = approvals.texts("application_roles", ())
    if application_roles and not application:
        raise approvals.mistake("application_roles", "application = true beside it")
    people: dict[str, Approver] = {}
    for name, table in root.tables("approvers"):
        principal = table.principal("principal", table.text("principal", f"user:{name}"))
        keys = table.texts("keys", ())
        try:
            public_keys = tuple(PublicKey.from_openssh(key) for key in keys)
        except KeyMaterialError as error:
            raise ConfigError(f"{table.name('')}: {error}") from error
        if not public_keys and not application:
            expected = (
                "a list of at least one line of a file id_ed25519.pub (an approver without keys "
                "answers through the application: [approvals] application = true)"
            )
            raise table.mistake("keys", expected)
        people[name] = Approver(name, principal, public_keys, tuple(table.texts("roles", ())))
        table.reject_unknown()
    try:
        return Roster(people, application, application_roles)
    except ConfigError as error:
        raise ConfigError(f"{root.name('approvers')}: {error}") from error


def read_limits(approvals: Table) -> Limits:
    """Read from ``[approvals]`` how many requests of an agent or a principal may wait at once."""
    default = Limits()
    return Limits(
        approvals.count("pending_per_agent", default.per_agent),
        approvals.count("pending_per_principal", default.per_principal),
    )
