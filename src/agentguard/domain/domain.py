"""A trust domain in a state directory: how a domain is founded, and how a guard opens it.

A domain is its keys, its trust document and its log. ``ephemeral.py`` has a domain in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from agentguard.approvals.store import Limits
from agentguard.domain import founding, handover, keystore, trust_pin
from agentguard.domain.config import NO_DOMAIN, Config
from agentguard.domain.ephemeral import announce_keys, new_key, trust_of
from agentguard.domain.passphrase import Passphrase, ask, held
from agentguard.errors import (
    ConfigError,
    KeyMaterialError,
    StorageError,
    VerificationError,
)
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Secret, Signer
from agentguard.storage import anchor, approval_files, files, registry_file, state_location
from agentguard.storage.approval_files import FileApprovals
from agentguard.storage.journal_files import FileJournal
from agentguard.storage.lease import Lessor
from agentguard.storage.ledger import Inheritance, Ledger
from agentguard.storage.log import ShardLog
from agentguard.storage.reader import StateReader
from agentguard.storage.revocations import FileRevocations
from agentguard.storage.runs import FileRuns


@dataclass(frozen=True, slots=True, eq=False)
class StateDomain:
    """The ``Domain`` in the state directory of a configuration."""

    settings: Config
    passphrase: Passphrase = field(repr=False)
    trust: TrustDocument
    issuer: Signer
    log_key: Signer

    def ledger(self, parent: Inheritance | None = None) -> Ledger:
        """Return one that has read nothing yet, or that knows what a fork's parent knew."""
        settings = self.settings
        return Ledger(
            settings.state, settings.anchor, self._trust_by_now, self.log_key, parent=parent
        )

    def lease(self, now: datetime, ledger: Ledger | None = None) -> ShardLog:
        """Lease a shard, and announce in it the keys that were rotated or revoked."""
        now = self.in_force(now)
        _require_place(self.settings, self.trust)
        try:
            log = self._lessor().lease(now, ledger or self.ledger())
        except VerificationError:
            fresh = self.renewed()  # what did not verify may be a new key's by now
            if fresh is None:
                raise
            return fresh.lease(now, ledger)
        try:
            handover.announce(self.settings.state, log, self.issuer, now)
        except BaseException:
            log.close()
            raise
        return log

    def read(self) -> StateReader:
        """Open the log to read; whoever opens it may close it."""
        return StateReader(self.settings.state)

    def revocations(self, ledger: Ledger | None = None) -> FileRevocations:
        """Bring what is kept of the log up to what the log says, and return it."""
        ledger = ledger or self.ledger()
        ledger.keep()
        return FileRevocations(self.settings.state, ledger)

    def approvals(self, limits: Limits, ledger: Ledger | None = None) -> FileApprovals:
        """Return the folder in the state, which is held against the log."""
        return FileApprovals(
            self.settings.state, ledger or self.ledger(), limits, self._keys_by_now
        )

    def journal(self, ledger: Ledger | None = None) -> FileJournal:
        """Return the folder in the state, whose pages the log's key signs."""
        return FileJournal(self.settings.state, self._keys_by_now, ledger or self.ledger())

    def runs(self) -> FileRuns:
        """Return the folder in the state, each file of which the log's key signs."""
        return FileRuns(self.settings.state, self._keys_by_now)

    def _keys_by_now(self) -> tuple[Signer, TrustDocument]:
        return self.log_key, self._trust_by_now()

    def _trust_by_now(self) -> TrustDocument:
        """Return the trust document that counts, whatever was rotated since; raises as it does."""
        state = self.settings.state
        trust = keystore.load_trust(state)
        handover.require_same(state, self.settings.anchor, trust)
        return trust

    def renewed(self) -> StateDomain | None:
        """Take the domain up again if another trust document counts by now, or should.

        Raises as ``take_up`` does, also where the log goes on in another state by now.
        """
        state = self.settings.state
        _require_place(self.settings, self.trust)
        changed = handover.is_due(state) or keystore.load_trust(state) != self.trust
        return take_up(self.settings, self.passphrase) if changed else None

    def in_force(self, now: datetime) -> datetime:
        """Return ``now``, or when the newest key began to count: what is earlier, it can't sign.

        Somebody has waited for a rotation, or has a clock that is behind another process's.
        """
        begun = max(key.not_before for key in self.trust.keys)
        return max(now, datetime.fromtimestamp(begun, UTC))

    def registered(self) -> frozenset[int]:
        """Return the shards that the issuer has listed; raises as ``lease`` does."""
        return self._lessor().registered()

    def _lessor(self) -> Lessor:
        settings = self.settings
        return Lessor(settings.state, settings.anchor, self.trust, self.issuer, self.log_key)


def found(
    config: Config,
    passphrase: Secret | bytes,
    *,
    now: datetime,
    ready: Callable[[TrustDocument], object] = lambda _trust: None,
) -> TrustDocument:
    """Make keys, trust document and log in ``config.state``, which must hold none of them.

    Whoever dies founding leaves nothing there. ``ready`` is told when all is made, and nothing
    counts yet: what it raises undoes it. Raises ``StorageError`` (``storage.exists``,
    ``storage.readonly``).
    """
    passphrase = Secret.of(passphrase)
    issuer, log_key, admin = (new_key() for _ in range(3))
    trust = trust_of(config.trust_domain, now, issuer=issuer, log=log_key, admin=admin)
    with founding.filling(config.state) as state:
        try:
            if config.anchor is not None:  # first, since it may lie where this user can't write
                trust_pin.keep(config.anchor, config.state, trust, made_in=state)
            files.write_new(state / ".gitignore", b"*\n")
            keystore.save_key(state, "issuer", issuer, passphrase)
            keystore.save_key(state, "log", log_key, passphrase)
            keystore.save_key(state, "admin", admin, passphrase)
            files.write_new(state / keystore.TRUST, trust.dumps())
            log = Lessor(state, config.anchor, trust, issuer, log_key).lease(now)
            try:
                announce_keys(log, issuer, trust, now)
            finally:
                log.close()
            ready(trust)
        except BaseException:
            if config.anchor is not None:
                trust_pin.forget(config.anchor, trust.log)
            raise
    return trust


def take_up(settings: Config, passphrase: Passphrase, *, may_be_copy: bool = False) -> StateDomain:
    """Open the domain in ``settings.state`` to act in it, with the keys in force.

    Raises ``StorageError`` (``storage.copied`` for a copy of the log's state, unless it
    ``may_be_copy``), ``KeyMaterialError``, ``DecodeError``, ``VerificationError``
    (``trust.changed``), or ``ConfigError`` for another domain's state.
    """
    passphrase = held(passphrase)
    state = settings.state
    _require_state(state)
    while True:
        home = _read(settings, passphrase)  # outside the lock: to decrypt a key is slow on purpose
        with registry_file.locked(state):
            # nobody rotates a key while this is held
            if handover.is_due(state):
                handover.finish(state, settings.anchor, ask(passphrase))
            elif keystore.load_trust(state) == home.trust:
                return _checked(home, may_be_copy=may_be_copy)


def take_up_locked(settings: Config, passphrase: Passphrase) -> StateDomain:
    """Do as ``take_up``, for who is inside ``registry_file.locked`` already."""
    passphrase = held(passphrase)
    state = settings.state
    _require_state(state)
    if handover.is_due(state):
        handover.finish(state, settings.anchor, ask(passphrase))
    return _checked(_read(settings, passphrase))


def _require_state(state: Path) -> None:
    if not state.is_dir():
        message = f"there is no state at {state}: run agentguard init"
        raise StorageError(message, code="storage.missing")
    keystore.refuse_if_exposed(state)
    refuse_links(state)


def refuse_links(state: Path) -> None:
    """Refuse a state in which a link leads elsewhere; raises ``StorageError``."""
    files.refuse_links(state, state / approval_files.FOLDER)


def _read(settings: Config, passphrase: Passphrase) -> StateDomain:
    """Read the trust document, the issuer's key and the log's, which may not be of one moment."""
    state = settings.state
    trust = keystore.load_trust(state)
    require_same_domain(settings, trust)
    secret = ask(passphrase)
    issuer = keystore.load_key(state, "issuer", secret)
    log_key = keystore.load_key(state, "log", secret)
    return StateDomain(settings, passphrase, trust, issuer, log_key)


def require_same_domain(settings: Config, trust: TrustDocument) -> None:
    """Refuse a state that was founded for another trust domain than the configuration names."""
    if trust.trust_domain != settings.trust_domain:
        named = "none" if settings.trust_domain == NO_DOMAIN else repr(settings.trust_domain)
        message = (
            f"{settings.source}: trust_domain: expected {trust.trust_domain!r}, for which the "
            f"state {settings.state} was founded, got {named}"
        )
        raise ConfigError(message)


def _checked(home: StateDomain, *, may_be_copy: bool = False) -> StateDomain:
    state = home.settings.state
    handover.require_same(state, home.settings.anchor, home.trust)
    require_trusted(state, home.trust, issuer=home.issuer, log=home.log_key)
    if not may_be_copy:
        _require_place(home.settings, home.trust)
    return home


def _require_place(settings: Config, trust: TrustDocument) -> None:
    """Raise ``StorageError`` (``storage.copied``) for a copy of the state where the log goes on."""
    if settings.anchor is not None:
        state_location.require(anchor.log_folder(settings.anchor, trust.log), settings.state)


def require_trusted(state: Path, trust: TrustDocument, **signers: Signer) -> None:
    """Refuse keys that the trust document beside them does not know: nobody could verify them.

    Nor are old ones taken, which were rotated out. Raises ``KeyMaterialError`` (``key.mismatch``).
    """
    for use, signer in signers.items():
        if signer.public_key not in trust.current(use):  # type: ignore[arg-type]
            message = f"the {use} key in {state} is not the one of {state / keystore.TRUST}"
            raise KeyMaterialError(f"{message}: restore the state", code="key.mismatch")
