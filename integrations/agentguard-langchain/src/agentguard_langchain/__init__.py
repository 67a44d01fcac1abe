"""agentguard for LangChain and LangGraph: the public names of the adapter, and nothing else."""

from __future__ import annotations

__all__: list[str] = []
