"""A receiver of MCP requests without a server, and real call proofs that a test may alter.

A request is a JSON-RPC request: a method and parameters. ``check`` verifies one as a server does,
and ``refused`` returns the reason code.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tool_servers import guard_in_memory, in_call

from agentguard import Guard
from agentguard.errors import ProofError
from agentguard.proof import CallReceiver, ProofStore, RequestCaller, prove_call

AUDIENCE = "mcp:payments"
METHOD = "tools/call"
PARAMS: dict[str, Any] = {
    "name": "pay",
    "arguments": {"cents": 4200, "to": "Zoë", "rate": 1.5, "tags": ["a", "b"]},
    "requestState": "sealed-1",
    "_meta": {"fastmcp": {"version": "2"}, "progressToken": 7},
}


class CallScene:
    """A guard, and the receiver ``AUDIENCE``, whose clock the test may set (``clock``)."""

    def __init__(self, folder: Path, guard: Guard | None = None) -> None:
        self.guard = guard or guard_in_memory()
        self.folder = folder
        self.clock = time.time
        self.receiver = self.new_receiver()

    def new_receiver(self, audience: str = AUDIENCE, **more: Any) -> CallReceiver:
        """Return another receiver with the same store, as another worker has."""
        store = ProofStore(self.folder / "proofs.sqlite")
        given: dict[str, Any] = {"clock": self._now, **more}
        return CallReceiver(audience, self.guard.trust, store, **given)

    def _now(self) -> float:
        return self.clock()

    def prove(
        self,
        params: Mapping[str, Any] | None = PARAMS,
        *,
        method: str = METHOD,
        audience: str = AUDIENCE,
        **terms: Any,
    ) -> dict[str, Any]:
        """Return the parameters with a proof, which a guarded call for alice has made."""
        made: list[dict[str, Any]] = []
        terms = {"audience": [AUDIENCE], **terms}
        in_call(self.guard, lambda: made.append(prove_call(audience, method, params)), **terms)
        return copy.deepcopy(made[0])


def check(receiver: CallReceiver, params: object, method: object = METHOD) -> RequestCaller:
    return receiver.verify(method, params)


def refused(receiver: CallReceiver, params: object, method: object = METHOD) -> str:
    with pytest.raises(ProofError) as caught:
        check(receiver, params, method)
    return caught.value.code


def with_meta(params: Mapping[str, Any], **changed: Any) -> dict[str, Any]:
    """Return parameters with other members of ``_meta``; None takes a member away.

    The keyword ``token`` stands for ``dev.agentguard/token``, and so on for the other three.
    """
    own = ("token", "credential", "chain", "proof")
    meta = dict(params["_meta"])
    for name, value in changed.items():
        key = f"dev.agentguard/{name}" if name in own else name
        meta.pop(key, None)
        if value is not None:
            meta[key] = value
    return {**params, "_meta": meta}


def meta(params: Mapping[str, Any], name: str) -> str:
    return str(params["_meta"][f"dev.agentguard/{name}"])
