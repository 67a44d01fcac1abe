"""The file of the shards' registry: the issuer's signed list, replaced whole.

What the list says and how it is verified stands in ``audit/registry.py``; here an error of that
kind is given the file's name, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Final

from agentguard.audit.registry import verify_registry
from agentguard.errors import DecodeError, StorageError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.storage import anchor, files, lock, sqlite

FILE: Final = "registry.json"
_NEXT: Final = "registry.next"
_LOCK: Final = "registry.lock"


def read(state: Path) -> bytes | None:
    """Return the list as it lies there, None if there is none; raises ``StorageError``."""
    return files.read_if_present(state / FILE)


def shards(state: Path, trust: TrustDocument) -> frozenset[int]:
    """Return the shards in the list, verified; none where there is no list.

    Raises ``StorageError``, and ``DecodeError`` or ``VerificationError``, which name the file.
    """
    data = read(state)
    try:
        return _verified(data, trust) if data is not None else frozenset()
    except (DecodeError, VerificationError) as error:
        message = (
            f"{state / FILE} does not verify ({error}): find out who changed it, and restore it "
            "from a backup; nothing is written until then"
        )
        raise type(error)(message, code=error.code) from error


@lru_cache(maxsize=16)
def _verified(data: bytes, trust: TrustDocument) -> frozenset[int]:
    return verify_registry(data, trust).shards


def present(
    state: Path, anchors: Path | None, trust: TrustDocument, *, own: int | None = None
) -> tuple[frozenset[int], list[int]]:
    """Return the shards of the list, and those that are there: none that is known is missing.

    Known are those of the list, and those of which there is an anchor. With an ``own`` one, which
    the caller has just taken, there may be no list yet. Raises ``StorageError``
    (``storage.rolled_back``), and as ``shards`` does.
    """
    registered = shards(state, trust)
    known = registered | anchored(anchors, trust)
    there = sqlite.numbers(state)  # read last: a shard's file comes before its anchor
    missing = sorted(known.difference(there))
    remedy = ": restore the state; nothing is written until then"
    if missing:
        lost = f"the shard {sqlite.shard_path(state, missing[0])}"
        if missing[0] not in registered:
            remedy = f", of which there is an anchor: {anchor.ROLLED_BACK}"
    elif there and not registered and own is None:
        # a new one would leave out the shards that somebody has removed together with it
        lost = f"the registry of the shards in {state}"
    else:
        return registered, there
    raise StorageError(f"{lost} is missing{remedy}", code="storage.rolled_back")


def anchored(anchors: Path | None, trust: TrustDocument) -> frozenset[int]:
    """Return the shards of which there is an anchor; raises ``StorageError``."""
    if anchors is None:
        return frozenset()
    return frozenset(anchor.kept_shards(anchors, trust.log))


def write(state: Path, data: bytes) -> None:
    """Replace the list, durably; raises ``StorageError``. Call it inside ``locked`` only."""
    files.replace(state / FILE, data)


def write_next(state: Path, data: bytes) -> None:
    """Keep, beside the list, the one that is to take its place. As ``write``."""
    files.replace(state / _NEXT, data)


def adopt_next(state: Path) -> None:
    """Put the next list in its place, if there is one. As ``write``."""
    if has_next(state):
        files.move(state / _NEXT, state / FILE)


def has_next(state: Path) -> bool:
    """Whether a list lies there that is to take the other's place."""
    return (state / _NEXT).exists()


def drop_next(state: Path) -> None:
    """Forget the next list, if there is one: it will not be put in its place. As ``write``."""
    files.remove(state / _NEXT)


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Be the only process that changes the list; waits for its turn, as ``lock.acquire`` does."""
    with lock.held(state / _LOCK):
        yield
