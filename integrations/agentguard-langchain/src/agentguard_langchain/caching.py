"""Whether LangGraph caches the results of a node around a call.

A node with a ``CachePolicy`` does not run where its input was seen before: no call is decided, and
none is on record. Each running task leads to the loop of its graph, and that to the task around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig, ensure_config

from agentguard import Decision
from agentguard_langchain.graph_task import tasks


def refusal(config: RunnableConfig | None, around: RunnableConfig | None) -> Decision | None:
    """Return why a call is refused here: a node around it is cached; None where none is."""
    try:
        # a config of the call's own takes the place of the one around, in which the task stands
        configs = (ensure_config(config), around or {})
        found = (name for one in configs for name in _cached(one.get("configurable") or {}))
        cached = next(found, None)
    except (AttributeError, LookupError, TypeError) as error:
        reason = (
            f"nobody can tell whether this call's node is cached ({type(error).__name__}): this "
            "version of LangGraph is not known; install one that agentguard-langchain names"
        )
        return Decision.refused(reason, code="node.cached")
    if cached is None:
        return None
    reason = (
        f"the node {cached} of the graph is cached, and would hand out this call's result to "
        "whoever comes next, undecided and unlogged: take the cache_policy off that node"
    )
    return Decision.refused(reason, code="node.cached")


def _cached(configurable: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the cached nodes that run around here, the nearest first."""
    for task, loop in tasks(configurable):
        if task.cache_key is not None and loop.cache is not None:
            yield task.name
