"""Which tools of a list the policy lets a caller see: one question to the policy for each tool.

The question is the call ``mcp:tools/list`` with the name of the server and of one tool. Nobody
makes the call, so the log has no entry of the question, and nobody is asked for an approval. The
answer decides what a list shows, and no more: each call of a tool is decided by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from agentguard import Agent
from agentguard.adapters import (
    Arguments,
    CallOptions,
    CallSite,
    Invocation,
    ToolSpec,
    aevaluate,
    visible_text,
)

LIST: Final = "tools/list"
"""The method of a list of tools; ``mcp:tools/list`` for the policy."""

DESCRIPTION: Final = "Show a tool of an MCP server in a list."

SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"server": {"type": "string"}, "tool": {"type": "string"}},
    "required": ["server", "tool"],
}

_OPTIONS: Final = CallOptions(asks_people=False)
_AT_ONCE: Final = 16
"""The most questions of one list that are asked at once, of an OPA server for example."""

_LOGGER = logging.getLogger("agentguard.mcp")


async def permitted(
    agent: Agent, spec: ToolSpec, server: str, tools: Iterable[str]
) -> frozenset[str]:
    """Return those of ``tools`` that the policy lets ``agent`` list.

    ``tools`` are the names that the policy knows. ``spec`` is the specification of
    ``mcp:tools/list``, and ``server`` the name of the MCP server. A tool for which the question
    fails is not among them.
    """
    limit = asyncio.Semaphore(_AT_ONCE)

    async def is_permitted(tool: str) -> bool:
        arguments = {"server": server, "tool": tool}
        invocation = Invocation.bind(
            spec, lambda: Arguments.of(arguments, declared=arguments), CallSite("list")
        )
        async with limit:
            try:
                decision = await aevaluate(agent, invocation, _OPTIONS)
            except Exception:
                _LOGGER.exception("a list does not show the tool %s", visible_text(tool))
                return False
        return decision.allowed

    names = sorted({*tools})
    answers = await asyncio.gather(*map(is_permitted, names))
    return frozenset(name for name, answer in zip(names, answers, strict=True) if answer)


def tools_of(result: Mapping[str, Any]) -> list[Any]:
    """Return the tools in the result of a list; none where the result has no list of them."""
    tools = result.get("tools")
    return tools if isinstance(tools, list) else []


def with_tools(result: Mapping[str, Any], tools: Iterable[Any]) -> dict[str, Any]:
    """Return the result of a list with ``tools`` in the place of the server's.

    A client may keep no such list for others (``cacheScope``, MCP 2026-07-28).
    """
    changed = {**result, "tools": [*tools]}
    if "cacheScope" in changed:
        changed["cacheScope"] = "private"
    return changed
