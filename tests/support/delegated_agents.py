"""The agents, their largest scope, and the user of a call, in the tests of delegation contexts."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

MAX_SCOPE = ["read", "write", "secret"]
AGENTS = {
    "robot": {"authority": "own", "max_scope": MAX_SCOPE},
    "worker": {"max_scope": MAX_SCOPE},
    "helper": {"max_scope": ["read"]},
}

FOR_WHOM: ContextVar[Any] = ContextVar("for_whom")
