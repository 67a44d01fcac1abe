"""OpenTelemetry: spans and metrics of guarded calls. The one part of agentguard that may fail open.

The core needs the API of OpenTelemetry alone, which is silent until an SDK is set up: by the
application, by ``configure``, or by ``[telemetry]`` of agentguard.toml (docs/traces.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentguard.effects import Actor, Watch
from agentguard.invocation import Invocation
from agentguard.telemetry import agents, metrics
from agentguard.telemetry.agents import SILENT, AgentRun, AgentSpan
from agentguard.telemetry.calls import Call, Evaluation, Silent
from agentguard.telemetry.identity import identity
from agentguard.telemetry.settings import Settings
from agentguard.telemetry.setup import ENDPOINTS, configure, flush, is_sent, require_exporter
from agentguard.telemetry.tracing import attached, fails_open, inside, is_set_up, tracer

__all__ = [
    "ENDPOINTS",
    "SILENT",
    "AgentRun",
    "AgentSpan",
    "Settings",
    "Telemetry",
    "attached",
    "configure",
    "fails_open",
    "flush",
    "inside",
    "is_sent",
    "is_set_up",
    "require_exporter",
    "workflow",
]


def workflow(name: str, *, conversation: str | None = None, paused: str | None = None) -> AgentSpan:
    """For adapters: begin the span ``invoke_workflow`` of what several agents do together.

    ``conversation`` and ``paused`` are those of ``Agent.span``.
    """
    return agents.begin_workflow(name, conversation, paused) or SILENT


class Telemetry:
    """Watches the calls of one guard, and the work of its agents; nothing here raises."""

    def __init__(self, settings: Settings, trust_domain: str) -> None:
        self._settings = settings
        self._trust_domain = trust_domain

    def call(self, actor: Actor, invocation: Invocation) -> Watch:
        """Watch a call that is made."""
        if _is_silent():
            return _SILENT
        return Call(self._settings, self._trust_domain, actor, invocation)

    def evaluation(self, actor: Actor, invocation: Invocation) -> Watch:
        """Watch the look-up of what the answer to a call would be."""
        if _is_silent():
            return _SILENT
        return Evaluation(self._settings, self._trust_domain, actor, invocation)

    def agent(self, actor: Actor, run: AgentRun) -> AgentSpan:
        """Begin the span of an agent's run (``Agent.span``)."""
        return agents.begin(actor.name, self._identity(actor, run) or {}, run) or SILENT

    @fails_open
    def _identity(self, actor: Actor, run: AgentRun) -> Mapping[str, Any]:
        who = (run.principal, tuple(run.actors), run.task_id)
        return identity(self._settings, self._trust_domain, actor, *who)


_SILENT: Final = Silent()


@fails_open
def _is_silent() -> bool:
    return tracer() is None and not metrics.is_set_up()
