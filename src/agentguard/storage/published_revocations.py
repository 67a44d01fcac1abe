"""``PublishedRevocations``: a trust domain's revocations, as the server of a tool may have them.

The file is ``restrictions.json`` of a state or of an anchor, which the key of the log has signed. A
receiver gets a copy, by whatever way, into a folder of its own. An older copy says less: the file
proves what was revoked, and not that nothing else was revoked since.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Set as AbstractSet
from pathlib import Path

from agentguard.audit.restrictions import Restrictions
from agentguard.errors import StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.storage import restrictions_file


class PublishedRevocations:
    """The revocations in ``folder``, which has the file ``restrictions.json`` of a trust domain.

    The file is read anew when it changes. An older copy than the one before is refused: the object
    remembers, and a new process does not. The methods may be called from any thread.
    """

    def __init__(self, folder: str | os.PathLike[str], trust: TrustDocument) -> None:
        self._folder = Path(folder).absolute()  # a server may change its folder afterwards
        self._trust = trust
        self._lock = threading.Lock()
        self._known: tuple[tuple[int, ...], Restrictions] | None = None

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return the code and the reason why no bearer of ``names`` may act; None for none.

        Raises ``StorageError``: ``storage.missing`` for a missing file, ``storage.corrupt`` for one
        that no key of the log has signed, ``storage.rolled_back`` for one older than before.
        """
        return self._restrictions().refusal(names)

    def _restrictions(self) -> Restrictions:
        with self._lock:
            path = self._folder / restrictions_file.FILE
            try:
                status = path.stat()
            except OSError as error:
                message = f"{path} can't be read ({error.strerror})"
                raise StorageError(message, code="storage.missing") from error
            seen = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if self._known is None or self._known[0] != seen:
                loaded = restrictions_file.load(self._folder).verify(self._trust).restrictions
                if self._known is not None and loaded.newest < self._known[1].newest:
                    message = f"{path} is older than the copy that was there before: get the newest"
                    raise StorageError(message, code="storage.rolled_back")
                self._known = seen, loaded
            return self._known[1]
