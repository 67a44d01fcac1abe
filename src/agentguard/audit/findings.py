"""What the verification of one shard has found: values, and nothing that finds them.

``verify.py`` makes them. Those of all shards are held against each other in ``resolutions.py``, and
become one report in ``domain/verify.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from agentguard.audit.adoption import Adoption
from agentguard.audit.approvals import Requested
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.statements import Administered
from agentguard.audit.summary import Summary
from agentguard.identity.credential import Credential

LISTED: Final = 100
"""Problems of one shard that are told one by one; of further ones only the number is."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What does not hold, and where; ``index`` is None for a whole shard."""

    shard: int
    index: int | None
    what: str


class OpenCall(NamedTuple):
    """An authorised call whose outcome has not been seen yet."""

    place: int
    invocation_id: str
    invocation_sha256: str
    issued: Credential


@dataclass(frozen=True, slots=True)
class Gone:
    """What an entry commits to and is not kept beside it: an erasure of its call may say why.

    ``place`` is where the call's authorization stands.
    """

    index: int
    roles: tuple[str, ...]
    place: int
    invocation_sha256: str


@dataclass(frozen=True, slots=True)
class ShardReport:
    """The findings of one shard.

    ``kept``: a checkpoint from outside was at hand; ``anchored``: and the log agrees with it.
    ``heads`` are the other shards' checkpoints that this one embeds, each with the index of its
    entry, unverified; ``administered`` are the resolutions and erasures, likewise, which may be of
    another shard's calls. ``gone`` is not judged here. ``unlisted`` is the number of problems
    beyond those that are listed.
    """

    shard: int
    entries: int
    head: Checkpoint | None
    kept: bool
    anchored: bool
    open_calls: tuple[OpenCall, ...]
    administered: tuple[tuple[int, Administered], ...]
    heads: tuple[tuple[int, Checkpoint], ...]
    gone: tuple[Gone, ...]
    problems: tuple[Problem, ...]
    unlisted: int
    counted: tuple[tuple[str, int, int], ...] = ()
    """Of each hop that allows a number of calls: its ``jti``, that number, and the calls here."""

    approvals: tuple[tuple[Requested, int], ...] = ()
    """The requests on whose approval calls rest here, each with the index of its call."""

    requests: tuple[tuple[Requested, Summary], ...] = ()
    """What people were asked here, each with the summary of its entry."""

    observed: int = 0
    """How many calls ran whatever the policy said: it was only observed."""

    adoptions: tuple[tuple[int, Adoption], ...] = ()
    """The adoptions of the state, each with the index of its entry."""
