"""Opens what a guard needs in one process: the threads, the log, and the ports.

The ports (``flow.ports.Ports``) are what each call uses: policy engine, log, clock, approvals,
journal and so on; ``setup.py`` puts them together. A process opens its ports when a call first
needs them; a forked process opens new ports. ``Runtime`` also switches to a new
key after the key that signs the log was rotated. Applications use ``Guard`` (``guard.py``).
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, NamedTuple

from agentguard import telemetry
from agentguard.approvals.inbox import ApprovalInbox
from agentguard.approvals.status import Shows, shows_all
from agentguard.audit.log import LogReader
from agentguard.audit.request_status import LoggedHistory
from agentguard.call.invocation import timestamp
from agentguard.call.journal import RunStore
from agentguard.domain.config import Config
from agentguard.domain.directory import Directory
from agentguard.domain.protocol import Domain
from agentguard.errors import AgentguardError, StorageError
from agentguard.flow.drive import Executors
from agentguard.flow.ports import Ports
from agentguard.guard.callbacks import Callbacks
from agentguard.guard.request_ends import LOOK_EVERY
from agentguard.guard.setup import Setup, ports_on, put_on_record
from agentguard.identity.trust import seconds
from agentguard.policy.document import MAX_AT_ONCE
from agentguard.policy.engine import Engine
from agentguard.policy.names import Names
from agentguard.store.approvals import LoggedApprovals
from agentguard.store.log import StoreLog
from agentguard.store.log_probe import LogProbe
from agentguard.store.sealed_pages import runs

_LOGGER = logging.getLogger("agentguard")

_CHECK_KEYS_AFTER: Final = timedelta(minutes=5)
"""The time after which a guard looks for new keys before it signs a checkpoint."""


_SHORTEST_PAUSE: Final = 0.05
"""The fewest seconds between two looks for requests whose time is over."""


class Present(NamedTuple):
    """A moment, and the domain as a look at its keys right after this moment found the domain.

    A key that was in force at the look was in force at the moment, too.
    """

    moment: datetime
    domain: Domain

    @property
    def at(self) -> int:
        """The moment in whole seconds since the epoch."""
        return seconds(self.moment)


class Runtime:
    """One guard's ports in this process, and the threads that calls need.

    ``domain`` is the trust domain as this process last opened the domain. ``requests`` is the store
    of the requests for approvals, None before the first ports. ``runs`` is the store of the
    adapters' records of runs. ``executors`` are this process's threads. The methods may be called
    from any thread.
    """

    def __init__(
        self,
        settings: Config,
        engine: Engine,
        domain: Domain,
        callbacks: Callbacks,
        *,
        is_server: bool,
    ) -> None:
        self._is_server = is_server
        self._setup = Setup.of(settings, engine, callbacks, is_server=is_server)
        self.requests: LoggedApprovals | None = None
        self.domain = domain
        self.runs: RunStore  # the process's first ports bring it
        self._closed = False
        self._ports: Ports | None = None
        self._log: StoreLog | None = None
        self._probe: LogProbe | None = None
        self._looks_until: threading.Event | None = None
        self._start_threads()

    def _start_threads(self) -> None:
        """Make the executors and the locks; those of a parent do not work in a forked process."""
        self.executors = Executors(
            ThreadPoolExecutor(32, thread_name_prefix="agentguard"),
            ThreadPoolExecutor(32, thread_name_prefix="agentguard-facts"),
            # the time-out of an evaluation begins at its submission, so each needs a free thread
            ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="agentguard-engine"),
            log_waits=not self.domain.is_in_memory,
        )
        # RLocks: no call that interrupts this thread waits for it
        self._ports_lock = threading.RLock()
        self._domain_lock = threading.RLock()

    def current_ports(self) -> Ports:
        """Return this process's ports; the first call in a process opens the ports."""
        if self._ports is not None:
            return self._ports
        with self._ports_lock:
            if self._ports is None:
                self._ports = self._open_ports()
            return self._ports

    def _open_ports(self) -> Ports:
        self._require_open()
        now = clock()
        self._note_key_check(now)
        # renewed, because a process may be forked long after a rotation
        self._signing_domain = domain = self.renewed_domain()
        give_back = domain.claim(alone=self._is_server)
        try:
            log = domain.open_log(now, clock)
        except BaseException:
            give_back()
            raise
        log.give_back_after_close(give_back)
        try:
            ports, self.requests = ports_on(self._setup, log, domain, clock)
            self.runs = runs(log, domain.page_keys)
            put_on_record(self._setup, ports, domain)
            self._log = log
            self._probe = LogProbe(log)
            self._require_open()  # another thread may have closed the guard meanwhile
        except BaseException:
            log.close()
            raise
        log.check_before_signing(partial(_check_keys, weakref.ref(self)))
        self._start_looking()
        return ports

    def _start_looking(self) -> None:
        """Look for requests whose time is over where somebody hears of them and nobody calls."""
        if (self._is_server or self._setup.callbacks.hears_of_ends) and self._looks_until is None:
            self._looks_until = until = threading.Event()
            weakref.finalize(self, until.set)
            threading.Thread(
                target=_look,
                args=(weakref.ref(self), until),
                name="agentguard-requests",
                daemon=True,
            ).start()

    def prepare(self, settings: Config, engine: Engine, callbacks: Callbacks) -> Callable[[], None]:
        """Put another configuration and its policy on record; return what makes calls use them.

        A call that has begun goes on with the earlier ones, whose engine is closed after the last
        such call. Raises ``AgentguardError``, and the earlier ones stay in force.
        """
        setup = Setup.of(settings, engine, callbacks, is_server=self._is_server)
        with self._ports_lock:
            earlier, log = self.current_ports(), self._log
            assert log is not None  # noqa: S101  ports have a log
            domain = self.domain
            ports, store = ports_on(setup, log, domain, clock)
            put_on_record(setup, ports, domain)

        def use() -> None:
            weakref.finalize(earlier, self._setup.engine.close)
            self._setup, self.requests = setup, store
            self._ports = ports
            self._start_looking()

        return use

    @property
    def names(self) -> Names:
        """The names that tools give to the policy's input."""
        return self._setup.names

    @property
    def directory(self) -> Directory:
        """The look-up of principals and owners."""
        return self._setup.directory

    def approval_store(self) -> LoggedApprovals:
        """Return the store of the requests for approvals, the same store for all callers."""
        self.current_ports()
        store = self.requests
        assert store is not None  # noqa: S101  ports have a store
        return store

    def end_expired(self) -> None:
        """End the requests whose time is over, and tell the application."""
        self.current_ports().end_expired()

    @property
    def is_durable(self) -> bool:
        """Whether the log and the policy are those that a configuration names."""
        return self._setup.settings.policy is not None

    @property
    def policy_place(self) -> str:
        """Where the policy is, for people: the path in the configuration, or the files."""
        policy = self._setup.settings.policy
        if policy is None:
            engine = self._setup.engine
            return ", ".join(sorted(engine.policy_files)) or engine.name
        return policy.path or self.policy_url or "the policy server"

    @property
    def policy_url(self) -> str | None:
        """The address of the policy server that the configuration names; None without one."""
        policy = self._setup.settings.policy
        return None if policy is None or policy.server is None else policy.server.url

    def inbox(self, shows: Shows = shows_all) -> ApprovalInbox:
        """Return the inbox in which people answer requests for approvals.

        Of past requests, the inbox knows those of the agents that ``shows`` lets through.
        """
        store, setup = self.approval_store(), self._setup
        history, roles = self.history(shows), setup.callbacks.approver_roles
        roster, end_expired = setup.settings.roster, self.end_expired
        return ApprovalInbox(store, roster, clock, roles, history, end_expired)

    def history(self, shows: Shows = shows_all) -> LoggedHistory:
        """Return what became of the requests of the agents that ``shows`` lets through."""

        def read() -> LogReader:
            self.flush()
            return self.domain.read()

        return LoggedHistory(read, clock, shows)

    def _require_open(self) -> None:
        if self._closed:
            raise StorageError("the guard is closed: open it again", code="storage.closed")

    def renewed_domain(self) -> Domain:
        """Return the domain; open the domain again first if somebody has rotated the keys."""
        with self._domain_lock:  # else a thread could replace a newer domain with an older one
            renewed = self.domain.renewed()
            if renewed is not None:
                self.domain = renewed
            return self.domain

    def present(self) -> Present:
        """Return the time, never before the newest entry of the log, and the domain by then.

        Raises as ``renewed_domain`` does.
        """
        return Present(self.current_ports().now(), self.renewed_domain())

    def _check_keys(self, at: str, *, is_due: bool) -> None:
        """Switch to the newest key that is valid at the time ``at``, before the log signs.

        A guard usually notices a rotation when an agent renews a credential. A guard without calls
        renews none, and so looks for new keys here, and where another process has signed with a new
        key (``is_due``). The entries that the log is about to sign may
        be older than the new key. Raises ``StorageError``.
        """
        if is_due or not self._keys_checked_from < at < self._keys_checked_until:
            self._look_for_new_keys(datetime.fromisoformat(at))
        domain = self.domain
        if domain is not self._signing_domain and self._log is not None:
            key = domain.trust.trusted_key("log", domain.log_key.key_id)
            if key.not_before <= seconds(datetime.fromisoformat(at)):
                self._log.sign_with(domain.log_key)
                self._signing_domain = domain

    def _look_for_new_keys(self, moment: datetime) -> None:
        try:
            self.renewed_domain()
        except (AgentguardError, OSError) as error:
            message = f"the guard can't look for new keys, so nothing is signed: {error}"
            raise StorageError(message, code=getattr(error, "code", "storage.failed")) from error
        self._note_key_check(moment)

    def _note_key_check(self, moment: datetime) -> None:
        """Note that the keys were checked at a time; times as ``timestamp`` writes them sort."""
        self._keys_checked_from = timestamp(moment - _CHECK_KEYS_AFTER)
        self._keys_checked_until = timestamp(moment + _CHECK_KEYS_AFTER)

    def flush(self) -> None:
        """Make all entries durable that this process has enqueued."""
        if self._log is not None and not self._log.closed:
            self._log.flush()

    def log_failure(self) -> StorageError | None:
        """Return why this process can't write the log, None where it can (``LogProbe``)."""
        return None if self._probe is None else self._probe.failure()

    def forked(self) -> None:
        """Drop the parent's log in a forked process."""
        self._ports = self._log = self._probe = self.requests = None
        self._looks_until = None
        self._start_threads()

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def close(self) -> None:
        """Make all entries durable and close the log; no call begins afterwards.

        Raises ``StorageError`` (``storage.busy``), and closes nothing, where the call interrupts
        this thread amid a commit.
        """
        if self._log is not None:
            self._log.require_uninterrupted()
        with self._ports_lock:  # afterwards no thread opens the log
            self._closed = True
            log = self._log
        if self._looks_until is not None:
            self._looks_until.set()
        try:
            if log is not None:
                log.close()
        finally:
            self.executors.shutdown()
            self._setup.engine.close()
            telemetry.flush()


def _check_keys(runtime: weakref.ref[Runtime], at: str, is_due: bool) -> None:  # noqa: FBT001
    """Check the keys, if the runtime is alive; a strong reference would keep the runtime alive."""
    target = runtime()
    if target is not None:
        target._check_keys(at, is_due=is_due)  # noqa: SLF001  a method of this file's class


def _look(runtime: weakref.ref[Runtime], until: threading.Event) -> None:
    """Look for requests whose time is over, until the runtime is closed or gone."""
    pause = _SHORTEST_PAUSE
    while not until.wait(max(pause, _SHORTEST_PAUSE)):
        target = runtime()
        if target is None:
            return
        ports = target._ports  # noqa: SLF001  a field of this file's class
        pause = LOOK_EVERY if ports is None else ports.end_expired()
        del target, ports


def clock() -> datetime:
    """Return this machine's wall-clock time, in UTC: the clock of every guard."""
    return datetime.now(UTC)
