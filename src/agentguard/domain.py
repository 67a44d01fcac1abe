"""A trust domain at rest: how ``agentguard init`` founds one, and how a guard takes it up.

A domain is its keys, its trust document and its log, in one state directory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from agentguard.audit import entry, registry
from agentguard.config import Config
from agentguard.errors import ConfigError, KeyMaterialError, StorageError, VerificationError
from agentguard.identity.trust import TrustDocument, TrustedKey, seconds
from agentguard.invocation import timestamp
from agentguard.keys import Ed25519Signer, Signer
from agentguard.ports import LogReader
from agentguard.storage import anchor, keystore, succession
from agentguard.storage import registry as registry_file
from agentguard.storage.anchor import Anchor
from agentguard.storage.lease import Lessor, shard_origin
from agentguard.storage.log import ShardLog
from agentguard.storage.memory import MemoryBackend
from agentguard.storage.reader import StateReader

PASSPHRASE_VARIABLE: Final = "AGENTGUARD_PASSPHRASE"  # noqa: S105  a name, no secret
"""The environment variable with the passphrase of the long-lived keys."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A trust domain taken up: its issuer, its log's key and its trust document.

    ``lease`` takes a shard of its log to write, as of a time; ``read`` opens the log to read.
    ``registered`` are the log's shards that the issuer has listed. ``renewed`` takes the domain up
    again if its keys were rotated, and is None if not.
    """

    issuer: Signer
    log_key: Signer
    trust: TrustDocument
    lease: Callable[[datetime], ShardLog]
    read: Callable[[], LogReader]
    registered: Callable[[], frozenset[int]]
    renewed: Callable[[], Domain | None]


def found(config: Config, passphrase: bytes, *, now: datetime) -> TrustDocument:
    """Make keys, trust document and log in ``config.state``, which must hold none of them.

    Raises ``StorageError`` (``storage.exists``, ``storage.readonly``).
    """
    state = config.state
    if state.exists() and (not state.is_dir() or any(state.iterdir())):
        message = f"{state} is no empty directory: it is not overwritten; choose another state"
        raise StorageError(message, code="storage.exists")
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.chmod(0o700)
        (state / keystore.KEYS).mkdir(mode=0o700)  # claims the state: only one can make it
    except FileExistsError as error:
        message = f"{state} is being founded by somebody else: it is not overwritten"
        raise StorageError(message, code="storage.exists") from error
    except OSError as error:
        message = f"{state} can't be made ({error.strerror}): give this user the right"
        raise StorageError(message, code="storage.readonly") from error
    try:
        return _fill(config, passphrase, now)
    except BaseException:
        # half a domain is none, and would be in the way of the next attempt
        for made in state.iterdir():
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        raise


def _fill(config: Config, passphrase: bytes, now: datetime) -> TrustDocument:
    state = config.state
    issuer, log_key, admin = (new_key() for _ in range(3))
    trust = _trust(config.trust_domain, now, issuer=issuer, log=log_key, admin=admin)
    if config.anchor is not None:
        # first, since it may lie where this user can't write
        Anchor(config.anchor, shard_origin(trust), [log_key.public_key]).settle()
        keystore.write_new(anchor.trust_path(config.anchor, trust.log), trust.dumps())
    keystore.save_key(state, "issuer", issuer, passphrase)
    keystore.save_key(state, "log", log_key, passphrase)
    keystore.save_key(state, "admin", admin, passphrase)
    keystore.write_new(state / keystore.TRUST, trust.dumps())
    log = Lessor(state, config.anchor, trust, issuer, log_key).lease(now)
    try:
        _announce_keys(log, issuer, trust, now)
    finally:
        log.close()
    return trust


def take_up(config: Config, passphrase: bytes, *, locked: bool = False) -> Domain:
    """Open the domain in ``config.state`` to act in it, with the keys in force.

    ``locked`` is for who is inside ``registry.locked`` already. Raises ``StorageError``,
    ``KeyMaterialError`` or ``DecodeError``.
    """
    state = config.state
    if not state.is_dir():
        message = f"there is no state at {state}: run agentguard init"
        raise StorageError(message, code="storage.missing")
    keystore.refuse_if_exposed(state)
    trust, issuer, log_key = _in_force(config, passphrase, locked=locked)
    require_trusted(state, trust, issuer=issuer, log=log_key)
    lessor = Lessor(state, config.anchor, trust, issuer, log_key)

    def lease(now: datetime) -> ShardLog:
        try:
            log = lessor.lease(now)
        except VerificationError:
            fresh = renewed()  # the registry may be a new issuer's by now
            if fresh is None:
                raise
            return fresh.lease(now)
        try:
            succession.announce(state, log, issuer, now)
        except BaseException:
            log.close()
            raise
        return log

    def renewed() -> Domain | None:
        changed = succession.is_due(state) or keystore.load_trust(state) != trust
        return take_up(config, passphrase) if changed else None

    return Domain(
        issuer, log_key, trust, lease, partial(StateReader, state), lessor.registered, renewed
    )


def _in_force(
    config: Config, passphrase: bytes, *, locked: bool
) -> tuple[TrustDocument, Ed25519Signer, Ed25519Signer]:
    """Read the trust document, the issuer's key and the log's, all of one moment."""
    state = config.state
    while True:
        if succession.is_due(state):
            with nullcontext() if locked else registry_file.locked(state):
                succession.finish(state, config.anchor, passphrase)
        trust = keystore.load_trust(state)
        if trust.trust_domain != config.trust_domain:
            message = (
                f"{config.source}: trust_domain: expected {trust.trust_domain!r}, for which the "
                f"state {state} was founded, got {config.trust_domain!r}"
            )
            raise ConfigError(message)
        if succession.is_due(state):
            continue  # somebody rotates a key just now
        issuer = keystore.load_key(state, "issuer", passphrase)
        log_key = keystore.load_key(state, "log", passphrase)
        if keystore.load_trust(state) == trust:
            return trust, issuer, log_key


def ephemeral(trust_domain: str, *, now: datetime) -> Domain:
    """Make a domain in memory, gone with the process; its log can be leased once."""
    issuer, log_key = new_key(), new_key()
    trust = _trust(trust_domain, now, issuer=issuer, log=log_key)
    listed = registry.seal(issuer, trust, [0], at=timestamp(now))
    backend = MemoryBackend(shard_origin(trust), log_key, registry=listed)

    def lease(moment: datetime) -> ShardLog:
        if backend.read_head().checkpoint.size > 0:
            message = "a guard in memory does not outlive a fork: make one in this process"
            raise StorageError(message, code="storage.closed")
        log = ShardLog(backend, log_key)
        log.append(
            entry.shard(
                issuer,
                log_key.public_key,
                trust_domain=trust_domain,
                origin=shard_origin(trust),
                number=0,
                heads=(),
                at=timestamp(moment),
            )
        )
        _announce_keys(log, issuer, trust, moment)
        return log

    return Domain(
        issuer, log_key, trust, lease, lambda: backend, lambda: frozenset({0}), lambda: None
    )


def passphrase_of(config: Config) -> bytes:
    """Find the passphrase: ``AGENTGUARD_PASSPHRASE``, else ``[keys] passphrase_file``.

    Raises ``KeyMaterialError`` (``key.passphrase``); it never asks at a terminal.
    """
    from_environment = os.environ.get(PASSPHRASE_VARIABLE)
    if from_environment:
        return from_environment.encode()
    path = config.passphrase_file
    if path is None:
        message = (
            f"no passphrase: set {PASSPHRASE_VARIABLE}, or [keys] passphrase_file in "
            f"{config.source}"
        )
        raise KeyMaterialError(message, code="key.passphrase")
    keystore.refuse_if_exposed(path)
    try:
        passphrase = path.read_bytes().strip()
    except OSError as error:
        message = f"{path} can't be read ({error.strerror}): check [keys] passphrase_file"
        raise KeyMaterialError(message, code="key.passphrase") from error
    if not passphrase:
        raise KeyMaterialError(f"{path} holds no passphrase", code="key.passphrase")
    return passphrase


def require_trusted(state: Path, trust: TrustDocument, **signers: Signer) -> None:
    """Refuse keys that the trust document beside them does not know: nobody could verify them.

    Nor are old ones taken, which were rotated out. Raises ``KeyMaterialError`` (``key.mismatch``).
    """
    for use, signer in signers.items():
        if signer.public_key not in trust.current(use):  # type: ignore[arg-type]
            message = f"the {use} key in {state} is not the one of {state / keystore.TRUST}"
            raise KeyMaterialError(f"{message}: restore the state", code="key.mismatch")


def new_key() -> Ed25519Signer:
    """Make a key that did not exist before."""
    return Ed25519Signer.from_seed(os.urandom(32))


def _trust(trust_domain: str, now: datetime, **signers: Signer) -> TrustDocument:
    since = seconds(now)
    keys = tuple(TrustedKey(use, s.public_key, since) for use, s in signers.items())  # type: ignore[arg-type]
    return TrustDocument(trust_domain, f"{trust_domain}/log/{os.urandom(16).hex()}", keys)


def _announce_keys(log: ShardLog, issuer: Signer, trust: TrustDocument, now: datetime) -> None:
    for trusted in trust.keys:
        log.enqueue(entry.key(issuer, trusted.as_json(), at=timestamp(now)))
    log.flush()
