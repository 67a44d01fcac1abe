"""What the policy answers about one call, and the exception that carries a refusal.

``Decision`` is a value: the outcome, the reason code, the reasons in words, and what an
approval would have to meet. How an engine's answer becomes a decision stands in
``policy/document.py``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from agentguard.call import redaction
from agentguard.call.redaction import Redaction
from agentguard.errors import AgentguardError
from agentguard.signing.canonical import JSON

_LOGGER = logging.getLogger("agentguard")

Outcome = Literal["allow", "deny", "approval"]

MAX_REASONS: Final = 16
MAX_REASON: Final = 1024
"""How many reasons of an answer are kept, and how many characters of each."""

MAY_HAVE_RUN: Final = frozenset(
    {
        *("journal.cut_short", "journal.in_doubt", "journal.missing", "journal.observed"),
        "journal.unreplayable",
    }
)
"""A call that is refused with one of these codes was made before."""


_UNDECIDED: Final = frozenset(
    {
        *(
            "approval.altered",
            "approval.expired",
            "approval.insufficient",
            "approval.limit",
            "approval.required",
        ),
        *("approval.unavailable", "call.interrupted", "calls.exceeded", "domain.frozen"),
        *("delegation.ended", "delegation.expired", "delegation.failed", "delegation.holder"),
        *("delegation.missing", "journal.cut_short", "journal.in_doubt"),
        *("policy.error", "policy.malformed", "policy.panic"),
    }
)
_BROKEN: Final = frozenset(
    {"anchor", "clock", "credential", "engine", "entropy", "facts", "key", "signature", "storage"}
)
"""The nouns of codes that say that something has failed."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One approval that a policy asks for (policies.md, Output).

    ``approvers`` are names of the roster, of ``roles`` any one suffices; ``quorum`` counts
    distinct people; ``ttl`` is in seconds; ``allow_self`` lifts the separation of duties.
    """

    reason: str = "this call needs an approval"
    approvers: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    quorum: int = 1
    ttl: int = 3600
    allow_self: bool = False

    def as_json(self) -> dict[str, JSON]:
        """Return the members of policies.md's ``approval``, all of them."""
        return {
            "reason": self.reason,
            "approvers": list(self.approvers),
            "roles": list(self.roles),
            "quorum": self.quorum,
            "ttl": self.ttl,
            "allow_self": self.allow_self,
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one call.

    ``outcome`` is ``allow``, ``deny`` or ``approval`` (it may run once the ``requirements`` are
    met); ``code`` is the reason code, empty for a plain allow; ``reasons`` are sentences, made
    by the policy's author or by agentguard, that hold no secrets. A policy answers with ``allow``,
    ``deny`` or ``require_approval``: reason codes are agentguard's own, so that each means the same
    whatever the policy (docs/reason-codes.md). ``redactions`` name what of the call's data is not
    kept beside the log.
    """

    outcome: Outcome
    code: str = ""
    reasons: tuple[str, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    redactions: tuple[Redaction, ...] = ()

    @property
    def allowed(self) -> bool:
        """True when the call may run now."""
        return self.outcome == "allow"

    @property
    def is_final(self) -> bool:
        """False where nobody has answered yet, or something new has to be lent: it may yet run."""
        return self.code not in _UNDECIDED and self.code.partition(".")[0] not in _BROKEN

    @property
    def reason(self) -> str:
        """The reasons as one line."""
        return "; ".join(self.reasons)

    @property
    def told_reason(self) -> str:
        """The reason of a refusal as a model is told it: some policies give none."""
        return self.reason or "the policy does not allow it"

    @classmethod
    def allow(cls) -> Decision:
        """The call may run."""
        return _ALLOW

    @classmethod
    def deny(cls, *reasons: str) -> Decision:
        """The policy says that the call must not run, and why (``policy.denied``)."""
        return cls("deny", "policy.denied", reasons)

    @classmethod
    def refused(cls, reason: str, *, code: str) -> Decision:
        """Agentguard itself refuses the call; no policy answers so."""
        return cls("deny", code, (reason,))

    @classmethod
    def observed(cls, decision: Decision) -> Decision:
        """An allow, since the policy is only observed; the reason says what it has answered."""
        code = f" [{decision.code}]" if decision.code else ""
        reason = f"the policy is only observed; it says {decision.outcome}{code}"
        said = "; ".join((reason, *decision.reasons))
        return cls("allow", reasons=(said,), redactions=decision.redactions)

    @classmethod
    def failed(cls, code: str, what: str, error: Exception) -> Decision:
        """A refusal: something broke. The error itself, which may tell secrets, goes to the logger.

        The reason names its type alone: a model reads that, and the log keeps it.
        """
        _LOGGER.error("%s: the call is denied (%s)", what, code, exc_info=error)
        return cls.refused(f"{what} ({type(error).__name__})", code=code)

    def cut(self) -> Decision:
        """Cut the reasons, which may quote arguments, to what an entry and a model can take."""
        if not self.reasons:
            return self
        reasons = (
            reason[:MAX_REASON].encode("utf-8", "backslashreplace").decode()
            for reason in self.reasons[:MAX_REASONS]
        )
        return replace(self, reasons=tuple(reasons))

    def redacted(self, *pointers: str) -> Decision:
        """The same answer, and these parts of the call's data are not kept (``/args/password``).

        Raises ``DecodeError`` for what is no JSON Pointer into a call's record.
        """
        return replace(self, redactions=self.redactions + tuple(map(redaction.parse, pointers)))

    @classmethod
    def require_approval(cls, *requirements: Requirement) -> Decision:
        """The call may run once each of the requirements (default: one person) is met."""
        needed = requirements or (Requirement(),)
        return cls("approval", "approval.required", tuple(r.reason for r in needed), needed)


_ALLOW = Decision("allow")


class Denied(AgentguardError):
    """The call was refused and its tool did not run.

    ``decision`` is the whole answer, ``code`` the reason code, ``reason`` the reasons in words.
    """

    default_code = "policy.denied"

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"{decision.reason or 'denied'} [{decision.code}]", code=decision.code)
        self.decision = decision

    def __reduce__(self) -> tuple[type[Denied], tuple[Any, ...]]:
        return type(self), (self.decision,)

    @property
    def reason(self) -> str:
        """Why, in words."""
        return self.decision.reason
