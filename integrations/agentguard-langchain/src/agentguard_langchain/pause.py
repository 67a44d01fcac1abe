"""A pause for people: one interrupt at a time, and no answer is taken for another call's.

``Pause`` is the loop over the batches that a task shows. The payload of an interrupt stands in
``payload.py``, what an answer changes in ``answers.py``, what is kept of a pause in
``pending_turn.py``.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple, NoReturn

from langchain_core.messages import ToolCall
from langgraph.config import get_config
from langgraph.types import interrupt

from agentguard import Agent, ApprovalPending
from agentguard.adapters import DecodeError, note_waiting, run_store
from agentguard_langchain.answers import Answers
from agentguard_langchain.graph_task import GraphTask, resuming_command
from agentguard_langchain.nested_work import note_pause
from agentguard_langchain.payload import (
    Allowed,
    Item,
    Problem,
    decisions_schema,
    payload,
    read_decisions,
)
from agentguard_langchain.pending_turn import PendingTurn, ShownCall, list_waiting

PendingCall = tuple[ToolCall, ApprovalPending]
"""A call that waits for people, with the request that it waits for."""


class Pause(NamedTuple):
    """The pause of a task until no call of ``calls`` (by id) waits for people any more.

    ``allowed`` are the kinds of answers that count, ``run`` is the handle of the run that waits.
    """

    pending_turn: PendingTurn
    task: GraphTask
    calls: Mapping[str, ToolCall]
    answers: Answers
    allowed: Sequence[Allowed]
    run: str | None

    @property
    def agent(self) -> Agent:
        """The agent whose calls wait."""
        return self.answers.agent

    def batches(self) -> Generator[None, Sequence[PendingCall], None]:
        """Pause until no call waits; each time the generator yields, send it the calls that wait.

        What a batch shows is marked durably *before* the task first pauses with it. An answer that
        is there on the very pass that makes the mark was given to something else, and is dropped. A
        call that is decided elsewhere keeps its position: answers are matched by position.
        """
        pending_turn = self.pending_turn
        pending_turn.begin(self.task.id)
        while True:
            is_new = False
            batch = pending_turn.shown
            if batch is not None and not self._still_waits(batch):
                batch = pending_turn.shown = None
            if batch is None:
                waiting = yield
                if not waiting:
                    return
                batch, is_new = self._mark(waiting), True
            self._tell_call_around(batch)
            note_pause(self.task)
            value = payload([self._item(one) for one in batch], self.allowed)
            take_again(pending_turn, value)
            if is_new:
                self._drop_earlier_answers(value, len(batch))
            self._drop_repeated_answer(value)
            self._apply_answer(batch, value)

    def _mark(self, waiting: Sequence[PendingCall]) -> list[ShownCall]:
        """Keep, durably, which calls are about to be shown."""
        require_pause(self.task, waiting[0][1])
        inbox = self.agent.approvals
        batch: list[ShownCall] = []
        for call, pending in waiting:
            request = pending.request
            site = inbox.key_of(request) or request.call_site
            batch.append(ShownCall(call["id"] or "", request.request_id, site))
        self.pending_turn.shown = batch
        self.pending_turn.save(run_store(self.agent))
        list_waiting(self.agent, self.task, self.run, batch)
        return batch

    def _drop_earlier_answers(self, value: object, size: int) -> NoReturn:
        """Show a new batch; returns never, because the interrupt raises once no answer is left."""
        while True:
            interrupt(value, response_schema=decisions_schema(size, self.allowed))
            drop_answer(self.pending_turn, self.agent)

    def _drop_repeated_answer(self, value: object) -> None:
        """Drop an answer that this task was given before.

        LangGraph keeps what ``Command(resume=answer)`` has brought, and offers the answer to the
        task's next interrupt as soon as somebody resumes the run with nothing. The answer would be
        taken for that person's. The same answer that a person gives once more is another one.
        """
        while (offered := _offered_answer()) in self.pending_turn.applied:
            if _given_now() == offered:
                return
            interrupt(value)
            drop_answer(self.pending_turn, self.agent)

    def _apply_answer(self, batch: Sequence[ShownCall], value: object) -> None:
        """Pause with the batch, and apply the answer once it is there."""
        pending_turn, offered = self.pending_turn, _offered_answer()
        # a schema that LangGraph shows and does not check: an answer of another form would raise
        answer = interrupt(value, response_schema=decisions_schema(len(batch), self.allowed))
        count_answers(1)
        try:
            decisions = read_decisions(answer, len(batch), self.allowed)
        except DecodeError as error:
            problem = Problem(str(error), error.code)
            pending_turn.problems.update((one.call_id, problem) for one in batch)
        else:
            self.answers.apply(pending_turn, batch, self.calls, decisions)
        pending_turn.note_applied(offered)
        pending_turn.answered += 1
        pending_turn.shown = None
        pending_turn.save(run_store(self.agent))

    def _tell_call_around(self, batch: Sequence[ShownCall]) -> None:
        """Note in the guarded call around, if there is one, that calls within it wait.

        Code in that call may catch the pause; the calls have not ended for that.
        """
        for one in batch:
            request = self.agent.approvals.request_at(one.call_site)
            if request is not None and self._waits(one):
                note_waiting(request)

    def _still_waits(self, batch: Sequence[ShownCall]) -> bool:
        """Whether a batch still waits, and the message has not lost one of its calls since."""
        return all(one.call_id in self.calls for one in batch) and any(map(self._waits, batch))

    def _waits(self, one: ShownCall) -> bool:
        request = self.agent.approvals.request_at(one.call_site)
        if request is None or request.request_id != one.request_id:
            return False
        return self.agent.approvals.is_waiting(request)

    def _item(self, one: ShownCall) -> Item:
        request = self.agent.approvals.request_at(one.call_site)
        if request is not None and request.request_id != one.request_id:
            request = None
        call = self.pending_turn.edited(self.calls[one.call_id])
        missing = None if request is None else self.agent.approvals.missing(request)
        return Item(call, request, self.pending_turn.problems.get(one.call_id), missing)


def _why_not(task: GraphTask) -> str:
    """Return why no graph can pause here, and what a developer does about that."""
    if task.id is None:
        return "no graph runs here that could pause: call the tool in a LangGraph graph"
    if task.is_stateless:
        return "a graph around the call keeps no state, so the call can't wait in it"
    return (
        "the graph has no checkpointer, so it can't pause: pass checkpointer= to create_agent or "
        'to compile, and {"configurable": {"thread_id": ...}} as the config of the run'
    )


def require_pause(task: GraphTask, pending: ApprovalPending) -> None:
    """Raise ``ApprovalPending`` where no graph can pause."""
    if not task.can_pause:
        message = f"{pending.missing} ({_why_not(task)}; or answer, and make the call again)"
        raise ApprovalPending(pending.request, message) from pending


# --- how many answers this execution of a task has taken ----------------------------------------

_COUNTS: Final[OrderedDict[int, tuple[object, int]]] = OrderedDict()
_MAX_COUNTS: Final = 1024
_SCRATCHPAD: Final = "__pregel_scratchpad"
_LOCK: Final = threading.Lock()


def take_again(pending_turn: PendingTurn, value: object) -> None:
    """Take the answers that were applied before, because LangGraph counts answers by position.

    A task may come here more than once in one execution, where its tool is tried again.
    """
    while count_answers(0) < pending_turn.answered:
        interrupt(value)
        count_answers(1)


def drop_answer(pending_turn: PendingTurn, agent: Agent) -> None:
    """Count an answer that decides nothing, durably."""
    count_answers(1)
    pending_turn.answered += 1
    pending_turn.save(run_store(agent))


def count_answers(more: int) -> int:
    """Count ``more`` answers, and return how many this execution of the task has taken.

    LangGraph's scratchpad stands for the execution.
    """
    scratchpad = _scratchpad()
    with _LOCK:
        count: int = _COUNTS.pop(id(scratchpad), (scratchpad, 0))[1] + more
        if count:
            _COUNTS[id(scratchpad)] = (scratchpad, count)
        while len(_COUNTS) > _MAX_COUNTS:
            _COUNTS.popitem(last=False)
        return count


def _offered_answer() -> str | None:
    """Return the digest of the answer that the next interrupt takes, if it came without an id."""
    scratchpad = _scratchpad()
    if len(scratchpad.resume) > count_answers(0):
        return None  # given to this very interrupt by its id, or taken before
    offered = scratchpad.get_null_resume(False)  # noqa: FBT003  looked at, and left there
    if offered is None:
        return None
    return _digest(offered)


def _digest(answer: object) -> str:
    return sha256(json.dumps(answer, sort_keys=True, default=repr).encode()).hexdigest()


def _given_now() -> str | None:
    """Return the digest of the answer with which somebody has resumed the run just now.

    Where that is unknown, the result is None: an answer that was given before is then ignored,
    whoever gives the answer again.
    """
    command = resuming_command(get_config())
    return None if command is None else _digest(command.resume)


def _scratchpad() -> Any:
    return get_config()["configurable"][_SCRATCHPAD]
