"""Adopts a state: continues the log in a state that is a copy, or that is behind its anchor.

A state is behind its anchor after somebody restored a backup, or opened a copy that shares the
anchor. The entries that the anchor vouches for and the state does not hold are lost. The admin key
signs an entry that names the checkpoints of the lost entries. The entry is durable before the
anchor changes; after a crash in between, the state is refused as before, and can be adopted again.

Without an anchor nobody knows what is lost. The entry then says so, and how far the state goes.

``compare`` returns what a person confirms. ``adopt`` locks the state and its original, compares
once more, and refuses a state that has changed since, because some programs ignore locks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

from agentguard.audit import checkpoint
from agentguard.audit.entry import LogPlace, time_of
from agentguard.audit.kinds.administration import AdoptionEntry, LostEntries, Unanchored
from agentguard.call.invocation import timestamp
from agentguard.domain import keystore, trust_pin
from agentguard.domain.config import Config
from agentguard.domain.domain import StateDomain, require_trusted, take_up
from agentguard.domain.verify import examine
from agentguard.errors import StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Secret
from agentguard.storage import anchor, files, lock, registry_file, sqlite, state_location
from agentguard.storage.anchor import Anchor
from agentguard.storage.log import ShardLog
from agentguard.storage.reader import StateReader


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between a state and its anchor, which keeps the log from continuing.

    ``original`` is the path of the original state if this state is a copy, else None. ``lost``
    names the entries that the anchor vouches for and the state does not hold. ``unanchored`` are
    the shards for which no anchor vouches. ``heads`` has the note of the newest checkpoint of each
    shard in the state. A difference is false where the anchor vouches for the whole state.
    """

    original: str | None
    lost: tuple[LostEntries, ...]
    unanchored: tuple[Unanchored, ...]
    heads: Mapping[int, bytes | None] = field(repr=False)

    def __bool__(self) -> bool:
        return self.original is not None or bool(self.lost) or bool(self.unanchored)


def compare(settings: Config) -> Difference:
    """Return the difference between the state of ``settings`` and its anchor; write nothing.

    Raises ``StorageError`` and ``DecodeError``.
    """
    trust = keystore.load_trust(settings.state)
    with closing(StateReader(settings.state)) as reader:
        return _difference(settings.anchor, settings.state, trust, reader)


def adopt(
    settings: Config,
    passphrase: Secret | bytes,
    confirmed: Difference,
    *,
    note: str,
    now: datetime,
) -> LogPlace:
    """Continue the log in the state of ``settings``; return the place of the adoption's entry.

    ``confirmed`` is the result of ``compare`` that a person has confirmed, and ``note`` is the
    person's reason. No process may write the state or its original meanwhile. Raises
    ``StorageError`` (``storage.corrupt`` for a damaged state; ``storage.locked`` while a process
    writes, or for a state that has changed since ``compare``), ``EncodeError`` for a note that
    can't be encoded, and the errors of ``domain.take_up`` and ``Domain.lease``.
    """
    anchors, secret = settings.anchor, Secret.of(passphrase)
    domain = take_up(settings, secret, may_be_copy=True)
    admin = keystore.load_key(settings.state, "admin", secret)
    require_trusted(settings.state, domain.trust, {"admin": admin})
    # without the anchors, which would refuse the state
    without_anchor = replace(domain, settings=replace(settings, anchor=None))
    with _original_locked(confirmed.original):
        _require_unchanged(confirmed, anchors, domain)
        with _shards_locked(settings.state):
            pass  # beside a shard in use, the lease would add one for which no anchor vouches
        log = without_anchor.lease(now)
        try:
            with _shards_locked(settings.state, except_shard=log.shard):
                _require_heads(confirmed.heads, domain, log)
                statement = AdoptionEntry.new(
                    admin,
                    domain.trust.trust_domain,
                    lost=confirmed.lost,
                    unanchored=confirmed.unanchored,
                    note=note,
                    at=timestamp(max(now, log.last_at)),
                )
                place = log.append(statement)
                heads = _require_heads(confirmed.heads, domain, log)
                if anchors is not None:
                    _write_anchors(anchors, domain, heads)
                    trust_pin.keep(anchors, settings.state, domain.trust)
        finally:
            log.close()
    return place


def _require_whole(reader: StateReader, trust: TrustDocument) -> None:
    report = examine(reader, trust)
    if not report.ok:
        first = report.problems[0]
        message = (
            f"the state is damaged (shard {first.shard}: {first.what}): restore a backup; "
            "agentguard audit verify --anchor '' names all problems; nothing was written"
        )
        raise StorageError(message, code="storage.corrupt")


def _difference(
    anchors: Path | None, state: Path, trust: TrustDocument, reader: StateReader
) -> Difference:
    """Compare each anchor's checkpoint with the checkpoint of that size in the shard."""
    present = reader.shards()
    heads = {shard: reader.checkpoint(shard) for shard in present}
    if anchors is None:
        return Difference(None, (), tuple(_unanchored(reader, present)), heads)
    lost, anchored = [], anchor.anchored_shards(anchors, trust.log)
    for shard in anchored:
        origin = trust.origin(shard)
        anchor_head = Anchor(
            anchors, origin, [log_key.key for log_key in trust.keys_for("log")]
        ).read()
        if anchor_head is None or (
            shard in present and _has_checkpoint(reader, shard, anchor_head)
        ):
            continue
        head = _head(reader, shard) if shard in present else None
        note = files.read(anchor.anchor_path(anchors, origin)).decode()
        lost.append(
            LostEntries(shard=shard, entries=None if head is None else head.size, anchored=note)
        )
    original = state_location.original(anchor.log_folder(anchors, trust.log), state)
    unanchored = _unanchored(reader, [shard for shard in present if shard not in anchored])
    return Difference(original, tuple(lost), tuple(unanchored), heads)


def _unanchored(reader: StateReader, shards: Iterable[int]) -> Iterator[Unanchored]:
    """Yield what is known of shards without an anchor; one without an entry can lack none."""
    for shard in shards:
        for index, body in islice(reader.entries(shard, newest_first=True), 1):
            yield Unanchored(shard=shard, entries=index + 1, newest=time_of(body))


def _require_unchanged(confirmed: Difference, anchors: Path | None, domain: StateDomain) -> None:
    state = domain.settings.state
    with closing(domain.read()) as reader:
        _require_whole(reader, domain.trust)
        if _difference(anchors, state, domain.trust, reader) != confirmed:
            raise _changed(state)


def _require_heads(
    heads: Mapping[int, bytes | None], domain: StateDomain, log: ShardLog
) -> dict[int, bytes | None]:
    """Return the current heads; refuse a state in which another shard than the log's changed."""
    own, state = log.shard, domain.settings.state
    before = heads.get(own)
    with closing(domain.read()) as reader:
        current = {shard: reader.checkpoint(shard) for shard in reader.shards()}
        continues = before is None or _has_checkpoint(
            reader, own, checkpoint.parse(before).checkpoint
        )
        newest = _head(reader, own) if own in current else None
    if not continues or newest != log.head or {**current, own: None} != {**heads, own: None}:
        raise _changed(state)
    return current


def _changed(state: Path) -> StorageError:
    message = (
        f"{state} or its anchor has changed since the comparison that was confirmed: stop the "
        f"processes that write there, and run {anchor.ADOPT} again; the anchor was not changed"
    )
    return StorageError(message, code="storage.locked")


def _has_checkpoint(reader: StateReader, shard: int, expected: checkpoint.Checkpoint) -> bool:
    note = reader.checkpoint(shard, expected.size)
    return note is not None and checkpoint.parse(note).checkpoint == expected


def _head(reader: StateReader, shard: int) -> checkpoint.Checkpoint | None:
    note = reader.checkpoint(shard)
    return checkpoint.parse(note).checkpoint if note is not None else None


def _write_anchors(anchors: Path, domain: StateDomain, heads: Mapping[int, bytes | None]) -> None:
    """Write the newest checkpoint of each shard to its anchor; remove anchors without a shard."""
    for shard in {*heads, *anchor.anchored_shards(anchors, domain.trust.log)}:
        path, note = anchor.anchor_path(anchors, domain.trust.origin(shard)), heads.get(shard)
        if note is None:
            files.remove(path)
        else:
            files.replace(path, note)


@contextmanager
def _original_locked(original: str | None) -> Iterator[None]:
    """Keep other processes from writing the original state, if it exists, new shards included."""
    state = Path(original) if original is not None else None
    if state is None or not state.is_dir():
        yield
        return
    with registry_file.locked(state), _shards_locked(state):
        yield


@contextmanager
def _shards_locked(state: Path, *, except_shard: int | None = None) -> Iterator[None]:
    """Keep other processes from writing a state; raises ``StorageError`` if a process writes."""
    with ExitStack() as locks:
        for shard in sqlite.numbers(state):
            if shard == except_shard:
                continue
            path = sqlite.shard_path(state, shard).with_suffix(".lock")
            lock_file = lock.try_acquire(path)
            if lock_file is None:
                message = f"a process writes {state}: stop that process; nothing was changed"
                raise StorageError(message, code="storage.locked")
            locks.callback(lock.release, lock_file)
        yield
