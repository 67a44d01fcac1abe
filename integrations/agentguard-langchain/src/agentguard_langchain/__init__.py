"""agentguard for LangChain and LangGraph: the public names of the adapter, and nothing else."""

from __future__ import annotations

from agentguard_langchain.ahead import aevaluate, bind_ahead, evaluate
from agentguard_langchain.denial import GuardedToolDenied
from agentguard_langchain.subagent import guard_subagent
from agentguard_langchain.tools import guard_tools

__all__ = [
    "GuardedToolDenied",
    "aevaluate",
    "bind_ahead",
    "evaluate",
    "guard_subagent",
    "guard_tools",
]
