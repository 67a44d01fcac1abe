"""A trust domain in a state directory: ``found`` creates the domain, and ``take_up`` opens it.

A trust domain is its keys, its trust document and its log. ``memory.py`` has a domain in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from agentguard.audit.head import Head
from agentguard.call.invocation import timestamp
from agentguard.domain import founding, handover, keystore, trust_pin
from agentguard.domain.config import NO_DOMAIN, Config
from agentguard.domain.new_keys import announce_keys, new_key, new_trust
from agentguard.domain.passphrase import Passphrase, ask, held
from agentguard.errors import (
    ConfigError,
    KeyMaterialError,
    StorageError,
)
from agentguard.flow.ports import Clock
from agentguard.identity.trust import TrustDocument, TrustedKey, Use
from agentguard.signing.keys import Secret, Signer
from agentguard.storage import (
    anchor,
    claim,
    files,
    reserve,
    state_location,
    state_lock,
)
from agentguard.store import sqlite
from agentguard.store.log import StoreLog
from agentguard.store.reader import StoredLog
from agentguard.store.sealed_pages import Keys
from agentguard.store.sqlite import path_in
from agentguard.store.state_log import open_log
from agentguard.store.store import first_head


@dataclass(frozen=True, slots=True, eq=False)
class StateDomain:
    """A ``Domain`` in a state directory, which the configuration names."""

    settings: Config
    passphrase: Passphrase = field(repr=False)
    trust: TrustDocument
    issuer: Signer
    log_key: Signer
    is_in_memory: ClassVar[bool] = False

    def claim(self, *, alone: bool) -> Callable[[], None]:
        """Claim the state for this process (``storage/claim.py``)."""
        return claim.take(self.settings.state, alone=alone)

    def open_log(
        self, now: datetime, clock: Clock | None = None, *, adopts: Head | None = None
    ) -> StoreLog:
        """Open the log, and record each rotation and revocation of a key so far.

        Without a ``clock``, it is this machine's, and not before ``now``. Entries that only a
        compromised key vouches for are refused (``storage.unvouched``), unless an administrator
        ``adopts`` the log with this head, or the key that replaces it is announced here. A log with
        another head is not adopted (``storage.locked``).
        """
        now = self.in_force(now)
        state, anchors, log = self.settings.state, self.settings.anchor, self.trust.log
        _require_place(self.settings, self.trust)
        reserve.fill(state)
        opened = open_log(
            state,
            anchors,
            log,
            self._log_keys,
            self.log_key,
            clock=clock or (lambda: max(now, datetime.now(UTC))),
            trusts_compromised=adopts is not None
            or "log" in keystore.next_keys(state, adopted=True),
        )
        try:
            _require_head(opened, adopts, state)
            handover.announce(state, opened, self.issuer, now)
        except BaseException:
            opened.close()
            raise
        return opened

    def _log_keys(self) -> Iterable[TrustedKey]:
        return self._trust_by_now().keys_for("log")

    def read(self) -> StoredLog:
        """Open the log to read; the caller closes the reader."""
        return StoredLog.of(self.settings.state)

    @property
    def page_keys(self) -> Keys:
        """The log's key, and what returns the trust document in the state."""
        return Keys(self.log_key, self._trust_by_now)

    def journal_secret(self) -> bytes:
        """Return what names journalled calls in the log; it outlives each key of the log."""
        # few programs have a framework that makes a call again
        from agentguard.storage import journal_secret  # noqa: PLC0415

        return journal_secret.secret(self.settings.state, self._trust_by_now(), self.log_key)

    def _trust_by_now(self) -> TrustDocument:
        """Read the trust document again, since somebody may have rotated keys meanwhile.

        Raises as ``keystore.load_trust`` and ``handover.require_same`` do.
        """
        state = self.settings.state
        trust = keystore.load_trust(state)
        handover.require_same(state, self.settings.anchor, trust)
        return trust

    def renewed(self) -> StateDomain | None:
        """Open the domain again if its trust document has changed, or a rotation is unfinished.

        Returns None if nothing has changed. Raises as ``take_up`` does, also where the log
        continues in another state by now.
        """
        state = self.settings.state
        _require_place(self.settings, self.trust)
        changed = handover.is_due(state) or keystore.load_trust(state) != self.trust
        return take_up(self.settings, self.passphrase) if changed else None

    def in_force(self, now: datetime) -> datetime:
        """Return ``now``, or the time from which the newest key is valid, if that time is later.

        The newest key can sign nothing earlier. ``now`` is earlier where this process waited for a
        rotation, or where this machine's clock is behind the clock of the rotation.
        """
        begun = max(key.not_before for key in self.trust.keys)
        return max(now, datetime.fromtimestamp(begun, UTC))


def found(
    config: Config,
    passphrase: Secret | bytes,
    *,
    now: datetime,
    ready: Callable[[TrustDocument], object] = lambda _trust: None,
) -> TrustDocument:
    """Create keys, trust document and log in ``config.state``, and return the trust document.

    ``config.state`` must not exist, or be an empty folder. A process that dies meanwhile leaves no
    state there. ``ready`` is called with the trust document when all files are written and the
    state is not at its path yet; an exception of ``ready`` undoes all. Raises ``StorageError``
    (``storage.exists``, ``storage.readonly``).
    """
    passphrase = Secret.of(passphrase)
    issuer, log_key, admin = (new_key() for _ in range(3))
    trust = new_trust(config.trust_domain, now, {"issuer": issuer, "log": log_key, "admin": admin})
    with founding.filling(config.state) as state:
        try:
            if config.anchor is not None:  # first: this user may have no right to write there
                trust_pin.keep(config.anchor, config.state, trust, made_in=state)
            files.write_new(state / ".gitignore", b"*\n")
            keystore.save_key(state, "issuer", issuer, passphrase)
            keystore.save_key(state, "log", log_key, passphrase)
            keystore.save_key(state, "admin", admin, passphrase)
            files.write_new(state / keystore.TRUST, trust.dumps())
            sqlite.make(path_in(state), first_head(trust.log, log_key, timestamp(now)))
            founded = replace(config, state=state)
            log = StateDomain(founded, lambda: passphrase, trust, issuer, log_key).open_log(now)
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
        # outside the lock, because the decryption of a key is slow on purpose
        domain = _read(settings, passphrase)
        with state_lock.held(state):
            # nobody rotates a key while this process holds the lock
            if handover.is_due(state):
                handover.finish(state, settings.anchor, ask(passphrase))
            elif keystore.load_trust(state) == domain.trust:
                return _checked(domain, may_be_copy=may_be_copy)


def take_up_locked(settings: Config, passphrase: Passphrase) -> StateDomain:
    """Open the domain as ``take_up`` does; the caller holds ``state_lock.held``."""
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
    files.refuse_links(state)


def _read(settings: Config, passphrase: Passphrase) -> StateDomain:
    """Read the trust document and two keys; a rotation may happen between the readings."""
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


def _checked(domain: StateDomain, *, may_be_copy: bool = False) -> StateDomain:
    state = domain.settings.state
    handover.require_same(state, domain.settings.anchor, domain.trust)
    require_trusted(state, domain.trust, {"issuer": domain.issuer, "log": domain.log_key})
    if not may_be_copy:
        _require_place(domain.settings, domain.trust)
    return domain


def _require_place(settings: Config, trust: TrustDocument) -> None:
    """Raise ``StorageError`` (``storage.copied``) if the log continues in another state."""
    if settings.anchor is not None:
        state_location.require(anchor.log_folder(settings.anchor, trust.log), settings.state)


def require_trusted(state: Path, trust: TrustDocument, signers: Mapping[Use, Signer]) -> None:
    """Refuse keys that are not in force by the trust document beside them.

    Nobody could verify what such a key signs. A key that was rotated out is refused, too. Raises
    ``KeyMaterialError`` (``key.mismatch``).
    """
    for use, signer in signers.items():
        if signer.public_key not in trust.current(use):
            message = f"the {use} key in {state} is not the one of {state / keystore.TRUST}"
            raise KeyMaterialError(f"{message}: restore the state", code="key.mismatch")


def _require_head(log: StoreLog, adopts: Head | None, state: Path) -> None:
    if adopts is not None and log.seen != adopts:
        raise changed(state)


def changed(state: Path) -> StorageError:
    """Return the error for a state that is not the one that an administrator has confirmed."""
    message = (
        f"{state} or its anchor has changed since the comparison that was confirmed: stop the "
        f"processes that write there, and run {anchor.ADOPT} again; the anchor was not changed"
    )
    return StorageError(message, code="storage.locked")
