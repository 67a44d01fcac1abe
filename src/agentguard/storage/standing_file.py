"""The file in which a state keeps what its log says that decides calls, signed with the log's key.

The log is what counts. The file spares whoever opens the state to read all of it, and tells running
processes of a revocation at their next call. Where there is an anchor, a copy lies there, out of
reach of who can write the state alone.

The names of journalled calls lie in a file beside it: nobody needs them who only looks for a
revocation. That file's own name has the digest of what is in it. So the older file stays beside the
older names until both new ones are whole, wherever the process that writes them dies.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from agentguard.audit.standing import (
    NAME_SIZE,
    Counted,
    Limit,
    Names,
    OpenCall,
    Place,
    Standing,
    Used,
    Waiting,
)
from agentguard.errors import AgentguardError, DecodeError, StorageError, VerificationError
from agentguard.identity.trust import SHARD_NUMBER, TrustDocument
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import JSON, b64_decode, b64_encode
from agentguard.signing.keys import Signer
from agentguard.storage import files

FILE: Final = "standing.json"
NAMES: Final = "standing.names."
"""How the name of the file with the names begins; the first digits of its digest follow."""

_TYPE: Final = "application/vnd.agentguard.standing+json"
_ATTEMPTS: Final = 5
_MAX_BYTES: Final = 64 * 1024 * 1024
# the canonical form of an object with three members
_HEAD: Final = re.compile(rb'\{"keyid":"([\w-]{43})","sig":"([\w+/]{86}==)","standing":')
_TAIL: Final = b"}"

_T = TypeVar("_T")


class NamesFile(NamedTuple):
    """The digest of the file with the names, and its length in bytes."""

    sha256: str
    size: int

    @classmethod
    def of(cls, data: bytes) -> NamesFile:
        """Return those of a file's content."""
        return cls(sha256(data).hexdigest(), len(data))

    def within(self, folder: Path) -> Path:
        """Return where the file lies in a folder."""
        return folder / f"{NAMES}{self.sha256[:32]}"


class Signed(NamedTuple):
    """What lies in a folder, and who is said to have signed it; ``verify`` looks, and reads it."""

    path: Path
    encoded: bytes
    key_id: str
    signature: bytes

    def verify(self, trust: TrustDocument, *, by_compromised: bool = False) -> SavedStanding:
        """Return what is kept if a key of the log has signed it; raises ``StorageError``.

        Before that nothing is read of it: a text of this length can be made to take a minute. What
        is signed ``by_compromised`` keys may only refuse (``Standing.with_refusals``).
        """
        for trusted in trust.keys_for("log"):
            is_compromised = trusted.compromised_since is not None
            if trusted.key.thumbprint == self.key_id and is_compromised == by_compromised:
                with suppress(VerificationError):
                    trusted.key.verify(self.signature, _signed(trust.log, self.encoded))
                    return self._kept()
        raise _damaged(self.path)

    def _kept(self) -> SavedStanding:
        try:
            members: Any = canonical.loads(self.encoded, limit=_MAX_BYTES)
            return SavedStanding(self.path, *_parse(_of(dict, members)))
        except (AgentguardError, TypeError, ValueError, LookupError) as error:
            raise _damaged(self.path) from error


class SavedStanding(NamedTuple):
    """What a key of the log has signed; the names of journalled calls lie beside it."""

    path: Path
    standing: Standing
    names: NamesFile

    def whole(self) -> Standing:
        """Return it with the names of journalled calls; raises ``StorageError``."""
        path = self.names.within(self.path.parent)
        try:
            data = files.read(path, limit=self.names.size) if self.names.size else b""
        except OSError as error:
            raise _damaged(path) from error
        if NamesFile.of(data) != self.names or len(data) % NAME_SIZE:
            raise _damaged(path)
        return self.standing._replace(names=Names(data))

    def nameless(self) -> StorageError:
        """Say what to do where the names are missing."""
        message = (
            f"{self.names.within(self.path.parent)} is missing or damaged, without which {FILE} "
            "beside it does not count: restore both from a backup of the anchor. Without a backup "
            f"remove {self.path}: the next opening makes it anew from the log. Then revoke and "
            "freeze again what an adoption has given up"
        )
        return StorageError(message, code="storage.corrupt")


def load(folder: Path) -> Signed:
    """Read what is kept; raises ``StorageError`` (``storage.corrupt``, ``storage.missing``)."""
    path = folder / FILE
    try:
        data = files.read(path, limit=_MAX_BYTES)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise _damaged(path) from error
        message = f"{path} can't be read ({error.strerror}): open the guard again"
        raise StorageError(message, code="storage.missing") from error
    head = _HEAD.match(data)
    if head is None or not data.endswith(_TAIL):
        raise _damaged(path)
    key_id, signature = head[1].decode(), head[2].decode()
    try:
        return Signed(path, data[head.end() : -len(_TAIL)], key_id, b64_decode(signature))
    except DecodeError as error:
        raise _damaged(path) from error


def loaded(folder: Path, trust: TrustDocument) -> Standing | SavedStanding | None:
    """Return the standing, whole; a ``SavedStanding`` without its names; None if unverified."""
    kept = None
    for _attempt in range(_ATTEMPTS):  # another process may just have replaced both files
        kept = None
        with suppress(StorageError):
            kept = load(folder).verify(trust)
            return kept.whole()
    return kept


def keep(
    folder: Path,
    log: str,
    standing: Standing,
    signer: Signer,
    *,
    before: SavedStanding | None = None,
) -> None:
    """Replace what is kept; raises ``StorageError``. Call it inside ``registry.locked`` only.

    Names that were kept ``before``, as a verified file says, are not written again. Older ones are
    removed once the new file is whole.
    """
    names = standing.names.encode()
    file = NamesFile.of(names)
    kept = _encoded(standing, file)
    signature = signer.sign(_signed(log, canonical.dumps(kept)))
    document: dict[str, JSON] = {
        "keyid": signer.key_id,
        "sig": b64_encode(signature),
        "standing": kept,
    }
    beside = file.within(folder)
    is_new = before is None or before.names != file
    if names and (is_new or not beside.exists()):
        files.replace(beside, names)
    files.replace(folder / FILE, canonical.dumps(document))
    if is_new:
        for older in folder.glob(f"{NAMES}*"):
            if older != beside:
                with suppress(StorageError):  # somebody may have put a folder there
                    files.remove(older)


def _encoded(standing: Standing, names: NamesFile) -> dict[str, JSON]:
    revoked: list[JSON] = [*sorted(standing.revoked)]
    unran: list[JSON] = [*sorted(standing.unran)]
    erased: list[JSON] = [*sorted(standing.erased)]
    return {
        "revoked": revoked,
        "sequence": standing.sequence,
        "frozen": standing.frozen,
        "newest": standing.newest,
        "used": _rows(standing.used),
        "requests": _rows(standing.requests),
        "chains": {key: [[*one] for one in limits] for key, limits in standing.chains.items()},
        "calls": _rows(standing.calls),
        "unsettled": _rows(standing.unsettled),
        "unran": unran,
        "erased": erased,
        "names": [*names],
        "read": {
            str(shard): [place.size, b64_encode(place.peaks)]
            for shard, place in standing.read.items()
        },
        "unread": standing.unread,
    }


def _rows(values: Mapping[str, tuple[Any, ...]]) -> dict[str, JSON]:
    return {key: [*value] for key, value in values.items()}


_MEMBERS: Final = frozenset(_encoded(Standing(), NamesFile.of(b"")))


def _parse(kept: Mapping[str, Any]) -> tuple[Standing, NamesFile]:
    """Read the members; raises what the reading of other shapes raises."""
    if kept.keys() != _MEMBERS:
        raise ValueError(sorted(kept))
    standing = Standing(
        revoked=frozenset(_texts(kept["revoked"])),
        sequence=_of(int, kept["sequence"]),
        frozen=_of(bool, kept["frozen"]),
        newest=_of(str, kept["newest"]),
        used=_each(kept["used"], lambda row: Used(*_row(row, int, int))),
        requests=_each(kept["requests"], lambda row: Waiting(*_row(row, str, int))),
        chains=_each(
            kept["chains"], lambda rows: tuple([Limit(*_row(row, str, int)) for row in rows])
        ),
        calls=_each(kept["calls"], lambda row: Counted(*_row(row, int, int))),
        unsettled=_each(
            kept["unsettled"],
            lambda row: OpenCall(*_row(row, str, (str, type(None)), (str, type(None)))),
        ),
        unran=frozenset(_texts(kept["unran"])),
        erased=frozenset(_texts(kept["erased"])),
        read={
            _number(shard): Place(_of(int, size), b64_decode(peaks))
            for shard, (size, peaks) in _of(dict, kept["read"]).items()
        },
        unread=_of(int, kept["unread"]),
    )
    return standing, NamesFile(*_row(kept["names"], str, int))


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
    """Return a value of this type, of which a bool is no number."""
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise TypeError(kind)


def _number(shard: str) -> int:
    if SHARD_NUMBER.fullmatch(shard) is None:
        raise ValueError(shard)
    return int(shard)


def _signed(log: str, encoded: bytes) -> bytes:
    """Return what is signed (DSSE's encoding, with a type of its own): of this log alone."""
    return dsse.pae(_TYPE, canonical.dumps(log) + encoded)


def _damaged(path: Path) -> StorageError:
    message = f"{path} is damaged: remove it, and open the guard again, which makes it anew"
    return StorageError(message, code="storage.corrupt")
