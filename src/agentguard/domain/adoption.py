"""Adopts a state: the log goes on in it, though it is a copy, or behind its anchor.

A state is behind its anchor after a backup was put back, or after a copy of it was opened that
shared the anchor. What the anchor has seen and the state does not hold is given up, on record: the
admin key signs an entry that names the lost checkpoints. The entry is durable before the anchor
changes; cut short in between, the state is refused as before, and is adopted anew.

What was compared and shown is what is signed, and what the anchor follows: both states are locked,
compared once more, and refused if either has changed, since not everybody asks for a lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from agentguard.audit import checkpoint, records
from agentguard.audit.adoption import LostEntries
from agentguard.audit.entry import Receipt
from agentguard.call.invocation import timestamp
from agentguard.domain import domain, keystore, trust_pin
from agentguard.domain.config import Config
from agentguard.domain.domain import StateDomain
from agentguard.domain.verify import examine
from agentguard.errors import ConfigError, StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Secret
from agentguard.storage import anchor, files, lock, registry_file, sqlite, state_location
from agentguard.storage.anchor import Anchor
from agentguard.storage.log import ShardLog
from agentguard.storage.reader import StateReader


@dataclass(frozen=True, slots=True)
class Difference:
    """What keeps a log from going on in a state.

    ``original`` is the path of the state of which this one is a copy, None if it is none; ``lost``
    is what the anchor has seen and the state does not hold; ``heads`` has the note of the newest
    checkpoint of each shard that is there, from which the log would go on.
    """

    original: str | None
    lost: tuple[LostEntries, ...]
    heads: Mapping[int, bytes | None] = field(repr=False)

    def __bool__(self) -> bool:
        return self.original is not None or bool(self.lost)


def compare(settings: Config) -> Difference:
    """Return what keeps the log from going on in the state of ``settings``; writes nothing.

    Raises ``StorageError``, ``DecodeError``; ``ConfigError`` where there is no anchor: then
    nothing keeps it.
    """
    trust = keystore.load_trust(settings.state)
    with closing(StateReader(settings.state)) as reader:
        return _difference(_anchors(settings), settings.state, trust, reader)


def adopt(
    settings: Config,
    passphrase: Secret | bytes,
    confirmed: Difference,
    *,
    note: str,
    now: datetime,
) -> Receipt:
    """Let the log go on in the state of ``settings``; return the place of the entry that says so.

    ``confirmed`` is what ``compare`` has returned, and somebody has agreed to. Nothing may write
    the state meanwhile, nor the state of which it is a copy. Raises ``StorageError``
    (``storage.corrupt`` where the state is not whole, ``storage.locked`` where somebody writes, or
    has written since it was compared), ``EncodeError`` for a note that can't be written, and as
    ``domain.take_up`` and ``Domain.lease`` do.
    """
    anchors, secret = _anchors(settings), Secret.of(passphrase)
    home = domain.take_up(settings, secret, may_be_copy=True)
    admin = keystore.load_key(settings.state, "admin", secret)
    domain.require_trusted(settings.state, home.trust, admin=admin)
    # without the anchors, by which it would be refused
    alone = replace(home, settings=replace(settings, anchor=None))
    with _still(confirmed.original):
        _require_as(confirmed, anchors, home)
        log = alone.lease(now)
        try:
            with _idle(settings.state, but=log.shard):
                _require_heads(confirmed.heads, home, log)
                statement = records.adoption(
                    admin,
                    home.trust.trust_domain,
                    lost=[one._asdict() for one in confirmed.lost],
                    note=note,
                    at=timestamp(max(now, log.last_at)),
                )
                recorded = log.append(statement)
                heads = _require_heads(confirmed.heads, home, log)
                _let_anchor_follow(anchors, home, heads)
                trust_pin.keep(anchors, settings.state, home.trust)
        finally:
            log.close()
    return recorded


def _anchors(settings: Config) -> Path:
    if settings.anchor is None:
        message = f"{settings.source}: anchor: there is none, so that each state goes on as it is"
        raise ConfigError(message)
    return settings.anchor


def _require_whole(reader: StateReader, trust: TrustDocument) -> None:
    report = examine(reader, trust)
    if not report.ok:
        first = report.problems[0]
        message = (
            f"the state is not whole (shard {first.shard}: {first.what}): restore it, and see "
            "agentguard audit verify --anchor ''; nothing was written"
        )
        raise StorageError(message, code="storage.corrupt")


def _difference(
    anchors: Path, state: Path, trust: TrustDocument, reader: StateReader
) -> Difference:
    """Each checkpoint of an anchor is one of its shard's own, as long as that was not cut."""
    present = reader.shards()
    lost = []
    for shard in anchor.anchored_shards(anchors, trust.log):
        origin = trust.origin(shard)
        seen = Anchor(anchors, origin, [known.key for known in trust.keys_for("log")]).read()
        if seen is None or (shard in present and _holds(reader, shard, seen)):
            continue
        head = _head(reader, shard) if shard in present else None
        note = files.read(anchor.anchor_path(anchors, origin)).decode()
        lost.append(LostEntries(shard, head.size if head is not None else None, note))
    original = state_location.original(anchor.log_folder(anchors, trust.log), state)
    heads = {shard: reader.checkpoint(shard) for shard in present}
    return Difference(original, tuple(lost), heads)


def _require_as(confirmed: Difference, anchors: Path, home: StateDomain) -> None:
    state = home.settings.state
    with closing(home.read()) as reader:
        _require_whole(reader, home.trust)
        if _difference(anchors, state, home.trust, reader) != confirmed:
            raise _changed(state)


def _require_heads(
    heads: Mapping[int, bytes | None], home: StateDomain, log: ShardLog
) -> dict[int, bytes | None]:
    """Return the heads, of which no shard but the log's own has gone on, or was replaced."""
    own, state = log.shard, home.settings.state
    before, others = heads.get(own), {**heads, own: None}
    with closing(home.read()) as reader:
        there = {shard: reader.checkpoint(shard) for shard in reader.shards()}
        goes_on = before is None or _holds(reader, own, checkpoint.parse(before).checkpoint)
        newest = _head(reader, own) if own in there else None
    if not goes_on or newest != log.head or {**there, own: None} != others:
        raise _changed(state)
    return there


def _changed(state: Path) -> StorageError:
    message = (
        f"{state}, or what its anchor has seen, is not what was shown: stop what writes there, and "
        f"run {anchor.ADOPT} again; the anchor is as it was"
    )
    return StorageError(message, code="storage.locked")


def _holds(reader: StateReader, shard: int, seen: checkpoint.Checkpoint) -> bool:
    note = reader.checkpoint(shard, seen.size)
    return note is not None and checkpoint.parse(note).checkpoint == seen


def _head(reader: StateReader, shard: int) -> checkpoint.Checkpoint | None:
    note = reader.checkpoint(shard)
    return checkpoint.parse(note).checkpoint if note is not None else None


def _let_anchor_follow(anchors: Path, home: StateDomain, heads: Mapping[int, bytes | None]) -> None:
    """Put the newest checkpoint of each shard in its anchor, and take away those of no shard."""
    for shard in {*heads, *anchor.anchored_shards(anchors, home.trust.log)}:
        path, note = anchor.anchor_path(anchors, home.trust.origin(shard)), heads.get(shard)
        if note is None:
            files.remove(path)
        else:
            files.replace(path, note)


@contextmanager
def _still(original: str | None) -> Iterator[None]:
    """Keep the original, if it is there, from being written, in a new shard as well."""
    state = Path(original) if original is not None else None
    if state is None or not state.is_dir():
        yield
        return
    with registry_file.locked(state), _idle(state):
        yield


@contextmanager
def _idle(state: Path, *, but: int | None = None) -> Iterator[None]:
    """Keep every shard of a state from being written; raises ``StorageError`` where one is."""
    with ExitStack() as held:
        for shard in sqlite.numbers(state):
            if shard == but:
                continue
            path = sqlite.shard_path(state, shard).with_suffix(".lock")
            mine = lock.try_acquire(path)
            if mine is None:
                message = f"a process writes {state}: stop it first; nothing was changed"
                raise StorageError(message, code="storage.locked")
            held.callback(lock.release, mine)
        yield
