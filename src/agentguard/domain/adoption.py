"""Adopts a state: continues the log in a state that is a copy, or that is behind its anchor.

A state is behind its anchor after somebody restored a backup, or opened a copy that shares the
anchor. The entries that the anchor vouches for and the state does not hold are lost. The admin key
signs an entry that names the anchor's head. The entry is durable before the
anchor changes; after a crash in between, the state is refused as before, and can be adopted again.

Without an anchor nobody knows what is lost. The entry then says so, and how far the state goes.

``compare`` returns what a person confirms. ``adopt`` claims the state and its original, compares
once more, and writes only where the head is still the one that was compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

from agentguard.audit import head as heads
from agentguard.audit import merkle
from agentguard.audit.entry import LogPlace, time_of
from agentguard.audit.kinds.administration import AdoptionEntry, LostEntries, Unanchored
from agentguard.call.invocation import timestamp
from agentguard.domain import keystore, trust_pin
from agentguard.domain.config import Config
from agentguard.domain.domain import StateDomain, changed, require_trusted, take_up
from agentguard.domain.verify import examine
from agentguard.errors import AgentguardError, StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Secret
from agentguard.storage import anchor, claim, files, state_location
from agentguard.store.anchor import Anchor
from agentguard.store.reader import StoredLog


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between a state and its anchor, which keeps the log from continuing.

    ``original`` is the path of the original state if this state is a copy, else None. ``lost``
    names the entries that the anchor vouches for and the state does not hold. ``unanchored`` says
    how far a log goes for which no anchor vouches. ``head`` is the note of the newest head in the
    state. A difference is false where the anchor vouches for the whole state.
    """

    original: str | None
    lost: LostEntries | None
    unanchored: Unanchored | None
    head: bytes | None = field(repr=False)

    def __bool__(self) -> bool:
        return (self.original, self.lost, self.unanchored) != (None, None, None)


def compare(settings: Config) -> Difference:
    """Return the difference between the state of ``settings`` and its anchor; write nothing.

    Raises ``StorageError`` and ``DecodeError``.
    """
    trust = keystore.load_trust(settings.state)
    with closing(StoredLog.of(settings.state)) as reader:
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
    person's reason. No guard may use the state or its original meanwhile. Raises
    ``StorageError`` (``storage.corrupt`` for a damaged state; ``storage.used`` while a guard uses
    it, ``storage.locked`` for a state that has changed since ``compare``), ``EncodeError`` for a
    note that can't be encoded, and the errors of ``domain.take_up`` and ``Domain.open_log``.
    """
    anchors, secret, state = settings.anchor, Secret.of(passphrase), settings.state
    domain = take_up(settings, secret, may_be_copy=True)
    admin = keystore.load_key(state, "admin", secret)
    require_trusted(state, domain.trust, {"admin": admin})
    # without the anchors, which would refuse the state
    without_anchor = replace(domain, settings=replace(settings, anchor=None))
    with _alone(confirmed.original, state):
        _require_unchanged(confirmed, domain)
        log = without_anchor.open_log(now, adopts=heads.parse(confirmed.head or b""))
        try:
            statement = AdoptionEntry.new(
                admin,
                domain.trust.trust_domain,
                lost=confirmed.lost,
                unanchored=confirmed.unanchored,
                note=note,
                at=timestamp(max(now, log.last_at)),
            )
            place = log.append(statement)
            with closing(domain.read()) as reader:
                head = reader.head()
            if anchors is not None and head is not None:
                files.replace(anchor.head_path(anchors, domain.trust.log), head)
                trust_pin.keep(anchors, state, domain.trust)
        finally:
            log.close()
    return place


def _difference(
    anchors: Path | None, state: Path, trust: TrustDocument, reader: StoredLog
) -> Difference:
    """Compare the anchor's head with the entries of the log."""
    note = reader.head()
    if anchors is None:
        return Difference(None, None, _unanchored(reader), note)
    path = anchor.head_path(anchors, trust.log)
    seen = Anchor(path, trust.log, lambda: trust.keys_for("log")).read()
    original = state_location.original(anchor.log_folder(anchors, trust.log), state)
    if seen is None:
        return Difference(original, None, _unanchored(reader), note)
    head = heads.parse(note)
    lost = None
    if not _continues(reader, seen, head):
        lost = LostEntries(entries=head.size, anchored=files.read(path).decode())
    return Difference(original, lost, None, note)


def _continues(reader: StoredLog, seen: heads.Head, head: heads.Head) -> bool:
    """Whether the log goes on from what the anchor has seen."""
    if seen.size == head.size:
        return seen == head
    if seen.size == 0 or seen.size > head.size:
        return seen.size == 0
    try:
        proof = reader.consistency_proof(seen.size, head.size)
        merkle.verify_consistency(seen.size, head.size, seen.root, head.root, proof)
    except AgentguardError:
        return False
    return True


def _unanchored(reader: StoredLog) -> Unanchored | None:
    """Return what is known of a log without an anchor; one without an entry can lack none."""
    for index, body in islice(reader.entries(newest_first=True), 1):
        return Unanchored(entries=index + 1, newest=time_of(body))
    return None


def _require_unchanged(confirmed: Difference, domain: StateDomain) -> None:
    settings = domain.settings
    with closing(domain.read()) as reader:
        report = examine(reader, domain.trust)
        if not report.ok:
            message = (
                f"the state is damaged ({report.problems[0].what}): restore a backup; "
                "agentguard audit verify --anchor '' names all problems; nothing was written"
            )
            raise StorageError(message, code="storage.corrupt")
        if _difference(settings.anchor, settings.state, domain.trust, reader) != confirmed:
            raise changed(settings.state)


@contextmanager
def _alone(original: str | None, state: Path) -> Iterator[None]:
    """Keep guards from the state, and from the original, if it exists."""
    held = [claim.take(state, alone=True)]
    try:
        if original is not None and Path(original).is_dir():
            held.append(claim.take(Path(original), alone=True))
        yield
    finally:
        for give_back in held:
            give_back()
