"""``PublishedRevocations``: who may act no more in a trust domain, for the servers of tools.

The file has the signed head of the domain's log, and the nodes of its map that prove who is revoked
and who is not: all keys of these kinds are there, by their digests, and no name. A receiver gets
the file by whatever way. An older file says less: nothing proves that nobody was revoked since.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final, NamedTuple

from agentguard.audit import head as heads
from agentguard.audit.head import Head
from agentguard.audit.map import Cache, Map, Overlay
from agentguard.audit.state import DENYING, State
from agentguard.errors import AgentguardError, DecodeError, StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing.canonical import b64_decode, b64_encode
from agentguard.storage import files
from agentguard.store.log import StoreLog

_MAX_BYTES: Final = 64 << 20


def of(log: StoreLog) -> bytes:
    """Return the file of a log: the signed note of its head, an empty line, and a line a node.

    Raises ``StorageError``, also for a file that is too long for its receivers.
    """
    note, nodes = log.proof(DENYING)
    lines = (f"/{at} {b64_encode(node)}\n".encode() for at, node in sorted(nodes.items()))
    data = note + b"\n" + b"".join(lines)
    if len(data) > _MAX_BYTES:
        message = (
            f"the file would have {len(data)} bytes, and a receiver reads {_MAX_BYTES} at most: "
            "too many log-outs and surrenders have not ended; write the file again later"
        )
        raise StorageError(message)
    return data


class _Known(NamedTuple):
    version: tuple[int, ...]
    head: Head
    state: State


class PublishedRevocations:
    """Who may act no more, by the file at ``path`` that ``agentguard revocations`` has written.

    ``trust`` is the trust document of the domain. The file is read anew when it changes. An older
    file than the one before is refused: the object remembers, and a new process does not. The
    methods may be called from any thread.
    """

    def __init__(self, path: str | os.PathLike[str], trust: TrustDocument) -> None:
        self._path = Path(path).absolute()  # a server may change its folder afterwards
        self._trust = trust
        self._lock = threading.Lock()
        self._known: _Known | None = None

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return the code and the reason why no bearer of ``names`` may act; None for none.

        Raises ``StorageError``: ``storage.missing`` for a missing file, ``storage.corrupt`` for one
        that no key of the log has signed, or that lacks what it should prove;
        ``storage.rolled_back`` for one older than before.
        """
        with self._lock:
            state = self._read()
            try:
                return state.refusal(names)
            except DecodeError as error:
                raise self._damaged(error) from error

    def _read(self) -> State:
        try:
            status = self._path.stat()
        except OSError as error:
            message = f"{self._path} can't be read ({error.strerror})"
            raise StorageError(message, code="storage.missing") from error
        version = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if self._known is not None and self._known.version == version:
            return self._known.state
        try:
            head, state = _loads(files.read(self._path, limit=_MAX_BYTES), self._trust)
        except (AgentguardError, OSError, ValueError) as error:
            raise self._damaged(error) from error
        if self._known is not None and head.size < self._known.head.size:
            message = f"{self._path} is older than the file that was there before: get the newest"
            raise StorageError(message, code="storage.rolled_back")
        self._known = _Known(version, head, state)
        return state

    def _damaged(self, error: Exception) -> StorageError:
        message = (
            f"{self._path} does not hold ({error}): get a new file from agentguard revocations"
        )
        return StorageError(message, code="storage.corrupt")


def _loads(data: bytes, trust: TrustDocument) -> tuple[Head, State]:
    """Return the head and what it vouches for; a node is compared with it when it is needed.

    The signature comes first: what nobody has signed is not read.
    """
    text, signatures, lines = data.split(b"\n\n", 2)
    keys = (one.key for one in trust.keys_for("log") if one.compromised_since is None)
    head, _key = heads.verify(text + b"\n\n" + signatures + b"\n", keys, trust.log)
    nodes = dict(line.split(" ") for line in lines.decode().splitlines())

    def fetch(addresses: list[str]) -> dict[str, bytes]:
        return {at: b64_decode(nodes[f"/{at}"]) for at in addresses if f"/{at}" in nodes}

    return head, State(Overlay(Map(head.map_root, fetch, Cache())))
