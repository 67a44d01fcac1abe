"""``LoggedJournal``: which calls run no second time, by the log, and the pages with their results.

The log's map says which journalled calls have begun or ran. A page beside the log has the result,
which may be handed out again. It is written in the commit of the call's outcome.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Mapping
from typing import Final

from agentguard.audit.log import Pages
from agentguard.audit.state import RunOnce, State
from agentguard.call.journal import EntryState, JournalEntry
from agentguard.errors import AgentguardError, DecodeError, StorageError
from agentguard.store.log import StoreLog
from agentguard.store.sealed_pages import Keys, SealedPages, data_of
from agentguard.store.transaction import View

FOLDER: Final = "journal"
_WITHOUT_PAGE: Final[Mapping[str, EntryState]] = {
    "begun": "begun",
    "unknown": "unknown",
    "resolved": "unreplayable",
}
_REMEDY: Final = (
    "restore the state from a backup. Without the page, too, a call that has run is refused; "
    "agentguard audit list says what has become of the call"
)


class LoggedJournal:
    """The ``Journal`` of a log; ``secret`` returns what makes names that nobody can guess.

    Each method raises ``StorageError``.
    """

    def __init__(self, log: StoreLog, keys: Keys | None, secret: Callable[[], bytes]) -> None:
        self._log = log
        self._pages = SealedPages(log, FOLDER, keys, _REMEDY)
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
        at = self._pages.at(name)

        def look(view: View) -> tuple[RunOnce | None, bytes | None]:
            return State(view).run_once(name), view.page(at)

        call, sealed = self._log.read(look)
        if call is not None and call.state in _WITHOUT_PAGE:
            return JournalEntry(call.invocation_id, _WITHOUT_PAGE[call.state])
        page = None if sealed is None else self._opened(sealed, at)
        # a sub-agent's call, which may be begun again, has a page alone
        invocation_id = call.invocation_id if call is not None else page and page.invocation_id
        if invocation_id is None:
            return None
        if self._log.look(lambda state: state.is_erased(invocation_id)):
            return JournalEntry(invocation_id, "unreplayable")
        if page is None or page.invocation_id != invocation_id:
            message = (
                f"the log says that this call has run already ({invocation_id}), and its page in "
                "the journal is gone: restore the state, or go on without the call's result"
            )
            raise StorageError(message, code="journal.missing")
        return page

    def _opened(self, page: bytes, at: str) -> JournalEntry:
        try:
            return JournalEntry.loads(self._pages.opened(page, at))
        except DecodeError as error:
            message = f"the page {at} of the state does not hold ({error}): {_REMEDY}"
            raise StorageError(message, code="storage.corrupt") from error

    def keeping(self, key: str, entry: JournalEntry) -> Callable[[Pages], None]:
        """Return what writes the page of a call that has run, in the commit of its outcome."""
        name = self.name(key)
        at, page = self._pages.at(name), self._pages.sealed(name, entry.dumps())
        return lambda pages: pages.write_page(at, page)


def erase(log: StoreLog, invocation_ids: Collection[str]) -> None:
    """Remove the results of calls; raises ``StorageError``."""

    def job(pages: Pages) -> None:
        for at, page in pages.pages(FOLDER).items():
            if _invocation_id(page) in invocation_ids:
                pages.write_page(at, None)

    log.change_pages(job)


def _invocation_id(page: bytes) -> str | None:
    """Return whose result a page has, by its own word: nobody gets the result of a forged one."""
    try:
        return JournalEntry.loads(data_of(page)).invocation_id
    except AgentguardError:
        return None
