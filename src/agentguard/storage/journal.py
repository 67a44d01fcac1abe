"""``LoggedJournal``: which calls run no second time, by the log, and the pages with their results.

The log's map says which journalled calls have begun or ran. A page beside it has the result, which
may be handed out again. So only a process with the log's key can write a page that counts.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from agentguard.audit.log import AuditLog
from agentguard.call.journal import MAX_RESULT, EntryState, JournalEntry
from agentguard.errors import AgentguardError, StorageError
from agentguard.storage.seal import Keys, Seal, SignedFolder

FOLDER: Final = "journal"
_TYPE: Final = "application/vnd.agentguard.journal+json"
_MAX_BYTES: Final = 4 * MAX_RESULT
_WITHOUT_PAGE: Final[Mapping[str, EntryState]] = {
    "begun": "begun",
    "unknown": "unknown",
    "resolved": "unreplayable",
}
_REMEDY: Final = (
    "restore the file from a backup of the state. Without the file, too, a call that has run is "
    "refused; agentguard audit list says what has become of the call"
)


class Pages(Protocol):
    """The pages, by the keys of their calls; each method raises ``StorageError``."""

    def read(self, name: str) -> bytes | None:
        """Return a page, verified; None for none."""

    def write(self, name: str, data: bytes) -> None:
        """Write a page, durably."""


class LoggedJournal:
    """The ``Journal`` of a log; ``secret`` returns what makes names that nobody can guess.

    Each method raises ``StorageError``.
    """

    def __init__(self, log: AuditLog, pages: Pages, secret: Callable[[], bytes]) -> None:
        self._log = log
        self._pages = pages
        self._read_secret = secret
        self._secret: bytes | None = None

    def name(self, key: str) -> str:
        """Return a call's name (32 hex digits): its key, hashed with the secret.

        The key is made of arguments that somebody could guess, and the log is never erased.
        """
        if self._secret is None:
            self._secret = self._read_secret()
        return hmac.digest(self._secret, key.encode(), "sha256")[:16].hex()

    def read(self, key: str) -> JournalEntry | None:
        """Return what is known of a call; None where the call is new."""
        name = self.name(key)
        call = self._log.look(lambda state: state.run_once(name))
        page = self._page(key)  # after the log: a page is written before the outcome
        if call is None:
            entry = page  # a sub-agent's call, which may be begun again, has a page alone
        elif page is not None and page.invocation_id == call.invocation_id:
            entry = page
        elif call.state in _WITHOUT_PAGE:
            return JournalEntry(call.invocation_id, _WITHOUT_PAGE[call.state])
        else:
            message = (
                f"the log says that this call has run already, and its page {key} in the journal "
                "is gone: restore the file, or go on without the call's result"
            )
            raise StorageError(message, code="journal.missing")
        if entry is None:
            return None
        invocation_id = entry.invocation_id
        if self._log.look(lambda state: state.is_erased(invocation_id)):
            return JournalEntry(invocation_id, "unreplayable")
        return entry

    def _page(self, key: str) -> JournalEntry | None:
        data = self._pages.read(key)
        try:
            return None if data is None else JournalEntry.loads(data)
        except AgentguardError as error:
            message = f"the page {key} of the journal does not hold ({error}): {_REMEDY}"
            raise StorageError(message, code="storage.corrupt") from error

    def finish(self, key: str, entry: JournalEntry) -> None:
        """Write the page of a call that has run."""
        self._pages.write(key, entry.dumps())


def pages(state: Path, keys: Keys) -> SignedFolder:
    """Return the pages in a state; ``keys`` returns the log's key and the trust document."""
    return SignedFolder(state / FOLDER, Seal(keys, _TYPE, "page", _MAX_BYTES), _REMEDY)


def erase(pages: SignedFolder, invocation_ids: Collection[str]) -> None:
    """Take the results of calls out of their pages; raises ``StorageError``."""
    for name in pages.names():
        with suppress(AgentguardError):  # nobody gets the result of a page that does not verify
            page = JournalEntry.loads(pages.read(name) or b"")
            if page.invocation_id in invocation_ids:
                pages.write(name, JournalEntry(page.invocation_id, "unreplayable").dumps())
