"""What the administrator does to a log: settle a call in doubt, erase a call's data.

Each is a statement that the admin key signs, appended like any other entry, and durable before
anything is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from agentguard import domain
from agentguard.audit import entry, statements
from agentguard.audit.entry import CallPlace, Entry, Receipt
from agentguard.audit.statements import Authorization
from agentguard.audit.summary import Search
from agentguard.config import Config
from agentguard.domain import Domain, StateDomain
from agentguard.errors import CallError, DecodeError, VerificationError
from agentguard.invocation import timestamp
from agentguard.keys import Signer
from agentguard.ports import LogReader
from agentguard.storage import erasure, keystore, registry
from agentguard.storage.log import ShardLog

T = TypeVar("T")


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
        call = find_call(reader, invocation_id)
        _require_doubt(reader, call)  # before a shard is taken for nothing
        # once more where nobody else resolves: of two that contradict each other one would be false
        with _writing(home, now) as log, registry.locked(settings.state):
            _require_doubt(reader, call)
            at = timestamp(max(now, log.last_at))
            return log.append(entry.resolution(admin, call, ran=ran, note=note, at=at))


def erase(
    settings: Config, passphrase: bytes, invocation_id: str, *, note: str, now: datetime
) -> Erased:
    """Erase a call's arguments, policy input and result, with their salts; every proof holds.

    May be done again, as after a crash in between. Raises as ``resolve`` does.
    """
    home, admin = _take_up(settings, passphrase)
    with closing(home.read()) as reader:
        call = find_call(reader, invocation_id)
        with _writing(home, now) as log:
            at = timestamp(max(now, log.last_at))
            recorded = log.append(entry.erasure(admin, call, note=note, at=at))
        outcomes = [i for shard, i in _speaking(reader, "outcome", call) if shard == call.shard]
    removed = erasure.erase(settings.state, call.shard, [call.index, *outcomes])
    return Erased(call, recorded, removed)


def find_call(reader: LogReader, invocation_id: str) -> CallPlace:
    """Return where a call's authorization stands.

    An entry that can't be read is none, whatever its columns say; ``audit verify`` names it. Raises
    ``CallError`` (``call.unknown``) or ``StorageError``.
    """
    wanted = Search(kind="authorization", invocation_id=invocation_id)
    for shard in reader.shards():
        for index in reader.search(shard, wanted):
            call = _authorization(reader, shard, index)
            if call is not None and call.invocation_id == invocation_id:  # a column may lie
                return CallPlace(shard, index, invocation_id, call.invocation_sha256)
    message = f"there is no call {invocation_id} in the log: see agentguard audit list"
    raise CallError(message, code="call.unknown")


def _require_doubt(reader: LogReader, call: CallPlace) -> None:
    settled = _settled(reader, call)
    if settled is not None:
        message = f"the call {call.invocation_id} is not in doubt: {settled}"
        raise CallError(message, code="call.settled")


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
            said = _read(reader, shard, index, kind, statements.read_sealed)
            if said is not None and said[1].subject_sha256 == call.invocation_sha256:
                yield shard, index


def _authorization(reader: LogReader, shard: int, index: int) -> Authorization | None:
    return _read(reader, shard, index, "authorization", statements.read_authorization)


def _read(
    reader: LogReader, shard: int, index: int, kind: str, read: Callable[[Entry], T]
) -> T | None:
    """Read an entry of this kind; None if it is of another, or can't be read."""
    stored = reader.entry(shard, index)
    if stored is None:
        return None
    try:
        parsed = entry.parse(stored.body)
        return read(parsed) if parsed.kind == kind else None
    except (DecodeError, VerificationError):
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
