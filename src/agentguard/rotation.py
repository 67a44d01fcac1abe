"""Rotates a long-lived key of a trust domain.

The old key goes on counting for what it signed, and for a while for what running processes still
sign with it, until they notice; or, if it is compromised, for nothing signed since. Whoever
verifies needs the new trust document.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from agentguard import domain
from agentguard.audit import registry as listed
from agentguard.config import Config
from agentguard.errors import ConfigError
from agentguard.identity.trust import TrustDocument, Use, seconds
from agentguard.invocation import timestamp
from agentguard.storage import keystore, registry, succession

OVERLAP: Final = timedelta(hours=24)
"""How long the old key goes on counting for what is signed."""

MIN_OVERLAP: Final = timedelta(hours=2)
"""Running processes look for new keys when they renew a credential, which is within the hour."""


def rotate(
    settings: Config,
    passphrase: bytes,
    use: Use,
    *,
    now: datetime,
    overlap: timedelta = OVERLAP,
    compromised_since: datetime | None = None,
) -> TrustDocument:
    """Put a new key in the place of the one for ``use``; return the new trust document.

    A compromised key has no overlap: whatever it signed since then does not count. Raises
    ``ConfigError``, ``StorageError``, ``KeyMaterialError``.
    """
    if compromised_since is None and overlap < MIN_OVERLAP:
        raise ConfigError(f"an overlap of {overlap} is too short: take {MIN_OVERLAP} or more")
    if compromised_since is not None and compromised_since > now:
        message = "compromised_since lies in the future: name the time from which not to believe it"
        raise ConfigError(message)
    state, anchors = settings.state, settings.anchor
    with registry.locked(state):
        home = domain.take_up(settings, passphrase, locked=True)
        succession.require_same(state, anchors, home.trust)
        old = keystore.load_key(state, use, passphrase)
        domain.require_trusted(state, home.trust, **{use: old})
        shards = home.registered()  # in the word of the old issuer, who counts until now
        new = domain.new_key()
        trust = home.trust.rotated(
            old.public_key,
            new.public_key,
            now=seconds(now),
            until=seconds(now if compromised_since is not None else now + overlap),
            compromised_since=None if compromised_since is None else seconds(compromised_since),
        )
        resealed = listed.seal(new, trust, shards, at=timestamp(now)) if use == "issuer" else None
        succession.begin(
            state, anchors, trust, use=use, new=new, passphrase=passphrase, listed=resealed
        )
        succession.finish(state, anchors, passphrase)
    domain.take_up(settings, passphrase).lease(now).close()  # which announces the new key
    return trust
