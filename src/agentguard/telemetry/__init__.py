"""OpenTelemetry: spans and metrics of guarded calls. The one part of agentguard that may fail open.

The core needs the API of OpenTelemetry alone, which is silent until an SDK is set up: by the
application, by ``configure``, or by ``[telemetry]`` of agentguard.toml (docs/traces.md). What
imports the API is imported at its first use (PEP 562), and by a call only where something else has
imported the API (``silence.py``).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

from agentguard.call.invocation import Invocation
from agentguard.flow.effects import Actor, CallListener
from agentguard.telemetry.failing import fails_open
from agentguard.telemetry.run import AgentRun
from agentguard.telemetry.settings import ENDPOINTS, FLUSH_SECONDS, Settings
from agentguard.telemetry.silence import (
    Silent,
    SilentSpan,
    is_held_up,
    is_silent,
    watch_pending,
)

if TYPE_CHECKING:
    from agentguard.telemetry.agents import SILENT, AgentSpan
    from agentguard.telemetry.setup import configure, is_sent, require_exporter
    from agentguard.telemetry.tracing import attached, inside, is_set_up, tracer

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
    "follow",
    "inside",
    "is_sent",
    "is_set_up",
    "require_exporter",
    "tracer",
    "watch_pending",
    "workflow",
]

_HOMES = {
    "SILENT": "agents",
    "AgentSpan": "agents",
    "attached": "tracing",
    "configure": "setup",
    "inside": "tracing",
    "is_sent": "setup",
    "is_set_up": "tracing",
    "require_exporter": "setup",
    "tracer": "tracing",
}
"""In which module a name stands that needs the API of OpenTelemetry."""

if not TYPE_CHECKING:  # a type checker reads the imports above, and finds a name that is misspelt

    def __getattr__(name: str) -> Any:
        """Import a name at its first use."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def workflow(name: str, *, conversation: str | None = None, paused: str | None = None) -> AgentSpan:
    """For adapters: begin the span ``invoke_workflow`` of what several agents do together.

    ``conversation`` and ``paused`` are those of ``Agent.span``.
    """
    return _workflow(name, conversation, paused) or cast("AgentSpan", SilentSpan())


@fails_open
def _workflow(name: str, conversation: str | None, paused: str | None) -> AgentSpan | None:
    if is_held_up():
        return None
    from agentguard.telemetry import agents  # noqa: PLC0415  it imports the API

    return agents.begin_workflow(name, conversation, paused)


def follow(settings: Settings) -> None:
    """Set up what ``[telemetry]`` says, and without such a table what the variables say.

    Raises as ``configure`` does, but not for variables alone: they may be another library's.
    """
    if settings.endpoint or any(map(os.environ.get, ENDPOINTS)):
        from agentguard.telemetry import setup  # noqa: PLC0415  it imports the API

        setup.follow(settings)


def flush(seconds: float = FLUSH_SECONDS) -> bool:
    """Have what waits sent now, by what ``configure`` has set up.

    Returns whether that was done in time, and every span so far was taken.
    """
    if f"{__name__}.setup" not in sys.modules:
        return False
    from agentguard.telemetry import setup  # noqa: PLC0415  it imports the API

    return setup.flush(seconds)


class Telemetry:
    """Watches the calls of one guard, and the work of its agents; nothing here raises."""

    def __init__(self, settings: Settings, trust_domain: str) -> None:
        self._settings = settings
        self._trust_domain = trust_domain

    def call(self, actor: Actor, invocation: Invocation) -> CallListener:
        """Watch a call that is made."""
        return _SILENT if is_silent() else self._call(actor, invocation) or _SILENT

    def evaluation(self, actor: Actor, invocation: Invocation) -> CallListener:
        """Watch the look-up of what the answer to a call would be."""
        return _SILENT if is_silent() else self._evaluation(actor, invocation) or _SILENT

    def agent(self, actor: Actor, run: AgentRun) -> AgentSpan:
        """Begin the span of an agent's run (``Agent.span``)."""
        return self._agent(actor, run) or cast("AgentSpan", SilentSpan())

    @fails_open
    def _agent(self, actor: Actor, run: AgentRun) -> AgentSpan | None:
        if is_held_up():
            return None
        from agentguard.telemetry import agents  # noqa: PLC0415  it imports the API

        return agents.begin(actor.name, self._identity(actor, run) or {}, run)

    @fails_open
    def _call(self, actor: Actor, invocation: Invocation) -> CallListener:
        from agentguard.telemetry.calls import Call  # noqa: PLC0415  it imports the API

        return Call(self._settings, self._trust_domain, actor, invocation)

    @fails_open
    def _evaluation(self, actor: Actor, invocation: Invocation) -> CallListener:
        from agentguard.telemetry.calls import Evaluation  # noqa: PLC0415  it imports the API

        return Evaluation(self._settings, self._trust_domain, actor, invocation)

    @fails_open
    def _identity(self, actor: Actor, run: AgentRun) -> Any:
        from agentguard.telemetry.identity import identity  # noqa: PLC0415  it imports the API

        who = (run.principal, tuple(run.actors), run.task_id)
        return identity(self._settings, self._trust_domain, actor, *who)


_SILENT: Final = Silent()
