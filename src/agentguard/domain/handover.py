"""How a new trust document takes the place of an old one, with its keys, in a state and its anchor.

First what is new (a key and what it signs, or the document alone) is laid beside the old, where
nobody looks; then the new trust document is put in place, outside the state where there is an
anchor, and from then on it counts; then the rest follows. Each step is durable before the next. Cut
short before that point, it has never been; cut short after it, whoever takes the state up next
finishes it. Which key, and why, is ``rotation.py``'s affair.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path

from agentguard.audit import records, statements
from agentguard.audit.entry import parse_entry
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.call.invocation import timestamp
from agentguard.domain import keystore, trust_pin
from agentguard.errors import AgentguardError, VerificationError
from agentguard.identity.trust import TrustDocument, Use
from agentguard.signing.canonical import JSON
from agentguard.signing.keys import Ed25519Signer, Secret, Signer
from agentguard.storage import anchor, files, journal_secret, registry_file
from agentguard.storage.log import ShardLog
from agentguard.storage.reader import StateReader


def begin(
    state: Path,
    anchors: Path | None,
    trust: TrustDocument,
    *,
    use: Use,
    new: Ed25519Signer,
    passphrase: Secret | bytes,
    listed: bytes | None,
) -> None:
    """Let ``trust`` count, in which ``new`` is the key for ``use``; then see ``finish``.

    ``listed`` is the registry in the word of a new issuer. Call it inside ``registry_file.locked``
    only. Raises ``StorageError``.
    """
    keystore.save_next_key(state, use, new, passphrase)
    if listed is not None:
        registry_file.write_next(state, listed)
    files.replace(_deciding(state, anchors, trust), trust.dumps())


def amend(state: Path, anchors: Path | None, trust: TrustDocument, *, listed: bytes) -> None:
    """Let ``trust`` count, in which no key is new; then see ``finish``. As ``begin``.

    ``listed`` is the registry in the word of the issuer in force: the one that is there may be in
    that of a key which ``trust`` revokes.
    """
    registry_file.write_next(state, listed)
    keystore.save_next_trust(state, trust)
    files.replace(_deciding(state, anchors, trust), trust.dumps())


def is_due(state: Path) -> bool:
    """Whether something lies there that is to take another's place: see ``finish``."""
    return (
        keystore.next_trust(state) is not None
        or bool(keystore.next_keys(state, adopted=False))
        or registry_file.has_next(state)
        or bool(_half_written(state))
    )


def finish(state: Path, anchors: Path | None, passphrase: Secret | bytes) -> None:
    """Put what is next in its place if the trust document that counts has it; else forget it.

    A list that is next still, or a file that is half written, is of somebody who died before it
    counted. Call it inside ``registry_file.locked`` only. Raises ``StorageError``, ``DecodeError``,
    ``KeyMaterialError``, or ``VerificationError`` (``trust.changed``).
    """
    own = keystore.load_trust(state)
    trust = _decided(state, anchors, own)
    amended = keystore.next_trust(state)
    if amended == trust.dumps():
        registry_file.adopt_next(state)
        keystore.adopt_next_trust(state)
    elif amended is not None:
        keystore.drop_next_trust(state)
    for use in keystore.next_keys(state, adopted=False):
        new = keystore.next_key(state, use, passphrase)
        # an old one, which the document knows too, does not come back
        if new is None or new.public_key not in trust.current(use):
            keystore.drop_next_key(state, use)
            continue
        if trust != own:
            files.replace(state / keystore.TRUST, trust.dumps())
        if use == "issuer":
            registry_file.adopt_next(state)
        keystore.adopt_next_key(state, use)
    registry_file.drop_next(state)
    for left in _half_written(state):
        files.remove(left)


def require_same(state: Path, anchors: Path | None, trust: TrustDocument) -> None:
    """Refuse to build on a trust document that somebody has changed in the state.

    Nor on a state that is not the one which its anchor knows. Raises ``VerificationError``
    (``trust.changed``), ``StorageError`` or ``DecodeError``.
    """
    if _decided(state, anchors, trust) != trust:
        message = (
            f"the trust document in {state} is not the one in {_deciding(state, anchors, trust)}: "
            "find out who changed it, and put the right one back; nothing is written until then"
        )
        raise VerificationError(message, code="trust.changed")


def announce(state: Path, log: ShardLog, issuer: Signer, now: datetime) -> None:
    """Put in the log what a succession has changed: the keys that end, and those that begin.

    Raises ``StorageError`` or ``KeyMaterialError``.
    """
    if not _is_to_announce(state):
        return
    with registry_file.locked(state), closing(StateReader(state)) as reader:
        done = keystore.next_keys(state, adopted=True)
        known = list(_announced(reader))
        at = timestamp(max(now, log.last_at))
        for trusted in keystore.load_trust(state).keys:
            if trusted.as_json() not in known:
                log.append(records.key(issuer, trusted.as_json(), at=at))
        for use in done:
            keystore.drop_next_key(state, use)
        if keystore.is_unannounced(state):
            keystore.note_announced(state)


def _is_to_announce(state: Path) -> bool:
    return keystore.is_unannounced(state) or bool(keystore.next_keys(state, adopted=True))


def _half_written(state: Path) -> list[Path]:
    folders = (state, state / keystore.KEYS, state / journal_secret.FOLDER)
    return [path for folder in folders for path in files.half_written(folder)]


def _deciding(state: Path, anchors: Path | None, trust: TrustDocument) -> Path:
    """Return the trust document that counts where two say different things."""
    return anchor.trust_path(anchors, trust.log) if anchors is not None else state / keystore.TRUST


def _decided(state: Path, anchors: Path | None, own: TrustDocument) -> TrustDocument:
    """Raise as ``trust_pin.require`` does: the state's own does not do where there is an anchor."""
    return own if anchors is None else trust_pin.require(anchors, state, own.log)


def _announced(reader: LogReader) -> Iterator[dict[str, JSON]]:
    for shard in reader.shards():
        for index in reader.search(shard, Search(kind="key")):
            # one that can't be read announces nothing; audit verify names it
            with suppress(AgentguardError):
                stored = reader.entry(shard, index)
                parsed = parse_entry(stored.body) if stored is not None else None
                if parsed is not None and parsed.kind == "key":
                    yield {**statements.read_statement(parsed)[1].predicate}
