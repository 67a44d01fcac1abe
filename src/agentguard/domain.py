"""A trust domain at rest: how ``agentguard init`` founds one, and how a guard takes it up.

A domain is its keys, its trust document and its log, in one state directory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from agentguard.audit import entry
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment
from agentguard.audit.verify import Problem, ShardReport, ShardVerifier
from agentguard.config import Config
from agentguard.errors import ConfigError, KeyMaterialError, StorageError
from agentguard.identity.trust import TrustDocument, TrustedKey, seconds
from agentguard.invocation import timestamp
from agentguard.keys import Ed25519Signer, Signer
from agentguard.ports import AuditLog, LogReader
from agentguard.storage import keystore
from agentguard.storage.anchor import Anchor
from agentguard.storage.log import ShardLog
from agentguard.storage.memory import MemoryBackend
from agentguard.storage.sqlite import SqliteBackend, SqliteReader

PASSPHRASE_VARIABLE: Final = "AGENTGUARD_PASSPHRASE"  # noqa: S105  a name, no secret
"""The environment variable with the passphrase of the long-lived keys."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A trust domain taken up: its issuer, its trust document, its log to write, and to read."""

    issuer: Signer
    trust: TrustDocument
    log: AuditLog
    read: Callable[[], LogReader]


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
    issuer, log_key, admin = (_new_key() for _ in range(3))
    trust = _trust(config.trust_domain, now, issuer=issuer, log=log_key, admin=admin)
    origin = shard_origin(trust)
    anchor = Anchor(config.anchor, origin, log_key.public_key)
    anchor.settle()  # first, since it may lie where this user can't write
    keystore.save_key(state, "issuer", issuer, passphrase)
    keystore.save_key(state, "log", log_key, passphrase)
    keystore.save_key(state, "admin", admin, passphrase)
    keystore.write_new(state / keystore.TRUST, trust.dumps())
    if config.anchor is not None:
        keystore.write_new(config.anchor / anchored_trust_name(trust), trust.dumps())
    log = ShardLog(SqliteBackend.create(state, origin, anchor), log_key)
    try:
        _open_shard(log, issuer, trust, now)
    finally:
        log.close()
    return trust


def take_up(config: Config, passphrase: bytes) -> Domain:
    """Open the domain in ``config.state`` to act in it, as its log's one writer.

    Raises ``StorageError``, ``KeyMaterialError`` or ``DecodeError``.
    """
    state = config.state
    if not state.is_dir():
        message = f"there is no state at {state}: run agentguard init"
        raise StorageError(message, code="storage.missing")
    keystore.refuse_if_exposed(state)
    trust = keystore.load_trust(state)
    if trust.trust_domain != config.trust_domain:
        message = (
            f"{config.source}: trust_domain: expected {trust.trust_domain!r}, for which the state "
            f"{state} was founded, got {config.trust_domain!r}"
        )
        raise ConfigError(message)
    issuer = keystore.load_key(state, "issuer", passphrase)
    log_key = keystore.load_key(state, "log", passphrase)
    _require_trusted(state, trust, issuer=issuer, log=log_key)
    anchor = Anchor(config.anchor, shard_origin(trust), log_key.public_key)
    log = ShardLog(SqliteBackend.open(state, anchor, log_key.public_key), log_key)
    return Domain(issuer, trust, log, partial(SqliteReader, state))


def ephemeral(trust_domain: str, *, now: datetime) -> Domain:
    """Make a domain in memory, gone with the process."""
    issuer, log_key = _new_key(), _new_key()
    trust = _trust(trust_domain, now, issuer=issuer, log=log_key)
    backend = MemoryBackend(shard_origin(trust), log_key)
    log = ShardLog(backend, log_key)
    _open_shard(log, issuer, trust, now)
    return Domain(issuer, trust, log, lambda: backend)


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


def shard_origin(trust: TrustDocument, shard: int = 0) -> str:
    """Name a shard: the origin of its checkpoints (C2SP tlog-checkpoint)."""
    return f"{trust.log}/{shard}"


def anchored_trust_name(trust: TrustDocument) -> str:
    """Name the copy of the trust document that is kept with the anchors."""
    return f"{trust.log.rpartition('/')[2]}.trust.json"


def _require_trusted(state: Path, trust: TrustDocument, **signers: Signer) -> None:
    """Refuse keys that the trust document beside them does not know: nobody could verify them."""
    for use, signer in signers.items():
        if signer.public_key not in [trusted.key for trusted in trust.keys if trusted.use == use]:
            message = f"the {use} key in {state} is not the one of {state / keystore.TRUST}"
            raise KeyMaterialError(f"{message}: restore the state", code="key.mismatch")


def _new_key() -> Ed25519Signer:
    return Ed25519Signer.from_seed(os.urandom(32))


def _trust(trust_domain: str, now: datetime, **signers: Signer) -> TrustDocument:
    since = seconds(now)
    keys = tuple(TrustedKey(use, s.public_key, since) for use, s in signers.items())  # type: ignore[arg-type]
    return TrustDocument(trust_domain, f"{trust_domain}/log/{os.urandom(16).hex()}", keys)


def _open_shard(log: AuditLog, issuer: Signer, trust: TrustDocument, now: datetime) -> None:
    at = timestamp(now)
    (log_key,) = (trusted.key for trusted in trust.keys_for("log"))
    log.enqueue(
        entry.shard(
            issuer,
            log_key,
            trust_domain=trust.trust_domain,
            origin=shard_origin(trust),
            number=0,
            at=at,
        )
    )
    for trusted in trust.keys:
        log.enqueue(entry.key(issuer, trusted.as_json(), at=at))
    log.flush()


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of a whole log. ``anchored`` means: each shard, by a checkpoint from outside."""

    shards: tuple[ShardReport, ...]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """True when nothing was found."""
        return not self.problems

    @property
    def entries(self) -> int:
        """The number of entries in all shards."""
        return sum(shard.entries for shard in self.shards)

    @property
    def kept(self) -> bool:
        """True when a checkpoint kept outside was at hand for every shard, whatever it says."""
        return bool(self.shards) and all(shard.kept for shard in self.shards)

    @property
    def anchored(self) -> bool:
        """True when a checkpoint kept outside vouches for every shard."""
        return bool(self.shards) and all(shard.anchored for shard in self.shards)

    @property
    def in_doubt(self) -> list[str]:
        """The invocation ids of the calls that were authorised and have no outcome."""
        return [invocation for shard in self.shards for invocation in shard.in_doubt]


def examine(
    reader: LogReader,
    trust: TrustDocument,
    *,
    anchor: Path | None = None,
    progress: Callable[[int], None] = lambda _entries: None,
) -> Report:
    """Verify every shard of a log against ``trust`` and the anchors in a directory.

    Damage is reported, not raised: also a log that can't be read to its end.
    """
    reports: list[ShardReport] = []
    problems: list[Problem] = []
    try:
        shards = reader.shards()
    except StorageError as error:
        return Report((), (Problem(0, None, str(error)),))
    if not shards:
        problems.append(Problem(0, None, "the log has no shard"))
    for number in shards:
        origin = shard_origin(trust, number)
        kept: list[Checkpoint] = []
        for trusted in trust.keys_for("log") if anchor is not None else ():
            try:
                seen = Anchor(anchor, origin, trusted.key).read()
            except StorageError as error:
                problems.append(Problem(number, None, str(error)))
            else:
                kept += [seen] if seen is not None else []
        verifier = ShardVerifier(number, origin, trust, kept)
        try:
            for done in verifier.walk(
                _with_attachments(reader, number), reader.checkpoints(number)
            ):
                progress(done)
        except StorageError as error:
            problems.append(Problem(number, None, str(error)))
        reports.append(verifier.report())
        problems += verifier.report().problems
    return Report(tuple(reports), tuple(problems))


def _with_attachments(
    reader: LogReader, shard: int
) -> Iterator[tuple[int, bytes, Sequence[Attachment]]]:
    for index, body in reader.entries(shard):
        yield index, body, reader.attachments(shard, index)
