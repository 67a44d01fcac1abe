"""The standing files of one log: one in the state and, with an anchor, a copy beside the anchor.

Somebody who can write only the state can't change the copy. So the copy says how far the log was
read, and the file in the state only adds revocations, erasures, a newer freeze or thaw, and a later
time. Beside each standing file lies a second file with the names of journalled calls.
``standing_file.py`` has the format of both files.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from agentguard.audit.standing import Standing
from agentguard.errors import StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Signer
from agentguard.storage import anchor, standing_file
from agentguard.storage.standing_file import SavedStanding

_LOGGER = logging.getLogger("agentguard")

Status = tuple[int, int, int]
"""A file's inode, time and size."""


class SavedStart(NamedTuple):
    """The standing that was saved, from which the log is read on.

    ``is_sure`` is True where somebody who can write only the state can't have replaced the standing
    by an older standing.
    ``refusals`` come from files that do not verify as a whole: what they refuse stays refused, and
    nothing else in them counts.
    """

    standing: Standing
    is_sure: bool
    refusals: tuple[Standing, ...]


class StandingCopies:
    """The files of the log ``log``; ``anchors`` is the folder of all anchors; None without anchors.

    Each method raises ``StorageError``.
    """

    def __init__(self, state: Path, anchors: Path | None, log: str) -> None:
        outside = () if anchors is None else (anchor.log_folder(anchors, log),)
        self._log = log
        self._folders: tuple[Path, ...] = (state, *outside)
        self._paths = [os.fspath(folder / standing_file.FILE) for folder in self._folders]
        self._damaged: set[Path] = set()  # the folders whose files must be written again

    @property
    def safest(self) -> Path:
        """The folder that is hardest to write: the one beside the anchor, where there is one."""
        return self._folders[-1]

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
    ) -> list[Standing]:
        """Return the verified standing of each file whose status has changed."""
        return [
            standing_file.load(folder).verify(trust).standing
            for folder, status, old in zip(self._folders, statuses, before, strict=True)
            if status is not None and status != old
        ]

    def load_start(self, trust: TrustDocument) -> SavedStart:
        """Return the saved standing from which the log is read on.

        What a copy beside the anchor refuses stays refused even if a key that was declared
        compromised has signed the copy: ``agentguard adopt`` may have dropped the log's entries of
        those refusals. The same holds for a file in the state whose file of names is missing.
        """
        refusals: list[Standing] = []
        own = self._load(self._folders[0], trust)
        if isinstance(own, SavedStanding):
            refusals.append(own.standing)
            own = Standing()
        for folder in self._folders[1:]:
            copy = self._load(folder, trust)
            if isinstance(copy, SavedStanding):  # a writer of the state can't remove these names
                raise copy.names_missing()
            if copy is not None:
                return SavedStart(
                    copy.joined(own or Standing()), is_sure=True, refusals=tuple(refusals)
                )
            try:
                signed = standing_file.load(folder)
                refusals.append(signed.verify(trust, by_compromised=True).standing)
            except StorageError as error:
                if error.code == "storage.corrupt":
                    _LOGGER.warning(
                        "%s does not verify, and is made anew from the log: find out who changed "
                        "the file. If you ran agentguard adopt, repeat the revocations and freezes "
                        "that it dropped",
                        folder / standing_file.FILE,
                    )
        return SavedStart(own or Standing(), is_sure=False, refusals=tuple(refusals))

    def _load(self, folder: Path, trust: TrustDocument) -> Standing | SavedStanding | None:
        saved = standing_file.load_whole(folder, trust)
        if not isinstance(saved, Standing):
            self._damaged.add(folder)
        return saved

    def save(self, standing: Standing, signer: Signer, trust: TrustDocument, *, most: int) -> None:
        """Save a standing where the saved copy is stale.

        A copy is stale if its decisions differ, if the standing has over ``most`` entries more than
        the copy, or if the standing has fewer entries.

        Call this inside ``registry_file.locked`` only.
        """
        for folder in reversed(self._folders):  # out of everybody's reach first
            before = self._before(folder, trust)
            if before is None or _is_stale(before.standing, standing, most):
                standing_file.save(folder, self._log, standing, signer, before=before)
                self._damaged.discard(folder)

    def _before(self, folder: Path, trust: TrustDocument) -> SavedStanding | None:
        """Return what is saved in a folder, without the names, which decide nothing here."""
        if folder not in self._damaged:
            with suppress(StorageError):
                return standing_file.load(folder).verify(trust)
        return None


def _is_stale(saved: Standing, standing: Standing, most: int) -> bool:
    # how far the log was read is worth a write now and then only
    return not 0 <= standing.entries - saved.entries <= most or (
        _decisive(standing) != _decisive(saved)
    )


def _decisive(standing: Standing) -> tuple[object, ...]:
    return (
        standing.revoked,
        standing.sequence,
        standing.frozen,
        standing.used,
        standing.erased,
        standing.read.keys(),
    )
