"""The protocol of a policy engine, as the flow of a guarded call uses an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from agentguard.call.decision import Requirement


class Engine(Protocol):
    """A policy engine. ``evaluate`` may be called from any thread."""

    @property
    def name(self) -> str:
        """``rego``, ``opa``, ``function``, ..."""

    @property
    def version(self) -> str:
        """The version of the engine, as recorded with each decision."""

    @property
    def policy_sha256(self) -> str | None:
        """SHA-256 (hex) of the canonical ``{path: sha256}`` of the policy; None if unknown."""

    @property
    def policy_files(self) -> Mapping[str, str]:
        """``{path: sha256 hex}`` of the loaded files; empty if unknown."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about likely mistakes in the policy, for its author; empty for most engines."""

    @property
    def waits(self) -> bool:
        """Whether ``evaluate`` may wait for a server: it then runs outside of the event loop."""

    def evaluate(self, document: bytes) -> object:
        """Evaluate the query on ``document`` (canonical JSON) and return its JSON value.

        Returns ``document.UNDEFINED`` when the query has no value, and ``document.Evaluated`` when
        the engine reports details of the evaluation. Raises ``PolicyError``, and nothing else, for
        every failure, panics of native code included.
        """

    def close(self) -> None:
        """Release open resources, such as connections."""


@runtime_checkable
class StatesRequirements(Protocol):
    """An engine that finds requirements for an approval in the text of its policy."""

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """The requirements that the policy writes out; the others show when a call is decided."""


@runtime_checkable
class Explains(Protocol):
    """An engine that can explain a refusal, in more detail than is recorded, to its operator."""

    def explain(self, document: bytes, code: str, /) -> str | None:
        """Return the cause of a refusal of ``document`` with this code; None if it is unknown.

        The text may quote arguments. Raises ``PolicyError``, as ``evaluate`` does.
        """
