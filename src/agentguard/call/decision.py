"""The decision about one call, and ``Denied``, the exception that carries a refusal.

A ``Decision`` has the outcome, the reason code, the reasons in words, and the requirements of an
approval. ``policy/document.py`` turns an engine's answer into a decision.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from agentguard.call import redaction
from agentguard.call.reason_codes import responsibility_for
from agentguard.call.redaction import Redaction
from agentguard.errors import AgentguardError, PolicyError
from agentguard.signing.canonical import JSON

_LOGGER = logging.getLogger("agentguard")

Outcome = Literal["allow", "deny", "approval"]

MAX_REASONS: Final = 16
"""The most reasons of a decision."""

MAX_REASON: Final = 1024
"""The most characters of one reason."""

MAY_HAVE_RUN: Final = frozenset(
    {
        "journal.cut_short",
        "journal.in_doubt",
        "journal.missing",
        "journal.observed",
        "journal.unreplayable",
    }
)
"""The reason codes of a call that an earlier attempt has made, or may have made."""

_UNDECIDED: Final = frozenset(
    {
        "approval.altered",
        "approval.expired",
        "approval.insufficient",
        "approval.limit",
        "approval.required",
        "approval.unavailable",
        "call.interrupted",
        "calls.exceeded",
        "calls.rate",
        "calls.simultaneous",
        "domain.frozen",
        "delegation.ended",
        "delegation.expired",
        "delegation.failed",
        "delegation.holder",
        "delegation.missing",
        "journal.cut_short",
        "journal.in_doubt",
        "policy.error",
        "policy.malformed",
        "policy.panic",
    }
)
"""The reason codes after which the same call may yet run, with an answer or a new delegation."""

_BROKEN: Final = frozenset(
    {
        "anchor",
        "clock",
        "credential",
        "engine",
        "entropy",
        "facts",
        "frame",
        "key",
        "server",
        "signature",
        "storage",
    }
)
"""The nouns of the reason codes that report a failure."""


_PASSING: Final = frozenset(
    {
        "calls.rate",
        "calls.simultaneous",
        "engine.disconnected",
        "engine.timeout",
        "engine.unreachable",
        "server.busy",
        "server.draining",
        "server.unreachable",
    }
)
"""The reason codes of failures and limits that may pass by themselves: the next call asks anew."""

_NOT_FOR_MODELS: Final = "the application is not able to make this call"
_MAY_HAVE_RUN: Final = "an earlier attempt of this call began, and nobody knows whether it ran"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement of a policy for a call to run (policy-document.md, Output).

    ``approvers`` are names of the roster; of ``roles``, one suffices; None for anybody on the
    roster. ``quorum`` is the number of distinct people. ``ttl`` is in seconds. With ``allow_self``,
    people may approve their own calls. Raises ``PolicyError`` (``policy.malformed``) for approvers
    or roles that are empty: nobody could approve.
    """

    reason: str = "this call needs an approval"
    approvers: tuple[str, ...] | None = None
    roles: tuple[str, ...] | None = None
    quorum: int = 1
    ttl: int = 3600
    allow_self: bool = False

    def __post_init__(self) -> None:
        for name, people in (("approvers", self.approvers), ("roles", self.roles)):
            if people is not None and not people:
                message = f"{name} of a requirement are empty: name some, or leave {name} out"
                raise PolicyError(message, code="policy.malformed")

    def as_json(self) -> dict[str, JSON]:
        """Return the members of an ``approval`` (policy-document.md, Output)."""
        named = {"approvers": self.approvers, "roles": self.roles}
        return {
            "reason": self.reason,
            **{name: list(people) for name, people in named.items() if people is not None},
            "quorum": self.quorum,
            "ttl": self.ttl,
            "allow_self": self.allow_self,
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision about one call.

    ``outcome`` is ``allow``, ``deny`` or ``approval`` (the call may run once the ``requirements``
    are met). ``code`` is the reason code, empty for a plain allow. ``reasons`` are sentences of the
    policy's author or of agentguard, without secrets. ``redactions`` name the parts of the call's
    data that are not stored beside the log.

    A policy returns ``allow``, ``deny`` or ``require_approval``. Reason codes are agentguard's, so
    that a code means the same under every policy (docs/reference/reason-codes.md).
    """

    outcome: Outcome
    code: str = ""
    reasons: tuple[str, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    redactions: tuple[Redaction, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether the call may run now."""
        return self.outcome == "allow"

    @property
    def is_final(self) -> bool:
        """Whether the same call can't run later, with an answer, a delegation or a repair."""
        return self.code not in _UNDECIDED and not self.is_failure

    @property
    def is_failure(self) -> bool:
        """Whether a part has failed (the log, the clock, the engine), and no rule has decided."""
        return self.code.partition(".")[0] in _BROKEN

    @property
    def may_pass_later(self) -> bool:
        """Whether the same call may run later although nobody answers, lends or repairs anything.

        So it is while a policy server or a guard server is down or slow, and where a gateway has
        made as many calls as it may for now: the next call asks anew.
        """
        return self.code in _PASSING

    @property
    def reason(self) -> str:
        """The reasons on one line."""
        return "; ".join(self.reasons)

    @property
    def model_reason(self) -> str:
        """The reason for a model to read, which is never empty; some policies give none.

        A reason that a developer or an operator acts on is not for models.
        """
        if responsibility_for(self.code).party != "agent":
            return _MAY_HAVE_RUN if self.code in MAY_HAVE_RUN else _NOT_FOR_MODELS
        return self.reason or "the policy does not allow it"

    @classmethod
    def allow(cls) -> Decision:
        """Return the decision that the call may run."""
        return _ALLOW

    @classmethod
    def deny(cls, *reasons: str) -> Decision:
        """Return the policy's decision that the call must not run (``policy.denied``), and why."""
        return cls("deny", "policy.denied", reasons)

    @classmethod
    def refusal(cls, reason: str, *, code: str) -> Decision:
        """Return agentguard's own decision that the call must not run; no policy returns this."""
        return cls("deny", code, (reason,))

    @classmethod
    def observation(cls, decision: Decision) -> Decision:
        """Return the allow of observe mode, whose reason quotes the policy's ``decision``."""
        code = f" [{decision.code}]" if decision.code else ""
        reason = f"the policy is only observed; it says {decision.outcome}{code}"
        reasons = ("; ".join((reason, *decision.reasons)),)
        return cls("allow", reasons=reasons, redactions=decision.redactions)

    @classmethod
    def of_error(cls, error: AgentguardError) -> Decision:
        """Return the refusal with the reason code and the message of ``error``."""
        return cls.refusal(str(error), code=error.code)

    @classmethod
    def of_exception(cls, error: Exception, code: str, what: str) -> Decision:
        """Return the refusal of a call that ``error`` stops, whoever has raised the error.

        An ``AgentguardError`` has a code and a message of its own. Any other exception refuses the
        call as ``failure`` does.
        """
        if isinstance(error, AgentguardError):
            return cls.of_error(error)
        return cls.failure(code, what, error)

    @classmethod
    def failure(cls, code: str, what: str, error: Exception) -> Decision:
        """Return a refusal after an error, and log the error, which may hold secrets.

        A model reads the reason and the log keeps it, so the reason names the error's type alone.
        """
        with suppress(Exception):  # a handler of the application's log may fail as well
            _LOGGER.error("%s: the call is denied (%s)", what, code, exc_info=error)
        return cls.refusal(f"{what} ({type(error).__name__})", code=code)

    def shortened(self) -> Decision:
        """Return the decision with at most ``MAX_REASONS`` reasons of ``MAX_REASON`` characters."""
        if not self.reasons:
            return self
        reasons = (
            reason[:MAX_REASON].encode("utf-8", "backslashreplace").decode()
            for reason in self.reasons[:MAX_REASONS]
        )
        return replace(self, reasons=tuple(reasons))

    def redacted(self, *pointers: str) -> Decision:
        """Return the decision with more redactions, such as ``/args/password``.

        Raises ``DecodeError`` (``redaction.malformed``) for a text that is no JSON Pointer into a
        call's record.
        """
        return replace(self, redactions=self.redactions + tuple(map(redaction.parse, pointers)))

    @classmethod
    def require_approval(cls, *requirements: Requirement) -> Decision:
        """Return the decision that the call may run once each requirement is met.

        Without an argument, the requirement is one person of the roster.
        """
        if not requirements:
            requirements = (Requirement(),)
        reasons = tuple(requirement.reason for requirement in requirements)
        return cls("approval", "approval.required", reasons, requirements)


_ALLOW = Decision("allow")


class Denied(AgentguardError):
    """The call was denied, and its tool did not run.

    ``decision`` is the whole decision, ``code`` the reason code, ``reason`` the reasons in words.
    """

    default_code = "policy.denied"

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"{decision.reason or 'denied'} [{decision.code}]", code=decision.code)
        self.decision = decision

    def __reduce__(self) -> tuple[type[Denied], tuple[Any, ...]]:
        return type(self), (self.decision,)

    @property
    def reason(self) -> str:
        """The reasons on one line."""
        return self.decision.reason
