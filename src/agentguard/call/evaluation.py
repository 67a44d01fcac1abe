"""``Evaluation``: the policy's decision about a call that nobody makes, signed by the issuer.

``Agent.authorize`` returns one. The statement and its entry in the log stand in
``audit/kinds/evaluation.py``. An evaluation lets no tool run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agentguard.call.decision import Decision


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The decision that a call would get from the policy, and the proof of this answer.

    ``decision`` has the outcome: ``allow``, ``deny`` or ``approval`` (people have to approve the
    call). ``entry`` is the index of the evaluation in the log, as text, and ``statement`` the
    issuer's signed statement (a DSSE envelope as JSON). Both are None where the evaluation
    could not be signed and recorded: the decision is a refusal then. ``salt`` has the 32 bytes with
    which the statement commits to the arguments (SHA-256 of ``salt || arguments``); the log has
    neither the salt nor the arguments.
    """

    decision: Decision
    entry: str | None = None
    statement: bytes | None = field(default=None, repr=False)
    salt: bytes = field(default=b"", repr=False)

    @property
    def allowed(self) -> bool:
        """Whether the policy lets the call run, without an approval."""
        return self.decision.allowed

    @property
    def code(self) -> str:
        """The reason code (docs/reference/reason-codes.md); empty for a plain allow."""
        return self.decision.code

    @property
    def reason(self) -> str:
        """The reasons on one line."""
        return self.decision.reason
