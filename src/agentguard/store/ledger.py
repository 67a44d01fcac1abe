"""What one process knows of the log: the restrictions on its calls, verified, never forgotten.

When a guard opens, the ledger reads the log from the place that a signed file names
(``restrictions_file.py``), or from the start; ``incremental.py`` verifies the entries. If the log
does not verify, no guard opens.

In each call, a running process looks at the status of the file, and of the copy beside the anchor
(``restrictions_copies.py``). It adds what is new there to its own knowledge.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

from agentguard.audit.later_calls import LaterCalls
from agentguard.audit.restrictions import Restrictions
from agentguard.errors import StorageError
from agentguard.identity.trust import TrustDocument, TrustedKey
from agentguard.signing.keys import Signer
from agentguard.storage import anchor, state_location, state_lock
from agentguard.storage.approval_files import Logged
from agentguard.storage.owned_lock import OwnedLock
from agentguard.storage.restrictions_copies import RestrictionsCopies, Status
from agentguard.store import incremental
from agentguard.store.anchor import Anchor
from agentguard.store.incremental import DivergedError
from agentguard.store.log import logged_requests
from agentguard.store.sqlite import FileEngine, path_in
from agentguard.store.store import Store

_LOGGER = logging.getLogger("agentguard")

MOST_UNSAVED: Final = 1000
"""Once so many entries are unsaved, their place is saved: the next opening skips these entries."""


class _Knowledge(NamedTuple):
    """The restrictions that count, and the status of each file when the file was last read.

    Both are replaced together, so that two threads never mix the status of one reading with the
    restrictions of another.
    """

    statuses: tuple[Status | None, ...]
    restrictions: Restrictions


class Inheritance(NamedTuple):
    """What a process leaves to its forks: the restrictions, and the journalled calls it began."""

    restrictions: Restrictions
    calls: AbstractSet[str]


class Ledger:
    """The log of a state as one process knows it; safe from many threads, made anew after a fork.

    ``trust`` returns the trust document in force. ``anchors`` is the folder of all anchors, None
    where no anchors are kept. ``signer`` is the log's key; a reader needs none. A fork takes over
    what its ``parent`` knew. This knowledge is in memory, out of reach of whoever writes the state.
    Each method raises ``StorageError``; the methods that read the log raise ``VerificationError``
    and ``DecodeError``, too.
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
        self._log = trust().log
        self._copies = RestrictionsCopies(state, anchors, self._log)
        restrictions = parent.restrictions if parent is not None else Restrictions()
        self._knowledge = _Knowledge((), restrictions)
        self._learning = threading.RLock()  # no call that interrupts this thread waits for it
        self._reading = OwnedLock("it read the log")
        self._keeping = OwnedLock("it kept what the log says")
        self._has_read = parent is not None
        # Journalled calls. ``_calls``: of this process since the last reading. ``_calls_before``:
        # between the last two readings. ``_calls_of_parent``: of the process that was forked.
        self._calls: set[str] = set()
        self._calls_before: set[str] = set()
        self._calls_of_parent = set(parent.calls) if parent is not None else set()
        self._refusals: list[Restrictions] = []  # only in saved files so far

    @property
    def trust(self) -> TrustDocument:
        """The trust document in force."""
        return self._trust()

    def sign_with(self, signer: Signer) -> None:
        """Sign later saved files with another key of the log."""
        self._signer = signer

    @property
    def restrictions(self) -> Restrictions:
        """The restrictions known by now, without another look at the files or the log."""
        return self._knowledge.restrictions

    # --- a call's look ----------------------------------------------------------------------------

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Look for new files, and return the code and the reason with which a name is refused."""
        statuses = self._copies.statuses()
        knowledge = self._knowledge
        if statuses != knowledge.statuses:
            knowledge = self._learn(statuses)
        return knowledge.restrictions.refusal(names)

    def _learn(self, statuses: tuple[Status | None, ...]) -> _Knowledge:
        # This process later signs its restrictions with the log's key (``keep``). So only files
        # that the log's key has signed may add to them. What was known before stays.
        before = self._knowledge.statuses or (None,) * len(statuses)
        changed = self._copies.load_changed(statuses, before, self._trust())
        with self._learning:
            # by now another thread may know more than this one did, or than a file still says
            restrictions = self._knowledge.restrictions
            for other in changed:
                restrictions = restrictions.joined(other)
            self._knowledge = _Knowledge(statuses, restrictions)
            return self._knowledge

    def inheritance(self) -> Inheritance | None:
        """Return what a fork takes over; None where nothing was read yet."""
        calls = self._calls | self._calls_before | self._calls_of_parent
        return Inheritance(self._knowledge.restrictions, calls) if self._has_read else None

    # --- journalled calls that the log may not have yet -------------------------------------------

    def begin(self, key: str) -> None:
        """Note that this process begins a journalled call, whose entry was not read yet."""
        self._calls.add(key)

    def begun(self, key: str) -> Literal["own", "parent"] | None:
        """Return who has begun a journalled call whose entry was perhaps not read yet."""
        if key in self._calls_of_parent:
            return "parent"
        return "own" if key in self._calls or key in self._calls_before else None

    def forget(self, key: str) -> None:
        """Note that a journalled call may be made anew."""
        for calls in (self._calls, self._calls_before, self._calls_of_parent):
            calls.discard(key)

    # --- the log ----------------------------------------------------------------------------------

    def read_on(self) -> Restrictions:
        """Read the log on, verified up to its newest head; return what the log says."""
        with self._reading.held():
            trust = self._trust()
            start, is_sure = self._start(trust)
            with _telling_of_a_copy(self._state, self._anchors, self._log):
                try:
                    read = self._read_log(start, trust, is_sure=is_sure)
                except DivergedError:
                    read = self._read_anew(start, trust)
            with self._learning:
                self._has_read = True
                if read.entries != self._knowledge.restrictions.entries:
                    self._calls_before, self._calls = self._calls, set()
                restrictions = read.joined(self._knowledge.restrictions)
                while self._refusals:
                    restrictions = restrictions.with_refusals(self._refusals.pop())
                self._knowledge = self._knowledge._replace(restrictions=restrictions)
                return restrictions

    def _start(self, trust: TrustDocument) -> tuple[Restrictions, bool]:
        """Return where to read on, and whether the place is safe from whoever writes the state."""
        if self._has_read:
            return self._knowledge.restrictions, True
        saved = self._copies.load_start(trust)
        self._refusals = list(saved.refusals)
        return saved.restrictions, saved.is_sure

    def _read_anew(self, start: Restrictions, trust: TrustDocument) -> Restrictions:
        """Read the log from its start; what was known as revoked before stays so."""
        if self._has_read:
            message = (
                f"the log in {self._state} is not the one that this process has read: "
                f"{anchor.ROLLED_BACK}"
            )
            raise StorageError(message, code="storage.rolled_back")
        try:
            read = self._read_log(Restrictions(names=start.names), trust, is_sure=False)
        except DivergedError as error:  # never: a reading from the start diverges from nothing
            raise StorageError("the log can't be read from its start") from error
        return read.joined(start)

    def _read_log(
        self, start: Restrictions, trust: TrustDocument, *, is_sure: bool
    ) -> Restrictions:
        gathering = LaterCalls(start, trust)
        place = incremental.read_on(
            self._state, self._anchors, trust, start.read, gathering.add, is_sure=is_sure
        )
        read = gathering.restrictions._replace(read=place)
        if read.malformed > start.malformed:
            _LOGGER.warning(
                "the log in %s holds %d malformed entries of kinds that restrict calls: run "
                "agentguard audit verify",
                self._state,
                read.malformed - start.malformed,
            )
        return read

    # --- what is saved ----------------------------------------------------------------------------

    def is_worth_saving(self, unsaved: int) -> bool:
        """Return whether that many entries are more than the next opening should read once more."""
        return unsaved >= MOST_UNSAVED

    def keep(self, *, at_once: bool = False) -> Restrictions:
        """Read on, and save the result in the state and beside the anchor if they are out of date.

        A key that was declared compromised saves nothing. Where the result has to be saved
        ``at_once``, that is an error (``storage.unvouched``).
        """
        with self._keeping.held(), state_lock.held(self._state):
            trust = self._trust()
            read = self.read_on()
            signer = self._signer
            if signer is None or not _may_keep(trust, signer):
                if at_once:
                    message = (
                        "the log's key in this process does not count any more: open the guard "
                        "again, in a new process, and make the call again"
                    )
                    raise StorageError(message, code="storage.unvouched")
                return read
            self._copies.save(read, signer, trust, most=MOST_UNSAVED)
            return read


def _may_keep(trust: TrustDocument, signer: Signer) -> bool:
    """Return whether a file that this key signs counts: every key of the log but a compromised one.

    A rotated key still counts, because this process may hold it until the guard opens the new key.
    """
    return any(
        trusted.key == signer.public_key and trusted.compromised_since is None
        for trusted in trust.keys_for("log")
    )


def current(state: Path, anchors: Path | None, trust: TrustDocument) -> Restrictions:
    """Return what the log says by now, verified, and save nothing; raises as ``read_on``."""
    return Ledger(state, anchors, lambda: trust).read_on()


def requests(state: Path, anchors: Path | None, trust: TrustDocument) -> Logged:
    """Return what reads the requests for approvals in a state's log, under its verified head."""

    def keys() -> Iterable[TrustedKey]:
        return trust.keys_for("log")

    @cache
    def opened() -> Store:
        kept = None
        if anchors is not None:
            kept = Anchor(anchor.head_path(anchors, trust.log), trust.log, keys)
        engine = FileEngine(path_in(state), writes=False)
        with _telling_of_a_copy(state, anchors, trust.log):
            return Store(engine, trust.log, keys, anchor=kept)

    return lambda ids: logged_requests(opened(), ids)


@contextmanager
def _telling_of_a_copy(state: Path, anchors: Path | None, log: str) -> Iterator[None]:
    """Say so where a state behind its anchor is a copy, or the original of an adopted one."""
    try:
        yield
    except StorageError as error:
        if error.code == "storage.rolled_back" and anchors is not None:
            state_location.refuse_copy(anchor.log_folder(anchors, log), state)
        raise
