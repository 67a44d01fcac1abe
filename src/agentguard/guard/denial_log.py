"""What a program's log says of refused calls: one line for each, and what somebody has to mend.

``DenialListener`` listens to one call (``flow/listener.py``) in front of the listener of telemetry.
The logger ``agentguard.decisions`` gets one line for each refused call, without arguments and
reasons. The logger ``agentguard`` gets the reason and the remedy of a refusal that a developer or
an operator has to mend (``call/reason_codes.py``). Nothing here raises.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from agentguard.approvals.answer import Approval
from agentguard.approvals.request import ApprovalRequest
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, LogPlace
from agentguard.call.decision import Decision, Denied
from agentguard.call.reason_codes import responsibility_for
from agentguard.domain.policy_place import PolicyPlace
from agentguard.flow.authority import Authority
from agentguard.flow.listener import CallListener, LoggedInvocation
from agentguard.policy.document import NO_RULE
from agentguard.telemetry import fails_open
from agentguard.visible import visible_json, visible_text

_LOGGER: Final = logging.getLogger("agentguard")
_DECISIONS: Final = logging.getLogger("agentguard.decisions")

_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:/@+#-]+")
"""A value that stands in a line without quotation marks."""

_LONGEST: Final = 256
"""The most characters of a name in a line."""

_BEGAN: Final = frozenset({"ok", "error", "unknown"})
"""The outcomes of a tool that has begun: a ``Denied`` then is the tool's own exception."""


class _Reentry(threading.local):
    """Whether this thread logs a refusal now: a handler may make guarded calls as well."""

    is_logging = False


_REENTRY: Final = _Reentry()


class DenialLogger:
    """Logs the refusals of one agent's calls in one process; no method raises.

    A policy without a rule for a tool is logged once for each tool.
    """

    def __init__(self, agent: str, policy: PolicyPlace) -> None:
        self._agent = agent
        self._policy = policy
        self._without_rule: set[str] = set()

    @fails_open
    def log(
        self,
        tool: str,
        decision: Decision,
        remedies: Mapping[str, str],
        *,
        principal: str | None = None,
        invocation_id: str | None = None,
    ) -> None:
        """Log a refusal. ``invocation_id`` is None where the refusal is not in the audit log.

        ``remedies`` are a framework's own, by reason code.
        """
        if _REENTRY.is_logging:
            return
        _REENTRY.is_logging = True
        try:
            self._log_line(tool, decision, principal, invocation_id)
            self._log_remedy(tool, decision, remedies)
            if decision.reasons == (NO_RULE,):
                self._log_missing_rule(tool, invocation_id)
        finally:
            _REENTRY.is_logging = False

    @fails_open
    def _log_line(
        self, tool: str, decision: Decision, principal: str | None, invocation_id: str | None
    ) -> None:
        names = {
            "code": decision.code,
            "agent": self._agent,
            "principal": principal,
            "tool": tool,
            "invocation": invocation_id,
        }
        line = " ".join(f"{name}={_quoted(value)}" for name, value in names.items())
        extra = {name: _shown(value) for name, value in names.items()}
        _DECISIONS.warning("denied %s", line, extra=extra)

    @fails_open
    def _log_remedy(self, tool: str, decision: Decision, remedies: Mapping[str, str]) -> None:
        responsibility = responsibility_for(decision.code)
        if responsibility.party == "agent":
            return
        asked = ""
        if self._policy.url is not None and decision.code.startswith("engine."):
            asked = f" ({visible_text(self._policy.url)} was asked)"
        _LOGGER.warning(
            "%s was not run: %s [%s]. For the %s: %s%s",
            _shown(tool),
            visible_text(decision.reason.removesuffix(f": {responsibility.remedy}")),
            visible_text(decision.code),
            responsibility.party,
            remedies.get(decision.code, responsibility.remedy),
            asked,
        )

    @fails_open
    def _log_missing_rule(self, tool: str, invocation_id: str | None) -> None:
        if tool in self._without_rule:
            return
        self._without_rule.add(tool)
        place, command = "", "agentguard policy eval INPUT.json --policy POLICY"
        if self._policy.log != "memory" and invocation_id is not None:
            place = ", as the guard server's user" if self._policy.log == "server" else ""
            command = f"agentguard audit show {invocation_id} --json | agentguard policy eval -"
        _LOGGER.warning(
            "no rule of the policy (%s) allows this call of %s by agent %s. If the call is meant "
            "to run, add a rule, and ask the policy about the same call once more%s: %s",
            visible_text(self._policy.place),
            _shown(tool),
            self._agent,
            place,
            command,
        )


class DenialListener:
    """Listens to one call of ``tool``, passes each report on to ``inner``, and logs a refusal.

    ``remedies`` are a framework's own, by reason code.
    """

    __slots__ = (
        "_decision",
        "_has_begun",
        "_inner",
        "_invocation_id",
        "_logger",
        "_principal",
        "_remedies",
        "_tool",
    )

    def __init__(
        self, inner: CallListener, logger: DenialLogger, tool: str, remedies: Mapping[str, str]
    ) -> None:
        self._inner = inner
        self._logger = logger
        self._tool = tool
        self._remedies = remedies
        self._principal: str | None = None
        self._invocation_id: str | None = None
        self._decision: Decision | None = None
        self._has_begun = False

    def begin(self, authority: Authority, task_id: str | None, paused: str | None) -> str | None:
        """Keep the principal."""
        unproved = "" if authority.is_proved else " (unproved)"
        self._principal = f"{authority.principal}{unproved}"
        return self._inner.begin(authority, task_id, paused)

    def decided(self, decision: Decision, policy_sha256: str | None) -> None:
        """Pass the report on."""
        self._inner.decided(decision, policy_sha256)

    def asks(self) -> str | None:
        """Pass the report on."""
        return self._inner.asks()

    def requested(self, request: ApprovalRequest, place: LogPlace, head: Checkpoint) -> None:
        """Pass the report on."""
        self._inner.requested(request, place, head)

    def waits(self, request: ApprovalRequest) -> None:
        """Pass the report on."""
        self._inner.waits(request)

    def answered(self, request: ApprovalRequest, answers: Sequence[Approval]) -> None:
        """Pass the report on."""
        self._inner.answered(request, answers)

    def recorded(
        self, decision: Decision, invocation: LoggedInvocation, place: LogPlace, head: Checkpoint
    ) -> None:
        """Keep the invocation's id, and the decision if it refuses the call."""
        self._invocation_id = invocation.id
        if invocation.enforced and not decision.allowed:
            self._decision = decision
        self._inner.recorded(decision, invocation, place, head)

    def suspended(self) -> None:
        """Pass the report on."""
        self._inner.suspended()

    def handed_on(self) -> None:
        """Pass the report on."""
        self._inner.handed_on()

    def outcome(
        self,
        status: str,
        error_type: str | None = None,
        attachments: Sequence[Attachment] = (),
        replay_of: str | None = None,
    ) -> None:
        """Note whether the tool has begun."""
        self._has_begun = status in _BEGAN
        self._inner.outcome(status, error_type, attachments, replay_of)

    def end(self, error: BaseException | None) -> None:
        """Log the refusal with which the call ends, if it is one of this call."""
        self._inner.end(error)
        decision = self._decision
        if decision is None and isinstance(error, Denied) and not self._has_begun:
            decision = error.decision
        if decision is not None:
            self._logger.log(
                self._tool,
                decision,
                self._remedies,
                principal=self._principal,
                invocation_id=self._invocation_id,
            )

    def __enter__(self) -> None:
        self._inner.__enter__()

    def __exit__(self, *raised: object) -> None:
        self._inner.__exit__(*raised)


def _shown(value: str | None) -> str | None:
    return None if value is None else visible_text(value[:_LONGEST])


def _quoted(value: str | None) -> str:
    """Return a value for a line: as it is, in quotation marks, or ``-`` for none."""
    if value is None:
        return "-"
    value = value[:_LONGEST]
    return value if _PLAIN.fullmatch(value) else visible_json(value)
