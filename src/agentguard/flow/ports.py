"""The parts that the calls of a guard run on: the engine, the log, the clock and so on.

``guard/process.py`` puts the parts together, once for each process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from inspect import isawaitable
from typing import Any, Protocol

from agentguard.approvals.request import ApprovalRequest
from agentguard.approvals.roster import Roster
from agentguard.approvals.store import StoredRequest
from agentguard.audit.entry import LogPlace, Mode, Record
from agentguard.audit.log import AuditLog
from agentguard.call.journal import Journal
from agentguard.call.plain import discarded
from agentguard.call.redaction import Redaction
from agentguard.call.releases import SecretDesk
from agentguard.policy.engine import Engine
from agentguard.policy.names import Names

_LOGGER = logging.getLogger("agentguard")

Clock = Callable[[], datetime]
"""Returns the wall-clock time, aware and in UTC."""

Entropy = Callable[[int], bytes]
"""Returns that many random bytes, fit for keys."""


OnRequest = Callable[[ApprovalRequest], object]
"""Receives each new request for an approval. An exception of the function is logged, no more.

The thread that makes the call runs the function, or for ``acall`` one of the guard's threads. The
call goes on when the function returns.
"""


def tell(name: str, function: OnRequest, request: ApprovalRequest) -> None:
    """Tell the application of a request; a function that fails changes nothing."""
    try:
        answer = function(request)
        if isawaitable(answer):
            raise TypeError(f"the function returned a {discarded(answer)}, which nobody runs")  # noqa: TRY301
    except Exception:
        _LOGGER.exception("%s failed for the request %s", name, request.request_id)


class Places(Protocol):
    """Finds the places to which the paths in ``arguments`` lead (the member ``paths``)."""

    @property
    def arguments(self) -> frozenset[str]:
        """The names of the arguments whose paths have a folder (``[paths]``)."""

    def __call__(self, values: Mapping[str, Any], /) -> Mapping[str, str]:
        """Return the places by the names of the arguments; reads links of the file system."""


class Approvals(Protocol):
    """What calls need of the requests for approvals, which all processes of a state share.

    Each method raises ``StorageError``.
    """

    def has(self, key: str) -> bool:
        """Return whether a request is stored under ``key``; cheap, for it runs in every call."""

    def read(self, key: str) -> StoredRequest | None:
        """Read the request under ``key`` and compare it with the log; None without a request."""

    def ask(
        self, key: str, request: ApprovalRequest, record: Record
    ) -> tuple[ApprovalRequest, LogPlace | None]:
        """Log and store a request under ``key``; return it, and the place of its ``record``.

        Where another attempt has asked first, its request is returned, and nothing is written.
        Requests whose end is on record are removed when their time is over. Raises
        ``ApprovalError`` (``approval.limit``) where too many requests wait already.
        """

    def removal(self, key: str) -> Callable[[Any], object]:
        """Return what removes the request under ``key``, in the commit that decides its call."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Ports:
    """The parts that every call of a guard runs on, in one process."""

    engine: Engine
    engine_name: Mapping[str, str]
    log: AuditLog
    clock: Clock
    entropy: Entropy
    config_sha256: str
    redactions: Mapping[str, tuple[Redaction, ...]]
    """The parts of a call's data that are not kept, by the tool's name; ``*`` for every tool."""

    approvals: Approvals
    journal: Journal
    secrets: SecretDesk
    roster: Roster
    trust_domain: str
    places: Places
    names: Names
    end_expired: Callable[[], float]
    """Ends the requests whose time is over, and tells the application; raises nothing.

    Returns the seconds after which to look again.
    """

    on_request: OnRequest | None = None
    asks_application: bool = False
    """Whether a function of the application names the roles of those who answer through it."""

    mode: Mode = "enforce"
    """``enforce``, or ``observe``: then the policy's answer is logged, and refuses nothing."""

    def now(self) -> datetime:
        """Return the time of the clock, which is never before the newest entry of the log."""
        return max(self.clock(), self.log.last_at)

    def redactions_of(self, tool: str) -> tuple[Redaction, ...]:
        """Return what the configuration redacts of a tool's calls."""
        return self.redactions.get("*", ()) + self.redactions.get(tool, ())
