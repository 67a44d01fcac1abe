"""A guarded agent's cache of tool results; each hit is a guarded call.

CrewAI reads a cache before it runs a tool. CrewAI's own cache has tool and arguments as its key,
but neither agent nor principal; the cache here belongs to one agent, and its key has the principal.
"""

from __future__ import annotations

import json
import weakref
from typing import Any, NamedTuple, Protocol

from crewai.agents.cache.cache_handler import CacheHandler
from crewai.tools import BaseTool
from pydantic import PrivateAttr

from agentguard import current_delegation
from agentguard_crewai import runs
from agentguard_crewai.binding import is_same
from agentguard_crewai.call import ACTION
from agentguard_crewai.tools import gate_of, original_of


class Owner(Protocol):
    """A guarded agent, with the latest tools of its executor by name."""

    _agentguard_tools: dict[str, BaseTool]


class AgentCache(CacheHandler):
    """The results of one agent's tools.

    A hit passes the tool's gate: the policy decides on the call again, and the call is recorded.
    """

    _owner: weakref.ref[Owner] = PrivateAttr()

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self._owner = weakref.ref(owner)

    def __repr_name__(self) -> str:
        return "CacheHandler"

    def is_of(self, agent: Owner) -> bool:
        """Return whether the cache belongs to this agent."""
        return self._owner() is agent

    def add(self, tool: str, input: str, output: Any) -> None:  # noqa: A002  CrewAI's name
        """Store a result with its tool and arguments, for the principal of the call alone."""
        call = self._guarded_call(tool, input)
        if call is not None:
            super().add(
                tool, _cache_key(input), _CachedResult(original_of(call.tool), call.kwargs, output)
            )

    def read(self, tool: str, input: str) -> Any | None:  # noqa: A002  CrewAI's name
        """Return the stored result, or the failure of a refused call; None for no result."""
        cached = super().read(tool, _cache_key(input))
        if not isinstance(cached, _CachedResult) or cached.output is None:
            return None
        call = self._guarded_call(tool, input)
        if call is None or not _is_result_of(cached, call):
            return None
        return gate_of(call.tool).run(lambda **_kwargs: cached.output, (), call.kwargs)

    def _guarded_call(self, tool: str, given: str) -> _CachedCall | None:
        """Return the call of this tool; None where CrewAI itself reports the call as invalid."""
        owner = self._owner()
        guarded = owner._agentguard_tools.get(tool) if owner is not None else None  # noqa: SLF001
        if guarded is None:
            return None
        try:
            return _CachedCall(guarded, _tool_kwargs(guarded, json.loads(given) if given else {}))
        except (ValueError, TypeError):
            return None


class _CachedCall(NamedTuple):
    """A guarded tool and its arguments."""

    tool: BaseTool
    kwargs: dict[str, Any]


class _CachedResult(NamedTuple):
    """A result, with the tool that returned the result and the arguments of that call."""

    tool: BaseTool
    kwargs: dict[str, Any]
    output: Any


def _is_result_of(cached: _CachedResult, call: _CachedCall) -> bool:
    """Return whether a stored result belongs to the same tool and arguments as ``call``.

    One name may be another tool's in another task, and factories of the schema may fill in other
    values than at the first call.
    """
    try:
        return is_same(cached.tool, original_of(call.tool)) and bool(cached.kwargs == call.kwargs)
    except Exception:  # noqa: BLE001  a value of a user's class may raise anything
        return False


def is_cache_of(cache: CacheHandler, agent: Owner) -> bool:
    """Return whether ``cache`` is an ``AgentCache`` of this agent."""
    return isinstance(cache, AgentCache) and cache.is_of(agent)


def _tool_kwargs(tool: BaseTool, given: dict[str, Any]) -> dict[str, Any]:
    """Return the validated arguments of a model's call; raises ``ValueError`` or ``TypeError``."""
    if ACTION.get() is not None:  # of a model's text CrewAI passes on what the schema names
        named: Any = gate_of(tool).spec().schema.get("properties", {})
        given = {name: value for name, value in given.items() if name in named}
    return tool._validate_kwargs(given)  # noqa: SLF001  as its run does


def _cache_key(given: str) -> str:
    """Return a cache key that holds the arguments, the principal, the scope and the run."""
    delegation = current_delegation()
    authority = None if delegation is None else [delegation.principal, *delegation.scope]
    return f"{given} {json.dumps([authority, runs.current_run().name])}"
