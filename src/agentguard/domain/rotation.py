"""Rotates a long-lived key of a trust domain, and revokes a key that was rotated before.

After a rotation the old key stays valid for earlier signatures. During an overlap the old key is
valid for new signatures too, because running processes use the old key until they notice the
rotation. A compromised key has no overlap, and no signature after the time of the compromise
counts. Verifiers need the new trust document. ``handover.py`` replaces the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from agentguard.domain import handover, keystore
from agentguard.domain.config import Config
from agentguard.domain.domain import require_trusted, take_up, take_up_locked
from agentguard.domain.new_keys import new_key
from agentguard.errors import AgentguardError, ConfigError, StorageError
from agentguard.identity.trust import TrustDocument, TrustedKey, Use, seconds
from agentguard.signing.keys import Secret
from agentguard.storage import journal_secret, state_lock

OVERLAP: Final = timedelta(hours=24)
"""How long an old key is valid for new signatures after a rotation."""

MIN_OVERLAP: Final = timedelta(hours=2)
"""The shortest overlap: a running process looks for new keys about once an hour."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotation: the new trust document, and the old and the new key.

    The new key is valid in every case. ``unfinished`` is the error that prevented the remaining
    steps (the other files, the entry in the log), None if there was no error; the next process that
    opens the state does the remaining steps.
    """

    trust: TrustDocument
    old: TrustedKey
    new: TrustedKey
    unfinished: AgentguardError | None


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revocation: the new trust document, and the compromised key.

    ``unfinished`` has the meaning that ``Rotation.unfinished`` has.
    """

    trust: TrustDocument
    key: TrustedKey
    unfinished: AgentguardError | None


def rotate(
    settings: Config,
    passphrase: Secret | bytes,
    use: Use,
    *,
    now: datetime,
    overlap: timedelta | None = None,
    compromised_since: datetime | None = None,
) -> Rotation:
    """Replace the key for ``use`` with a new key.

    The old key stays valid for new signatures for ``overlap``, ``OVERLAP`` by default. With
    ``compromised_since`` there is no overlap, and no signature of the old key after that time
    counts. Raises ``ConfigError``, ``StorageError`` (``storage.rolled_back``), and the errors of
    ``domain.take_up``; nothing is changed then.
    """
    passphrase = Secret.of(passphrase)
    if compromised_since is None:
        lifetime = _overlap(overlap)
    elif overlap is not None:
        raise ConfigError("a compromised key has no overlap: name one of the two")
    else:
        _require_past(compromised_since, now)
        lifetime = timedelta(0)
    state, anchors = settings.state, settings.anchor
    _refuse_rolled_back(settings, passphrase, now)
    with state_lock.held(state):
        domain = take_up_locked(settings, passphrase)
        now = domain.in_force(now)
        old = keystore.load_key(state, use, passphrase)
        require_trusted(state, domain.trust, {use: old})
        new = new_key()
        trust = domain.trust.rotated(
            old.public_key,
            new.public_key,
            now=seconds(now),
            until=seconds(now + lifetime),
            compromised_since=None if compromised_since is None else seconds(compromised_since),
        )
        if use == "log":
            journal_secret.hand_on(state, domain.trust, old, new)
        handover.begin(state, anchors, trust, use=use, new=new, passphrase=passphrase)
        unfinished = _finish(settings, passphrase)
    unfinished = unfinished or _announce(settings, passphrase, now)
    rotated_out = trust.trusted_key(use, old.public_key.thumbprint)
    in_force = trust.trusted_key(use, new.public_key.thumbprint)
    return Rotation(trust, rotated_out, in_force, unfinished)


def revoke(
    settings: Config,
    passphrase: Secret | bytes,
    kid: str,
    *,
    compromised_since: datetime,
    now: datetime,
) -> Revocation:
    """Revoke a key that was rotated before: no signature after ``compromised_since`` counts.

    ``kid`` is the key's thumbprint. Raises ``ConfigError``; ``VerificationError`` for a current
    key, which ``rotate`` replaces (see ``TrustDocument.revoked``); and the errors of
    ``domain.take_up``. Nothing is changed then.
    """
    passphrase = Secret.of(passphrase)
    _require_past(compromised_since, now)
    state, anchors = settings.state, settings.anchor
    with state_lock.held(state):
        domain = take_up_locked(settings, passphrase)
        now = domain.in_force(now)
        trust = domain.trust.revoked(kid, compromised_since=seconds(compromised_since))
        handover.amend(state, anchors, trust)
        unfinished = _finish(settings, passphrase)
    unfinished = unfinished or _announce(settings, passphrase, now)
    key = next(trusted for trusted in trust.keys if trusted.key.thumbprint == kid)
    return Revocation(trust, key, unfinished)


def _overlap(duration: timedelta | None) -> timedelta:
    overlap = OVERLAP if duration is None else duration
    if overlap < MIN_OVERLAP:
        hours = MIN_OVERLAP // timedelta(hours=1)  # the unit of --overlap
        raise ConfigError(f"an overlap of {overlap} is too short: take {hours} hours or more")
    return overlap


def _require_past(compromised_since: datetime, now: datetime) -> None:
    if compromised_since > now:
        message = "compromised_since lies in the future: name the time of the compromise"
        raise ConfigError(message)


def _finish(settings: Config, passphrase: Secret) -> AgentguardError | None:
    """Replace the remaining files; return the error that prevents this, None without one."""
    try:
        handover.finish(settings.state, settings.anchor, passphrase)
    except AgentguardError as error:
        return error
    return None


def _refuse_rolled_back(settings: Config, passphrase: Secret, now: datetime) -> None:
    """Refuse a state that is behind its anchor; what else is wrong with a log keeps no stolen key.

    Raises ``StorageError`` (``storage.rolled_back``), and the errors of ``domain.take_up``.
    """
    domain = take_up(settings, passphrase)
    try:
        domain.open_log(now).close()
    except StorageError as error:
        if error.code == "storage.rolled_back":
            raise


def _announce(settings: Config, passphrase: Secret, now: datetime) -> AgentguardError | None:
    """Open the log, which records the changed keys; return the error that prevents this."""
    try:
        domain = take_up(settings, passphrase)
        domain.open_log(now).close()
    except AgentguardError as error:
        return error
    return None
