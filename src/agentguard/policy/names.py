"""``Names``: compares what a policy reads of its input with what the guard and its tools fill.

The guard's own members are checked when a policy is loaded. Attributes and facts have names that
tools choose. The configuration names those of its tables, and the code those of its own tools,
which come later than the policy. So this check is made before each call, until it passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from agentguard.call import vocabulary
from agentguard.call.decision import Decision
from agentguard.call.tool import ToolSpec
from agentguard.call.vocabulary import Path
from agentguard.policy.engine import Engine


@runtime_checkable
class ReadsInput(Protocol):
    """An engine that knows which members of the input its policy reads."""

    @property
    def reads(self) -> Mapping[Path, str]:
        """The paths below ``input`` that the policy reads, each with a place in the policy."""


class Names:
    """The names that tools give to the input of a policy, and those that nobody gives.

    ``given`` are the paths that the configuration names. The methods may be called from any thread.
    """

    def __init__(self, engine: Engine, given: Iterable[Path]) -> None:
        reads = engine.reads if isinstance(engine, ReadsInput) else {}
        self._reads: dict[Path, str] = {}
        for path, at in reads.items():
            self._reads.setdefault(path[: 2 if path[:1] == ("paths",) else 1], at)
        self._given: frozenset[Path] = frozenset(given)
        self._refusal = self._judge()

    def add(self, spec: ToolSpec) -> None:
        """Add the attributes and the facts of a tool."""
        names = {(name,) for name in (*spec.attributes, *(spec.gives or ()))}
        if self._refusal is not None and not names <= self._given:
            self._given |= names
            self._refusal = self._judge()

    def refusal(self) -> Decision | None:
        """Return why no call is decided: the policy reads what nobody gives; None for no reason."""
        return self._refusal

    @property
    def unknown(self) -> dict[Path, str]:
        """The paths below ``input`` that the policy reads and nobody fills, each with a message."""
        found = {path: vocabulary.unknown(path, self._given) for path in sorted(self._reads)}
        return {path: f"{self._reads[path]}: {why}" for path, why in found.items() if why}

    def _judge(self) -> Decision | None:
        unknown = self.unknown
        if not unknown:
            return None
        reasons = list(dict.fromkeys(unknown.values()))
        return Decision.refusal("; ".join(reasons), code="policy.invalid")
