"""What became of a request, as the log tells it: the answers, the decision on the call, the end.

The columns of the log lead to the entries. Nothing here is verified: ``verify.py`` and
``evidence.py`` do that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, suppress
from datetime import datetime
from typing import Final

from agentguard.approvals.answer import Approval
from agentguard.approvals.status import (
    CallState,
    PastRequest,
    RequestState,
    RequestStatus,
    Shows,
    shows_all,
)
from agentguard.audit import approval_checks
from agentguard.audit.calls import Authorization, read_authorization, read_outcome
from agentguard.audit.entry import Entry
from agentguard.audit.find import LocatedEntry, entries_of_call, search_entries
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.errors import DecodeError
from agentguard.identity.credential import agent_name
from agentguard.identity.trust import seconds

_SHORTEST: Final = 8
"""The fewest hex digits by which a request is found, as in a list of requests."""


_OUTCOMES: Final[Mapping[str, CallState]] = {"ok": "ran", "error": "failed", "not_run": "not_made"}


class LoggedHistory:
    """The ``History`` of a log, which ``read`` opens.

    The requests of an agent that ``shows`` leaves out count as none.
    """

    def __init__(
        self, read: Callable[[], LogReader], clock: Callable[[], datetime], shows: Shows = shows_all
    ) -> None:
        self._read = read
        self._clock = clock
        self._shows = shows

    def status(self, request_id: str) -> RequestStatus | None:
        """Return what became of the request whose id begins so; None for no such request."""
        with closing(self._read()) as reader:
            return status_of_request(reader, request_id, seconds(self._clock()), self._shows)

    def past(self, most: int, waiting: Collection[str]) -> list[PastRequest]:
        """Return the newest ``most`` requests but the ``waiting`` ones (ids), the oldest first."""
        with closing(self._read()) as reader:
            return past_requests(reader, seconds(self._clock()), most, waiting, self._shows)


def status_of_request(
    reader: LogReader, request_id: str, now: int, shows: Shows = shows_all
) -> RequestStatus | None:
    """Return what became of the one request whose id begins with ``request_id``; None for none.

    ``now`` is in seconds since the epoch. The requests of an agent that ``shows`` leaves out count
    as none. Raises ``StorageError``.
    """
    if len(request_id) < _SHORTEST:
        return None
    found = [
        one
        for one in _requests(reader, shows)
        if str(one.members["request_id"]).startswith(request_id)
    ]
    if len({str(one.members["request_id"]) for one in found}) != 1:
        return None
    return _status(reader, found[0], now)


def past_requests(
    reader: LogReader,
    now: int,
    most: int,
    waiting: Collection[str],
    shows: Shows = shows_all,
) -> list[PastRequest]:
    """Return the newest ``most`` requests that are over, the oldest first.

    ``waiting`` are the ids of the requests that are not over; the other arguments are those of
    ``status_of_request``. Raises ``StorageError``.
    """
    over = [one for one in _requests(reader, shows) if one.members["request_id"] not in waiting]
    newest = sorted(over, key=lambda one: one.at)[-most:]
    return [_past(reader, one, now) for one in newest]


def _past(reader: LogReader, request: Entry, now: int) -> PastRequest:
    about = approval_checks.summary_of_request(request)
    members = str(about.agent), str(about.principal), str(about.tool)  # a request has all three
    return PastRequest(request.at, *members, _status(reader, request, now))


def _status(reader: LogReader, request: Entry, now: int) -> RequestStatus:
    """Return what became of a request that does not wait any more."""
    request_id = str(request.members["request_id"])
    ended, decision = _end(reader, request), _decision(reader, request, request_id)
    if decision is None:
        return _without_call(request, ended, now)
    located, call = decision
    answers, otherwise = _answers(located.entry, request_id), _without_call(request, ended, now)
    return RequestStatus(
        request_id,
        _state(call, answers, otherwise),
        answers or otherwise.answers,
        _call_state(reader, located, call),
        call.code if not call.allowed else "",
        "; ".join(call.reasons) if not call.allowed else "",
        call.invocation_id,
        located.entry.at,
        otherwise.ended_at,
    )


def _without_call(request: Entry, ended: Entry | None, now: int) -> RequestStatus:
    """Return the status of a request, by its end on record, or else by its time."""
    request_id = str(request.members["request_id"])
    if ended is None:
        expires_at = request.members["expires_at"]
        is_over = isinstance(expires_at, int) and now >= expires_at
        return RequestStatus(request_id, "expired" if is_over else "given_up")
    answers = _answers(ended, request_id)
    state: RequestState = approval_checks.read_request_end(ended).end
    if any(one.verdict == "reject" for one in answers):
        state = "rejected"
    return RequestStatus(request_id, state, answers, ended_at=ended.at)


def _end(reader: LogReader, request: Entry) -> Entry | None:
    """Return the entry of a request's end; None where none is on record."""
    about = approval_checks.summary_of_request(request)
    search = Search(
        kind="request_end",
        agent=about.agent,
        principal=about.principal,
        tool=about.tool,
        since=request.at,
    )
    for located in search_entries(reader, search):
        if located.entry.members["request_id"] == request.members["request_id"]:
            with suppress(DecodeError):
                approval_checks.read_request_end(located.entry)
                return located.entry
    return None


def _requests(reader: LogReader, shows: Shows) -> Iterator[Entry]:
    for located in search_entries(reader, Search(kind="request"), newest_first=True):
        if _is_shown(located.entry, shows):
            yield located.entry


def _is_shown(request: Entry, shows: Shows) -> bool:
    if shows is shows_all:
        return True
    name = agent_name(str(request.members["agent"]))
    return name is not None and shows(name)


def _decision(
    reader: LogReader, request: Entry, request_id: str
) -> tuple[LocatedEntry, Authorization] | None:
    """Return the decision on the call of a request; None where the call was not made again.

    A decision that rests on answers to the request comes first, above all one that let the call
    run. Else a rejection counts that nobody has signed: an adapter's own, at the same site.
    """
    members, found = request.members, list(_decisions(reader, request))
    answered = [one for one in found if _answers(one[0].entry, request_id)]
    same_call = [one for one in found if one[1].call_sha256 == members["call_digest"]]
    allowed = [one for one in answered if one[1].allowed]
    if allowed or answered or same_call:
        return allowed[0] if allowed else (answered or same_call)[-1]
    rejected = [
        one
        for one in found
        if one[1].predicate.get("call_site") == members["call_site"]
        and one[1].code == "approval.rejected"
        and one[0].entry.members["approvals"] == []
    ]
    if not rejected or _asked_again(reader, request, rejected[0][0].entry.at):
        return None
    return rejected[0]


def _asked_again(reader: LogReader, request: Entry, until: str) -> bool:
    """Return whether the call at the same site was asked about again before ``until``."""
    later = search_entries(reader, Search(kind="request", since=request.at, until=until))
    members = request.members
    return any(
        one.entry.members["call_site"] == members["call_site"]
        and one.entry.members["request_id"] != members["request_id"]
        for one in later
    )


def _decisions(reader: LogReader, request: Entry) -> Iterator[tuple[LocatedEntry, Authorization]]:
    """Yield the decisions since a request on calls with its agent, principal and tool, in order."""
    about = approval_checks.summary_of_request(request)
    search = Search(
        kind="call",
        agent=agent_name(str(about.agent)),
        principal=about.principal,
        tool=about.tool,
        since=request.at,
    )
    for one in sorted(search_entries(reader, search), key=lambda one: one.entry.at):
        with suppress(DecodeError):
            yield one, read_authorization(one.entry)


def _answers(entry: Entry, request_id: str) -> tuple[Approval, ...]:
    with suppress(DecodeError):
        return tuple(
            one for one in approval_checks.read_answers(entry) if one.request_id == request_id
        )
    return ()


def _state(
    call: Authorization, answers: tuple[Approval, ...], otherwise: RequestStatus
) -> RequestState:
    if call.code == "approval.rejected" or any(one.verdict == "reject" for one in answers):
        return "rejected"
    if call.allowed or answers:
        return "approved"
    return "expired" if call.code == "approval.expired" else otherwise.state


def _call_state(reader: LogReader, located: LocatedEntry, call: Authorization) -> CallState:
    if not call.allowed:
        return "refused"
    outcomes = entries_of_call(reader, "outcome", call, [located.shard], after=located.index)
    for one in outcomes[:1]:
        with suppress(DecodeError):
            status = read_outcome(one.entry).status
            return _OUTCOMES.get(status, "unknown")
    return "unknown"
