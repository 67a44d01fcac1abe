"""agentguard for LangChain and LangGraph: the public names of the adapter, and nothing else."""

from __future__ import annotations

from agentguard.adapters import require_supported

require_supported("agentguard-langchain", "langchain", "langchain-core", "langgraph")

from agentguard_langchain.denial import GuardedToolDenied
from agentguard_langchain.discovery import FoundTool, find_tools, unguarded
from agentguard_langchain.middleware import GuardMiddleware
from agentguard_langchain.nodes import guard_approval_node, guard_edge, guard_tool_node
from agentguard_langchain.preview import aevaluate, bind_ahead, evaluate
from agentguard_langchain.subagent import guard_subagent
from agentguard_langchain.tools import guard_tools

__all__ = [
    "FoundTool",
    "GuardMiddleware",
    "GuardedToolDenied",
    "aevaluate",
    "bind_ahead",
    "evaluate",
    "find_tools",
    "guard_approval_node",
    "guard_edge",
    "guard_subagent",
    "guard_tool_node",
    "guard_tools",
    "unguarded",
]
