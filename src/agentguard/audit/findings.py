"""The findings of the verification of one shard, as values.

``verify.py`` produces the findings of a shard. ``resolutions.py`` compares the findings of all
shards, and ``domain/verify.py`` turns them into one report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from agentguard.audit.checkpoint import Checkpoint
from agentguard.delegation.grant import Grant
from agentguard.identity.credential import Credential
from agentguard.identity.login import LogOut

if TYPE_CHECKING:
    from agentguard.audit.kinds.administration import AdministeredEntry, AdoptionEntry
    from agentguard.audit.kinds.requests import RequestDigests, RequestEndEntry, RequestEntry

MAX_LISTED: Final = 100
"""The number of problems of one shard that are listed; further problems are only counted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem in words, and its place; ``index`` is None for a problem of a whole shard."""

    shard: int
    index: int | None
    what: str


class LatestCall(NamedTuple):
    """The latest authorised call of a shard under a chain.

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
    last hop of the call's chain, None without one. ``proofs`` are the digests of the proofs of its
    requests so far.
    """

    place: int
    invocation_id: str
    invocation_sha256: str
    issued: Credential
    is_replay: bool
    tool: str
    config_sha256: str
    leaf: Grant | None
    proofs: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class MissingData:
    """Data that an entry commits to and that is not stored; an erasure of the call may explain why.

    ``roles`` are the roles of the data. ``place`` is the index of the call's authorization.
    """

    index: int
    roles: tuple[str, ...]
    place: int
    invocation_sha256: str


@dataclass(frozen=True, slots=True)
class ShardReport:
    """The findings of one shard.

    ``kept`` is true where a checkpoint from outside was available, ``anchored`` where the shard
    also agrees with the checkpoint. ``heads`` are the checkpoints of other shards that this shard
    embeds, unverified, each with the index of its entry. ``admin_statements`` are the resolutions
    and erasures, likewise with their indices; they may name calls of other shards. Whether an
    erasure explains ``missing_data`` is for the caller to check. ``unlisted_count`` is the number
    of problems beyond those in ``problems``.
    """

    shard: int
    entries: int
    head: Checkpoint | None
    kept: bool
    anchored: bool
    open_calls: tuple[OpenCall, ...]
    admin_statements: tuple[tuple[int, AdministeredEntry], ...]
    heads: tuple[tuple[int, Checkpoint], ...]
    missing_data: tuple[MissingData, ...]
    problems: tuple[Problem, ...]
    unlisted_count: int
    call_counts: tuple[tuple[str, int, int], ...] = ()
    """For each hop with a limit of calls: the ``jti``, the limit, and the calls in this shard."""

    approvals: tuple[tuple[RequestDigests, int], ...] = ()
    """The requests whose approvals let calls of this shard run, each with the call's index."""

    requests: tuple[RequestEntry, ...] = ()
    """The requests for approvals in this shard."""

    request_ends: tuple[tuple[int, RequestEndEntry], ...] = ()
    """The ends of requests in this shard, each with the index of its entry."""

    observed_calls: int = 0
    """The number of calls that ran in the mode observe, whatever the policy decided."""

    adoptions: tuple[tuple[int, AdoptionEntry], ...] = ()
    """The adoptions in this shard, each with the index of its entry."""

    logouts: tuple[tuple[LogOut, int], ...] = ()
    """The log-outs in this shard, each with the time of its entry in seconds since the epoch."""

    latest_calls: tuple[LatestCall, ...] = ()
    """Of each chain, the latest authorised call in this shard."""

    surrenders: tuple[tuple[str, int], ...] = ()
    """The hops that were given up in this shard, each with the time of that in seconds."""
