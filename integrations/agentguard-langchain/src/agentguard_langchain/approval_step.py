"""The approval step between the model and its tools: one pause for all calls that need people.

The step runs no tool and makes no final decision. A call that the step lets pass is decided, signed
and recorded at its tool. How the task pauses stands in ``pause.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import ToolCall

from agentguard import Agent, ApprovalPending, adapters
from agentguard.adapters import AgentSpan, CallSite, Invocation
from agentguard_langchain.announced_call import run_around
from agentguard_langchain.answers import Answers
from agentguard_langchain.graph_task import GraphTask
from agentguard_langchain.nested_work import note_nested
from agentguard_langchain.pause import Pause, PendingCall
from agentguard_langchain.payload import WITH_EDITS
from agentguard_langchain.pending_turn import PendingTurn, forget_turn
from agentguard_langchain.preview import invocation_in_node, options_at
from agentguard_langchain.run_record import handle_of
from agentguard_langchain.run_spans import within
from agentguard_langchain.toolset import Toolset
from agentguard_langchain.turn import Turn, last_turn, messages_of, previous_turn_id


class ApprovalStep(NamedTuple):
    """The approval step of a toolset.

    ``handle_key`` is the key in the graph's state under which the handle of the run's record lies
    (``run_record.py``), None for no records.
    ``messages_key`` is the key of the messages.
    """

    toolset: Toolset
    handle_key: str | None = None
    messages_key: str = "messages"

    def run(self, state: object, runtime: Any) -> None:
        """Pause until no call of the last message waits for people."""
        review = self._review(state, runtime)
        if review is None:
            return
        batches = review.batches()
        waiting: list[PendingCall] | None = None
        while not _advance(batches, waiting):
            reviewed = [(call, review.pending(call)) for call in review.open_calls]
            waiting = [(call, pending) for call, pending in reviewed if pending is not None]

    async def arun(self, state: object, runtime: Any) -> None:
        """Pause until no call of the last message waits for people; the async twin of ``run``."""
        review = self._review(state, runtime)
        if review is None:
            return
        batches = review.batches()
        waiting: list[PendingCall] | None = None
        # a pause writes to the disk, so it runs in a thread; LangGraph's interrupt passes through
        while not (
            await asyncio.to_thread(_advance, batches, waiting)
            if waiting or review.pending_turn.shown
            else _advance(batches, waiting)
        ):
            reviewed = [(call, await review.apending(call)) for call in review.open_calls]
            waiting = [(call, pending) for call, pending in reviewed if pending is not None]

    def _review(self, state: object, runtime: Any) -> _Review | None:
        """Return the review of the model's last message; None if none of its calls can wait."""
        messages = messages_of(state, self.messages_key)
        turn = last_turn(messages)
        if turn is None or not turn.open:
            return None
        task, toolset, key = GraphTask.of(None), self.toolset, self.handle_key
        note_nested(task)
        forget_turn(toolset.agent, task, previous_turn_id(messages, turn.id))
        pending_turn = PendingTurn.of_turn(toolset.agent, task, turn.id)
        if pending_turn.shown is None and not toolset.agent.approvals.can_answer:
            return None  # a call that needs an approval is denied where it is made
        handle = None if key is None else handle_of(state, key)
        agent = toolset.acting_agent(task, handle, lambda: runtime, has_record=key is not None)
        return _Review(
            toolset=toolset,
            task=task,
            turn=turn,
            pending_turn=pending_turn,
            agent=agent,
            runtime=runtime,
            span=toolset.span(task, handle, agent),
            run=run_around() or handle,
        )


def _advance(
    batches: Generator[None, Sequence[PendingCall], None], waiting: Sequence[PendingCall] | None
) -> bool:
    """Hand the calls that wait to the pause; return whether the pause is over."""
    try:
        if waiting is None:
            next(batches)
        else:
            batches.send(waiting)
    except StopIteration:
        return True
    return False


class _Review(NamedTuple):
    """The calls of one message, and what is needed to evaluate each as its tool would make it."""

    toolset: Toolset
    task: GraphTask
    turn: Turn
    pending_turn: PendingTurn
    agent: Agent
    runtime: Any
    span: AgentSpan | None
    run: str | None

    def batches(self) -> Generator[None, Sequence[PendingCall], None]:
        answers = Answers(self.toolset.agent, self.toolset.answered_by, self.runtime)
        calls = {call["id"] or "": call for call in self.turn.calls}
        pause = Pause(self.pending_turn, self.task, calls, answers, WITH_EDITS, self.run)
        return pause.batches()

    @property
    def open_calls(self) -> list[ToolCall]:
        return self.pending_turn.open_calls(self.turn)

    def pending(self, call: ToolCall) -> ApprovalPending | None:
        """Return what a call waits for, as the policy decides now; None for nothing."""
        try:
            invocation = self._invocation(call)
            if invocation is not None:
                with within(self.span):
                    adapters.evaluate(self.agent, invocation, options_at(self.task, invocation))
        except ApprovalPending as pending:
            return pending
        return None

    async def apending(self, call: ToolCall) -> ApprovalPending | None:
        """Return what a call waits for; the async twin of ``pending``."""
        try:
            invocation = self._invocation(call)
            if invocation is not None:
                with within(self.span):
                    options = options_at(self.task, invocation)
                    await adapters.aevaluate(self.agent, invocation, options)
        except ApprovalPending as pending:
            return pending
        return None

    def _invocation(self, call: ToolCall) -> Invocation | None:
        """Return a call as its tool would make it; None for a call of which nobody is asked here.

        Where only another process knows the tool, the request of the call says what the call waits
        for (``ApprovalPending``). Whether the call is still the same is checked at its tool.
        """
        tool, inbox = self.toolset.known_tool(self.task, call["name"]), self.agent.approvals
        if tool is not None:
            # without anybody to answer, a call that needs an approval is denied where it is made
            site = self._site(call)
            return invocation_in_node(tool, call, site) if inbox.can_answer else None
        request = inbox.request_at(self._site(call).digest(self.agent.name))
        if request is not None and inbox.is_waiting(request):
            raise ApprovalPending(request, inbox.missing(request) or "")
        return None

    def _site(self, call: ToolCall) -> CallSite:
        return self.task.call_site(self.turn.id, self.pending_turn.site_id(call["id"] or ""))
