"""Where requests for an approval wait for their answers: small files, shared by all processes.

A request lies under the name of the place where the line looks for it, the answers to it beside
each other in a folder of its own, and a used approval leaves an empty file for ever. Nothing here
is believed: a request is held against the log, which has the digest of all that is shown; who reads
an answer verifies it, and the log has what an answer has allowed. An answer that nobody has signed,
the application's word, is sealed with the log's key.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from agentguard.approvals import request as approval
from agentguard.approvals.answer import read_answer
from agentguard.approvals.request import ApprovalRequest
from agentguard.approvals.store import Limits, StoredRequest
from agentguard.errors import AgentguardError, ApprovalError, StorageError
from agentguard.signing import canonical
from agentguard.signing.dsse import Envelope
from agentguard.storage import files, lock
from agentguard.storage.seal import Keys, Seal

if TYPE_CHECKING:
    from agentguard.storage.ledger import Ledger

_LOGGER = logging.getLogger("agentguard")

FOLDER: Final = "approvals"
_REQUESTS: Final = "requests"
_ANSWERS: Final = "answers"
_USED: Final = "used"
_TYPE: Final = "application/vnd.agentguard.answer+json"
MAX_ANSWERS: Final = 64
"""How many answers to one request are read."""


class FileApprovals:
    """The ``Approvals`` of a state directory. Whoever looks may do so at any time, from anywhere.

    A request is the one that the ``ledger`` has, or none, and what the ledger says was used is
    used, whatever this folder says. ``keys`` returns the log's key and the trust document; without
    them no answer is taken that nobody has signed. Each method raises ``StorageError``; those that
    look into the log as ``Ledger.read_on`` does.
    """

    def __init__(
        self,
        state: Path,
        ledger: Ledger,
        limits: Limits = Limits(),  # noqa: B008  a value
        keys: Keys | None = None,
    ) -> None:
        self._folder = state / FOLDER
        self._requests = os.fspath(self._folder / _REQUESTS)
        self._limits = limits
        self._ledger = ledger
        self._seal = Seal(keys or _no_keys, _TYPE, "answer", approval.MAX_BYTES)

    def has(self, key: str) -> bool:
        """Look whether there is a file of that name."""
        try:
            os.stat(f"{self._requests}/{key}")  # noqa: PTH116  it is asked at every call
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unreadable(self._folder, error) from error
        return True

    def recall(self, key: str) -> StoredRequest | None:
        """Read the request, held against the log, and the answers that are well formed."""
        path = self._folder / _REQUESTS / key
        try:
            request = _read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        answers = tuple(self._answers(request.request_id))
        return StoredRequest(request, answers, altered=not self._is_logged(key, request))

    def ask(self, key: str, request: ApprovalRequest) -> ApprovalRequest:
        """Write the request, or return the one that another process has written first."""
        with self._locked():
            waiting = self._waiting(request.requested_at)
            standing = next((asked for name, asked in waiting if name == key), None)
            if standing is not None and self._is_logged(key, standing):
                return standing
            if standing is not None:
                self._remove(key, None)
            self._limits.check([asked for _key, asked in waiting], request)
            files.add(self._folder / _REQUESTS / key, request.dumps())
        return request

    def spend(self, request: ApprovalRequest, approval_ids: Sequence[str]) -> bool:
        """Leave an empty file for each, which must not be there; nor may the log have a call on it.

        The log is read after the files were left: see ``is_alone`` for the rest.
        """
        ids = (request.request_id, *approval_ids)
        left = self._leave(ids)
        return left and self._ledger.read_on().used.keys().isdisjoint(ids)

    def is_alone(self, request: ApprovalRequest) -> bool:
        """Whether the log has one call on this request.

        Somebody may have removed the files between two that used it; each of the two finds the
        other's call here, or the later one the earlier one's. That it was used is kept at once.
        """
        used = self._ledger.keep(at_once=True).used.get(request.request_id)
        return used is not None and used.times == 1

    def _leave(self, approval_ids: Sequence[str]) -> bool:
        for approval_id in approval_ids:
            try:
                files.add(self._folder / _USED / approval_id, b"")
            except StorageError as error:
                if error.code == "storage.exists":
                    return False
                raise
        return True

    def withdraw(self, key: str) -> None:
        """Remove the request, then its answers, which nobody looks for any more."""
        with self._locked():
            asked = None
            with suppress(AgentguardError):  # where the log can't be read, the request goes alone
                asked = self.recall(key)
            self._remove(key, asked.request if asked is not None and not asked.altered else None)

    def pending(self) -> list[tuple[str, ApprovalRequest]]:
        """Return all requests that the log has waiting, with what they lie under, the oldest first.

        One that can't be read is left out: the call that looks for it finds out.
        """
        used = self._ledger.read_on().used
        lying = [(key, request) for key, request in self._lying() if request is not None]
        found = [
            (key, request)
            for key, request in lying
            if request.request_id not in used and self._is_logged(key, request)
        ]
        return sorted(found, key=lambda one: (one[1].requested_at, one[1].request_id))

    def altered(self, now: int) -> list[str]:
        """Return the ids of requests that the log does not have so; of what is none, the names.

        One that has expired by its own word waits for nobody, whoever wrote it: what the log says
        of it is not kept for ever.
        """
        return [
            key if request is None else request.request_id
            for key, request in self._lying()
            if request is None or (now < request.expires_at and not self._is_logged(key, request))
        ]

    def _lying(self) -> list[tuple[str, ApprovalRequest | None]]:
        """Return what lies there, unverified; None for what is no request."""
        lying: list[tuple[str, ApprovalRequest | None]] = []
        for path in _within(self._folder / _REQUESTS):
            try:
                lying.append((path.name, _read(path)))
            except FileNotFoundError:  # it was withdrawn meanwhile
                continue
            except (AgentguardError, OSError):
                lying.append((path.name, None))
        return lying

    def _is_logged(self, key: str, request: ApprovalRequest) -> bool:
        """Whether the log has this request, with all that it shows, for a call that looks here."""
        requests = self._ledger.standing.requests
        if request.request_id not in requests:  # another process may have written it
            requests = self._ledger.read_on().requests
        logged = requests.get(request.request_id)
        return (
            logged is not None
            and logged.displayed_sha256 == request.displayed_sha256
            and request.has_key(key)
        )

    def answer(self, request: ApprovalRequest, sealed: Envelope) -> None:
        """Lay an answer beside a request.

        Raises ``ApprovalError`` (``request.unknown``) where it does not wait any more
        (``approval.unsigned``: the application's word, without the log's key), or
        ``StorageError``: ``storage.exists``, ``storage.full`` where too many lie there.
        """
        name = read_answer(sealed).approval_id
        data = canonical.dumps(sealed.as_json())
        if not sealed.signatures:
            data = self._seal.sealed(request.request_id + name, data)
        folder = self._folder / _ANSWERS / request.request_id
        with self._locked():
            if request.request_id not in {asked.request_id for _key, asked in self.pending()}:
                message = f"the request {request.request_id} does not wait any more"
                raise ApprovalError(message, code="request.unknown")
            there = _within(folder)
            if any(path.name == name for path in there):
                message = f"the answer {name} is there already"
                raise StorageError(message, code="storage.exists")
            if len(there) >= MAX_ANSWERS:
                message = f"there are {MAX_ANSWERS} answers to this request already"
                raise StorageError(message, code="storage.full")
            files.add(folder / name, data)

    def _waiting(self, now: int) -> list[tuple[str, ApprovalRequest]]:
        """Remove what has expired, with the arguments in it; return what still waits."""
        waiting: list[tuple[str, ApprovalRequest]] = []
        for key, request in self._lying():
            if request is None:
                continue
            if now < request.expires_at:
                waiting.append((key, request))
            else:
                if self._is_logged(key, request):
                    _tell_untaken(request, self._answers(request.request_id))
                self._remove(key, request)
        return waiting

    def _remove(self, key: str, request: ApprovalRequest | None) -> None:
        files.remove(self._folder / _REQUESTS / key)
        if request is not None:
            self._forget_answers(request.request_id)

    def _answers(self, request_id: str) -> Iterator[Envelope]:
        for path in _within(self._folder / _ANSWERS / request_id)[:MAX_ANSWERS]:
            with suppress(AgentguardError, OSError):
                yield self._answer(request_id, path)

    def _answer(self, request_id: str, path: Path) -> Envelope:
        """Read an answer that somebody has signed, or that a holder of the log's key has kept."""
        data = _bytes(path)
        with suppress(AgentguardError):
            found = Envelope.parse(canonical.loads(data))
            if found.signatures:
                return found
        kept = self._seal.opened_under(self._ledger.trust, request_id + path.name, data)
        return Envelope.parse(canonical.loads(kept))

    def _forget_answers(self, request_id: str) -> None:
        files.remove_folder(self._folder, _ANSWERS, request_id)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            files.make_folder(self._folder)
        except OSError as error:
            raise _unreadable(self._folder, error) from error
        held = lock.acquire(self._folder / "lock", wait=True)
        try:
            yield
        finally:
            lock.release(held)


def _tell_untaken(request: ApprovalRequest, answers: Iterable[Envelope]) -> None:
    """Log a request that was approved before it expired, and whose call was not made again."""
    verdicts: set[str] = set()
    for sealed in answers:
        with suppress(AgentguardError):  # what can't be read approves nothing
            verdicts.add(read_answer(sealed).verdict)
    if verdicts == {"approve"}:
        _LOGGER.warning(
            "request %s was approved, and nobody took the approval up in time: %s did not make the "
            "call of %s again; start its run again, and the call asks anew",
            request.request_id,
            request.agent_name,
            request.tool,
        )


class MemoryApprovals:
    """The ``Approvals`` of a guard in memory."""

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008  a value
        self._limits = limits
        self._asked: dict[str, StoredRequest] = {}
        self._used: set[str] = set()
        self._lock = threading.Lock()

    def has(self, key: str) -> bool:
        """Whether a request lies there."""
        return key in self._asked

    def recall(self, key: str) -> StoredRequest | None:
        """Return the request, with its answers."""
        return self._asked.get(key)

    def ask(self, key: str, request: ApprovalRequest) -> ApprovalRequest:
        """Keep the request, or return the one that is there."""
        with self._lock:
            for expired in self._expired(request.requested_at):
                asked = self._asked.pop(expired)
                _tell_untaken(asked.request, asked.answers)
            if key in self._asked:
                return self._asked[key].request
            self._limits.check([asked.request for asked in self._asked.values()], request)
            self._asked[key] = StoredRequest(request, ())
            return request

    def _expired(self, now: int) -> list[str]:
        return [key for key, asked in self._asked.items() if asked.request.expires_at <= now]

    def spend(self, request: ApprovalRequest, approval_ids: Sequence[str]) -> bool:
        """Remember them."""
        with self._lock:
            ids = {request.request_id, *approval_ids}
            fresh = self._used.isdisjoint(ids)
            self._used.update(ids)
            return fresh

    def is_alone(self, request: ApprovalRequest) -> bool:  # noqa: ARG002
        """What is kept in memory nobody removes."""
        return True

    def withdraw(self, key: str) -> None:
        """Forget the request."""
        with self._lock:
            self._asked.pop(key, None)

    def pending(self) -> list[tuple[str, ApprovalRequest]]:
        """Return all requests with what they lie under, the oldest first."""
        with self._lock:
            return [(key, asked.request) for key, asked in self._asked.items()]

    def altered(self, now: int) -> list[str]:  # noqa: ARG002
        """Nobody changes what lies in memory."""
        return []

    def answer(self, request: ApprovalRequest, sealed: Envelope) -> None:
        """Keep an answer; raises ``StorageError`` (``storage.exists``), or ``ApprovalError``."""
        with self._lock:
            for key, asked in self._asked.items():
                if asked.request.request_id == request.request_id:
                    name = read_answer(sealed).approval_id
                    if name in {read_answer(one).approval_id for one in asked.answers}:
                        message = f"the answer {name} is there already"
                        raise StorageError(message, code="storage.exists")
                    self._asked[key] = asked._replace(answers=(*asked.answers, sealed))
                    return
        message = f"the request {request.request_id} does not wait any more"
        raise ApprovalError(message, code="request.unknown")


def _no_keys() -> NoReturn:
    message = (
        "an answer that nobody has signed is the word of a program that has the guard's keys: "
        "answer with guard.approvals.vouch there, or sign the answer with agentguard approvals"
    )
    raise ApprovalError(message, code="approval.unsigned")


def _read(path: Path) -> ApprovalRequest:
    return ApprovalRequest.loads(_bytes(path))


def _bytes(path: Path) -> bytes:
    return files.read(path, limit=approval.MAX_BYTES)


def _within(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(path: Path, error: OSError) -> StorageError:
    message = files.unreadable(path, error)
    return StorageError(message, code="storage.readonly")
