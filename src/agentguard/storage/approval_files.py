"""The store of approvals in a state directory: small files that all processes share.

A request is a file under the key by which a guarded call finds the request. The answers to the
request lie in a folder of their own. No file here is believed by itself: the log's map has the
digest of a request and what became of it, and readers verify each answer. An unsigned answer, given
through the application, is signed with the log's key.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from agentguard.approvals.answer import read_answer
from agentguard.approvals.request import MAX_REQUEST_BYTES, ApprovalRequest, names_of
from agentguard.approvals.store import Check, Limits, Recorder, StoredRequest
from agentguard.audit.log import AuditLog
from agentguard.audit.state import LoggedRequest
from agentguard.errors import AgentguardError, ApprovalError, StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.dsse import Envelope
from agentguard.storage import files, lock
from agentguard.store.sealed_pages import Keys, opened, sealed

_LOGGER = logging.getLogger("agentguard")

FOLDER: Final = "approvals"
_REQUESTS: Final = "requests"
_ANSWERS: Final = "answers"
_ANNOUNCED: Final = "announced"

MAX_ANSWERS: Final = 64
"""The most answers to one request that are read."""


class FileApprovals:
    """The ``Approvals`` of a state directory, for all its processes.

    A request counts only as the ``log`` has it. ``trust`` returns the trust document that counts.
    ``record`` puts the end of a request into the log; without ``record`` no request ends here.
    ``keys`` returns the log's key and the trust document; without ``keys`` an unsigned answer is
    refused. Each method raises ``StorageError``, and those that end a request raise as ``record``.
    """

    def __init__(
        self,
        state: Path,
        log: AuditLog,
        trust: Callable[[], TrustDocument],
        limits: Limits = Limits(),  # noqa: B008  a value
        keys: Keys | None = None,
        record: Recorder | None = None,
    ) -> None:
        self._folder = state / FOLDER
        self._requests = os.fspath(self._folder / _REQUESTS)
        self._limits = limits
        self._log = log
        self._trust = trust
        self._record = record
        self._over: set[str] = set()
        self._keys = keys or _no_keys

    def has(self, key: str) -> bool:
        """Return whether there is a request's file of that name."""
        try:
            os.stat(f"{self._requests}/{key}")  # noqa: PTH116  this runs in every call
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unreadable(self._folder, error) from error
        return True

    def read(self, key: str) -> StoredRequest | None:
        """Read the request, compare it with the log, and read the answers that are well formed."""
        path = self._folder / _REQUESTS / key
        data = files.read_if_present(path, limit=MAX_REQUEST_BYTES)
        if data is None:
            return None
        request = ApprovalRequest.loads(data)
        answers = tuple(self._answers(request.request_id))
        state = self._state_of(request)
        altered = state is None or not request.has_key(key)
        return StoredRequest(request, answers, altered, is_over=state != "waiting")

    def ask(self, key: str, request: ApprovalRequest) -> ApprovalRequest:
        """Write the request, or return the one that another process has written first."""
        with self._locked():
            waiting = self._remove_expired(request.requested_at)
            stored = next((other for name, other in waiting if name == key), None)
            if stored is not None and self._is_waiting(stored) and stored.has_key(key):
                return stored
            if stored is not None:
                self._remove(key, None)
            logged = self._logged(waiting)
            others = [other for _key, other in waiting if other.request_id in logged]
            open_ = [other for other in others if logged[other.request_id].state == "waiting"]
            self._limits.check(open_, request)
            files.add(self._folder / _REQUESTS / key, request.dumps())
        return request

    def withdraw(self, request: ApprovalRequest) -> bool:
        """End the request, and remove it; return whether no call has used it."""
        with self._locked():
            if self._state_of(request) is not None and not self._end(request):
                return False
            for key, stored in self._stored():
                if stored == request:  # the call may have asked anew meanwhile
                    self._remove(key, request)
        return True

    def expire(self, now: int) -> None:
        """Put the end of each request on record whose time is over; nothing without a recorder."""
        if self._record is not None and any(self._newly_expired(now)):
            with self._locked():
                self._expire(now)

    def _expire(self, now: int) -> None:
        for key, request in self._newly_expired(now):
            if self._is_logged(key, request):
                self._end(request)
            self._over.add(request.request_id)

    def _newly_expired(self, now: int) -> Iterator[tuple[str, ApprovalRequest]]:
        for key, request in self._stored():
            if request is None or now < request.expires_at or request.request_id in self._over:
                continue
            yield key, request

    def announce(self, request: ApprovalRequest) -> bool:
        """Write an empty file, which goes with the request; return whether there was none.

        Returns False for a request that is not there any more: another process may have told of it.
        """
        path = self._folder / _ANNOUNCED / request.request_id
        if files.exists(path):
            return False
        with self._locked():
            is_there = any(one == request for _key, one in self._stored())
            return is_there and files.add_if_absent(path, b"")

    def _end(self, request: ApprovalRequest) -> bool:
        """Have the recorder log the end of a request that waits; return whether no call has it."""
        stored = StoredRequest(request, tuple(self._answers(request.request_id)))
        if self._record is not None and self._is_waiting(request):
            with suppress(ApprovalError):  # a call was first
                self._record(stored)
        return self._state_of(request) in ("expired", "withdrawn")

    def remove(self, key: str) -> None:
        """Remove the request, then the answers to the request."""
        with self._locked():
            stored = None
            with suppress(AgentguardError):  # where the log can't be read, the request goes alone
                stored = self.read(key)
            self._remove(key, stored.request if stored is not None and not stored.altered else None)

    def pending(self) -> list[tuple[str, ApprovalRequest]]:
        """Return ``(key, request)`` of each request that the log has waiting, the oldest first.

        A request that can't be read is left out: the call that looks for the request is refused.
        """
        stored = [(key, request) for key, request in self._stored() if request is not None]
        logged = self._logged(stored)
        waiting = [
            (key, request)
            for key, request in stored
            if (known := logged.get(request.request_id)) is not None
            and known.state in ("waiting", "expired")
            and known.displayed_sha256 == request.displayed_sha256
            and request.has_key(key)
        ]
        return sorted(waiting, key=lambda item: (item[1].requested_at, item[1].request_id))

    def altered(self, now: int) -> list[str]:
        """Return the ids of requests that the log does not have so; a key for what is no request.

        A request that has expired by its own text is left out, whoever wrote the text: the log's
        record of a request is not kept for ever.
        """
        return [
            key if request is None else request.request_id
            for key, request in self._stored()
            if request is None or (now < request.expires_at and not self._is_logged(key, request))
        ]

    def answer(self, request: ApprovalRequest, envelope: Envelope, check: Check = None) -> None:
        """Store an answer to a request.

        Nothing is stored where ``check`` raises, and no other answer is stored after the check.
        Raises ``ApprovalError`` (``request.unknown``) where the request does not wait any more,
        and (``approval.unsigned``) for an unsigned answer without the log's key; ``StorageError``
        (``storage.exists``; ``storage.full`` where the request has too many answers).
        """
        name = read_answer(envelope).approval_id
        data = canonical.dumps(envelope.as_json())
        if not envelope.signatures:
            data = sealed(data, request.request_id + name, self._keys()[0])
        folder = self._folder / _ANSWERS / request.request_id
        with self._locked():
            waiting = {one.request_id for _key, one in self.pending()}
            if request.request_id not in waiting or not self._is_waiting(request):
                message = f"the request {request.request_id} does not wait any more"
                raise ApprovalError(message, code="request.unknown")
            if check is not None:
                check()
            answers = _paths_in(folder)
            if any(path.name == name for path in answers):
                message = f"the answer {name} is there already"
                raise StorageError(message, code="storage.exists")
            if len(answers) >= MAX_ANSWERS:
                message = f"there are {MAX_ANSWERS} answers to this request already"
                raise StorageError(message, code="storage.full")
            files.add(folder / name, data)

    def refusal(self, request: ApprovalRequest) -> tuple[str, str] | None:
        """Return why the call of a request can't run now, by the log; None where it can."""
        return self._log.refusal(names_of(request))

    def _logged(self, stored: Sequence[tuple[str, ApprovalRequest]]) -> dict[str, LoggedRequest]:
        ids = [request.request_id for _key, request in stored]
        return self._log.look(lambda state: state.requests(ids))

    def _stored(self) -> list[tuple[str, ApprovalRequest | None]]:
        """Return each file among the requests, unverified; None for one that is no request."""
        stored: list[tuple[str, ApprovalRequest | None]] = []
        for path in _paths_in(self._folder / _REQUESTS):
            try:
                request = ApprovalRequest.loads(files.read(path, limit=MAX_REQUEST_BYTES))
            except FileNotFoundError:  # another process has withdrawn the request meanwhile
                continue
            except (AgentguardError, OSError):
                stored.append((path.name, None))
            else:
                stored.append((path.name, request))
        return stored

    def _is_logged(self, key: str, request: ApprovalRequest) -> bool:
        """Whether the log has this request, as it is shown to people, for the call of this key."""
        return self._state_of(request) is not None and request.has_key(key)

    def _state_of(self, request: ApprovalRequest) -> str | None:
        """Return the state of this request, as it is shown to people; None for no such request."""
        logged = self._log.look(lambda state: state.request(request.request_id))
        if logged is None or logged.displayed_sha256 != request.displayed_sha256:
            return None
        return logged.state

    def _is_waiting(self, request: ApprovalRequest) -> bool:
        return self._state_of(request) == "waiting"

    def _remove_expired(self, now: int) -> list[tuple[str, ApprovalRequest]]:
        """Remove expired requests, with the arguments in them; return the others."""
        self._expire(now)
        waiting: list[tuple[str, ApprovalRequest]] = []
        for key, request in self._stored():
            if request is None:
                continue
            if now < request.expires_at:
                waiting.append((key, request))
            else:
                if self._is_logged(key, request):
                    warn_if_unused(request, self._answers(request.request_id))
                self._remove(key, request)
        return waiting

    def _remove(self, key: str, request: ApprovalRequest | None) -> None:
        files.remove(self._folder / _REQUESTS / key)
        if request is not None:
            files.remove_folder(self._folder, _ANSWERS, request.request_id)
            announced = self._folder / _ANNOUNCED / request.request_id
            if files.exists(announced):
                files.remove(announced)

    def _answers(self, request_id: str) -> Iterator[Envelope]:
        for path in _paths_in(self._folder / _ANSWERS / request_id)[:MAX_ANSWERS]:
            with suppress(AgentguardError, OSError):
                yield self._answer(request_id, path)

    def _answer(self, request_id: str, path: Path) -> Envelope:
        """Read an answer that has a signature, or that a holder of the log's key has written."""
        data = files.read(path, limit=MAX_REQUEST_BYTES)
        with suppress(AgentguardError):
            envelope = Envelope.parse(canonical.loads(data))
            if envelope.signatures:
                return envelope
        unsigned = opened(data, request_id + path.name, self._trust())
        return Envelope.parse(canonical.loads(unsigned))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            files.make_folder(self._folder)
        except OSError as error:
            raise _unreadable(self._folder, error) from error
        with lock.held(self._folder / "lock"):
            yield


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


def _no_keys() -> NoReturn:
    message = (
        "an answer that nobody has signed is the word of a program that has the guard's keys: "
        "answer with guard.approvals.vouch there, or sign the answer with agentguard approvals"
    )
    raise ApprovalError(message, code="approval.unsigned")


def _paths_in(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(files.unreadable(path, error), code="storage.readonly")
