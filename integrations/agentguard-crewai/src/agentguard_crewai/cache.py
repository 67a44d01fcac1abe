"""What CrewAI caches of a guarded agent's tools: one agent's alone, and each hit a guarded call.

CrewAI's cache is asked before a tool is, and is keyed by tool and arguments, not by who asks.
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
    """A guarded agent, with the tools that its executor was given last, by their names."""

    _agentguard_tools: dict[str, BaseTool]


class AgentCache(CacheHandler):
    """The results of one agent's tools, handed out as the calls that they answer: guarded.

    What lies here is given as the result of a call that the agent may make now, and that is on
    record.
    """

    _owner: weakref.ref[Owner] = PrivateAttr()

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self._owner = weakref.ref(owner)

    def __repr_name__(self) -> str:
        return "CacheHandler"

    def is_of(self, agent: Owner) -> bool:
        """Whether these are the results of this agent."""
        return self._owner() is agent

    def add(self, tool: str, input: str, output: Any) -> None:  # noqa: A002  CrewAI's name
        """Keep a result, for those for whom it was fetched, with what it is the result of."""
        call = self._guarded_call(tool, input)
        if call is not None:
            super().add(
                tool, _cache_key(input), _CachedResult(original_of(call.tool), call.kwargs, output)
            )

    def read(self, tool: str, input: str) -> Any | None:  # noqa: A002  CrewAI's name
        """Return what is kept, or the failure in its place; None where nothing is."""
        cached = super().read(tool, _cache_key(input))
        if not isinstance(cached, _CachedResult) or cached.output is None:
            return None
        call = self._guarded_call(tool, input)
        if call is None or not _is_result_of(cached, call):
            return None
        return gate_of(call.tool).run(lambda **_kwargs: cached.output, (), call.kwargs)

    def _guarded_call(self, tool: str, given: str) -> _CachedCall | None:
        """Return which call this is; None for none, and what is wrong with it is said elsewhere."""
        owner = self._owner()
        guarded = owner._agentguard_tools.get(tool) if owner is not None else None  # noqa: SLF001
        if guarded is None:
            return None
        try:
            return _CachedCall(guarded, _tool_kwargs(guarded, json.loads(given) if given else {}))
        except (ValueError, TypeError):
            return None


class _CachedCall(NamedTuple):
    """A guarded tool, and what it receives."""

    tool: BaseTool
    kwargs: dict[str, Any]


class _CachedResult(NamedTuple):
    """A result, with the tool that has returned it and what that had received."""

    tool: BaseTool
    kwargs: dict[str, Any]
    output: Any


def _is_result_of(cached: _CachedResult, call: _CachedCall) -> bool:
    """Whether this very call would have it: one name may be another tool's in another task.

    And what a model leaves out, the schema's factories may fill in otherwise by now.
    """
    try:
        return is_same(cached.tool, original_of(call.tool)) and bool(cached.kwargs == call.kwargs)
    except Exception:  # noqa: BLE001  a value of a user's class may raise anything
        return False


def is_cache_of(cache: CacheHandler, agent: Owner) -> bool:
    """Whether these are the results of this agent, and of no other."""
    return isinstance(cache, AgentCache) and cache.is_of(agent)


def _tool_kwargs(tool: BaseTool, given: dict[str, Any]) -> dict[str, Any]:
    """Return what a tool receives of what a model gives; raises ``ValueError``, ``TypeError``."""
    if ACTION.get() is not None:  # of a model's text CrewAI passes on what the schema names
        named: Any = gate_of(tool).spec().schema.get("properties", {})
        given = {name: value for name, value in given.items() if name in named}
    return tool._validate_kwargs(given)  # noqa: SLF001  as its run does


def _cache_key(given: str) -> str:
    """Return a key that what was fetched for one principal, in one run, has in no other."""
    delegation = current_delegation()
    authority = None if delegation is None else [delegation.principal, *delegation.scope]
    return f"{given} {json.dumps([authority, runs.current_run().name])}"
