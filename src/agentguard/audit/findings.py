"""The findings of the verification of a log, and what it keeps of entries for later ones.

``contents.py`` and ``verify.py`` find them, and ``domain/verify.py`` turns them into a report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from agentguard.delegation.grant import Grant
from agentguard.identity.credential import Credential

MAX_LISTED: Final = 100
"""The number of problems that are listed; further problems are only counted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem in words, and the index of its entry; None for a problem of the whole log."""

    index: int | None
    what: str


@dataclass(slots=True)
class Problems:
    """The problems of a log, the first ``MAX_LISTED`` of them in words."""

    _listed: list[Problem] = field(default_factory=list)
    _others: int = 0

    def add(self, index: int | None, what: str) -> None:
        """Add a problem, and the index of its entry; None for a problem of the whole log."""
        if len(self._listed) < MAX_LISTED:
            self._listed.append(Problem(index, what))
        else:
            self._others += 1

    def listed(self) -> tuple[Problem, ...]:
        """Return the problems, and at the end how many more there are."""
        more = [Problem(None, f"and {self._others} more")] if self._others else []
        return (*self._listed, *more)


class LatestCall(NamedTuple):
    """The latest authorised call under a chain.

    ``at`` is the time of the call in seconds since the epoch, ``place`` the index of the
    authorization, and ``names`` are those by which a log-out or a surrender ends the chain.
    """

    at: int
    place: int
    names: tuple[str, ...]


@dataclass(slots=True)
class OpenCall:
    """An authorised call without an outcome so far; ``place`` is the index of the authorization.

    A call that ``is_replay`` gets the result of an earlier one, and does not run. ``leaf`` is the
    last hop of the call's chain, None without one. A call ``lacks_answer`` that people were asked
    to approve, and that rests on no answer. ``proofs`` are the digests of the proofs of its
    requests so far, and ``ran`` is what an administrator says, None as long as nobody says it.
    """

    place: int
    invocation_id: str
    invocation_sha256: str
    issued: Credential
    is_replay: bool
    tool: str
    config_sha256: str
    leaf: Grant | None
    lacks_answer: bool
    proofs: set[str] = field(default_factory=set)
    ran: bool | None = None


@dataclass(frozen=True, slots=True)
class MissingData:
    """Data that an entry commits to and that is not stored; an erasure of the call may explain why.

    ``roles`` are the roles of the data. ``place`` is the index of the call's authorization.
    """

    index: int
    roles: tuple[str, ...]
    place: int
    invocation_sha256: str
