"""``CallerDelegations``: the server's own delegations, one for each chain that callers show.

A verified caller acts for a principal, with a scope. The server's guard begins a delegation with
the same principal, scope and task, in which the caller's agent stands as the service that the
request came through. So the server's policy, log and revocations know the principal as for any
call, and an approval for one agent is none for another.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from agentguard import Delegation, Guard
from agentguard.proof import RequestCaller

MAX_KEPT: Final = 1024
"""The most delegations that are kept; a further one replaces the one unused for longest."""


def service_of(caller: RequestCaller) -> str:
    """Return the caller's agent as the name of a service, as in ``service:clerk@acme.example``.

    The instances of an agent share the name.
    """
    trust_domain, _agent, name = caller.agent.removeprefix("spiffe://").split("/")[:3]
    return f"service:{name}@{trust_domain}"


class CallerDelegations:
    """Begins a delegation for each chain of callers, and keeps it for their next requests."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[Delegation, float]] = {}

    def of(self, caller: RequestCaller) -> Delegation:
        """Return the delegation for a caller; raises as ``Guard.delegate`` does."""
        key, now = caller.chain.sha256, time.time()
        with self._lock:
            delegation, ends = self._kept.pop(key, (None, 0.0))
            if delegation is None or ends <= now:
                ends = caller.chain.leaf.expires_at
                delegation = self._begin(caller, max(1, int(ends - now)))
            self._kept[key] = (delegation, ends)
            while len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]
        return delegation

    def _begin(self, caller: RequestCaller, seconds: int) -> Delegation:
        return self._guard.delegate(
            caller.principal,
            scope=sorted(caller.scope),
            via=service_of(caller),
            task_id=caller.task_id,
            expires_in=seconds,
        )
