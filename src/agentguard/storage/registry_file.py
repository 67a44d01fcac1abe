"""The file of the shards' registry: the issuer's signed list, replaced whole.

``audit/registry.py`` says what the list holds, and verifies the list. Here its errors get the
file's name, and what to do.
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
    """Return the unverified list, None if there is none; raises ``StorageError``."""
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
    """Return the shards of the list, and the shards whose files are there.

    Refuses a state in which a shard is missing that the list names, or of which there is an anchor.
    With an ``own`` shard, which the caller has just taken, there may be no list yet. Raises
    ``StorageError`` (``storage.rolled_back``), and as ``shards`` does.
    """
    registered = shards(state, trust)
    known = registered | anchored(anchors, trust)
    present_files = sqlite.numbers(state)  # read last: a shard's file comes before its anchor
    missing = sorted(known.difference(present_files))
    remedy = ": restore the state; nothing is written until then"
    if missing:
        lost = f"the shard {sqlite.shard_path(state, missing[0])}"
        if missing[0] not in registered:
            remedy = f", of which there is an anchor: {anchor.ROLLED_BACK}"
    elif present_files and not registered and own is None:
        # a new list would leave out the shards that were removed together with the list
        lost = f"the registry of the shards in {state}"
    else:
        return registered, present_files
    raise StorageError(f"{lost} is missing{remedy}", code="storage.rolled_back")


def anchored(anchors: Path | None, trust: TrustDocument) -> frozenset[int]:
    """Return the shards of which there is an anchor; raises ``StorageError``."""
    if anchors is None:
        return frozenset()
    return frozenset(anchor.anchored_shards(anchors, trust.log))


def write(state: Path, data: bytes) -> None:
    """Replace the list, durably; raises ``StorageError``. Call it inside ``locked`` only."""
    files.replace(state / FILE, data)


def write_next(state: Path, data: bytes) -> None:
    """Write, beside the list, the list that is to replace it. As ``write``."""
    files.replace(state / _NEXT, data)


def adopt_next(state: Path) -> None:
    """Replace the list with the next list, if there is one. As ``write``."""
    if has_next(state):
        files.move(state / _NEXT, state / FILE)


def has_next(state: Path) -> bool:
    """Return whether there is a next list."""
    return files.exists(state / _NEXT)


def drop_next(state: Path) -> None:
    """Remove the next list, if there is one. As ``write``."""
    files.remove(state / _NEXT)


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Keep other processes from changing the list; waits as ``lock.acquire`` does."""
    with lock.held(state / _LOCK):
        yield
