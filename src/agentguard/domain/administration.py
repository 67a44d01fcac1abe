"""The administrator's statements: settle a call in doubt, erase a call's data, revoke, freeze.

The admin key signs each statement. The statement is an entry of the log like any other, durable
before anything else is done.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final, TypeVar

from agentguard.audit import head as heads
from agentguard.audit import merkle
from agentguard.audit.entry import CallPlace, Entry, LogPlace, parse_time
from agentguard.audit.find import (
    LoggedCall,
    attempts_of_call,
    call_at,
    entries_about_call,
    find_call,
)
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.administration import (
    AdministeredEntry,
    ErasureEntry,
    FreezeEntry,
    ResolutionEntry,
    RevocationEntry,
)
from agentguard.audit.kinds.calls import OutcomeEntry
from agentguard.audit.log import LogReader
from agentguard.call.invocation import timestamp
from agentguard.domain import keystore
from agentguard.domain.config import Config
from agentguard.domain.domain import StateDomain, require_trusted, take_up
from agentguard.domain.protocol import Domain
from agentguard.errors import CallError, StorageError, VerificationError
from agentguard.identity import credential
from agentguard.identity.principal import is_principal
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Secret, Signer
from agentguard.storage import reserve, state_lock
from agentguard.store import journal
from agentguard.store.log import StoreLog
from agentguard.store.sqlite import erase as erase_attachments
from agentguard.store.sqlite import path_in

T = TypeVar("T")

_WITHOUT_ROOM: Final = frozenset({"storage.full", "storage.failed", "anchor.unwritable"})
"""The codes with which storage may fail on a full disk."""

# a jti or a thumbprint; an agent's name; an instance's URI, or the trust domain's
_REVOCABLE: Final = re.compile(
    rf"[A-Za-z0-9_-]{{8,128}}|agent:{credential.NAME}|spiffe://[\x21-\x7e]{{1,1015}}"
)


@dataclass(frozen=True, slots=True)
class Erased:
    """The call, the erasure's entry, and the number of attachments that were erased.

    ``repeats`` are the other attempts of the call, whose data were erased with the call's. Each has
    an erasure's entry of its own.
    """

    call: CallPlace
    recorded: LogPlace
    attachments: int
    repeats: tuple[CallPlace, ...] = ()


def resolve(
    settings: Config,
    passphrase: Secret | bytes,
    wanted: str | CallPlace,
    *,
    ran: bool,
    note: str,
    now: datetime,
) -> LogPlace:
    """State that the tool of a call in doubt ran, or did not; return where that is recorded.

    ``wanted`` is the call's id, or its place: of two calls with one id, the id names the first.
    Raises ``CallError`` (``call.unknown``, ``call.settled`` where an outcome or a resolution is on
    record), ``EncodeError`` for a note that can't be written, and as ``domain.take_up`` and
    ``Domain.open_log`` do.
    """
    passphrase = Secret.of(passphrase)
    domain, admin = _take_up(settings, passphrase)
    with closing(domain.read()) as reader:
        call = _find(reader, wanted)
        end = reader.size()
        _require_doubt(reader, call, domain.trust, -1)
        with _writing(domain, now) as log:
            at = timestamp(max(now, log.last_at))
            recorded = log.append(
                ResolutionEntry.new(admin, call.place, ran=ran, note=note, at=at),
                # what came since is looked at while nobody writes: an outcome before a resolution,
                # or two that contradict each other, would be a false statement
                within=lambda _pages: _require_doubt(reader, call, domain.trust, end - 1),
            )
    return recorded


def erase(
    settings: Config,
    passphrase: Secret | bytes,
    wanted: str | CallPlace,
    *,
    note: str,
    now: datetime,
) -> Erased:
    """Erase a call's arguments, policy input and result, with their salts; every proof holds.

    ``wanted`` is as for ``resolve``. A framework may have made the call again. Each attempt keeps
    its own copy of the arguments, so all attempts are erased. May be done again, as after a crash
    in between. Raises as ``resolve`` does, and ``VerificationError`` (``proof.invalid``) where the
    log does not prove that it has the other attempts.
    """
    passphrase = Secret.of(passphrase)
    domain, admin = _take_up(settings, passphrase)
    with closing(domain.read()) as reader:
        attempts = attempts_of_call(reader, _find(reader, wanted))
        if len(attempts) > 1:
            _require_logged(reader, domain.trust, attempts)
        erasures: list[LogPlace] = []
        with _writing(domain, now) as log:
            for attempt in attempts:
                at = timestamp(max(now, log.last_at))
                erasures.append(
                    log.append(ErasureEntry.new(admin, attempt.place, note=note, at=at))
                )
            journal.erase(log, {one.place.invocation_id for one in attempts})
        indices: list[int] = []
        for call in attempts:
            outcomes = entries_about_call(reader, (OutcomeEntry,), call.entry)
            indices += [call.place.index, *(found.index for found in outcomes)]
    place, *repeats = (call.place for call in attempts)
    removed = erase_attachments(path_in(settings.state), indices)
    return Erased(place, erasures[0], removed, tuple(repeats))


def _require_logged(reader: LogReader, trust: TrustDocument, calls: Sequence[LoggedCall]) -> None:
    """Raise ``VerificationError`` (``proof.invalid``) unless the head covers these very entries.

    Whoever writes the state could edit the entry of another call for a moment, so that the entry
    seems to repeat this call. The admin key would sign that the other call's data were erased.
    """
    entries = {one.place.index: one.entry for one in calls}
    note, keys = reader.head() or b"", (trusted.key for trusted in trust.keys_for("log"))
    head, _key = heads.verify(note, keys, trust.log)
    tree = merkle.CompactRange()
    for index, body in islice(reader.entries(), head.size):
        tree.append(merkle.leaf_hash(body))
        if index in entries and parse_entry(body) == entries[index]:
            del entries[index]
    if (tree.size, tree.root()) != (head.size, head.root):
        entries[-1] = calls[0].entry
    if entries:
        message = (
            "somebody has changed entries of the log, so that other calls may seem to be attempts "
            "of this one: nothing was erased. Run agentguard audit verify"
        )
        raise VerificationError(message, code="proof.invalid")


def _find(reader: LogReader, wanted: str | CallPlace) -> LoggedCall:
    if isinstance(wanted, CallPlace):
        name, call = wanted.invocation_id, call_at(reader, wanted)
    else:
        name, call = wanted, find_call(reader, wanted)
    if call is None:
        message = (
            f"there is no call {name} in the log: agentguard audit list --json has the "
            "ids of those that there are"
        )
        raise CallError(message, code="call.unknown")
    return call


def _require_doubt(reader: LogReader, call: LoggedCall, trust: TrustDocument, after: int) -> None:
    """Raise ``CallError`` (``call.settled``) for a call that entries past an index settle."""
    settled = _settled(reader, call, trust, after)
    if settled is not None:
        message = f"the call {call.place.invocation_id} is not in doubt: {settled}"
        raise CallError(message, code="call.settled")


def _settled(reader: LogReader, call: LoggedCall, trust: TrustDocument, after: int) -> str | None:
    """Return what settles a call, None where it is in doubt.

    No column counts: the admin key is about to sign that nothing is known of the call. Nor does a
    resolution that does not verify, as one that a compromised admin key has signed.
    """
    if not call.entry.allowed:
        return "it was denied, and did not run"
    kinds: tuple[type[Entry], ...] = (OutcomeEntry, ResolutionEntry)
    called_at = parse_time(call.entry.at)
    for found in entries_about_call(reader, kinds, call.entry, after=after):
        entry = found.entry
        if not isinstance(entry, AdministeredEntry) or entry.is_valid(trust, called_at):
            return f"its {entry.kind} is on record"
    return None


def _take_up(settings: Config, passphrase: Secret) -> tuple[StateDomain, Signer]:
    domain = take_up(settings, passphrase)
    admin = keystore.load_key(settings.state, "admin", passphrase)
    require_trusted(settings.state, domain.trust, {"admin": admin})
    return domain, admin


@contextmanager
def _writing(domain: Domain, now: datetime) -> Iterator[StoreLog]:
    log = domain.open_log(now)
    try:
        yield log
    finally:
        log.close()


def revoke(
    settings: Config, passphrase: Secret | bytes, name: str, *, note: str, now: datetime
) -> LogPlace:
    """Let nobody act any more under what ``name`` names; return where that is recorded.

    It is the id of a token or hop, a key's thumbprint, an instance's URI, ``agent:<name>``, a
    service or a principal (``Chain.names``). It counts at the next call of every process on the
    state. Raises ``CallError`` (``revocation.name``) for what names nothing, ``EncodeError`` for a
    note that can't be written, and as ``resolve`` does.
    """
    require_revocable(name)
    domain, admin = _take_up(settings, Secret.of(passphrase))

    def record() -> LogPlace:
        with _writing(domain, now) as log:
            at = timestamp(max(now, log.last_at))
            return log.append(RevocationEntry.new(admin, name, note=note, at=at))

    return _on_any_disk(settings, record)


def _on_any_disk(settings: Config, act: Callable[[], T]) -> T:
    """Return what ``act`` returns, on a full disk by means of the reserve (``storage/reserve``)."""
    try:
        return act()
    except StorageError as error:
        if error.code not in _WITHOUT_ROOM:
            raise
    return reserve.give_up_for(act, settings.state)


def require_revocable(name: str) -> None:
    """Raise ``CallError`` (``revocation.name``) for a text that no revocation can name."""
    if not _REVOCABLE.fullmatch(name) and not is_principal(name):
        message = (
            f"{name!a} names nothing that could be revoked: give a jti, a key's thumbprint, an "
            "agent's URI, agent:NAME, or a principal in its one spelling, as in user:alice or "
            "service:chat"
        )
        raise CallError(message, code="revocation.name")


def freeze(
    settings: Config, passphrase: Secret | bytes, *, frozen: bool, note: str, now: datetime
) -> LogPlace:
    """Deny every call of every process on the state from now on, or (not ``frozen``) no more.

    Raises ``EncodeError`` for a note that can't be written, and as ``resolve`` does.
    """
    domain, admin = _take_up(settings, Secret.of(passphrase))

    def record() -> LogPlace:
        # of two at once each has a number of its own. The time makes it higher than a number that
        # an adoption has given up
        with _writing(domain, now) as log, state_lock.held(settings.state):
            number = log.look(lambda state: state.next_freeze)
            at = max(now, log.last_at)
            statement = FreezeEntry.new(
                admin,
                domain.trust.trust_domain,
                frozen=frozen,
                sequence=max(number, int(at.timestamp() * 1000)),
                note=note,
                at=timestamp(at),
            )
            return log.append(statement)

    return _on_any_disk(settings, record) if frozen else record()
