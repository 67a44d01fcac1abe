"""How an adapter has an ``Agent`` decide on calls, run calls, and configure tools.

What a model is told about a denial, and the limit on a result's size, are here as well. Delegations
between agents are in ``delegation.py``, spans in ``spans.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, overload

from agentguard.call.decision import MAY_HAVE_RUN, Decision
from agentguard.call.invocation import Invocation
from agentguard.call.journal import MAX_RESULT, RunStore
from agentguard.call.options import CallOptions
from agentguard.call.tool import ToolSpec
from agentguard.errors import EncodeError
from agentguard.guard.agent import Agent, caller_of

R = TypeVar("R")

_PLAIN: Final = CallOptions()


def run(
    agent: Agent,
    invocation: Invocation,
    function: Callable[[], R],
    options: CallOptions = _PLAIN,
) -> R:
    """Run ``function`` if the policy allows ``invocation`` to ``agent``, and return the result.

    If the journal already has the result of the call, return the stored result and do not run
    ``function``. Raises ``Denied``, ``ApprovalPending``, or what ``function`` raises.
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
    """Run ``function``, which may be a coroutine function; the async twin of ``run``."""
    return await caller_of(agent).arun(invocation, function, options)


def evaluate(agent: Agent, invocation: Invocation, options: CallOptions = _PLAIN) -> Decision:
    """Return the decision on a call with these options, without a record of the call.

    Two entries may be recorded: the renewal of a credential that is due, and the request of a call
    that needs an approval. A call that needs an approval raises ``ApprovalPending``. With the
    option ``asks_people`` False, such a call leaves no request, and the decision is ``approval``.
    """
    return caller_of(agent).evaluate(invocation, options)


async def aevaluate(
    agent: Agent, invocation: Invocation, options: CallOptions = _PLAIN
) -> Decision:
    """Return the decision on a call; the async twin of ``evaluate``.

    The function that looks up facts (``facts``) may be a coroutine function.
    """
    return await caller_of(agent).aevaluate(invocation, options)


def log_denial(
    agent: Agent, invocation: Invocation, decision: Decision, options: CallOptions = _PLAIN
) -> None:
    """Log a refusal that an adapter makes by itself; ``run`` and ``arun`` log their own refusals.

    The line has no invocation id, because the refusal is not in the audit log.
    """
    caller_of(agent).log_denial(invocation, decision, options)


def next_call_id(agent: Agent, tool: str) -> str:
    """Return an id for the agent's next call of ``tool``, for a framework that gives no id."""
    return caller_of(agent).runtime.next_call_id(tool)


def configure_tool(agent: Agent, spec: ToolSpec, *, listed: bool = False) -> ToolSpec:
    """Return ``spec`` with ``[tools.NAME]`` and ``[aliases]`` of the configuration applied.

    ``listed`` says that the tool needs no table of its own where ``[tools] unlisted`` is ``deny``:
    it is pinned, or no tool of an application, but a method of a protocol. Raises ``ConfigError``
    for a tool whose own name is the alias of another tool, and where the tool's resource names an
    argument that ``[redact]`` redacts.
    """
    return caller_of(agent).runtime.parts.tools.configure(spec, listed=listed)


def agent_scope(agent: Agent) -> frozenset[str] | None:
    """Return the largest scope that a call of the agent can have; None for every scope.

    A delegation makes it smaller.
    """
    return caller_of(agent).runtime.config.scope


def check_tool_names(agent: Agent) -> None:
    """Log the names in ``[tools]`` that look misspelt; call this once all tools are configured."""
    caller_of(agent).runtime.parts.tools.check_names()


def run_store(agent: Agent) -> RunStore:
    """Return the store of an adapter's own records of runs, which any process can resume.

    Raises ``Denied`` where the guard is closed.
    """
    caller = caller_of(agent)
    caller.instance()  # a forked process opens its store with its first instance
    return caller.runtime.parts.runs


_ASKS_ANEW: Final = frozenset(
    {"approval.altered", "approval.expired", "approval.pending", "subagent.parallel"}
)
"""The codes of refusals after which the same call, made again, is decided anew."""


def may_call_again(decision: Decision) -> bool:
    """Return whether a model may make the same call again that ``decision`` has refused.

    So it is where the next call asks people anew, and after a failure that may pass
    (``Decision.may_pass_later``).
    """
    return decision.code in _ASKS_ANEW or decision.may_pass_later


def denial_text(tool: str, decision: Decision, *, shows_code: bool = True) -> str:
    """Return a text that says that ``tool`` was not run, why, and whether a retry can help.

    A model whose call meets a failure that may pass (``Decision.may_pass_later``) is told to try
    later. ``shows_code`` puts the reason code behind the reason, for a framework that has no place
    of its own for it.
    """
    reason = f"{decision.model_reason} [{decision.code}]" if shows_code else decision.model_reason
    if decision.may_pass_later:
        return (
            f"Not now: {tool} was not run. Reason: {reason}. The same call may work later: "
            "try again after a while."
        )
    if may_call_again(decision):
        return f"Not now: {tool} was not run. Reason: {reason}."
    again = " again" if decision.code in MAY_HAVE_RUN else ""
    return (
        f"Denied: {tool} was not run{again}. Reason: {reason}. "
        "Do not retry: repeating the same call will not help."
    )


class ResultBudget:
    """Counts the bytes that a ``ResultCodec`` encodes, up to the journal's limit (8 MiB).

    A value that holds the same part many times grows at each level when it is encoded. So a codec
    counts during the encoding, and stops before the memory is used up.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_RESULT

    def spend(self, size: int) -> None:
        """Count ``size`` bytes; raises ``EncodeError`` past the limit."""
        self._left -= size
        if self._left < 0:
            raise EncodeError(f"a result takes more than {MAX_RESULT} bytes")
