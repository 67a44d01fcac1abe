"""Rotates a long-lived key of a trust domain, and revokes one that was rotated before.

The old key goes on counting for what it signed, and for a while for what running processes still
sign with it, until they notice; or, if it is compromised, for nothing signed since. Whoever
verifies needs the new trust document.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from agentguard.audit.registry import seal_registry
from agentguard.call.invocation import timestamp
from agentguard.domain import domain, ephemeral, handover, keystore
from agentguard.domain.config import Config
from agentguard.domain.domain import StateDomain
from agentguard.errors import AgentguardError, ConfigError
from agentguard.identity.trust import TrustDocument, TrustedKey, Use, seconds
from agentguard.signing.keys import Secret
from agentguard.storage import journal_secret, registry_file

OVERLAP: Final = timedelta(hours=24)
"""How long the old key goes on counting for what is signed."""

MIN_OVERLAP: Final = timedelta(hours=2)
"""Running processes look for new keys when they renew a credential, which is within the hour."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """A key that has taken another's place: it counts, whatever ``unfinished`` says.

    ``unfinished`` is why the rest (the files that follow, the announcement in the log) could not be
    done; whoever opens the state next does it. None where all is done.
    """

    trust: TrustDocument
    old: TrustedKey
    new: TrustedKey
    unfinished: AgentguardError | None


@dataclass(frozen=True, slots=True)
class Revocation:
    """A key that counts for nothing since its compromise; ``unfinished`` as of ``Rotation``."""

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
    """Put a new key in the place of the one for ``use``.

    The old one goes on counting for ``overlap`` (``OVERLAP`` unless it is given). A compromised key
    has none: whatever it signed since then does not count. Raises ``ConfigError``; and, with
    nothing changed, as ``domain.take_up`` does.
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
    with registry_file.locked(state):
        home = domain.take_up_locked(settings, passphrase)
        now = home.in_force(now)
        old = keystore.load_key(state, use, passphrase)
        domain.require_trusted(state, home.trust, **{use: old})
        shards = home.registered()  # in the word of the old issuer, who counts until now
        new = ephemeral.new_key()
        trust = home.trust.rotated(
            old.public_key,
            new.public_key,
            now=seconds(now),
            until=seconds(now + lifetime),
            compromised_since=None if compromised_since is None else seconds(compromised_since),
        )
        if use == "log":
            journal_secret.hand_on(state, home.trust, old, new)
        resealed = seal_registry(new, trust, shards, at=timestamp(now)) if use == "issuer" else None
        handover.begin(
            state, anchors, trust, use=use, new=new, passphrase=passphrase, listed=resealed
        )
        unfinished = _finish(settings, passphrase)
    unfinished = unfinished or _announce(settings, passphrase, now)
    old_key, new_key = (trust.trusted_key(use, key.public_key.thumbprint) for key in (old, new))
    return Rotation(trust, old_key, new_key, unfinished)


def revoke(
    settings: Config,
    passphrase: Secret | bytes,
    kid: str,
    *,
    compromised_since: datetime,
    now: datetime,
) -> Revocation:
    """Let a key that was rotated before, named by its thumbprint, count for nothing since then.

    Raises ``ConfigError``; ``VerificationError`` as ``TrustDocument.revoked`` does, for a key in
    force: that one is rotated; and, with nothing changed, as ``domain.take_up`` does.
    """
    passphrase = Secret.of(passphrase)
    _require_past(compromised_since, now)
    state, anchors = settings.state, settings.anchor
    with registry_file.locked(state):
        home = domain.take_up_locked(settings, passphrase)
        now = home.in_force(now)
        trust = home.trust.revoked(kid, compromised_since=seconds(compromised_since))
        handover.amend(state, anchors, trust, listed=_relisted(home, now))
        unfinished = _finish(settings, passphrase)
    unfinished = unfinished or _announce(settings, passphrase, now)
    key = next(trusted for trusted in trust.keys if trusted.key.thumbprint == kid)
    return Revocation(trust, key, unfinished)


def _relisted(home: StateDomain, now: datetime) -> bytes:
    return seal_registry(home.issuer, home.trust, home.registered(), at=timestamp(now))


def _overlap(duration: timedelta | None) -> timedelta:
    overlap = OVERLAP if duration is None else duration
    if overlap < MIN_OVERLAP:
        hours = MIN_OVERLAP // timedelta(hours=1)  # the unit of --overlap
        raise ConfigError(f"an overlap of {overlap} is too short: take {hours} hours or more")
    return overlap


def _require_past(compromised_since: datetime, now: datetime) -> None:
    if compromised_since > now:
        message = "compromised_since lies in the future: name the time from which not to believe it"
        raise ConfigError(message)


def _finish(settings: Config, passphrase: Secret) -> AgentguardError | None:
    """Do what is left once a new trust document counts; return why it can't be done now."""
    try:
        handover.finish(settings.state, settings.anchor, passphrase)
    except AgentguardError as error:
        return error
    return None


def _announce(settings: Config, passphrase: Secret, now: datetime) -> AgentguardError | None:
    """Take a shard, in which what has changed is announced; return why it can't be done now."""
    try:
        home = domain.take_up(settings, passphrase)
        home.lease(now).close()
        home.ledger().keep()  # with the key that counts: guards that run believe no other
    except AgentguardError as error:
        return error
    return None
