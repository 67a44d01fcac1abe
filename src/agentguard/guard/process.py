"""What a guard runs on in one process: its threads, its shard of the log, and its line.

The parts of the line are put together here and nowhere else. A line begins when it is first
needed, and anew in a fork, with a shard of its own; the keys that sign the log are looked after as
long as it goes on. What an application is given of all that is ``Guard``.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from agentguard import telemetry
from agentguard.approvals.inbox import Store
from agentguard.approvals.request import ApprovalRequest
from agentguard.audit import records
from agentguard.call.invocation import timestamp
from agentguard.domain.config import Config
from agentguard.domain.ephemeral import Domain
from agentguard.errors import AgentguardError, StorageError
from agentguard.flow.drive import Executors
from agentguard.flow.effects import Line
from agentguard.identity.trust import seconds
from agentguard.policy.document import MAX_AT_ONCE
from agentguard.policy.engine import Engine
from agentguard.signing import canonical
from agentguard.storage.log import ShardLog

if TYPE_CHECKING:
    from agentguard.storage.ledger import Inheritance, Ledger

_LOGGER = logging.getLogger("agentguard")

KEEP_EVERY: Final = 4096
"""Entries after which a guard keeps what the log says, so that the next opening reads no more."""

_LOOK_AFTER: Final = timedelta(minutes=5)
"""After this time a guard looks for new keys before it signs a checkpoint."""


class Runtime:
    """One guard's line in this process, and what it takes to run calls on it.

    ``home`` is the trust domain as it was last taken up, ``requests`` where requests for approvals
    wait (None before the first line), ``executors`` are this process's threads. Its methods may be
    called from any thread.
    """

    def __init__(
        self,
        settings: Config,
        engine: Engine,
        home: Domain,
        on_request: Callable[[ApprovalRequest], object] | None,
    ) -> None:
        self._settings = settings
        self._on_request = on_request
        self.requests: Store | None = None
        self._engine = engine
        self.home = home
        self._closed = False
        self._line: Line | None = None
        self._log: ShardLog | None = None
        self._ledger: Ledger | None = None
        self._inherited: Inheritance | None = None
        self._renew()

    def _renew(self) -> None:
        """Make what a fork does not inherit in working order: the executor's threads, the lock."""
        self.executors = Executors(
            ThreadPoolExecutor(32, thread_name_prefix="agentguard"),
            ThreadPoolExecutor(32, thread_name_prefix="agentguard-facts"),
            # an evaluation's time begins in its thread: it must not wait for one
            ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="agentguard-engine"),
        )
        # a signal's handler may close, or make a call, while this thread begins or renews
        self._beginning = threading.RLock()
        self._renewing = threading.RLock()
        self._kept_at = 0

    def in_force(self) -> Line:
        """Return this process's line; a fork leases a shard of its own when it first needs one."""
        if self._line is not None:
            return self._line
        with self._beginning:
            if self._line is None:
                self._line = self._begin()
            return self._line

    def _begin(self) -> Line:
        self._require_open()
        self._looked = clock()
        self._signs_for = home = self.renewed_home()  # a fork may come long after a rotation
        ledger = home.ledger(self._inherited)
        log = home.lease(self._looked, ledger)
        try:
            line = self._line_on(log, home, ledger)
            self._log, self._ledger, self._kept_at = log, ledger, log.head.size
            self._require_open()  # still
        except BaseException:
            log.close()
            raise
        log.check_before_signing(partial(_look, weakref.ref(self)))
        return line

    def _line_on(self, log: ShardLog, home: Domain, ledger: Ledger | None) -> Line:
        """Put the parts of the line together, and announce in the log what calls are decided by."""
        engine, settings = self._engine, self._settings
        line = Line(
            engine=engine,
            engine_name={"name": engine.name, "version": engine.version},
            log=log,
            clock=clock,
            entropy=os.urandom,
            config_sha256=canonical.sha256_hex(settings.encoded),
            redactions=settings.redactions,
            revocations=home.revocations(ledger),
            approvals=self.store(home, ledger),
            journal=home.journal(ledger),
            runs=home.runs(),
            roster=settings.roster,
            trust_domain=settings.trust_domain,
            on_request=self._on_request,
            mode=settings.policy.mode if settings.policy is not None else "enforce",
            principal_roles={
                name: principal.roles for name, principal in (settings.principals or {}).items()
            },
        )
        at = timestamp(max(clock(), log.last_at))
        log.enqueue(records.config(settings.encoded, at=at))
        if settings.roster.can_answer:
            log.enqueue(records.roster(home.issuer, settings.trust_domain, settings.roster, at=at))
        log.append(
            records.policy(line.engine_name, engine.policy_sha256, engine.policy_files, at=at)
        )
        return line

    def store(self, home: Domain, ledger: Ledger | None = None) -> Store:
        """Return where requests wait; a guard in memory has one place for that."""
        if self.requests is None:
            self.requests = home.approvals(self._settings.limits, ledger)
        return self.requests

    def _require_open(self) -> None:
        if self._closed:
            raise StorageError("the guard is closed: open it again", code="storage.closed")

    def renewed_home(self) -> Domain:
        """Return the domain; it is taken up again where somebody has rotated its keys."""
        with self._renewing:  # two at once could end with the older one
            renewed = self.home.renewed()
            if renewed is not None:
                self.home = renewed
            return self.home

    def _look(self, at: str) -> None:
        """See to it that the log signs entries up to the time ``at`` with a key that counts then.

        An agent that waits for a tool renews no credential, however long that takes; entries that
        wait to be written may be older than the new key. Raises ``StorageError``.
        """
        moment = datetime.fromisoformat(at)
        if self._unkept() >= KEEP_EVERY and not self._closed:
            self._keep_later()
        self._look_for_keys(moment)
        home = self.home
        if home is not self._signs_for and self._log is not None:
            key = home.trust.trusted("log", home.log_key.key_id)
            if key.not_before <= seconds(moment):
                self._log.sign_with(home.log_key)
                if self._ledger is not None:
                    self._ledger.sign_with(home.log_key)
                self._signs_for = home

    def _look_for_keys(self, moment: datetime) -> None:
        if abs(moment - self._looked) < _LOOK_AFTER:
            return
        try:
            self.renewed_home()
        except (AgentguardError, OSError) as error:
            message = f"whether the log's key still counts can't be found out: {error}"
            raise StorageError(message, code=getattr(error, "code", "storage.failed")) from error
        self._looked = moment

    def _unkept(self) -> int:
        """Return how many entries this process has written since it has kept what the log says."""
        return self._log.head.size - self._kept_at if self._log is not None else 0

    def _keep_later(self) -> None:
        """Keep what the log says by now, in a thread: a commit does not wait for it."""
        if self._log is not None:
            self._kept_at = self._log.head.size
            with suppress(RuntimeError):  # the threads end: it is kept at the close
                self.executors.log.submit(self._keep)

    def _keep(self) -> None:
        if self._ledger is None:
            return
        try:
            self._ledger.keep()
        except (AgentguardError, OSError):
            # the log is whole: whoever opens it next reads more of it, or says what is wrong
            _LOGGER.warning("what the log says by now could not be kept", exc_info=True)

    def flush(self) -> None:
        """Make durable what was enqueued in this process, if anything was."""
        if self._log is not None:
            self._log.flush()

    def forked(self) -> None:
        """In a fork: drop the parent's shard, and keep what the parent knew of the log."""
        if self._ledger is not None:
            self._inherited = self._ledger.inheritance()
        self._line = self._log = self._ledger = self.requests = None
        self._renew()

    @property
    def closed(self) -> bool:
        """True once it was closed."""
        return self._closed

    def close(self) -> None:
        """Make everything durable and give the log back; no line begins from then on."""
        with self._beginning:  # no log is leased past it
            self._closed = True
            log = self._log
        try:
            if log is not None:
                log.close()
            if self._ledger is not None and self._ledger.leaves_much(self._unkept()):
                self._keep()
        finally:
            for executor in self.executors:
                executor.shutdown(wait=False)
            self._engine.close()
            telemetry.flush()


def _look(runtime: weakref.ref[Runtime], at: str) -> None:
    """Look for a log that may outlive its runtime, and is not to keep it."""
    alive = runtime()
    if alive is not None:
        alive._look(at)  # noqa: SLF001  a runtime and this file are one unit


def clock() -> datetime:
    """Return the time of this machine: every guard's clock."""
    return datetime.now(UTC)
