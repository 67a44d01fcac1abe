"""What the administrator does to a log: settle a call in doubt, erase a call's data.

Each is a statement that the admin key signs, appended like any other entry, and durable before
anything is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from agentguard import domain
from agentguard.audit import entry, statements
from agentguard.audit.entry import CallPlace, Entry, Receipt
from agentguard.audit.statements import Authorization
from agentguard.audit.summary import Search
from agentguard.config import Config
from agentguard.domain import Domain
from agentguard.errors import CallError
from agentguard.invocation import timestamp
from agentguard.keys import Signer
from agentguard.ports import LogReader
from agentguard.storage import erasure, keystore
from agentguard.storage.log import ShardLog


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
    record), ``StorageError``, ``KeyMaterialError``.
    """
    home, admin = _take_up(settings, passphrase)
    reader = home.read()
    call = find_call(reader, invocation_id)
    settled = _settled(reader, call)
    if settled is not None:
        message = f"the call {invocation_id} is not in doubt: {settled}"
        raise CallError(message, code="call.settled")
    with _writing(home, now) as log:
        at = timestamp(max(now, log.last_at))
        return log.append(entry.resolution(admin, call, ran=ran, note=note, at=at))


def erase(
    settings: Config, passphrase: bytes, invocation_id: str, *, note: str, now: datetime
) -> Erased:
    """Erase a call's arguments, policy input and result, with their salts; every proof holds.

    May be done again, as after a crash in between. Raises as ``resolve`` does.
    """
    home, admin = _take_up(settings, passphrase)
    reader = home.read()
    call = find_call(reader, invocation_id)
    with _writing(home, now) as log:
        at = timestamp(max(now, log.last_at))
        recorded = log.append(entry.erasure(admin, call, note=note, at=at))
    outcomes = [i for shard, i in _speaking(reader, "outcome", call) if shard == call.shard]
    removed = erasure.erase(settings.state, call.shard, [call.index, *outcomes])
    return Erased(call, recorded, removed)


def find_call(reader: LogReader, invocation_id: str) -> CallPlace:
    """Return where a call's authorization stands; raises ``CallError`` (``call.unknown``)."""
    wanted = Search(kind="authorization", invocation_id=invocation_id)
    for shard in reader.shards():
        for index in reader.search(shard, wanted):
            call = _authorization(reader, shard, index)
            if call is not None and call.invocation_id == invocation_id:  # a column may lie
                return CallPlace(shard, index, invocation_id, call.invocation_sha256)
    message = f"there is no call {invocation_id} in the log: see agentguard audit list"
    raise CallError(message, code="call.unknown")


def _authorization(reader: LogReader, shard: int, index: int) -> Authorization | None:
    parsed = _entry(reader, shard, index, "authorization")
    return statements.read_authorization(parsed) if parsed is not None else None


def _settled(reader: LogReader, call: CallPlace) -> str | None:
    """Return what settles a call, None where it is in doubt."""
    authorization = _authorization(reader, call.shard, call.index)
    if authorization is None or not authorization.allowed:
        return "it was denied, and did not run"
    for kind in ("outcome", "resolution"):
        if any(True for _place in _speaking(reader, kind, call)):
            return f"its {kind} is on record"
    return None


def _speaking(reader: LogReader, kind: str, call: CallPlace) -> Iterator[tuple[int, int]]:
    """Yield the places of the outcomes, resolutions or erasures that are of a call."""
    wanted = Search(kind=kind, invocation_id=call.invocation_id)
    for shard in reader.shards():
        for index in reader.search(shard, wanted):
            parsed = _entry(reader, shard, index, kind)
            if parsed is None:
                continue
            _kid, said = statements.read_sealed(parsed)
            if said.subject_sha256 == call.invocation_sha256:
                yield shard, index


def _entry(reader: LogReader, shard: int, index: int, kind: str) -> Entry | None:
    stored = reader.entry(shard, index)
    parsed = entry.parse(stored.body) if stored is not None else None
    return parsed if parsed is not None and parsed.kind == kind else None


def _take_up(settings: Config, passphrase: bytes) -> tuple[Domain, Signer]:
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
