"""What became of a request, as the log tells it: the answers, the decision on the call, the end.

The columns of the log lead to the entries. Nothing here is verified: ``verify.py`` and
``evidence.py`` do that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from datetime import datetime
from itertools import islice
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
from agentguard.audit.find import LocatedEntry, entries_of_call, search_entries
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.audit.kinds.requests import RequestEndEntry, RequestEntry
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
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
    found = [one for one in _requests(reader, shows) if one.request_id.startswith(request_id)]
    if len({one.request_id for one in found}) != 1:
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
    over = (one for one in _requests(reader, shows) if one.request_id not in waiting)
    newest = [*islice(over, most)]
    return [_past(reader, one, now) for one in newest[::-1]]


def _past(reader: LogReader, request: RequestEntry, now: int) -> PastRequest:
    members = request.agent, request.principal, request.tool.name
    return PastRequest(request.at, *members, _status(reader, request, now))


def _status(reader: LogReader, request: RequestEntry, now: int) -> RequestStatus:
    """Return what became of a request that does not wait any more."""
    ended, decision = _end(reader, request), _decision(reader, request)
    if decision is None:
        return _without_call(request, ended, now)
    call = decision.entry
    answers, otherwise = _answers(call, request), _without_call(request, ended, now)
    return RequestStatus(
        request.request_id,
        _state(call, answers, otherwise),
        answers or otherwise.answers,
        _call_state(reader, decision),
        call.code if not call.allowed else "",
        "; ".join(call.reasons) if not call.allowed else "",
        call.invocation_id,
        call.at,
        otherwise.ended_at,
    )


def _without_call(request: RequestEntry, ended: RequestEndEntry | None, now: int) -> RequestStatus:
    """Return the status of a request, by its end on record, or else by its time."""
    if ended is None:
        is_over = now >= request.expires_at
        return RequestStatus(request.request_id, "expired" if is_over else "given_up")
    answers = _answers(ended, request)
    is_rejected = any(one.verdict == "reject" for one in answers)
    state: RequestState = "rejected" if is_rejected else ended.end
    return RequestStatus(request.request_id, state, answers, ended_at=ended.at)


def _end(reader: LogReader, request: RequestEntry) -> RequestEndEntry | None:
    """Return the entry of a request's end; None where none is on record."""
    search = Search(
        agent=request.agent, principal=request.principal, tool=request.tool.name, since=request.at
    )
    ends = (one.entry for one in search_entries(reader, RequestEndEntry, search))
    return next((one for one in ends if one.request_id == request.request_id), None)


def _requests(reader: LogReader, shows: Shows) -> Iterator[RequestEntry]:
    for located in search_entries(reader, RequestEntry, Search(), newest_first=True):
        if _is_shown(located.entry, shows):
            yield located.entry


def _is_shown(request: RequestEntry, shows: Shows) -> bool:
    name = agent_name(request.agent)
    return shows is shows_all or (name is not None and shows(name))


def _decision(reader: LogReader, request: RequestEntry) -> LocatedEntry[CallEntry] | None:
    """Return the decision on the call of a request; None where the call was not made again.

    A decision that rests on answers to the request comes first, above all one that let the call
    run. Else a rejection counts that nobody has signed: an adapter's own, at the same site.
    """
    found = list(_decisions(reader, request))
    answered = [one for one in found if _answers(one.entry, request)]
    same_call = [one for one in found if one.entry.call_sha256 == request.call_digest]
    allowed = [one for one in answered if one.entry.allowed]
    if allowed or answered or same_call:
        return allowed[0] if allowed else (answered or same_call)[-1]
    rejected = [
        one
        for one in found
        if one.entry.predicate.get("call_site") == request.call_site
        and one.entry.code == "approval.rejected"
        and not one.entry.approvals
    ]
    if not rejected or _asked_again(reader, request, rejected[0].entry.at):
        return None
    return rejected[0]


def _asked_again(reader: LogReader, request: RequestEntry, until: str) -> bool:
    """Return whether the call at the same site was asked about again before ``until``."""
    later = search_entries(reader, RequestEntry, Search(since=request.at, until=until))
    return any(
        one.entry.call_site == request.call_site and one.entry.request_id != request.request_id
        for one in later
    )


def _decisions(reader: LogReader, request: RequestEntry) -> Iterator[LocatedEntry[CallEntry]]:
    """Yield the decisions since a request on calls with its agent, principal and tool."""
    search = Search(
        agent=agent_name(request.agent),
        principal=request.principal,
        tool=request.tool.name,
        since=request.at,
    )
    return search_entries(reader, CallEntry, search)


def _answers(entry: CallEntry | RequestEndEntry, request: RequestEntry) -> tuple[Approval, ...]:
    return tuple(one for one in entry.answers if one.request_id == request.request_id)


def _state(
    call: CallEntry, answers: tuple[Approval, ...], otherwise: RequestStatus
) -> RequestState:
    if call.code == "approval.rejected" or any(one.verdict == "reject" for one in answers):
        return "rejected"
    if call.allowed or answers:
        return "approved"
    return "expired" if call.code == "approval.expired" else otherwise.state


def _call_state(reader: LogReader, call: LocatedEntry[CallEntry]) -> CallState:
    if not call.entry.allowed:
        return "refused"
    outcomes = entries_of_call(reader, OutcomeEntry, call.entry, after=call.index)
    return _OUTCOMES.get(outcomes[0].entry.status, "unknown") if outcomes else "unknown"
