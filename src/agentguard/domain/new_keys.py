"""New keys: how they are made, put into a trust document, and announced in the log."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime

from agentguard.audit.kinds.announcements import KeyEntry
from agentguard.call.invocation import timestamp
from agentguard.identity.trust import TrustDocument, TrustedKey, Use, seconds
from agentguard.signing.keys import Ed25519Signer, Signer
from agentguard.store.log import StoreLog


def new_key() -> Ed25519Signer:
    """Make a key from random bytes."""
    return Ed25519Signer.from_seed(os.urandom(32))


def new_trust(trust_domain: str, now: datetime, signers: Mapping[Use, Signer]) -> TrustDocument:
    """Return the trust document of a new domain: the keys of ``signers`` are in force from now."""
    since = seconds(now)
    keys = tuple(TrustedKey(use, s.public_key, since) for use, s in signers.items())
    return TrustDocument(trust_domain, f"{trust_domain}/log/{os.urandom(16).hex()}", keys)


def announce_keys(log: StoreLog, issuer: Signer, trust: TrustDocument, now: datetime) -> None:
    """Write an entry for each key of a trust document into the log."""
    for trusted in trust.keys:
        log.enqueue(KeyEntry.new(issuer, trusted.as_json(), at=timestamp(now)))
    log.flush()
