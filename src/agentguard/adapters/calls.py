"""What an adapter does with an ``Agent``: have it decide on calls and run them.

How a delegation passes from agent to agent stands in ``delegation.py``, spans in ``spans.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, overload

from agentguard.call.decision import Decision
from agentguard.call.invocation import Invocation
from agentguard.call.journal import RunStore
from agentguard.call.options import CallOptions
from agentguard.call.tool import ToolSpec
from agentguard.guard.agent import Agent, caller_of

R = TypeVar("R")

_PLAIN: Final = CallOptions()


def run(
    agent: Agent,
    invocation: Invocation,
    function: Callable[[], R],
    options: CallOptions = _PLAIN,
) -> R:
    """Run ``function`` as ``invocation`` if ``agent`` may, and return its result.

    Where the journal has the call's result already, return that. Raises ``Denied``,
    ``ApprovalPending``, or what ``function`` raises.
    """
    return caller_of(agent).run(invocation, function, options)


@overload
async def arun(
    agent: Agent,
    invocation: Invocation,
    function: Callable[[], Awaitable[R]],
    options: CallOptions = ...,
) -> R: ...


@overload
async def arun(
    agent: Agent,
    invocation: Invocation,
    function: Callable[[], R],
    options: CallOptions = ...,
) -> R: ...


async def arun(
    agent: Agent,
    invocation: Invocation,
    function: Callable[[], Any],
    options: CallOptions = _PLAIN,
) -> Any:
    """Run ``function`` on the event loop; the async twin of ``run``."""
    return await caller_of(agent).arun(invocation, function, options)


def evaluate(agent: Agent, invocation: Invocation, options: CallOptions = _PLAIN) -> Decision:
    """Return what the answer to a call with these options would be; the call is not recorded.

    Two things are recorded: a credential that is renewed because it is due, and the request of a
    call that waits for people. For the latter it raises ``ApprovalPending``.
    """
    return caller_of(agent).evaluate(invocation, options)


async def aevaluate(
    agent: Agent, invocation: Invocation, options: CallOptions = _PLAIN
) -> Decision:
    """Return what the answer to a call would be; the async twin of ``evaluate``.

    The look-up of facts (``facts``) may be a coroutine function.
    """
    return await caller_of(agent).aevaluate(invocation, options)


def next_call_id(agent: Agent, tool: str) -> str:
    """Return a name for the agent's next call of ``tool``, where the framework gives no id."""
    return caller_of(agent).runtime.next_call_id(tool)


def configure_tool(agent: Agent, spec: ToolSpec) -> ToolSpec:
    """Return ``spec`` with what ``[tools.NAME]`` and ``[aliases]`` of the configuration say.

    Raises ``ConfigError`` for a tool whose own name is the alias of another one, and where its
    resource names an argument that ``[redact]`` redacts.
    """
    return caller_of(agent).runtime.configure_tool(spec)


def check_tool_names(agent: Agent) -> None:
    """Log names in ``[tools]`` that look misspelt, once an adapter has configured its tools."""
    caller_of(agent).runtime.check_tool_names()


def run_store(agent: Agent) -> RunStore:
    """Return where an adapter keeps what it needs of runs that go on later, in any process.

    Raises ``Denied`` where the guard is closed.
    """
    return caller_of(agent).instance().line.runs
