"""The report on a verified log: its shards, its problems, and what vouches for the whole.

``verify.py`` makes the report; the command line and applications read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentguard.audit.findings import Problem, ShardReport
from agentguard.audit.kinds.administration import AdoptionEntry


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of a whole log.

    ``anchored`` is true where a checkpoint from outside the state agrees with each shard.
    ``witness`` says whether whoever writes the state could have changed these checkpoints.
    """

    shards: tuple[ShardReport, ...]
    problems: tuple[Problem, ...]
    in_doubt: tuple[str, ...] = ()
    """The invocation ids of authorised calls that have neither an outcome nor a resolution."""
    missing: tuple[int, ...] = ()
    """The numbers of the shards that the registry or an anchor names, and that are not there."""
    damaged: tuple[int, ...] = ()
    """The numbers of the shards whose files are damaged: a search in such a file might not end."""

    alone: tuple[int, ...] = ()
    """The numbers of the shards whose only outside checkpoint is one that the state's writer can
    change."""

    @property
    def ok(self) -> bool:
        """True where no problem was found."""
        return not self.problems

    @property
    def entries(self) -> int:
        """The number of entries in all shards."""
        return sum(shard.entries for shard in self.shards)

    @property
    def kept(self) -> bool:
        """True where a checkpoint from outside was at hand for every shard, agreeing or not."""
        shards = self._begun()
        return bool(shards) and all(shard.kept for shard in shards)

    @property
    def anchored(self) -> bool:
        """True where a checkpoint from outside agrees with every shard, and no shard is missing."""
        shards = self._begun()
        return bool(shards) and not self.missing and all(shard.anchored for shard in shards)

    @property
    def witness(self) -> Literal["outside", "same user"] | None:
        """Who kept the checkpoints by which the log is ``anchored``; None where the log is not.

        ``same user`` where some shard has no checkpoint but one that the state's writer can change,
        who could roll back both.
        """
        if not self.anchored:
            return None
        return "same user" if self.alone else "outside"

    @property
    def adoptions(self) -> tuple[tuple[int, int, AdoptionEntry], ...]:
        """The adoptions that gave up entries, or may have, as ``(shard, index, adoption)``."""
        return tuple(
            (report.shard, index, entry)
            for report in self.shards
            for index, entry in report.adoptions
            if entry.adoption.lost or entry.adoption.unanchored
        )

    def _begun(self) -> list[ShardReport]:
        """Return the shards but those without an entry, a checkpoint or a problem."""
        return [shard for shard in self.shards if shard.entries or shard.kept or shard.problems]
