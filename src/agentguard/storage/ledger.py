"""What one process knows of the log that decides its calls: read, verified, and never forgotten.

Whoever opens a state reads each shard on from where the signed file (``standing.py``) says that it
was read before; ``walk.py`` verifies what is read. A shard that the file does not lead to is read
from its start. What does not verify opens no guard.

A running process looks at the file's status at each call, and at that of its copy in the anchor,
and joins what is new in them to what it knows.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple

from agentguard.audit.standing import Gathering, Place, Standing
from agentguard.errors import StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Signer
from agentguard.storage import (
    anchor,
    registry_file,
    shard_file,
    sqlite,
    standing_file,
    state_location,
)
from agentguard.storage.incremental import ElsewhereError, Walk, Walked
from agentguard.storage.reader import StateReader
from agentguard.storage.reentry import ReentryGuard
from agentguard.storage.standing_file import SavedStanding

_LOGGER = logging.getLogger("agentguard")

UNKEPT: Final = 1000
"""Entries that may be read once more at each opening, before how far they were read is kept."""

Status = tuple[int, int, int]
"""A file's inode, time and size."""


class _Known(NamedTuple):
    """The status of each file that was looked at, and what counted by them.

    One value, so that two threads that load at once never leave the one's status beside the other's
    standing.
    """

    seen: tuple[Status | None, ...]
    standing: Standing


class Inheritance(NamedTuple):
    """What a process knew of the log, and the journalled calls that it had begun: for its forks."""

    standing: Standing
    calls: AbstractSet[str]


class Ledger:
    """The log of a state as one process knows it; safe from many threads, made anew after a fork.

    ``trust`` returns the trust document that counts by now. ``anchors`` is the folder with the
    anchors of all logs, None for nowhere. Who only reads needs no ``signer``, the log's key. A fork
    takes over what its ``parent`` knew, which nobody who writes the state can change. Each
    method raises ``StorageError``, and those that read the log ``VerificationError`` or
    ``DecodeError``, too.
    """

    def __init__(
        self,
        state: Path,
        anchors: Path | None,
        trust: Callable[[], TrustDocument],
        signer: Signer | None = None,
        parent: Inheritance | None = None,
    ) -> None:
        self._state = state
        self._anchors = anchors
        self._trust = trust
        self._signer = signer
        self._folders: tuple[Path, ...] = (state,)
        self._log = trust().log
        if anchors is not None:
            self._folders = (state, anchor.log_folder(anchors, self._log))
        self._paths = [os.fspath(folder / standing_file.FILE) for folder in self._folders]
        known = parent.standing if parent is not None else Standing()
        self._known = _Known((None,) * len(self._folders), known)
        self._learning = threading.RLock()  # a signal handler may make a call meanwhile
        self._reading = threading.Lock()
        self._reentry = ReentryGuard()
        self._begun = parent is not None
        # journalled calls: those of this process since the last reading, those of the time between
        # the two last readings, and those of a fork's parent, whose shard the fork can't read
        self._calls: set[str] = set()
        self._calls_before: set[str] = set()
        self._calls_of_parent = set(parent.calls) if parent is not None else set()
        self._damaged: set[Path] = set()  # where the file, or that of the names, is to be made anew
        self._refused: list[Standing] = []  # what only a file refuses, until it is joined
        self.heads: dict[int, bytes] = {}

    @property
    def trust(self) -> TrustDocument:
        """The trust document that counts by now."""
        return self._trust()

    def sign_with(self, signer: Signer) -> None:
        """Sign what is kept from here on with another key of the log."""
        self._signer = signer

    @property
    def standing(self) -> Standing:
        """What is known by now, without looking for more."""
        return self._known.standing

    # --- a call's look ----------------------------------------------------------------------------

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Look whether there is something new, then in what counts."""
        seen = tuple(self._status(number) for number in range(len(self._paths)))
        known = self._known
        if seen != known.seen:
            known = self._learn(seen)
        return known.standing.refusal(names)

    def _status(self, number: int) -> Status | None:
        path = self._paths[number]
        try:
            status = os.stat(path)  # noqa: PTH116  it is asked at every call
        except OSError as error:
            if number > 0:  # outside the state nobody but its owner can have removed it
                return None
            message = (
                f"{path} can't be looked at ({error.strerror}): open the guard again, which makes "
                "it anew from the log"
            )
            raise StorageError(message, code="storage.missing") from error
        return (status.st_ino, status.st_mtime_ns, status.st_size)

    def _learn(self, seen: tuple[Status | None, ...]) -> _Known:
        # What this process goes by is signed with the log's key later (``keep``): nothing joins it
        # that the log's key has not signed already. What was known before stays.
        trust = self._trust()
        kept = [
            standing_file.load(folder).verify(trust).standing
            for folder, status, before in zip(self._folders, seen, self._known.seen, strict=True)
            if status is not None and status != before
        ]
        with self._learning:
            # by now another thread may know more than this one did, or than a file still says
            joined = self._known.standing
            for one in kept:
                joined = joined.joined(one)
            self._known = _Known(seen, joined)
            return self._known

    def inheritance(self) -> Inheritance | None:
        """Return what a fork takes over; None where nothing was read."""
        calls = self._calls | self._calls_before | self._calls_of_parent
        return Inheritance(self._known.standing, calls) if self._begun else None

    # --- journalled calls that the log may not have yet -------------------------------------------

    def begin(self, key: str) -> None:
        """Note that this process begins a journalled call: its entry was not read yet."""
        self._calls.add(key)

    def begun(self, key: str) -> Literal["own", "parent"] | None:
        """Return who has begun a journalled call that was perhaps not read yet."""
        if key in self._calls_of_parent:
            return "parent"
        return "own" if key in self._calls or key in self._calls_before else None

    def forget(self, key: str) -> None:
        """Note that a journalled call may be made anew."""
        for calls in (self._calls, self._calls_before, self._calls_of_parent):
            calls.discard(key)

    # --- the log ----------------------------------------------------------------------------------

    def read_on(self, *, own: int | None = None) -> Standing:
        """Return what the log says by now, every shard verified up to its newest checkpoint.

        The caller's ``own`` shard may be the first of all. ``heads`` has their notes from then on.
        """
        with self._reentry.enter("reading the log"):
            return self._read_on(own)

    def _read_on(self, own: int | None = None) -> Standing:
        with self._reading:
            trust = self._trust()
            begun, is_sure = self._start(trust)
            try:
                try:
                    read = self._walk(begun, trust, own, is_sure=is_sure)
                except ElsewhereError:
                    read = self._anew(begun, trust, own)
            except StorageError as error:
                if error.code == "storage.rolled_back" and self._anchors is not None:
                    # the original of an adopted copy is behind the anchor, and nobody's mistake
                    state_location.refuse_copy(
                        anchor.log_folder(self._anchors, self._log), self._state
                    )
                raise
            with self._learning:
                self._begun = True
                if read.entries != self._known.standing.entries:
                    self._calls_before, self._calls = self._calls, set()
                known = read.joined(self._known.standing)
                while self._refused:
                    known = known.with_refusals(self._refused.pop())
                self._known = self._known._replace(standing=known)
                return known

    def _start(self, trust: TrustDocument) -> tuple[Standing, bool]:
        """Return from where the log is read on, and whether nobody who writes the state set that.

        A process goes on from what it knows. A fork can't read its parent's shard any more, and
        goes on from the kept file where others have read more of that shard.
        """
        known = self._known.standing
        inherited = [shard for shard, path in self._shards() if sqlite.was_inherited(path)]
        if self._begun and not inherited:
            return known, True
        kept, is_sure = self._kept(trust)
        if self._begun and not any(_size(kept, shard) > _size(known, shard) for shard in inherited):
            return known, True
        return kept, is_sure

    def _kept(self, trust: TrustDocument) -> tuple[Standing, bool]:
        """Return what was kept, and whether nobody who writes the state alone can have put it back.

        Beside the anchor nobody can. What lies in the state only adds to it. Where a key that was
        declared compromised since has signed the copy beside the anchor, what the copy refuses
        stays refused: an adoption may have given up the entries of it. So does what the file in the
        state refuses that lies without its names.
        """
        self._refused.clear()
        own = self._loaded(self._state, trust)
        if isinstance(own, SavedStanding):
            self._refused.append(own.standing)
            own = Standing()
        for folder in self._folders[1:]:
            copy = self._loaded(folder, trust)
            if isinstance(
                copy, SavedStanding
            ):  # nobody who writes the state alone can have removed them
                raise copy.nameless()
            if copy is not None:
                return copy.joined(own or Standing()), True
            try:
                signed = standing_file.load(folder)
                self._refused.append(signed.verify(trust, by_compromised=True).standing)
            except StorageError as error:
                if error.code == "storage.corrupt":
                    _LOGGER.warning(
                        "%s does not verify, and is made anew from the log: find out who changed "
                        "it, and revoke and freeze again what an adoption has given up",
                        folder / standing_file.FILE,
                    )
        return own or Standing(), False

    def _loaded(self, folder: Path, trust: TrustDocument) -> Standing | SavedStanding | None:
        found = standing_file.loaded(folder, trust)
        if not isinstance(found, Standing):
            self._damaged.add(folder)
        return found

    def _anew(self, begun: Standing, trust: TrustDocument, own: int | None) -> Standing:
        """Read every shard from its start; what is revoked or used, and was known before, stays."""
        if self._begun:
            message = (
                f"the log in {self._state} is not the one that this process has read: "
                f"{anchor.ROLLED_BACK}"
            )
            raise StorageError(message, code="storage.rolled_back")
        try:
            read = self._walk(Standing(names=begun.names), trust, own, is_sure=False)
        except ElsewhereError as error:  # there is no place before the first entry
            raise StorageError("a shard can't be read from its start") from error
        return read.joined(begun)._replace(used={**begun.used, **read.used})

    def _walk(
        self, begun: Standing, trust: TrustDocument, own: int | None, *, is_sure: bool
    ) -> Standing:
        gathering = Gathering(begun, trust)
        heads: dict[int, bytes] = {}
        registered, shards = registry_file.present(self._state, self._anchors, trust, own=own)
        with closing(StateReader(self._state, may_be_empty=True)) as reader:
            walk = Walk(self._state, self._anchors, trust, reader)
            for shard in shards:
                place, note = self._inherited(shard, gathering.place(shard)) or walk.on(
                    shard,
                    gathering.place(shard),
                    gathering.add,
                    may_be_empty=shard not in registered,
                    is_sure=is_sure,
                )
                if note is not None:
                    gathering.reached(shard, place)
                    heads[shard] = note
        self.heads = heads
        read = gathering.standing
        if read.unread > begun.unread:
            _LOGGER.warning(
                "the log in %s holds %d entries that say nothing which counts, though their kind "
                "does: run agentguard audit verify",
                self._state,
                read.unread - begun.unread,
            )
        return read

    def _shards(self) -> list[tuple[int, Path]]:
        return [
            (shard, sqlite.shard_path(self._state, shard)) for shard in sqlite.numbers(self._state)
        ]

    def _inherited(self, shard: int, place: Place) -> Walked | None:
        """In a fork: return how far others have read a shard of its parent's; None elsewhere.

        SQLite's memory of that file is the parent's, and too old by now; what others have read in
        it stands in the signed file.
        """
        path = sqlite.shard_path(self._state, shard)
        if not sqlite.was_inherited(path):
            return None
        if place.size == 0:
            message = (
                f"a fork can't read {path}, which its parent has open, and what was read there is "
                f"not kept in {self._folders[-1]}: open a guard in a new process"
            )
            raise StorageError(message, code="storage.missing")
        return Walked(place, shard_file.inherited_note(path))

    # --- what is kept -----------------------------------------------------------------------------

    def leaves_much(self, unkept: int) -> bool:
        """Whether that many entries are more than the next opening should read once more."""
        return unkept >= UNKEPT

    def keep(self, *, at_once: bool = False) -> Standing:
        """Read on, and keep the result in the state and beside the anchor, where that is new.

        A key that was declared compromised keeps nothing. Where the result has to be kept
        ``at_once``, that is an error (``storage.unvouched``).
        """
        with self._reentry.enter("keeping what the log says"), registry_file.locked(self._state):
            trust = self._trust()
            read = self._read_on()
            signer = self._signer
            if signer is None or not _may_keep(trust, signer):
                if at_once:
                    message = (
                        "the log's key in this process does not count any more: open the guard "
                        "again, in a new process, and make the call again"
                    )
                    raise StorageError(message, code="storage.unvouched")
                return read
            for folder in reversed(self._folders):  # out of everybody's reach first
                before = self._before(folder, trust)
                if before is None or self._is_stale(before.standing, read):
                    standing_file.keep(folder, self._log, read, signer, before=before)
                    self._damaged.discard(folder)
            return read

    def _before(self, folder: Path, trust: TrustDocument) -> SavedStanding | None:
        """Return what is kept in a folder; the names in it, which decide nothing, are not read."""
        if folder not in self._damaged:
            with suppress(StorageError):
                return standing_file.load(folder).verify(trust)
        return None

    def _is_stale(self, kept: Standing, read: Standing) -> bool:
        # how far it was read is worth a write now and then only
        return not 0 <= read.entries - kept.entries <= UNKEPT or (
            self._decisive(read) != self._decisive(kept)
        )

    @staticmethod
    def _decisive(said: Standing) -> tuple[object, ...]:
        return (
            *(said.revoked, said.sequence, said.frozen),
            *(said.used, said.erased, said.read.keys()),
        )


def _may_keep(trust: TrustDocument, signer: Signer) -> bool:
    """Whether what the key signs is believed: a rotated key's word is, until the guard renews it.

    Until then, nobody else keeps what only this process knows at once.
    """
    return any(
        trusted.key == signer.public_key and trusted.compromised_since is None
        for trusted in trust.keys_for("log")
    )


def _size(said: Standing, shard: int) -> int:
    return said.read[shard].size if shard in said.read else 0


def current(state: Path, anchors: Path | None, trust: TrustDocument) -> Standing:
    """Return what the log says by now, verified, and keep nothing of it; raises as ``read_on``."""
    return Ledger(state, anchors, lambda: trust).read_on()
