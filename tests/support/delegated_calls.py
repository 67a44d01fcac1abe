"""The agents of a log of delegated calls, and the attempt of a call."""

from __future__ import annotations

from typing import Any

from agentguard import Denied

AGENTS = {
    "robot": {"authority": "own", "max_scope": ["read"]},
    "worker": {"max_scope": ["read"]},
    "helper": {"max_scope": ["read"]},
}


def attempt(agent: Any, tool: Any) -> str:
    try:
        return str(agent.call(tool))
    except Denied as denied:
        return denied.code
