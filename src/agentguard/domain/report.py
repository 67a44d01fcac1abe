"""The report on a verified log: its head, its problems, and what vouches for it.

``verify.py`` makes the report; the command line and applications read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentguard.audit.findings import Problem
from agentguard.audit.head import Head
from agentguard.audit.kinds.administration import AdoptionEntry


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of a log.

    ``entries`` is the number of entries that were read, and ``head`` the stored head; None where it
    does not verify. ``kept`` is true where a checkpoint from outside the state was at hand.
    ``anchored`` is true where all of them agree with the log.
    """

    entries: int
    head: Head | None
    kept: bool
    anchored: bool
    problems: tuple[Problem, ...]
    witness: Literal["outside", "same user"] | None = None
    """Who kept the checkpoints by which the log is ``anchored``; None where the log is not.

    ``same user`` where there is none but one that the state's writer can change, who could roll
    back both.
    """

    in_doubt: tuple[str, ...] = ()
    """The invocation ids of authorised calls that have neither an outcome nor a resolution."""

    adoptions: tuple[tuple[int, AdoptionEntry], ...] = ()
    """The adoptions that gave up entries, or may have, each with the index of its entry."""

    observed_calls: int = 0
    """The number of calls that ran in the mode observe, whatever the policy decided."""

    damaged: bool = False
    """Whether the log's file is damaged: a search in it might not end."""

    @property
    def ok(self) -> bool:
        """True where no problem was found."""
        return not self.problems
