"""Where the journal's pages are kept: a small file for each call, signed with the log's key.

A result that is handed out in the place of a call's comes from nobody but a process that had that
key: who can write in the state alone can make nobody believe a page. A page that does not verify
refuses its call.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentguard.call.journal import MAX_RESULT, Page
from agentguard.errors import AgentguardError, StorageError
from agentguard.storage import files
from agentguard.storage.seal import Keys, Seal

if TYPE_CHECKING:
    from agentguard.storage.ledger import Ledger

FOLDER: Final = "journal"
_TYPE: Final = "application/vnd.agentguard.journal+json"
_MAX_BYTES: Final = 4 * MAX_RESULT


class FileJournal:
    """The ``Journal`` of a state directory; ``keys`` returns the log's key and the trust document.

    What the ``ledger`` says has run does not run again because its page is gone. Each method raises
    ``StorageError``.
    """

    def __init__(self, state: Path, keys: Keys, ledger: Ledger | None = None) -> None:
        self._folder = state / FOLDER
        self._seal = Seal(keys, _TYPE, "page", _MAX_BYTES)
        self._keys = keys
        self._ledger = ledger
        self._secret: bytes | None = None

    def name(self, key: str) -> str:
        """Return a call's name (32 hex digits): its key, hashed with a secret of the log's keys.

        The key is made of arguments that somebody could guess; the log is there for ever.
        """
        if self._secret is None:
            # a domain on disk has loaded it; a journal in memory needs none of its ciphers
            from agentguard.storage import journal_secret  # noqa: PLC0415

            signer, trust = self._keys()
            self._secret = journal_secret.secret(self._folder.parent, trust, signer)
        return hmac.digest(self._secret, key.encode(), "sha256")[:16].hex()

    def look(self, key: str) -> Page | None:
        """Return what is known of a call; None for nothing."""
        path = self._folder / key
        try:
            data = files.read(path, limit=_MAX_BYTES)
        except FileNotFoundError:
            return self._missing(path, key)
        except OSError as error:
            message = files.unreadable(path, error)
            raise StorageError(message, code="storage.readonly") from error
        return self._verified(path, key, data)

    def _missing(self, path: Path, key: str) -> Page | None:
        """Return what the log says of a call without a page; refuse one that has run."""
        if self._ledger is None:
            return None
        name, said = bytes.fromhex(self.name(key)), self._ledger.standing
        own = self._ledger.begun(key)
        if own is None and name not in said.names and said.begun(name) is None:
            return None
        said = self._ledger.read_on()  # it may be settled by now
        if name in said.names or (own == "parent" and said.begun(name) is None):
            message = (
                f"the log says that this call has run already, and its page {path} is gone: "
                "restore the page, or go on without the call's result"
            )
            raise StorageError(message, code="journal.missing")
        open_call = said.begun(name)
        return Page(open_call.invocation_id, "begun") if open_call is not None else None

    def begin(self, key: str, invocation_id: str) -> bool:
        """Say, durably, that a call begins; return whether it is the first."""
        if self._ledger is not None:
            self._ledger.begin(key)
        try:
            files.add(self._folder / key, self._signed(key, Page(invocation_id, "begun")))
        except StorageError as error:
            if error.code == "storage.exists":
                return False
            raise
        return True

    def finish(self, key: str, page: Page) -> None:
        """Say what became of a call that has begun."""
        files.replace(self._folder / key, self._signed(key, page))

    def forget(self, key: str) -> None:
        """Let a call be made anew."""
        files.remove(self._folder / key)
        if self._ledger is not None:
            self._ledger.forget(key)

    def settle(self, invocation_id: str, *, ran: bool) -> None:
        """Say of a call that it ran, with no result to hand out, or let it be made anew."""
        for key in self._of_call(invocation_id):
            if ran:
                self.finish(key, Page(invocation_id, "unreplayable"))
            else:
                self.forget(key)

    def _of_call(self, invocation_id: str) -> Iterator[str]:
        paths = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        for path in paths:
            with suppress(AgentguardError):
                page = self.look(path.name)
                if page is not None and page.invocation_id == invocation_id:
                    yield path.name

    def _signed(self, key: str, page: Page) -> bytes:
        return self._seal.sealed(key, page.dumps())

    def _verified(self, path: Path, key: str, data: bytes) -> Page:
        try:
            return self._unless_erased(Page.loads(self._seal.opened(key, data)))
        except AgentguardError as error:
            message = (
                f"{path} does not hold ({error}): restore the file from a backup of the state. "
                "Without the file, too, a call that has run is refused; agentguard audit list says "
                "what has become of the call"
            )
            raise StorageError(message, code="storage.corrupt") from error

    def _unless_erased(self, page: Page) -> Page:
        """Return a page without its result where the log says that the call's data were erased."""
        if self._ledger is None or page.invocation_id not in self._ledger.standing.erased:
            return page
        return Page(page.invocation_id, "unreplayable")


class MemoryJournal:
    """The ``Journal`` of a guard in memory."""

    def __init__(self) -> None:
        self._pages: dict[str, Page] = {}
        self._secret = os.urandom(32)

    def name(self, key: str) -> str:
        """Return a call's name, which nobody else can make."""
        return hmac.digest(self._secret, key.encode(), "sha256")[:16].hex()

    def look(self, key: str) -> Page | None:
        """Return what is known of a call; None for nothing."""
        return self._pages.get(key)

    def begin(self, key: str, invocation_id: str) -> bool:
        """Say that a call begins; return whether it is the first."""
        page = Page(invocation_id, "begun")
        return self._pages.setdefault(key, page) is page

    def finish(self, key: str, page: Page) -> None:
        """Say what became of a call that has begun."""
        self._pages[key] = page

    def forget(self, key: str) -> None:
        """Let a call be made anew."""
        self._pages.pop(key, None)
