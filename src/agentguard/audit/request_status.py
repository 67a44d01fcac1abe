"""What became of a request, as the log tells it: the answers, the decision on the call, the end.

The columns of the log lead to the entries. Nothing here is verified: ``verify.py`` and
``evidence.py`` do that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final

from agentguard.approvals.answer import Approval
from agentguard.approvals.status import CallState, RequestState, RequestStatus
from agentguard.audit.approval_checks import read_answers
from agentguard.audit.calls import Authorization, read_authorization, read_outcome
from agentguard.audit.entry import Entry
from agentguard.audit.find import LocatedEntry, entries_of_call, read_entry_of_kind
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.errors import DecodeError
from agentguard.identity.credential import agent_name

_SHORTEST: Final = 8
"""The fewest hex digits by which a request is found, as in a list of requests."""


_OUTCOMES: Final[Mapping[str, CallState]] = {"ok": "ran", "error": "failed", "not_run": "not_made"}


def status_of_request(reader: LogReader, request_id: str, now: int) -> RequestStatus | None:
    """Return what became of the one request whose id begins with ``request_id``; None for none.

    ``now`` is in seconds since the epoch. Raises ``StorageError``.
    """
    if len(request_id) < _SHORTEST:
        return None
    found = list(_requests(reader, request_id))
    if len({str(one.entry.members["request_id"]) for one in found}) != 1:
        return None
    request = found[0].entry
    full_id = str(request.members["request_id"])
    decided = list(_decisions(reader, request))
    if not decided:
        expires_at = request.members["expires_at"]
        is_over = isinstance(expires_at, int) and now >= expires_at
        return RequestStatus(full_id, "expired" if is_over else "withdrawn")
    # the decision that rests on answers to this very request, or else the first one on the call
    located, call = next((one for one in decided if _answers(one[0].entry, full_id)), decided[0])
    answers = _answers(located.entry, full_id)
    return RequestStatus(
        full_id,
        _state(call, answers),
        answers,
        _call_state(reader, located, call),
        call.code if not call.allowed else "",
        "; ".join(call.reasons) if not call.allowed else "",
        call.invocation_id,
        located.entry.at,
    )


def _requests(reader: LogReader, request_id: str) -> Iterator[LocatedEntry]:
    for shard in reader.shards():
        for index in reader.search(shard, Search(kind="request"), newest_first=True):
            located = read_entry_of_kind(reader, shard, index, "request")
            if located is not None and str(located.entry.members["request_id"]).startswith(
                request_id
            ):
                yield located


def _decisions(reader: LogReader, request: Entry) -> Iterator[tuple[LocatedEntry, Authorization]]:
    """Yield the decisions on the call of a request, in the order of each shard."""
    members = request.members
    search = Search(
        kind="authorization",
        agent=agent_name(str(members["agent"])),
        principal=str(members["principal"]),
        since=request.at,
    )
    for shard in reader.shards():
        for index in reader.search(shard, search):
            located = read_entry_of_kind(reader, shard, index, "authorization")
            if located is None:
                continue
            with suppress(DecodeError):
                call = read_authorization(located.entry)
                if call.call_sha256 == members["call_digest"]:
                    yield located, call


def _answers(entry: Entry, request_id: str) -> tuple[Approval, ...]:
    with suppress(DecodeError):
        return tuple(one for one in read_answers(entry) if one.request_id == request_id)
    return ()


def _state(call: Authorization, answers: tuple[Approval, ...]) -> RequestState:
    if call.code == "approval.rejected" or any(one.verdict == "reject" for one in answers):
        return "rejected"
    if call.allowed or answers:
        return "approved"
    return "expired" if call.code == "approval.expired" else "withdrawn"


def _call_state(reader: LogReader, located: LocatedEntry, call: Authorization) -> CallState:
    if not call.allowed:
        return "refused"
    outcomes = entries_of_call(reader, "outcome", call, [located.shard], after=located.index)
    for one in outcomes[:1]:
        with suppress(DecodeError):
            status = read_outcome(one.entry).status
            return _OUTCOMES.get(status, "unknown")
    return "unknown"
