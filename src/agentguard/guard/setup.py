"""``Setup``: what a configuration says, ready for use; and the ports that calls have from it.

``process.py`` opens the state, and keeps the setup in force.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from agentguard.approvals.quorum import unmeetable
from agentguard.audit.kinds.announcements import ConfigEntry, PolicyEntry, RosterEntry
from agentguard.call.invocation import timestamp
from agentguard.domain.config import Config
from agentguard.domain.directory import Directory
from agentguard.domain.protocol import Domain
from agentguard.domain.secret_sources import open_secrets
from agentguard.errors import ConfigError, PolicyError
from agentguard.flow.ports import Clock, Ports
from agentguard.guard.callbacks import Callbacks
from agentguard.guard.request_ends import RequestEnds
from agentguard.paths import Places
from agentguard.policy.engine import Engine, StatesRequirements
from agentguard.policy.names import Names
from agentguard.secrets.desk import Desk
from agentguard.secrets.rule import SecretRule
from agentguard.signing import canonical
from agentguard.store.approvals import LoggedApprovals
from agentguard.store.journal import LoggedJournal

if TYPE_CHECKING:
    from agentguard.store.log import StoreLog


_SERVER: Final = (
    "a guard server knows the names in its configuration alone, because the tools of its clients "
    "come later"
)


class Setup(NamedTuple):
    """What a configuration says, ready for use: policy, functions, directory and secrets.

    ``names`` are those that tools give to the policy's input.
    """

    settings: Config
    engine: Engine
    callbacks: Callbacks
    directory: Directory
    secrets: Mapping[str, SecretRule]
    names: Names

    @classmethod
    def of(cls, settings: Config, engine: Engine, callbacks: Callbacks, *, is_server: bool) -> Self:
        """Return the setup of a configuration; raises ``ConfigError``.

        So it does where the text of the policy asks for an approval that nobody can give. Raises
        ``PolicyError`` (``policy.invalid``) where a server's policy reads what no table of the
        configuration gives: the tools of its clients come and go.
        """
        _require_meetable(settings, engine, callbacks)
        names = Names(engine, settings.given_names)
        if is_server and names.unknown:
            message = "\n".join((*names.unknown.values(), _SERVER))
            raise PolicyError(message, code="policy.invalid")
        directory, secrets = Directory(settings), open_secrets(settings)
        return cls(settings, engine, callbacks, directory, secrets, names)


def _require_meetable(settings: Config, engine: Engine, callbacks: Callbacks) -> None:
    """Refuse a policy whose requirements nobody on the roster could meet, whoever asks.

    Without anybody who could answer, and while the policy is only observed, a guard begins: the
    calls are denied (``approval.unavailable``), or run.
    """
    is_enforced = settings.policy is None or settings.policy.mode == "enforce"
    if not (is_enforced and settings.roster.can_answer and isinstance(engine, StatesRequirements)):
        return
    asks_application = callbacks.approver_roles is not None
    requirements = engine.requirements
    for nobody in unmeetable(requirements, settings.roster, asks_application=asks_application):
        message = (
            f"{settings.source}: the policy asks for an approval that nobody can give: {nobody}"
        )
        raise ConfigError(message, code="approval.unavailable")


def ports_on(
    setup: Setup, log: StoreLog, domain: Domain, clock: Clock
) -> tuple[Ports, LoggedApprovals]:
    """Put the ports of a configuration together; return them and their store of requests."""
    engine, settings, callbacks = setup.engine, setup.settings, setup.callbacks
    ends = RequestEnds(log, settings.roster, clock, callbacks, settings.approvals.expiring_seconds)
    approvals = LoggedApprovals(log, domain.page_keys, settings.approvals.limits, ends.record)
    ports = Ports(
        engine=engine,
        engine_name={"name": engine.name, "version": engine.version},
        log=log,
        clock=clock,
        entropy=os.urandom,
        config_sha256=canonical.sha256_hex(settings.encoded),
        redactions=settings.redact,
        approvals=approvals,
        journal=LoggedJournal(log, domain.page_keys, domain.journal_secret),
        secrets=Desk(setup.secrets, log, clock),
        roster=settings.roster,
        trust_domain=settings.trust_domain,
        places=Places(settings.paths),
        names=setup.names,
        end_expired=partial(ends.look, approvals),
        on_request=callbacks.on_request,
        asks_application=callbacks.approver_roles is not None,
        mode=settings.policy.mode if settings.policy is not None else "enforce",
    )
    return ports, approvals


def put_on_record(setup: Setup, ports: Ports, domain: Domain) -> None:
    """Log the configuration, the roster and the policy, before the first call that uses them."""
    settings, engine, log = setup.settings, setup.engine, ports.log
    at = timestamp(ports.now())
    log.enqueue(ConfigEntry.new(settings.encoded, at=at))
    if settings.roster.can_answer:
        log.enqueue(RosterEntry.new(domain.issuer, settings.trust_domain, settings.roster, at=at))
    log.append(PolicyEntry.new(ports.engine_name, engine.policy_sha256, engine.policy_files, at=at))
