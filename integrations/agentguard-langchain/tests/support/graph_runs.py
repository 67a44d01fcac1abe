"""How tests run a graph, sync or async, and what they read in the state that a run returns."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.types import Command

SYNC = pytest.mark.parametrize("sync", [True, False])
CONFIG: Any = {"configurable": {"thread_id": "t1"}}


async def invoke(runnable, value, *options, sync, **more):
    """Run ``runnable`` with ``invoke`` or ``ainvoke``."""
    if sync:
        return runnable.invoke(value, *options, **more)
    return await runnable.ainvoke(value, *options, **more)


async def invoke_thread(graph, value, *, sync=True, config=CONFIG, **options):
    """Run ``graph`` in the thread of ``config``."""
    return await invoke(graph, value, config, sync=sync, **options)


def resume_with(*decisions):
    """Return the input that answers a pause with these decisions, in the order of its calls."""
    return Command(resume={"decisions": list(decisions)})


def answers(state):
    """Return the status and the text of each tool message."""
    return [(m.status, m.content) for m in state["messages"] if m.type == "tool"]


def pause_value(state):
    """Return the value of the one interrupt that ``state`` has."""
    (pause,) = state["__interrupt__"]
    return pause.value


def last_text(state):
    """Return the text of the last message."""
    return state["messages"][-1].content


async def collect(items):
    """Return the items of an async iterator as a list."""
    return [item async for item in items]
