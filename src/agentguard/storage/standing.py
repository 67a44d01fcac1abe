"""The file in which a state keeps what its log says that decides calls, signed with the log's key.

The log is what counts. The file spares whoever opens the state to read all of it, and tells running
processes of a revocation at their next call. Where there is an anchor, a copy lies there, out of
reach of who can write the state alone.

The names of journalled calls lie in a file beside it, by their digest: nobody needs them who only
looks for a revocation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from agentguard import canonical, envelope
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
from agentguard.canonical import JSON, b64_decode, b64_encode
from agentguard.errors import AgentguardError, StorageError, VerificationError
from agentguard.identity.trust import SHARD_NUMBER, TrustDocument
from agentguard.keys import Signer
from agentguard.storage import files

FILE: Final = "standing.json"
NAMES: Final = "standing.names"

_TYPE: Final = "application/vnd.agentguard.standing+json"
_MAX_BYTES: Final = 64 * 1024 * 1024
_MAX_NAMES: Final = 1 << 30

_T = TypeVar("_T")


class Kept(NamedTuple):
    """What was kept in a folder, and who has signed it; only ``verify`` says that it holds."""

    path: Path
    standing: Standing
    names_sha256: str
    encoded: bytes
    key_id: str
    signature: bytes

    def verify(self, trust: TrustDocument) -> Standing:
        """Return it if a key of the log has signed it; raises ``StorageError``.

        The names of journalled calls are not in it: see ``whole``.
        """
        for trusted in trust.keys_for("log"):
            if trusted.key.thumbprint == self.key_id and trusted.compromised_since is None:
                with suppress(VerificationError):
                    trusted.key.verify(self.signature, _signed(trust.log, self.encoded))
                    return self.standing
        raise _damaged(self.path)

    def whole(self, trust: TrustDocument) -> Standing:
        """Return it with the names of journalled calls; raises as ``verify`` does."""
        standing = self.verify(trust)
        path = self.path.with_name(NAMES)
        try:
            data = files.read(path, limit=_MAX_NAMES)
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise _damaged(path) from error
        if sha256(data).hexdigest() != self.names_sha256 or len(data) % NAME_SIZE:
            raise _damaged(path)
        return standing._replace(names=Names(data))


def load(folder: Path) -> Kept:
    """Read what is kept; raises ``StorageError`` (``storage.corrupt``, ``storage.missing``)."""
    path = folder / FILE
    try:
        document = canonical.loads(files.read(path, limit=_MAX_BYTES), limit=_MAX_BYTES)
        match document:
            case {
                "standing": dict(kept),
                "keyid": str(key_id),
                "sig": str(signature),
                **further,
            } if not further:
                standing, names = _parse(kept)
                return Kept(
                    path, standing, names, canonical.dumps(kept), key_id, b64_decode(signature)
                )
    except OSError as error:
        message = f"{path} can't be read ({error.strerror}): open the guard again"
        raise StorageError(message, code="storage.missing") from error
    except (AgentguardError, TypeError, ValueError, LookupError) as error:
        raise _damaged(path) from error
    raise _damaged(path)


def keep(
    folder: Path, log: str, standing: Standing, signer: Signer, *, before: Kept | None = None
) -> None:
    """Replace what is kept; raises ``StorageError``. Call it inside ``registry.locked`` only.

    Names that were kept ``before``, as a verified file says, are not written again.
    """
    names = standing.names.encode()
    digest = sha256(names).hexdigest()
    kept = _encoded(standing, digest)
    signature = signer.sign(_signed(log, canonical.dumps(kept)))
    document: dict[str, JSON] = {
        "standing": kept,
        "keyid": signer.key_id,
        "sig": b64_encode(signature),
    }
    is_new = before is None or before.names_sha256 != digest
    if is_new and (names or (folder / NAMES).exists()):
        files.replace(folder / NAMES, names)
    files.replace(folder / FILE, canonical.dumps(document))


def _encoded(standing: Standing, names_sha256: str) -> dict[str, JSON]:
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
        "names": names_sha256,
        "read": {
            str(shard): [place.size, b64_encode(place.peaks)]
            for shard, place in standing.read.items()
        },
        "unread": standing.unread,
    }


def _rows(values: Mapping[str, tuple[Any, ...]]) -> dict[str, JSON]:
    return {key: [*value] for key, value in values.items()}


_MEMBERS: Final = frozenset(_encoded(Standing(), ""))


def _parse(kept: Mapping[str, Any]) -> tuple[Standing, str]:
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
    return standing, _of(str, kept["names"])


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
    return envelope.pae(_TYPE, canonical.dumps(log) + encoded)


def _damaged(path: Path) -> StorageError:
    message = f"{path} is damaged: remove it, and open the guard again, which makes it anew"
    return StorageError(message, code="storage.corrupt")
