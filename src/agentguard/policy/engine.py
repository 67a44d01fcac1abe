"""The policy engine: what each engine of this folder offers to the line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable


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
        """SHA-256 (hex) over the sorted ``{path: sha256}`` of modules and data; None if unknown."""

    @property
    def policy_files(self) -> Mapping[str, str]:
        """``{path: sha256 hex}`` of what was loaded; empty if unknown."""

    @property
    def waits(self) -> bool:
        """Whether ``evaluate`` may wait for somebody else: then it is kept off the event loop."""

    def evaluate(self, document: bytes) -> object:
        """Evaluate the query on ``document`` (canonical JSON) and return its JSON value.

        Returns ``policy.UNDEFINED`` when the query has no value, and ``policy.Evaluated`` to say
        more of the evaluation. Raises ``PolicyError``, and
        nothing else, for every failure, panics of native code included.
        """

    def close(self) -> None:
        """Let go of what is held open, such as connections."""


@runtime_checkable
class Explains(Protocol):
    """An engine that has more to say of a refusal than goes on record, to who sets it up."""

    def explain(self, document: bytes, code: str, /) -> str | None:
        """Say where a refusal of ``document`` with this code comes from; None for nothing.

        It may quote arguments. Raises ``PolicyError``, as ``evaluate`` does.
        """
