"""The approval step: between the model and its tools, one pause for all calls that need people.

It runs no tool and decides nothing for good: what it lets pass is decided, signed and recorded
where the tool runs. How it pauses stands in ``pause.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import ToolCall
from langchain_core.tools import BaseTool

from agentguard import Agent, ApprovalPending, Invocation
from agentguard.telemetry import AgentSpan
from agentguard_langchain.answers import Answers
from agentguard_langchain.graph_task import Place, Turn, last_turn, messages_of, past_turn
from agentguard_langchain.nested_work import note_nested, run_here
from agentguard_langchain.pause import Pending, sit
from agentguard_langchain.payload import WITH_EDITS
from agentguard_langchain.pending_turn import PendingTurn, forget_turn
from agentguard_langchain.preview import codec_at, invocation_in_node
from agentguard_langchain.run_record import handle_of
from agentguard_langchain.run_spans import within
from agentguard_langchain.toolset import Toolset


class Approving(NamedTuple):
    """The approval step of a toolset.

    ``handle_key`` is where the state has the handle of the run's record, None for nowhere;
    ``messages_key`` where it has the messages.
    """

    toolset: Toolset
    handle_key: str | None = None
    messages_key: str = "messages"

    def step(self, state: object, runtime: Any) -> None:
        """Return once no call of the last message waits for people; pause until then."""
        case = self._case(state, runtime)
        if case is None:
            return
        waiting = case.waiting()
        try:
            next(waiting)
            while True:
                waiting.send([one for call in case.open if (one := case.asked(call)) is not None])
        except StopIteration:
            return

    async def astep(self, state: object, runtime: Any) -> None:
        """Return once no call of the last message waits for people; the async twin of ``step``."""
        case = self._case(state, runtime)
        if case is None:
            return
        waiting = case.waiting()
        found: Sequence[Pending] | None = None
        # what is written is written in a thread; an exception of the generator comes through
        while not await asyncio.to_thread(_has_ended, waiting, found):
            asked = [await case.aasked(call) for call in case.open]
            found = [one for one in asked if one is not None]

    def _case(self, state: object, runtime: Any) -> _Case | None:
        messages = messages_of(state, self.messages_key)
        turn = last_turn(messages)
        if turn is None or not turn.open:
            return None
        place = Place.of(None)
        note_nested(place)
        forget_turn(self.toolset.agent, place, past_turn(messages, turn.id))
        key = self.handle_key
        handle = None if key is None else handle_of(state, key)
        agent = self.toolset.acting(place, handle, lambda: runtime, recorded=key is not None)
        pending_turn = PendingTurn.of_turn(self.toolset.agent, place, turn.id)
        span = self.toolset.span(place, handle, agent)
        run = run_here() or handle
        return _Case(self.toolset, place, turn, pending_turn, agent, runtime, span, run)


def _has_ended(
    waiting: Generator[None, Sequence[Pending], None], found: Sequence[Pending] | None
) -> bool:
    try:
        if found is None:
            next(waiting)
        else:
            waiting.send(found)
    except StopIteration:
        return True
    return False


class _Case(NamedTuple):
    """The calls of one message, and the agent as it would make them."""

    toolset: Toolset
    place: Place
    turn: Turn
    pending_turn: PendingTurn
    agent: Agent
    runtime: Any
    span: AgentSpan | None
    run: str | None

    def waiting(self) -> Generator[None, Sequence[Pending], None]:
        answers = Answers(self.toolset.agent, self.toolset.answered_by, self.runtime)
        calls = {call["id"] or "": call for call in self.turn.calls}
        return sit(self.pending_turn, self.place, calls, answers, WITH_EDITS, self.run)

    @property
    def open(self) -> list[ToolCall]:
        return self.pending_turn.open_calls(self.turn)

    def asked(self, call: ToolCall) -> Pending | None:
        """Return a call that waits for people, with what it waits for."""
        tool = self.toolset.known(self.place, call["name"])
        try:
            if tool is None:
                self._stored(call)
            else:
                invocation = self._invocation(tool, call)
                with within(self.span):
                    self.agent.evaluate(invocation, codec=codec_at(self.place, invocation))
        except ApprovalPending as pending:
            return call, pending
        return None

    async def aasked(self, call: ToolCall) -> Pending | None:
        """Return a call that waits for people; the async twin of ``asked``."""
        tool = self.toolset.known(self.place, call["name"])
        try:
            if tool is None:
                self._stored(call)
            else:
                invocation = self._invocation(tool, call)
                codec = codec_at(self.place, invocation)
                with within(self.span):
                    await self.agent.aevaluate(invocation, codec=codec)
        except ApprovalPending as pending:
            return call, pending
        return None

    def _invocation(self, tool: BaseTool, call: ToolCall) -> Invocation:
        site = self.place.site(self.turn.id, self.pending_turn.site_id(call["id"] or ""))
        return invocation_in_node(tool, call, site)

    def _stored(self, call: ToolCall) -> None:
        """Raise ``ApprovalPending`` for a request that was made in another process, and waits.

        That process knew the tool. Whatever the call is by now, its tool will find out.
        """
        site = self.place.site(self.turn.id, self.pending_turn.site_id(call["id"] or ""))
        inbox = self.toolset.agent.approvals
        request = inbox.request_at(site.digest(self.toolset.agent.name))
        if request is not None and inbox.is_waiting(request):
            raise ApprovalPending(request, inbox.missing(request) or "")
