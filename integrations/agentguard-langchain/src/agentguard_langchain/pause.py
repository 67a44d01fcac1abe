"""How a task waits for people: by one interrupt at a time, and never for an answer to another.

``sit`` is the loop of a batch, ``Waiting`` the case of one call that comes to its tool without an
approval. What is shown stands in ``payload.py``, what an answer changes in ``answers.py``.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Final

from langchain_core.messages import ToolCall
from langgraph.config import get_config
from langgraph.types import interrupt
from pydantic import ValidationError

from agentguard import Agent, ApprovalPending, ApprovalRequest, Decision, Denied, Invocation
from agentguard.approvals.nested import NestedCalls
from agentguard.delegation import context
from agentguard_langchain.answers import Answers
from agentguard_langchain.graph_task import Place
from agentguard_langchain.nested_work import Placed, note_pause
from agentguard_langchain.payload import (
    WITHOUT_EDITS,
    Allowed,
    Item,
    decisions_schema,
    decisions_type,
    in_doubt,
    payload,
)
from agentguard_langchain.pending_turn import PendingTurn, Shown, claim, list_waiting

Pending = tuple[ToolCall, ApprovalPending]
"""A call that waits for people, with what it waits for."""


def sit(
    pending_turn: PendingTurn,
    place: Place,
    calls: Mapping[str, ToolCall],
    answers: Answers,
    allowed: Sequence[Allowed],
    run: str | None,
) -> Generator[None, Sequence[Pending], None]:
    """Pause until no call waits any more; each time it yields, send it the calls that wait.

    ``calls`` are by id, ``run`` names the run that waits. What a batch shows is marked durably
    *before* the task first pauses with it, and an answer that is there on the very pass that makes
    the mark was given to something else: it is let go. A position that is decided elsewhere stays
    in its batch: answers are matched by position.
    """
    agent = answers.agent
    pending_turn.begin(place.task)
    while True:
        new = False
        if pending_turn.shown is not None and not _stands(agent, pending_turn.shown, calls):
            pending_turn.shown = None
        if pending_turn.shown is None:
            found = yield
            if not found:
                return
            require_pause(place, found[0][1])
            pending_turn.shown = [_shown(agent, call, pending) for call, pending in found]
            pending_turn.save(agent.runs)
            list_waiting(agent, place, run, pending_turn.shown)
            new = True
        batch = pending_turn.shown
        _tell(agent, batch)
        note_pause(place)
        value = payload([_item(agent, pending_turn, one, calls) for one in batch], allowed)
        _take_again(pending_turn, value)
        while new:
            interrupt(value, response_schema=decisions_schema(len(batch), allowed))
            _count(1)
            pending_turn.answered += 1
            pending_turn.save(agent.runs)
        _let_go_of_leftovers(pending_turn, value, agent)
        offered = _offered()
        try:
            answer = interrupt(value, response_schema=decisions_type(len(batch), allowed))
        except ValidationError:
            _remember(pending_turn, offered)  # else every later pass would fail as this one
            pending_turn.save(agent.runs)
            raise
        _count(1)
        answers.deal(pending_turn, batch, calls, answer["decisions"])
        _remember(pending_turn, offered)
        pending_turn.answered += 1
        pending_turn.shown = None
        pending_turn.save(agent.runs)


def _tell(agent: Agent, batch: Sequence[Shown]) -> None:
    """Tell the call around this batch, if there is one, that its calls wait.

    Whoever catches the pause there has not ended them.
    """
    for one in batch:
        request = agent.approvals.request_at(one.call_site)
        if request is not None and _waits(agent, one):
            NestedCalls(context.inside()).asks(request.call_site, request)


def _remember(pending_turn: PendingTurn, offered: str | None) -> None:
    if offered is not None:
        pending_turn.dealt.append(offered)


def _let_go_of_leftovers(pending_turn: PendingTurn, value: object, agent: Agent) -> None:
    """Let go of an answer that this task was given before.

    LangGraph keeps what ``Command(resume=answer)`` has brought, and offers it to the task's next
    interrupt as soon as somebody resumes the run with nothing: it would be taken for that person's.
    """
    while _offered() in pending_turn.dealt:
        interrupt(value)
        _count(1)
        pending_turn.answered += 1
        pending_turn.save(agent.runs)


def _offered() -> str | None:
    """Return the digest of the answer that the next interrupt takes, if it came without an id."""
    scratchpad = get_config()["configurable"][_SCRATCHPAD]
    if len(scratchpad.resume) > _count(0):
        return None  # given to this very interrupt by its id, or taken before
    offered = scratchpad.get_null_resume(False)  # noqa: FBT003  looked at, and left there
    if offered is None:
        return None
    return sha256(json.dumps(offered, sort_keys=True, default=repr).encode()).hexdigest()


def require_pause(place: Place, pending: ApprovalPending) -> None:
    """Raise ``ApprovalPending`` where no graph can pause."""
    if not place.pauses:
        where = "no graph runs here" if place.task is None else "the graph has no checkpointer"
        message = f"{pending.missing} ({where} that could pause: answer, and make the call again)"
        raise ApprovalPending(pending.request, message) from pending


def _stands(agent: Agent, shown: Sequence[Shown], calls: Mapping[str, ToolCall]) -> bool:
    """Whether a batch still waits, and the message has not lost one of its calls since."""
    return all(one.call_id in calls for one in shown) and any(_waits(agent, one) for one in shown)


def _waits(agent: Agent, one: Shown) -> bool:
    request = agent.approvals.request_at(one.call_site)
    same = request is not None and request.request_id == one.request_id
    return same and request is not None and agent.approvals.is_waiting(request)


def _shown(agent: Agent, call: ToolCall, pending: ApprovalPending) -> Shown:
    request = pending.request
    key = agent.approvals.key_of(request) or request.call_site
    return Shown(call["id"] or "", request.request_id, key)


def _item(
    agent: Agent, pending_turn: PendingTurn, one: Shown, calls: Mapping[str, ToolCall]
) -> Item:
    request = agent.approvals.request_at(one.call_site)
    if request is not None and request.request_id != one.request_id:
        request = None
    call = pending_turn.edited(calls[one.call_id])
    return Item(call, request, pending_turn.problems.get(one.call_id))


class Waiting:
    """One tool call at its tool, while it is not decided.

    It can pause there only in a task of its own; elsewhere its answer could become another call's.
    ``on_deny`` "raise" has a call that can't wait raise ``ApprovalPending``.
    """

    __slots__ = (
        *(
            "_agent",
            "_answers",
            "_call_id",
            "_place",
            "_raises",
            "_refusal",
            "_run",
            "_pending_turn",
        ),
        "_within",
    )

    def __init__(
        self,
        agent: Agent,
        call_id: str | None,
        place: Place,
        placed: Placed | None,
        on_deny: str,
        refused: Decision | None = None,
    ) -> None:
        self._agent = agent
        self._within = context.inside()
        self._call_id = call_id
        self._place = place
        self._answers = Answers(agent) if placed is None else placed.answers
        self._refusal = refused or (None if placed is None else placed.refusal)
        self._run = None if placed is None else placed.run
        self._raises = on_deny == "raise"
        self._pending_turn: PendingTurn | None = None

    def begin(self) -> bool:
        """Find out whether the task has paused for this call; those answers are taken again.

        A tool may interrupt as well: what it is answered comes after that. Returns whether graphs
        within the call begin anew.
        """
        if self._call_id is None or not (self._place.alone and self._place.pauses):
            return False
        pending_turn = PendingTurn.of_task(self._agent, self._place)
        if pending_turn.owner in (None, self._call_id):
            self._pending_turn = pending_turn
            pending_turn.owner = self._call_id
            pending_turn.begin(self._place.task)
            _take_again(
                pending_turn, {"action_requests": [], "review_configs": [], "agentguard": []}
            )
            return pending_turn.anew
        return False

    def told(self, invocation: Invocation) -> Invocation:
        """Return the invocation, refused where somebody around the tool knows why."""
        refusal = self._refusal
        if refusal is None and self._pending_turn is not None:
            refusal = self._pending_turn.refusal(self._call_id or "")
        return invocation if refusal is None else replace(invocation, refusal=refusal)

    def settle(
        self,
        pending: ApprovalPending,
        *,
        requests: Sequence[ApprovalRequest] = (),
        anew: bool = False,
    ) -> None:
        """Pause, or return once an answer is dealt with.

        ``requests`` are those that calls within the call wait for; none where it waits itself.
        Raises ``Denied`` (``approval.pending``) in a task that several calls share, and
        ``ApprovalPending`` where nothing can pause.
        """
        if self._call_id is None:
            raise pending
        require_pause(self._place, pending)
        pending_turn = self._pending_turn
        if pending_turn is None or not claim(self._agent, self._place, self._call_id):
            raise self._given_up(pending)
        pending_turn.anew = anew
        answered, batch = pending_turn.answered, list(self._batch(pending, requests))
        calls = {call["id"] or "": call for call, _pending in batch}
        waiting = sit(pending_turn, self._place, calls, self._answers, WITHOUT_EDITS, self._run)
        next(waiting)
        left = [one for one in batch if self._agent.approvals.is_waiting(one[1].request)]
        if pending_turn.answered == answered and left:
            waiting.send(left)

    def _batch(
        self, pending: ApprovalPending, requests: Sequence[ApprovalRequest]
    ) -> Iterator[Pending]:
        for number, request in enumerate(requests or (pending.request,)):
            call_id = f"{self._call_id}.{number}" if number else self._call_id
            args = json.loads(request.arguments)
            call = ToolCall(name=request.tool, args=args, id=call_id, type="tool_call")
            yield call, ApprovalPending(request, pending.missing)

    def settles(self, tool: str, denied: Denied) -> bool:
        """Pause for a call in doubt that another call has made; whether to look at it once more.

        The other call is not complete before somebody has found out (``audit resolve``). Whatever
        the pause is answered, the call is looked at again.
        """
        pending_turn, call_id = self._pending_turn, self._call_id
        if self._within is None or pending_turn is None or call_id is None:
            return False
        if denied.code != "journal.in_doubt":
            return False
        if not claim(self._agent, self._place, call_id):
            return False
        pending_turn.save(self._agent.runs)
        note_pause(self._place)
        interrupt(in_doubt(tool, call_id, denied.reason))
        _count(1)
        pending_turn.answered += 1
        pending_turn.save(self._agent.runs)
        return True

    def _given_up(self, pending: ApprovalPending) -> Exception:
        if self._raises:
            return pending
        # a model's next attempt has another id: nobody will make this very call again
        self._agent.approvals.withdraw(pending.request)
        reason = (
            f"it needs an approval ({pending.request.reason}), and can't wait for one here, in one "
            "task with other calls; call it again, by itself"
        )
        return Denied(Decision.refused(reason, code="approval.pending"))


# --- how many answers this execution of a task has taken ----------------------------------------

_TAKEN: Final[OrderedDict[int, tuple[object, int]]] = OrderedDict()
_MAX_TAKEN: Final = 1024
_SCRATCHPAD: Final = "__pregel_scratchpad"
_LOCK: Final = threading.Lock()


def _take_again(pending_turn: PendingTurn, value: object) -> None:
    """Take the answers that were dealt with before, as LangGraph counts them by position.

    A task may come here more than once in one execution, where its tool is tried again.
    """
    while _count(0) < pending_turn.answered:
        interrupt(value)
        _count(1)


def _count(more: int) -> int:
    """Return how many answers were taken in this execution, which LangGraph's scratchpad is."""
    scratchpad = get_config()["configurable"][_SCRATCHPAD]
    with _LOCK:
        count: int = _TAKEN.pop(id(scratchpad), (scratchpad, 0))[1] + more
        if count:
            _TAKEN[id(scratchpad)] = (scratchpad, count)
        while len(_TAKEN) > _MAX_TAKEN:
            _TAKEN.popitem(last=False)
        return count
