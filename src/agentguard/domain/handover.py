"""Replaces the trust document of a state and its anchor, together with the keys, crash-safely.

The replacement has three steps, each durable before the next:

1. Write the new files (key, trust document) beside the current files.
2. Replace the deciding trust document: the anchor's copy, or the state's own without an anchor.
   From this step on the new trust document is valid.
3. Replace the other files (``finish``), and record the keys in the log (``announce``).

A crash before step 2 leaves the old trust document valid. After a crash behind step 2 the next
process that opens the state does step 3. ``rotation.py`` decides which keys change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.announcements import KeyEntry
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.call.invocation import timestamp
from agentguard.domain import keystore, trust_pin
from agentguard.errors import AgentguardError, VerificationError
from agentguard.identity.trust import TrustDocument, Use
from agentguard.signing.canonical import JSON
from agentguard.signing.keys import Ed25519Signer, Secret, Signer
from agentguard.storage import anchor, files, journal_secret, state_lock
from agentguard.store.log import StoreLog
from agentguard.store.reader import StoredLog

_UNFINISHED: Final = (".next", ".new")
"""The ends of the names of a replacement's files, and of half-written files."""


def begin(
    state: Path,
    anchors: Path | None,
    trust: TrustDocument,
    *,
    use: Use,
    new: Ed25519Signer,
    passphrase: Secret | bytes,
) -> None:
    """Make ``trust`` valid, in which ``new`` is the key for ``use``; ``finish`` does the rest.

    The caller holds ``state_lock.held``. Raises ``StorageError``.
    """
    keystore.save_next_key(state, use, new, passphrase)
    files.replace(_valid_path(state, anchors, trust), trust.dumps())


def amend(state: Path, anchors: Path | None, trust: TrustDocument) -> None:
    """Make ``trust`` valid, in which no key is new; ``finish`` does the rest.

    The caller holds ``state_lock.held``. Raises ``StorageError``.
    """
    keystore.save_next_trust(state, trust)
    files.replace(_valid_path(state, anchors, trust), trust.dumps())


def is_due(state: Path) -> bool:
    """Return whether a state has files of a replacement that is not finished."""
    return _may_be_due(state) and (
        keystore.next_trust(state) is not None
        or bool(keystore.next_keys(state, adopted=False))
        or bool(_half_written(state))
    )


def finish(state: Path, anchors: Path | None, passphrase: Secret | bytes) -> None:
    """Finish or undo an interrupted replacement, by the valid trust document.

    New files that belong to the valid trust document replace the current files. All other new
    files, and half-written files, are of a process that died before step 2, and are removed. The
    caller holds ``state_lock.held``. Raises ``StorageError``, ``DecodeError``,
    ``KeyMaterialError``, or ``VerificationError`` (``trust.changed``).
    """
    own_trust = keystore.load_trust(state)
    trust = _valid_trust(state, anchors, own_trust)
    next_trust = keystore.next_trust(state)
    if next_trust == trust.dumps():
        keystore.adopt_next_trust(state)
    elif next_trust is not None:
        keystore.drop_next_trust(state)
    for use in keystore.next_keys(state, adopted=False):
        new = keystore.next_key(state, use, passphrase)
        # current keys alone, because the document also lists the keys before them
        if new is None or new.public_key not in trust.current(use):
            keystore.drop_next_key(state, use)
            continue
        if trust != own_trust:
            files.replace(state / keystore.TRUST, trust.dumps())
        keystore.adopt_next_key(state, use)
    for path in _half_written(state):
        files.remove(path)


def require_same(state: Path, anchors: Path | None, trust: TrustDocument) -> None:
    """Refuse a state whose trust document differs from the anchor's copy.

    Raises ``VerificationError`` (``trust.changed``), ``StorageError`` or ``DecodeError``.
    """
    if _valid_trust(state, anchors, trust) != trust:
        path = _valid_path(state, anchors, trust)
        message = (
            f"the trust document in {state} is not the one in {path}: "
            "find out who changed it, and put the right one back; nothing is written until then"
        )
        raise VerificationError(message, code="trust.changed")


def announce(state: Path, log: StoreLog, issuer: Signer, now: datetime) -> None:
    """Record in the log each key of the trust document that a replacement added or changed.

    Raises ``StorageError`` or ``KeyMaterialError``.
    """
    if not _is_to_announce(state):
        return
    with state_lock.held(state), closing(StoredLog.of(state)) as reader:
        adopted_uses = keystore.next_keys(state, adopted=True)
        recorded_keys = list(_recorded_keys(reader))
        at = timestamp(max(now, log.last_at))
        for trusted in keystore.load_trust(state).keys:
            if trusted.as_json() not in recorded_keys:
                log.append(KeyEntry.new(issuer, trusted.as_json(), at=at))
        for use in adopted_uses:
            keystore.drop_next_key(state, use)
        if keystore.is_unannounced(state):
            keystore.note_announced(state)


def _is_to_announce(state: Path) -> bool:
    return keystore.is_unannounced(state) or bool(keystore.next_keys(state, adopted=True))


def _may_be_due(state: Path) -> bool:
    """Return whether the name of any file, by its end, is that of a file of a replacement.

    A file is looked for by its name in a folder that can't be listed.
    """
    for folder in _folders(state):
        try:
            names = os.listdir(folder)  # noqa: PTH208
        except FileNotFoundError:
            continue
        except OSError:
            return True
        if any(name.endswith(_UNFINISHED) for name in names):
            return True
    return False


def _folders(state: Path) -> tuple[Path, ...]:
    return (state, state / keystore.KEYS, state / journal_secret.FOLDER)


def _half_written(state: Path) -> list[Path]:
    return [path for folder in _folders(state) for path in files.half_written(folder)]


def _valid_path(state: Path, anchors: Path | None, trust: TrustDocument) -> Path:
    """Return the path of the trust document that decides if two copies differ."""
    return anchor.trust_path(anchors, trust.log) if anchors is not None else state / keystore.TRUST


def _valid_trust(state: Path, anchors: Path | None, own: TrustDocument) -> TrustDocument:
    """Return the valid trust document: the anchor's copy, or ``own`` without an anchor.

    Raises as ``trust_pin.require`` does.
    """
    return own if anchors is None else trust_pin.require(anchors, state, own.log)


def _recorded_keys(reader: LogReader) -> Iterator[dict[str, JSON]]:
    for index in reader.search(Search(kind="key")):
        # an entry that can't be read counts as no record; ``audit verify`` reports the entry
        with suppress(AgentguardError):
            stored = reader.entry(index)
            entry = parse_entry(stored.body) if stored is not None else None
            if isinstance(entry, KeyEntry):
                yield {**entry.stated.predicate}
