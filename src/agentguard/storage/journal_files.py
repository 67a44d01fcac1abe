"""Where the journal's entries are kept: a small file for each call, signed with the log's key.

The result in an entry may be replayed for a call. So only a process with the log's key can write an
entry that counts. The call of an entry that does not verify is refused.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentguard.call.journal import MAX_RESULT, JournalEntry
from agentguard.errors import AgentguardError, StorageError
from agentguard.storage import files
from agentguard.storage.seal import Keys, Seal, SignedFolder

if TYPE_CHECKING:
    from agentguard.store.ledger import Ledger

FOLDER: Final = "journal"
_TYPE: Final = "application/vnd.agentguard.journal+json"
_MAX_BYTES: Final = 4 * MAX_RESULT
_REMEDY: Final = (
    "restore the file from a backup of the state. Without the file, too, a call that has run is "
    "refused; agentguard audit list says what has become of the call"
)


class FileJournal:
    """The ``Journal`` of a state directory; ``keys`` returns the log's key and the trust document.

    A call that has run, by the ``ledger``, does not run again where its entry is gone. Each method
    raises ``StorageError``.
    """

    def __init__(self, state: Path, keys: Keys, ledger: Ledger) -> None:
        seal = Seal(keys, _TYPE, "page", _MAX_BYTES)
        self._state = state
        self._entries = SignedFolder(state / FOLDER, seal, _REMEDY)
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

    def read(self, key: str) -> JournalEntry | None:
        """Return the entry of a call; None where the call is new."""
        entry = self._entries.read(key, JournalEntry.loads)
        if entry is None:
            return self._missing(key)
        if entry.invocation_id not in self._ledger.restrictions.erased:
            return entry
        return JournalEntry(entry.invocation_id, "unreplayable")  # its result was erased

    def _missing(self, key: str) -> JournalEntry | None:
        """Return what the log says of a call without an entry; refuse one that has run."""
        name, restrictions = bytes.fromhex(self.name(key)), self._ledger.restrictions
        beginner, open_call = self._ledger.begun(key), restrictions.unsettled_call(name)
        if beginner is None and name not in restrictions.names and open_call is None:
            return None
        restrictions = self._ledger.read_on()  # the call may be settled by now
        open_call = restrictions.unsettled_call(name)
        if name in restrictions.names or (beginner == "parent" and open_call is None):
            message = (
                "the log says that this call has run already, and its journal entry "
                f"{self._entries.folder / key} is gone: restore the file, or go on without the "
                "call's result"
            )
            raise StorageError(message, code="journal.missing")
        return JournalEntry(open_call.invocation_id, "begun") if open_call is not None else None

    def begin(self, key: str, invocation_id: str) -> bool:
        """Record, durably, that a call begins; return False where the call has an entry already."""
        self._ledger.begin(key)
        return self._entries.add(key, JournalEntry(invocation_id, "begun").dumps())

    def finish(self, key: str, entry: JournalEntry) -> None:
        """Record how a call ended that has begun."""
        self._entries.write(key, entry.dumps())

    def forget(self, key: str) -> None:
        """Let a call be made anew."""
        self._entries.remove(key)
        self._ledger.forget(key)

    def settle(self, invocation_id: str, *, ran: bool, name: str | None = None) -> None:
        """Record that a call ran, without a result to hand out, or let the call be made anew.

        ``name`` is the call's name here, which tells calls with one id apart; None settles all.
        """
        for key in self._keys_of(invocation_id):
            if name not in (None, self.name(key)):
                continue
            if ran:
                self.finish(key, JournalEntry(invocation_id, "unreplayable"))
            else:
                self.forget(key)

    def _keys_of(self, invocation_id: str) -> Iterator[str]:
        folder = self._entries.folder
        for path in sorted(folder.iterdir()) if files.is_folder(folder) else []:
            with suppress(AgentguardError):
                entry = self.read(path.name)
                if entry is not None and entry.invocation_id == invocation_id:
                    yield path.name
