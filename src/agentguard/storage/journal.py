"""Where the journal's pages are kept: a small file for each call, signed with the log's key.

The result in a page may stand in for a call. So only a process that has the log's key can write a
page that counts; whoever writes the state alone cannot. A page that does not verify refuses its
call.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentguard.call.journal import MAX_RESULT, Page
from agentguard.errors import AgentguardError, StorageError
from agentguard.storage.seal import Keys, Seal, SignedFolder

if TYPE_CHECKING:
    from agentguard.storage.ledger import Ledger

FOLDER: Final = "journal"
_TYPE: Final = "application/vnd.agentguard.journal+json"
_MAX_BYTES: Final = 4 * MAX_RESULT
_REMEDY: Final = (
    "restore the file from a backup of the state. Without the file, too, a call that has run is "
    "refused; agentguard audit list says what has become of the call"
)


class FileJournal:
    """The ``Journal`` of a state directory; ``keys`` returns the log's key and the trust document.

    A call that has run, by the ``ledger``, does not run again where its page is gone. Each method
    raises ``StorageError``.
    """

    def __init__(self, state: Path, keys: Keys, ledger: Ledger | None = None) -> None:
        seal = Seal(keys, _TYPE, "page", _MAX_BYTES)
        self._state = state
        self._pages = SignedFolder(state / FOLDER, seal, _REMEDY)
        self._keys = keys
        self._ledger = ledger
        self._secret: bytes | None = None

    def name(self, key: str) -> str:
        """Return a call's name (32 hex digits): its key, hashed with a secret of the log's keys.

        The key is made of arguments that somebody could guess, and the log is never erased.
        """
        if self._secret is None:
            # a domain on disk has loaded it; a journal in memory needs none of its ciphers
            from agentguard.storage import journal_secret  # noqa: PLC0415

            signer, trust = self._keys()
            self._secret = journal_secret.secret(self._state, trust, signer)
        return hmac.digest(self._secret, key.encode(), "sha256")[:16].hex()

    def look(self, key: str) -> Page | None:
        """Return the page of a call; None where the call is new."""
        page = self._pages.read(key, Page.loads)
        if page is None:
            return self._missing(key)
        if self._ledger is None or page.invocation_id not in self._ledger.standing.erased:
            return page
        return Page(page.invocation_id, "unreplayable")  # its result was erased

    def _missing(self, key: str) -> Page | None:
        """Return what the log says of a call without a page; refuse one that has run."""
        if self._ledger is None:
            return None
        name, standing = bytes.fromhex(self.name(key)), self._ledger.standing
        beginner = self._ledger.begun(key)
        if beginner is None and name not in standing.names and standing.begun(name) is None:
            return None
        standing = self._ledger.read_on()  # the call may be settled by now
        if name in standing.names or (beginner == "parent" and standing.begun(name) is None):
            message = (
                "the log says that this call has run already, and its page "
                f"{self._pages.folder / key} is gone: restore the page, or go on without the "
                "call's result"
            )
            raise StorageError(message, code="journal.missing")
        open_call = standing.begun(name)
        return Page(open_call.invocation_id, "begun") if open_call is not None else None

    def begin(self, key: str, invocation_id: str) -> bool:
        """Record, durably, that a call begins; return False where the call has a page already."""
        if self._ledger is not None:
            self._ledger.begin(key)
        return self._pages.add(key, Page(invocation_id, "begun").dumps())

    def finish(self, key: str, page: Page) -> None:
        """Record how a call ended that has begun."""
        self._pages.write(key, page.dumps())

    def forget(self, key: str) -> None:
        """Let a call be made anew."""
        self._pages.remove(key)
        if self._ledger is not None:
            self._ledger.forget(key)

    def settle(self, invocation_id: str, *, ran: bool) -> None:
        """Record that a call ran, without a result to hand out, or let the call be made anew."""
        for key in self._keys_of(invocation_id):
            if ran:
                self.finish(key, Page(invocation_id, "unreplayable"))
            else:
                self.forget(key)

    def _keys_of(self, invocation_id: str) -> Iterator[str]:
        folder = self._pages.folder
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            with suppress(AgentguardError):
                page = self.look(path.name)
                if page is not None and page.invocation_id == invocation_id:
                    yield path.name
