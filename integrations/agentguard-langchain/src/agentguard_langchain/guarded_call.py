"""``GuardedCall``: one call of a guarded tool, on its way to the agent that makes it.

The value is built where the call enters: in ``run`` or ``arun`` of a guarded tool, or in a gated
function that somebody calls directly. LangChain validates the arguments; the gated function adds
what is to run (``FunctionCall``); ``run`` and ``arun`` ask the agent. What a call binds stands in
``binding.py``, how the task pauses for people in ``pause.py``.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final

from langchain_core.messages import ToolCall
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.errors import GraphBubbleUp, GraphDrained, GraphInterrupt
from langgraph.types import interrupt

from agentguard import Agent, ApprovalPending, ConfigError, Decision, Denied, adapters
from agentguard.adapters import (
    CallOptions,
    CallSite,
    Invocation,
    assigned,
    nested_calls,
    run_store,
)
from agentguard_langchain.announced_call import announced_call, announcing
from agentguard_langchain.answers import Answers
from agentguard_langchain.binding import ReceivedArguments
from agentguard_langchain.delegation import acting_agent, runtime_of
from agentguard_langchain.denial import GuardedToolDenied, denial_message
from agentguard_langchain.graph_task import GraphTask, cache_refusal, restarting_subgraphs
from agentguard_langchain.nested_work import (
    IncompleteError,
    NestedWork,
    UnfinishedError,
    hands_over_work,
    note_nested,
    note_pause,
    require_finished,
    working,
)
from agentguard_langchain.pause import Pause, PendingCall, drop_answer, require_pause, take_again
from agentguard_langchain.payload import WITHOUT_EDITS, in_doubt_payload
from agentguard_langchain.pending_turn import PendingTurn, claim
from agentguard_langchain.run_spans import callback_manager, calling
from agentguard_langchain.tool_state import (
    FunctionCall,
    Guarded,
    gate_of,
    name_refusal,
    shape_of,
)

_LOGGER: Final = logging.getLogger("agentguard")

_PAUSED_ELSEWHERE: Final = (
    "the call of %s has ended while a graph in it waits for people in a thread of its own: resume "
    "that thread once they have answered, or let the tool invoke the graph without a thread_id, so "
    "that it pauses with the run"
)

_OUTCOME_UNKNOWN: Final = (UnfinishedError,)
_HANDS_ON: Final = (GraphBubbleUp,)
"""LangGraph's ways to continue in another graph, such as the one around; they are no errors."""
_SUSPENDS: Final = (GraphInterrupt, GraphDrained, IncompleteError)
"""LangGraph's ways to pause: the call is made again, and continues, when the run is resumed."""


class GuardedCall:
    """One call of a guarded tool.

    ``config`` is the call's own, ``config_around`` that of the run around the call. While LangChain
    validates the input (``is_parsing``), ``factory_made`` receives the arguments that default
    factories made, and ``framework_objects`` the framework's objects in the raw input (None where
    no input was validated). ``was_taken`` once a gate has taken the call up; ``is_running`` while
    the tool's own method runs. ``refusal`` is the exception by which the gate refused the call.
    """

    def __init__(
        self, tool: Guarded, call_id: str | None = None, config: RunnableConfig | None = None
    ) -> None:
        self.tool = tool
        self.id = call_id
        self.config = config
        self.config_around = var_child_runnable_config.get()
        self.callbacks = callback_manager(config)
        self.task = GraphTask.of(config)
        self.announcement = announced_call(call_id, self.task)
        self.is_parsing = False
        self.factory_made: Mapping[str, Any] = {}
        self.framework_objects: Sequence[object] | None = None
        self.was_taken = self.is_running = self.has_started = self.hands_over = False
        self.refusal: Denied | None = None
        self.pending_turn: PendingTurn | None = None
        self.restarts = False

    # --- what the call is, before anybody decides on it -----------------------------------------

    def acting_agent(self, values: Iterable[object]) -> Agent:
        """Return the agent as it makes the call with these arguments."""
        gate = gate_of(self.tool)
        if self.announcement is not None and self.announcement.agent.id == gate.agent.id:
            return self.announcement.agent
        runtime = functools.partial(runtime_of, values, self.config, self.id)
        return acting_agent(gate.agent, gate.delegation_source, runtime)

    def site(self, new_id: Callable[[], str]) -> CallSite:
        """Return where the call stands in a run; a tool by itself does not know the model's turn.

        ``new_id`` names a call without an id. Made again, the call would have another name:
        requests for it are found by its digest, and not by its place in a thread.
        """
        if self.announcement is not None:
            return self.announcement.site
        if self.id is None:
            return CallSite(new_id())
        return CallSite(self.id, self.task.resumable_thread, self.task.id)

    def invocation(self) -> Invocation:
        """Bind the call: its tool, its arguments as the function receives them, and its site."""
        function_call, shape = self.function_call, shape_of(self.tool)
        received = ReceivedArguments(
            function_call.args,
            function_call.kwargs,
            self.factory_made,
            self.id,
            self.framework_objects,
        )
        bind = functools.partial(function_call.gated.entrance.bind, shape, received)
        agent, name = gate_of(self.tool).agent, self.tool.name
        site = self.site(functools.partial(adapters.next_call_id, agent, name))
        invocation = Invocation.bind(shape.spec, bind, site)
        return replace(invocation, refusal=self._known_refusal())

    def _known_refusal(self) -> Decision | None:
        """Return why the call is refused whatever the policy says; None for no such reason."""
        refusal = cache_refusal(self.config, self.config_around)
        if refusal is None and self.announcement is not None:
            refusal = self.announcement.refusal
        if refusal is None and self.pending_turn is not None:
            refusal = self.pending_turn.refusal(self.id or "")
        return refusal or name_refusal(self.tool)

    # --- the decision ---------------------------------------------------------------------------

    def run(self, function_call: FunctionCall) -> Any:
        """Run the function if the agent may; return its result or raise its exception.

        Raises ``Denied``, or ``ApprovalPending`` where the task can't pause for people; then the
        function did not run. LangGraph's exceptions that pause a graph come through.
        """
        attempts = self._attempts(function_call)
        invocation = next(attempts)
        while True:
            try:
                with self._span():
                    return adapters.run(
                        self.agent, invocation, self._run, self._options(invocation)
                    )
            except (ApprovalPending, Denied) as error:
                invocation = attempts.throw(error)

    async def arun(self, function_call: FunctionCall) -> Any:
        """Run the function on the event loop; the async twin of ``run``."""
        attempts = self._attempts(function_call)
        invocation = next(attempts)
        while True:
            try:
                with self._span():
                    options = self._options(invocation)
                    return await adapters.arun(self.agent, invocation, self._arun, options)
            except (ApprovalPending, Denied) as error:
                # in a thread, because a pause is written to the disk
                invocation = await asyncio.to_thread(attempts.throw, error)

    def _attempts(self, function_call: FunctionCall) -> Generator[Invocation, None, None]:
        """Yield the invocation for each attempt to make the call.

        The driver throws in what ended an attempt. The generator pauses the task where people can
        help, and raises where another attempt is in vain.
        """
        self._enter(function_call)
        try:
            self._resume_pause()
            while True:
                try:
                    yield self.invocation()
                except ApprovalPending as pending:
                    if self.has_started and not self.hands_over:
                        raise
                    self.has_started = False
                    self._pause(pending)
                except Denied as denied:
                    if self.has_started or not self._pause_in_doubt(denied):
                        raise
        except Denied as denied:
            if not self.has_started:
                self.refusal = denied
                _require_uncached(denied)
            raise

    def _enter(self, function_call: FunctionCall) -> None:
        """Take the call up at its gate."""
        self.was_taken = True
        self.has_run = self is CURRENT.get()
        if self.announcement is not None:
            self.announcement.has_reached_gate = True
        self.function_call = function_call
        self.work_around = note_nested(self.task)
        self.agent = self.acting_agent(function_call.values)

    def _span(self) -> AbstractContextManager[None]:
        return calling(self.agent, self.task, self.callbacks, has_run=self.has_run)

    def _options(self, invocation: Invocation) -> CallOptions:
        """Return how the call ends in LangGraph, and with which codec it is journaled."""
        codec = self.function_call.gated.codec
        return CallOptions(
            codec=codec if self.task.recurs(invocation.site) else None,
            reentrant=hands_over_work(self.tool),
            outcome_unknown=_OUTCOME_UNKNOWN,
            suspends=_SUSPENDS,
            hands_on=_HANDS_ON,
            conceals=True,
        )

    def answer(self, denied: Denied) -> object:
        """Return the message that answers a refused tool call; else raise ``GuardedToolDenied``."""
        if gate_of(self.tool).on_deny == "return" and self.id is not None:
            return denial_message(self.tool.name, self.id, denied.decision)
        raise GuardedToolDenied(self.tool.name, denied.decision) from denied

    # --- a pause for people ---------------------------------------------------------------------

    def _resume_pause(self) -> None:
        """Take again the answers of an earlier pause for this call, if the task has paused for it.

        A tool may interrupt as well: the answers to its interrupts come after those.
        """
        if self.id is None or not (self.task.has_one_call and self.task.can_pause):
            return
        pending_turn = PendingTurn.of_task(self.agent, self.task)
        if pending_turn.owner in (None, self.id):
            self.pending_turn = pending_turn
            pending_turn.owner = self.id
            pending_turn.begin(self.task.id)
            take_again(
                pending_turn, {"action_requests": [], "review_configs": [], "agentguard": []}
            )
            self.restarts = pending_turn.restarts

    def _pause(self, pending: ApprovalPending) -> None:
        """Pause the task, or return once an answer is applied.

        Raises ``Denied`` (``approval.pending``) in a task that several calls share, and
        ``ApprovalPending`` where nothing can pause.
        """
        requests = [pending.request]
        restarts = False
        if isinstance(pending, IncompleteError):
            requests, restarts = list(pending.requests), pending.restarts
            self.restarts = restarts
        if self.id is None:
            raise pending
        require_pause(self.task, pending)
        pending_turn = self.pending_turn
        if pending_turn is None or not claim(self.agent, self.task, self.id):
            raise self._not_awaited(pending)
        pending_turn.restarts = restarts
        answered = pending_turn.answered
        batch: list[PendingCall] = []
        for number, request in enumerate(requests):
            call_id = f"{self.id}.{number}" if number else self.id
            args = json.loads(request.arguments)
            call = ToolCall(name=request.tool, args=args, id=call_id, type="tool_call")
            batch.append((call, ApprovalPending(request, pending.missing)))
        calls = {call["id"] or "": call for call, _pending in batch}
        answers = Answers(self.agent) if self.announcement is None else self.announcement.answers
        run = None if self.announcement is None else self.announcement.run
        batches = Pause(pending_turn, self.task, calls, answers, WITHOUT_EDITS, run).batches()
        next(batches)
        waiting = [one for one in batch if self.agent.approvals.is_waiting(one[1].request)]
        if pending_turn.answered == answered and waiting:
            batches.send(waiting)

    def _not_awaited(self, pending: ApprovalPending) -> Exception:
        """Return the error of a call that can't wait for its approval in this task."""
        if gate_of(self.tool).on_deny == "raise":
            return pending
        # a model's next attempt has another id: nobody will make this very call again
        self.agent.approvals.withdraw(pending.request)
        reason = (
            f"it needs an approval ({pending.request.reason}), and can't wait for one here, in one "
            "task with other calls; call it again, by itself"
        )
        return Denied(Decision.refusal(reason, code="approval.pending"))

    def _pause_in_doubt(self, denied: Denied) -> bool:
        """Pause for a nested call that may have run already; return whether to try once more.

        The call around is not complete before somebody has found out what became of this one
        (``agentguard resolve``). No answer to the pause decides that.
        """
        pending_turn = self.pending_turn
        if nested_calls() is None or pending_turn is None or self.id is None:
            return False
        if denied.code != "journal.in_doubt" or not claim(self.agent, self.task, self.id):
            return False
        pending_turn.save(run_store(self.agent))
        note_pause(self.task)
        interrupt(in_doubt_payload(self.tool.name, self.id, denied.reason))
        drop_answer(pending_turn, self.agent)
        return True

    # --- the function runs ----------------------------------------------------------------------

    def _run(self) -> Any:
        with self._running():
            return require_finished(self.function_call.run(), self.tool.name)

    async def _arun(self) -> Any:
        with self._running():
            return require_finished(await self.function_call.arun(), self.tool.name)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Run the block as the work of this call; raise ``IncompleteError`` if calls in it wait."""
        self.has_started = True
        nested = nested_calls()
        if nested is not None and hands_over_work(self.tool):
            nested.hands_over = True
        if self.work_around is not None:
            self.work_around.has_run = True
        work, is_method = NestedWork(self.task), self.function_call.gated.is_method
        layer = current(self) if is_method else nullcontext()
        try:
            with working(work), announcing(None), restarting_subgraphs(self.restarts), layer:
                self.is_running = is_method
                try:
                    yield
                finally:
                    self.is_running = False
        finally:
            if nested is not None and work.paused_elsewhere:
                nested.hands_over = False  # made again, the call would ask the graph anew
                _LOGGER.warning(_PAUSED_ELSEWHERE, self.tool.name)
            self.hands_over = nested is not None and nested.hands_over
        if nested is None or not nested.hands_over or not (nested.is_repeatable or work.has_paused):
            return
        if work.has_run and not work.has_paused:
            return  # made again, a graph within would do its work twice
        waiting = [one for one in nested.requests if self.agent.approvals.is_waiting(one)]
        if waiting:
            raise IncompleteError(waiting, restarts=not work.has_paused)


CURRENT: Final[ContextVar[GuardedCall | None]] = ContextVar(
    "agentguard_langchain_call", default=None
)
"""The call that ``run`` or ``arun`` of a guarded tool began last in this context."""


def current(call: GuardedCall) -> AbstractContextManager[None]:
    """Make ``call`` the current one."""
    return assigned(CURRENT, call)


def call_of(tool: Guarded) -> GuardedCall:
    """Return the call that the tool's ``run`` began, or a new one for a direct call."""
    call = CURRENT.get()
    if call is not None and call.tool is tool and (call.is_running or not call.was_taken):
        return call
    return GuardedCall(tool)


def _require_uncached(denied: Denied) -> None:
    """Raise ``ConfigError`` in a cached node: LangGraph would cache the refusal as well."""
    if denied.code == "node.cached":
        raise ConfigError(denied.reason, code="node.cached") from denied
