"""The files with one log's restrictions: one in the state and, with an anchor, a copy beside it.

Somebody who can write only the state can't change the copy. So the copy says how far the log was
read, and the file in the state only adds revocations, log-outs, erasures, a newer freeze or thaw,
and a later time. Beside each file lies a second file with the names of journalled calls.
``restrictions_file.py`` has the format of both files.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from agentguard.audit.restrictions import Restrictions
from agentguard.errors import StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Signer
from agentguard.storage import anchor, restrictions_file
from agentguard.storage.restrictions_file import SavedRestrictions

_LOGGER = logging.getLogger("agentguard")

Status = tuple[int, int, int]
"""A file's inode, time and size."""


class SavedStart(NamedTuple):
    """The saved restrictions, from which the log is read on.

    ``is_sure`` is True where somebody who can write only the state can't have replaced these
    restrictions by older ones.
    ``refusals`` come from files that do not verify as a whole: what they refuse stays refused, and
    nothing else in them counts.
    """

    restrictions: Restrictions
    is_sure: bool
    refusals: tuple[Restrictions, ...]


class RestrictionsCopies:
    """The files of the log ``log``; ``anchors`` is the folder of all anchors; None without anchors.

    Each method raises ``StorageError``.
    """

    def __init__(self, state: Path, anchors: Path | None, log: str) -> None:
        outside = () if anchors is None else (anchor.log_folder(anchors, log),)
        self._log = log
        self._folders: tuple[Path, ...] = (state, *outside)
        self._paths = [os.fspath(folder / restrictions_file.FILE) for folder in self._folders]
        self._damaged: set[Path] = set()  # the folders whose files must be written again

    def statuses(self) -> tuple[Status | None, ...]:
        """Return the status of each file, cheap enough for every call; None for a copy not there.

        Raises ``StorageError`` (``storage.missing``) where the file in the state is not there.
        """
        return tuple([self._status(number) for number in range(len(self._paths))])

    def _status(self, number: int) -> Status | None:
        path = self._paths[number]
        try:
            status = os.stat(path)  # noqa: PTH116  this runs in every call
        except OSError as error:
            # only somebody who can write beside the anchor can have removed the copy there
            if number > 0:
                return None
            message = (
                f"{path} can't be looked at ({error.strerror}): open the guard again, which makes "
                "it anew from the log"
            )
            raise StorageError(message, code="storage.missing") from error
        return (status.st_ino, status.st_mtime_ns, status.st_size)

    def load_changed(
        self,
        statuses: tuple[Status | None, ...],
        before: tuple[Status | None, ...],
        trust: TrustDocument,
    ) -> list[Restrictions]:
        """Return the verified restrictions of each file whose status has changed."""
        return [
            restrictions_file.load(folder).verify(trust).restrictions
            for folder, status, old in zip(self._folders, statuses, before, strict=True)
            if status is not None and status != old
        ]

    def load_start(self, trust: TrustDocument) -> SavedStart:
        """Return the saved restrictions from which the log is read on.

        What a copy beside the anchor refuses stays refused even if a key that was declared
        compromised has signed the copy: ``agentguard adopt`` may have dropped the log's entries of
        those refusals. The same holds for a file in the state whose file of names is missing.
        """
        refusals: list[Restrictions] = []
        own = self._load(self._folders[0], trust)
        if isinstance(own, SavedRestrictions):
            refusals.append(own.restrictions)
            own = Restrictions()
        for folder in self._folders[1:]:
            copy = self._load(folder, trust)
            if isinstance(copy, SavedRestrictions):
                # who writes only the state can't have removed the file of names beside the anchor
                raise copy.names_missing()
            if copy is not None:
                return SavedStart(
                    copy.joined(own or Restrictions()), is_sure=True, refusals=tuple(refusals)
                )
            try:
                signed = restrictions_file.load(folder)
                refusals.append(signed.verify(trust, by_compromised=True).restrictions)
            except StorageError as error:
                if error.code == "storage.corrupt":
                    _LOGGER.warning(
                        "%s does not verify, and is made anew from the log: find out who changed "
                        "the file. If you ran agentguard adopt, repeat the revocations and freezes "
                        "that it dropped",
                        folder / restrictions_file.FILE,
                    )
        return SavedStart(own or Restrictions(), is_sure=False, refusals=tuple(refusals))

    def _load(self, folder: Path, trust: TrustDocument) -> Restrictions | SavedRestrictions | None:
        saved = restrictions_file.load_whole(folder, trust)
        if not isinstance(saved, Restrictions):
            self._damaged.add(folder)
        return saved

    def save(
        self, restrictions: Restrictions, signer: Signer, trust: TrustDocument, *, most: int
    ) -> None:
        """Save the restrictions where the saved copy is stale.

        A copy is stale if its decisions differ, if the restrictions come from over ``most`` entries
        more than the copy, or if they come from fewer entries.

        Call this inside ``state_lock.held`` only.
        """
        for folder in reversed(self._folders):  # out of everybody's reach first
            before = self._before(folder, trust)
            if before is None or _is_stale(before.restrictions, restrictions, most):
                restrictions_file.save(folder, self._log, restrictions, signer, before=before)
                self._damaged.discard(folder)

    def _before(self, folder: Path, trust: TrustDocument) -> SavedRestrictions | None:
        """Return what is saved in a folder, without the names, which decide nothing here."""
        if folder not in self._damaged:
            with suppress(StorageError):
                return restrictions_file.load(folder).verify(trust)
        return None


def _is_stale(saved: Restrictions, restrictions: Restrictions, most: int) -> bool:
    # how far the log was read is worth a write now and then only
    return not 0 <= restrictions.entries - saved.entries <= most or (
        _decisive(restrictions) != _decisive(saved)
    )


def _decisive(restrictions: Restrictions) -> tuple[object, ...]:
    return (
        restrictions.revoked,
        restrictions.logouts,
        restrictions.surrendered,
        restrictions.sequence,
        restrictions.frozen,
        restrictions.erased,
    )
