"""The file with a log's restrictions on later calls, signed with the log's key.

The log is what counts. The file spares an opening the reading of the whole log, and tells running
processes of a revocation in their next call. ``restrictions_copies.py`` says where copies of the
file lie.

The names of journalled calls lie in a second file: a look for revocations does not need them. The
second file's name has the digest of its content. So a process that dies while it writes leaves an
older pair of files, or the new pair.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from agentguard.audit.journal_names import NAME_SIZE, JournalNames
from agentguard.audit.restrictions import (
    ReadPlace,
    Restrictions,
    UnsettledCall,
)
from agentguard.errors import AgentguardError, DecodeError, StorageError, VerificationError
from agentguard.identity.login import Ended
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import JSON, b64_decode, b64_encode
from agentguard.signing.keys import Signer
from agentguard.storage import files

FILE: Final = "restrictions.json"
NAMES: Final = "restrictions.names."
"""The beginning of the second file's name; the first digits of the digest follow."""

_TYPE: Final = "application/vnd.agentguard.restrictions+json"
_ATTEMPTS: Final = 5
_MAX_BYTES: Final = 64 * 1024 * 1024
# the canonical form of an object with three members; the restrictions lie between head and tail
_HEAD: Final = re.compile(rb'\{"keyid":"([\w-]{43})","restrictions":')
_TAIL: Final = re.compile(rb',"sig":"([\w+/]{86}==)"\}')
_TAIL_SIZE: Final = 98

_T = TypeVar("_T")


class NamesFile(NamedTuple):
    """The digest of the file with the names (SHA-256, in hex), and its length in bytes."""

    sha256: str
    size: int

    @classmethod
    def of(cls, data: bytes) -> NamesFile:
        """Return the digest and the length of a file's content."""
        return cls(sha256(data).hexdigest(), len(data))

    def within(self, folder: Path) -> Path:
        """Return where the file lies in a folder."""
        return folder / f"{NAMES}{self.sha256[:32]}"


class SignedRestrictions(NamedTuple):
    """An unverified file, and the key that it names; ``verify`` verifies, then parses the file."""

    path: Path
    encoded: bytes
    key_id: str
    signature: bytes

    def verify(self, trust: TrustDocument, *, by_compromised: bool = False) -> SavedRestrictions:
        """Return the restrictions if a key of the log has signed the file; raises ``StorageError``.

        Nothing is parsed before: a text of this length can be made so that parsing takes a minute.
        Restrictions that compromised keys have signed (``by_compromised``) may only refuse
        (``Restrictions.with_refusals``).
        """
        for trusted in trust.keys_for("log"):
            is_compromised = trusted.compromised_since is not None
            if trusted.key.thumbprint == self.key_id and is_compromised == by_compromised:
                with suppress(VerificationError):
                    trusted.key.verify(self.signature, _signed(trust.log, self.encoded))
                    return self._parsed()
        raise _damaged(self.path)

    def _parsed(self) -> SavedRestrictions:
        try:
            members: Any = canonical.loads(self.encoded, limit=_MAX_BYTES)
            return SavedRestrictions(self.path, *_parse(_of(dict, members)))
        except (AgentguardError, TypeError, ValueError, LookupError) as error:
            raise _damaged(self.path) from error


class SavedRestrictions(NamedTuple):
    """Verified restrictions without the names of journalled calls, which the second file has."""

    path: Path
    restrictions: Restrictions
    names: NamesFile

    def with_names(self) -> Restrictions:
        """Return the restrictions with the names of journalled calls; raises ``StorageError``."""
        path = self.names.within(self.path.parent)
        try:
            data = files.read(path, limit=self.names.size) if self.names.size else b""
        except OSError as error:
            raise _damaged(path) from error
        if NamesFile.of(data) != self.names or len(data) % NAME_SIZE:
            raise _damaged(path)
        return self.restrictions._replace(names=JournalNames(data))

    def names_missing(self) -> StorageError:
        """Return the error for a file whose second file is missing: what happened, what to do."""
        message = (
            f"{self.names.within(self.path.parent)} is missing or damaged, without which {FILE} "
            "beside it does not count: restore both from a backup of the anchor. Without a backup "
            f"remove {self.path}: the next opening makes it anew from the log. Then revoke and "
            "freeze again what agentguard adopt has dropped, if it was run"
        )
        return StorageError(message, code="storage.corrupt")


def load(folder: Path) -> SignedRestrictions:
    """Read the file; raises ``StorageError`` (``storage.corrupt``, ``storage.missing``)."""
    path = folder / FILE
    try:
        data = files.read(path, limit=_MAX_BYTES)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise _damaged(path) from error
        message = f"{path} can't be read ({error.strerror}): open the guard again"
        raise StorageError(message, code="storage.missing") from error
    head = _HEAD.match(data)
    tail = _TAIL.fullmatch(data, max(len(data) - _TAIL_SIZE, 0))
    if head is None or tail is None:
        raise _damaged(path)
    encoded, key_id = data[head.end() : tail.start()], head[1].decode()
    try:
        return SignedRestrictions(path, encoded, key_id, b64_decode(tail[1].decode()))
    except DecodeError as error:
        raise _damaged(path) from error


def load_whole(folder: Path, trust: TrustDocument) -> Restrictions | SavedRestrictions | None:
    """Return the verified restrictions with the names; None if the file does not verify.

    Returns ``SavedRestrictions``, without the names, if the second file is missing or damaged.
    """
    saved = None
    for _attempt in range(_ATTEMPTS):  # another process may just have replaced both files
        saved = None
        with suppress(StorageError):
            saved = load(folder).verify(trust)
            return saved.with_names()
    return saved


def save(
    folder: Path,
    log: str,
    restrictions: Restrictions,
    signer: Signer,
    *,
    before: SavedRestrictions | None = None,
) -> None:
    """Replace both files; raises ``StorageError``. Call this inside ``state_lock.held`` only.

    The second file is not written again where ``before``, the verified file that is there, has the
    same names. Older second files are removed once the new file is whole.
    """
    names = restrictions.names.encode()
    file = NamesFile.of(names)
    members = _encoded(restrictions, file)
    signature = signer.sign(_signed(log, canonical.dumps(members)))
    document: dict[str, JSON] = {
        "keyid": signer.key_id,
        "restrictions": members,
        "sig": b64_encode(signature),
    }
    beside = file.within(folder)
    is_new = before is None or before.names != file
    if names and (is_new or not files.exists(beside)):
        files.replace(beside, names)
    files.replace(folder / FILE, canonical.dumps(document))
    if is_new:
        for older in folder.glob(f"{NAMES}*"):
            if older != beside:
                with suppress(StorageError):  # somebody may have put a folder there
                    files.remove(older)


def _encoded(restrictions: Restrictions, names: NamesFile) -> dict[str, JSON]:
    revoked: list[JSON] = [*sorted(restrictions.revoked)]
    erased: list[JSON] = [*sorted(restrictions.erased)]
    return {
        "revoked": revoked,
        "sequence": restrictions.sequence,
        "frozen": restrictions.frozen,
        "newest": restrictions.newest,
        "unsettled": _rows(restrictions.unsettled),
        "erased": erased,
        "names": [*names],
        "read": [restrictions.read.size, b64_encode(restrictions.read.peaks)],
        "malformed": restrictions.malformed,
        "logouts": _rows(restrictions.logouts),
        "surrendered": {**restrictions.surrendered},
    }


def _rows(values: Mapping[str, tuple[Any, ...]]) -> dict[str, JSON]:
    return {key: [*value] for key, value in values.items()}


_MEMBERS: Final = frozenset(_encoded(Restrictions(), NamesFile.of(b"")))


def _parse(members: Mapping[str, Any]) -> tuple[Restrictions, NamesFile]:
    """Read the members; raises what the reading of other shapes raises."""
    if members.keys() != _MEMBERS:
        raise ValueError(sorted(members))
    restrictions = Restrictions(
        revoked=frozenset(_texts(members["revoked"])),
        sequence=_of(int, members["sequence"]),
        frozen=_of(bool, members["frozen"]),
        newest=_of(str, members["newest"]),
        unsettled=_each(members["unsettled"], lambda row: UnsettledCall(*_row(row, str, str))),
        erased=frozenset(_texts(members["erased"])),
        read=_read_place(members["read"]),
        malformed=_of(int, members["malformed"]),
        surrendered=_each(members["surrendered"], lambda end: _of(int, end)),
        logouts=_each(members["logouts"], lambda row: Ended(*_row(row, int, int))),
    )
    return restrictions, NamesFile(*_row(members["names"], str, int))


def _each(values: object, read: Callable[[Any], _T]) -> dict[str, _T]:
    return {key: read(value) for key, value in _of(dict, values).items()}


def _row(row: object, *kinds: type | tuple[type, ...]) -> list[Any]:
    items = _of(list, row)
    if len(items) != len(kinds):
        raise ValueError(items)
    return [_of(kind, item) for kind, item in zip(kinds, items, strict=True)]


def _texts(items: object) -> list[str]:
    return [_of(str, item) for item in _of(list, items)]


def _of(kind: type[_T] | tuple[type, ...], value: Any) -> Any:
    """Return the value if the value has this type; a bool is no number. Raises ``TypeError``."""
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise TypeError(kind)


def _read_place(row: object) -> ReadPlace:
    size, peaks = _row(row, int, str)
    return ReadPlace(size, b64_decode(peaks))


def _signed(log: str, encoded: bytes) -> bytes:
    """Return the bytes that are signed: DSSE's encoding, of this log alone."""
    return dsse.pae(_TYPE, canonical.dumps(log) + encoded)


def _damaged(path: Path) -> StorageError:
    message = f"{path} is damaged: remove it, and open the guard again, which makes it anew"
    return StorageError(message, code="storage.corrupt")
