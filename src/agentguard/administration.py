"""What the administrator does to a log: settle a call in doubt, erase a call's data.

Each is a statement that the admin key signs, appended like any other entry, and durable before
anything is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime

from agentguard import domain, whereabouts
from agentguard.audit import entry, statements
from agentguard.audit.entry import CallPlace, Receipt
from agentguard.config import Config
from agentguard.domain import Domain, StateDomain
from agentguard.errors import CallError
from agentguard.identity.trust import TrustDocument
from agentguard.invocation import timestamp
from agentguard.keys import Signer
from agentguard.ports import LogReader
from agentguard.storage import erasure, keystore, registry
from agentguard.storage.log import ShardLog
from agentguard.whereabouts import Call


@dataclass(frozen=True, slots=True)
class Erased:
    """What was erased: the call, where that is recorded, and how many attachments there were."""

    call: CallPlace
    recorded: Receipt
    attachments: int


def resolve(
    settings: Config,
    passphrase: bytes,
    invocation_id: str,
    *,
    ran: bool,
    note: str,
    now: datetime,
) -> Receipt:
    """State that the tool of a call in doubt ran, or did not; return where that is recorded.

    Raises ``CallError`` (``call.unknown``, ``call.settled`` where an outcome or a resolution is on
    record), ``EncodeError`` for a note that can't be written, and as ``domain.take_up`` and
    ``Domain.lease`` do.
    """
    home, admin = _take_up(settings, passphrase)
    with closing(home.read()) as reader:
        call = _find(reader, invocation_id)
        ends = _ends(reader)
        _require_doubt(reader, call, home.trust, {})  # before a shard is taken for nothing
        # what came since is looked at where nobody else resolves: of two that contradict each
        # other one would be false
        with _writing(home, now) as log, registry.locked(settings.state):
            _require_doubt(reader, call, home.trust, ends)
            at = timestamp(max(now, log.last_at))
            return log.append(entry.resolution(admin, call.place, ran=ran, note=note, at=at))


def erase(
    settings: Config, passphrase: bytes, invocation_id: str, *, note: str, now: datetime
) -> Erased:
    """Erase a call's arguments, policy input and result, with their salts; every proof holds.

    May be done again, as after a crash in between. Raises as ``resolve`` does.
    """
    home, admin = _take_up(settings, passphrase)
    with closing(home.read()) as reader:
        call = _find(reader, invocation_id)
        place = call.place
        with _writing(home, now) as log:
            at = timestamp(max(now, log.last_at))
            recorded = log.append(entry.erasure(admin, place, note=note, at=at))
        outcomes = whereabouts.speaking(reader, place.shard, ["outcome"], call.said)
        indices = [place.index, *(found.index for found in outcomes)]
    removed = erasure.erase(settings.state, place.shard, indices)
    return Erased(place, recorded, removed)


def _find(reader: LogReader, invocation_id: str) -> Call:
    call = whereabouts.find(reader, invocation_id)
    if call is None:
        message = f"there is no call {invocation_id} in the log: see agentguard audit list"
        raise CallError(message, code="call.unknown")
    return call


def _ends(reader: LogReader) -> dict[int, int]:
    """Return the index of each shard's newest entry."""
    newest = {shard: reader.entries(shard, newest_first=True) for shard in reader.shards()}
    return {shard: next(entries, (-1, b""))[0] for shard, entries in newest.items()}


def _require_doubt(
    reader: LogReader, call: Call, trust: TrustDocument, after: Mapping[int, int]
) -> None:
    """Raise ``CallError`` (``call.settled``) for a call that entries past these places settle."""
    settled = _settled(reader, call, trust, after)
    if settled is not None:
        message = f"the call {call.place.invocation_id} is not in doubt: {settled}"
        raise CallError(message, code="call.settled")


def _settled(
    reader: LogReader, call: Call, trust: TrustDocument, after: Mapping[int, int]
) -> str | None:
    """Return what settles a call, None where it is in doubt.

    No column counts: the admin key is about to sign that nothing is known of the call. Nor does a
    resolution that does not verify, as one that a compromised admin key has signed.
    """
    if not call.said.allowed:
        return "it was denied, and did not run"
    kinds = ("outcome", "resolution")
    for shard in reader.shards():
        past = after.get(shard, -1)
        for found in whereabouts.speaking(reader, shard, kinds, call.said, after=past):
            if found.entry.kind == "outcome" or statements.counts(found.entry, trust):
                return f"its {found.entry.kind} is on record"
    return None


def _take_up(settings: Config, passphrase: bytes) -> tuple[StateDomain, Signer]:
    home = domain.take_up(settings, passphrase)
    admin = keystore.load_key(settings.state, "admin", passphrase)
    domain.require_trusted(settings.state, home.trust, admin=admin)
    return home, admin


@contextmanager
def _writing(home: Domain, now: datetime) -> Iterator[ShardLog]:
    log = home.lease(now)
    try:
        yield log
    finally:
        log.close()
