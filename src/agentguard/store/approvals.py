"""``LoggedApprovals``: the requests that wait and their answers, as pages beside the log.

The log's map has each request's digest and what became of the request. So a page counts only where
it is the request that the log has. An answer counts by its own signature, or by that of the log's
key. A request's page is written in the commit of the request's entry, and removed in that of the
call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

from agentguard.approvals.answer import read_answer
from agentguard.approvals.request import MAX_REQUEST_BYTES, ApprovalRequest, names_of
from agentguard.approvals.store import Check, Limits, Recorder, StoredRequest
from agentguard.audit.entry import LogPlace, Record
from agentguard.audit.state import REQUESTS as KIND
from agentguard.audit.state import State
from agentguard.errors import AgentguardError, ApprovalError, StorageError
from agentguard.signing import canonical
from agentguard.signing.dsse import Envelope
from agentguard.store.log import StoreLog
from agentguard.store.pages import ANNOUNCED, ANSWERS, REQUESTS
from agentguard.store.sealed_pages import Keys, opened, sealed
from agentguard.store.transaction import Transaction, View

_LOGGER = logging.getLogger("agentguard")

MAX_ANSWERS: Final = 64
"""The most answers to one request that are read."""


class _Known(NamedTuple):
    """The keys of the stored requests, as long as no request in the map changes."""

    root: bytes | None
    version: object
    keys: frozenset[str]


class LoggedApprovals:
    """The requests of a log: ``flow.ports.Approvals`` for calls, an ``InboxStore`` for people.

    Without the log's key (``Keys``), an unsigned answer is refused. ``record`` puts the end of a
    request into the log; without ``record`` no request ends here. Each method raises
    ``StorageError``, and those that end a request raise as ``record``.
    """

    def __init__(
        self,
        log: StoreLog,
        keys: Keys | None,
        limits: Limits = Limits(),  # noqa: B008  a value
        record: Recorder | None = None,
    ) -> None:
        self._log = log
        self._keys = keys
        self._limits = limits
        self._record = record
        self._over: set[str] = set()
        self._known = _Known(None, None, frozenset())

    def has(self, key: str) -> bool:
        """Return whether there is a request of that key, by the newest head that was seen."""
        if self._log.seen.map_root != self._known.root:
            self._known = self._log.read(self._keys_in)
        return key in self._known.keys

    def _keys_in(self, view: View) -> _Known:
        """Return the keys of the requests; asking, using or ending one changes the map."""
        root, version = view.below.root, view.below.version(KIND)
        if self._known.root is not None and version == self._known.version:
            return self._known._replace(root=root)
        names = view.pages(REQUESTS)
        keys = frozenset(name.removeprefix(f"{REQUESTS}/") for name in names)
        return _Known(root, version, keys)

    def read(self, key: str) -> StoredRequest | None:
        """Read the request, compare it with the log, and read the answers that are well formed."""

        def read(view: View) -> StoredRequest | None:
            page = view.page(_page(key))
            if page is None:
                return None
            request = ApprovalRequest.loads(page)
            state = _state_of(request, view)
            altered = state is None or not request.has_key(key)
            answers = self._answers(request.request_id, view)
            return StoredRequest(request, answers, altered, is_over=state != "waiting")

        return self._log.read(read)

    def ask(
        self, key: str, request: ApprovalRequest, record: Record
    ) -> tuple[ApprovalRequest, LogPlace | None]:
        """Log and store a request, as ``flow.ports.Approvals`` says."""

        def add(tx: Transaction) -> None:
            there = tx.page(_page(key))
            first = None if there is None else _readable(there)
            if first is not None and first.has_key(key) and _state_of(first, tx) == "waiting":
                raise _AskedError(first)
            waiting = list(self._without_ended(request.requested_at, tx))
            self._limits.check(waiting, request)
            tx.write_page(_page(key), request.dumps())

        try:
            place = self._log.append(record, within=add)
        except _AskedError as asked:
            return asked.request, None
        return request, place

    def _without_ended(self, now: int, tx: Transaction) -> Iterator[ApprovalRequest]:
        """Remove the requests whose time is over, once that is on record; yield those that wait."""
        for key, request in _stored(tx):
            if request is None:
                continue
            state = _state_of(request, tx)
            if now < request.expires_at:
                if state == "waiting":
                    yield request
            elif state != "waiting":
                if state is not None and request.has_key(key):
                    warn_if_unused(request, self._answers(request.request_id, tx))
                _remove(key, tx)

    def withdraw(self, request: ApprovalRequest) -> bool:
        """End the request, and remove it; return whether no call has used it."""

        def remove(tx: Transaction) -> None:
            for key, stored in _stored(tx):
                if stored == request:  # the call may have asked anew meanwhile
                    _remove(key, tx)

        if self._end(request, remove) not in (None, "expired", "withdrawn"):
            return False
        self._log.change_pages(remove)  # of a request that had ended before
        return True

    def expire(self, now: int) -> None:
        """Put the end of each request on record whose time is over; nothing without a recorder."""
        if self._record is None:
            return
        for key, request in self._log.read(_stored):
            if request is None or now < request.expires_at or request.request_id in self._over:
                continue
            if request.has_key(key):
                self._end(request)
            self._over.add(request.request_id)

    def _end(
        self, request: ApprovalRequest, within: Callable[[Transaction], None] | None = None
    ) -> str | None:
        """Have the recorder log the end of a request that waits; return the request's state."""

        def read(view: View) -> tuple[str | None, StoredRequest]:
            answers = self._answers(request.request_id, view)
            return _state_of(request, view), StoredRequest(request, answers)

        state, stored = self._log.read(read)
        if state != "waiting" or self._record is None:
            return state
        with suppress(ApprovalError):  # a call was first
            self._record(stored, within)
        return self._log.read(lambda view: _state_of(request, view))

    def announce(self, request: ApprovalRequest) -> bool:
        """Write an empty page, which goes with the request; return whether there was none.

        Returns False for a request that is not there any more: another process may have told of it.
        """
        name = f"{ANNOUNCED}/{request.request_id}"

        def is_first(view: View) -> bool:
            is_there = any(one == request for _key, one in _stored(view))
            return is_there and view.page(name) is None

        def announce(tx: Transaction) -> bool:
            is_told_first = is_first(tx)
            if is_told_first:
                tx.write_page(name, b"")
            return is_told_first

        return self._log.read(is_first) and self._log.change_pages(announce)

    def removal(self, key: str) -> Callable[[Transaction], None]:
        """Return what removes the request, and its answers, in the commit of its call."""
        return partial(_remove, key)

    def pending(self) -> list[tuple[str, ApprovalRequest]]:
        """Return ``(key, request)`` of each request that the log has waiting, the oldest first.

        A request that can't be read is left out: the call that looks for the request is refused.
        """
        waiting = self._log.read(
            lambda view: [
                (key, request)
                for key, request in _stored(view)
                if request is not None
                and _state_of(request, view) in ("waiting", "expired")
                and request.has_key(key)
            ]
        )
        return sorted(waiting, key=lambda item: item[1].requested_at)

    def altered(self, now: int) -> list[str]:
        """Return the ids of requests that the log does not have so; a key for what is no request.

        A request that has expired by its own text is left out, whoever wrote the text: the log's
        record of a request is not kept for ever.
        """

        def find(view: View) -> list[str]:
            return [
                key if request is None else request.request_id
                for key, request in _stored(view)
                if request is None
                or (
                    now < request.expires_at
                    and (_state_of(request, view) is None or not request.has_key(key))
                )
            ]

        return self._log.read(find)

    def answer(self, request: ApprovalRequest, envelope: Envelope, check: Check = None) -> bool:
        """Store an answer to a request; return False, and store nothing, where ``check`` does.

        No other answer is stored after the check. Raises ``ApprovalError`` (``request.unknown``)
        where the request does not wait any more, and (``approval.unsigned``) for an unsigned answer
        without the log's key; ``StorageError`` (``storage.exists``; ``storage.full`` where the
        request has too many answers).
        """
        name = read_answer(envelope).approval_id
        folder = f"{ANSWERS}/{request.request_id}"
        page = self._answer_page(f"{folder}/{name}", envelope)

        def add(tx: Transaction) -> str:
            is_there = any(one == request and one.has_key(key) for key, one in _stored(tx))
            if not is_there or _state_of(request, tx) != "waiting":
                return "request.unknown"
            answers = self._answers(request.request_id, tx)
            if check is not None and not check(answers):
                return "unchanged"
            pages = tx.pages(folder)
            if f"{folder}/{name}" in pages:
                return "storage.exists"
            if len(pages) >= MAX_ANSWERS:
                return "storage.full"
            tx.write_page(f"{folder}/{name}", page)
            return ""

        code = self._log.change_pages(add)
        if code == "request.unknown":
            message = f"the request {request.request_id} does not wait any more"
            raise ApprovalError(message, code=code)
        if code == "storage.exists":
            raise StorageError(f"the answer {name} is there already", code=code)
        if code == "storage.full":
            message = f"there are {MAX_ANSWERS} answers to this request already"
            raise StorageError(message, code=code)
        return not code

    def refusal(self, request: ApprovalRequest) -> tuple[str, str] | None:
        """Return why the call of a request can't run now, by the log; None where it can."""
        return self._log.refusal(names_of(request))

    def _answer_page(self, name: str, envelope: Envelope) -> bytes:
        data = canonical.dumps(envelope.as_json())
        if envelope.signatures:
            return data
        if self._keys is not None and self._keys.signer is None:
            message = (
                "an answer that nobody has signed is the word of a program that has the guard's "
                "keys: answer with guard.approvals.vouch there, or sign the answer with agentguard "
                "approvals"
            )
            raise ApprovalError(message, code="approval.unsigned")
        return sealed(data, name, self._keys)

    def _answers(self, request_id: str, view: View) -> tuple[Envelope, ...]:
        found: list[Envelope] = []
        pages = list(view.pages(f"{ANSWERS}/{request_id}").items())
        for name, page in pages[:MAX_ANSWERS]:
            with suppress(AgentguardError):
                found.append(self._read_answer(name, page))
        return tuple(found)

    def _read_answer(self, name: str, page: bytes) -> Envelope:
        """Read an answer that has a signature, or that a holder of the log's key has written."""
        with suppress(AgentguardError):
            envelope = _envelope(page)
            if envelope.signatures:
                return envelope
        return _envelope(opened(page, name, self._keys))


class _AskedError(Exception):
    """Stops the commit of a request, since the call has one already."""

    def __init__(self, request: ApprovalRequest) -> None:
        super().__init__(request.request_id)
        self.request = request


def _page(key: str) -> str:
    return f"{REQUESTS}/{key}"


def _stored(view: View) -> list[tuple[str, ApprovalRequest | None]]:
    """Return each page among the requests with its key, unverified; None for one that is none."""
    return [
        (name.removeprefix(f"{REQUESTS}/"), _readable(page))
        for name, page in view.pages(REQUESTS).items()
    ]


def _readable(page: bytes) -> ApprovalRequest | None:
    try:
        return ApprovalRequest.loads(page)
    except AgentguardError:
        return None


def _state_of(request: ApprovalRequest, view: View) -> str | None:
    """Return the state of this request, as it is shown to people; None for no such request."""
    logged = State(view).request(request.request_id)
    if logged is None or logged.displayed_sha256 != request.displayed_sha256:
        return None
    return logged.state


def _remove(key: str, tx: Transaction) -> None:
    """Remove a request, and the answers to it; an altered one may name those of another."""
    page = tx.page(_page(key))
    request = None if page is None else _readable(page)
    tx.write_page(_page(key), None)
    if request is not None and request.has_key(key) and _state_of(request, tx) is not None:
        for name in tx.pages(f"{ANSWERS}/{request.request_id}"):
            tx.write_page(name, None)
        tx.write_page(f"{ANNOUNCED}/{request.request_id}", None)


def _envelope(data: bytes) -> Envelope:
    return Envelope.parse(canonical.loads(data, limit=MAX_REQUEST_BYTES))


def warn_if_unused(request: ApprovalRequest, answers: Iterable[Envelope]) -> None:
    """Log a warning where an expired request was approved and its call was not made again."""
    verdicts: set[str] = set()
    for envelope in answers:
        with suppress(AgentguardError):  # what can't be read approves nothing
            verdicts.add(read_answer(envelope).verdict)
    if verdicts == {"approve"}:
        _LOGGER.warning(
            "request %s was approved, and nobody took the approval up in time: %s did not make the "
            "call of %s again; start its run again, and the call asks anew",
            request.request_id,
            request.agent_name,
            request.tool,
        )
